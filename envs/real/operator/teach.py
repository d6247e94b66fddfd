"""Kinesthetic teaching: a person leads the arm by hand, and the motion becomes actions.

    reason = teach(runtime, controls, max_steps=200, subscriber=recorder)       # empty: a regular end

At the policy's rate, joints and images are recorded. The action of a step leads the *commanded* joints, which start
where the arm is, to the joints of the next reading: played back, the actions reach the joints that were taught. If the
hand is faster than an action may be, the next steps catch up. The gripper command is the one at the step's end. A stale
image or a fault ends the episode, which must not be kept then.
"""

from typing import Any

import numpy as np

from s2robot.envs.real.arms.driver import ArmState
from s2robot.envs.real.arms.xarm import MANUAL
from s2robot.envs.real.control.sensors import Sensors
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State, Watchdog
from s2robot.envs.real.operator.teleop import Controls
from s2robot.envs.real.runtime import ArmRuntime


def teach(runtime: ArmRuntime, controls: Controls, max_steps: int, subscriber: Subscriber) -> str:
    """Record one episode; return why it broke off, empty after a regular end. The arm is stopped afterwards.

    Args:
        runtime: the arm; its driver has `lead` and `grip`.
        controls: the gripper and the end of the person's part.
        subscriber: receives each step: images, proprio, action, time, time_action, camera_age (see `control.subscriber`).

    Raises:
        EnvError: the arm refuses, or images or joints are not fresh.
    """
    driver: Any = runtime.driver
    try:
        driver.lead()
        return _record(runtime, driver, controls, max_steps, subscriber)
    finally:
        driver.stop("teaching has ended")
        runtime.rest()


def _record(
    runtime: ArmRuntime, driver: Any, controls: Controls, max_steps: int, subscriber: Subscriber
) -> str:
    clock, config, closed = runtime.clock, runtime.loop.config, controls.closed
    watchdog = Watchdog(runtime.loop.watchdog.limits, MANUAL)
    sensors = Sensors(runtime.driver, runtime.loop.sensors.cameras, watchdog, clock=clock)

    def watch() -> State:
        """Read the arm; a reading that fails leaves no joints."""
        runtime.on_beat()
        sensors.forget()
        return sensors.watch()

    def observe(state: ArmState) -> dict:
        seen, ages = sensors.observe(config.image_size), sensors.ages(clock.now())
        images = {f"images_{name}": image for name, image in seen["images"].items()}
        return {**images, "proprio": seen["proprio"], "time": state.t_mono, "camera_age": ages}

    state = sensors.wait_ready(watch, config.ready_s, "teaching")
    watchdog.start(clock.now())
    commanded, before = state.q, observe(state)
    period = 1 / config.policy_hz
    due = clock.now() + period
    for _ in range(max_steps):
        while (now := clock.now()) < due:
            runtime.on_beat()
            if controls.closed != closed:  # at once, not at the next step
                closed = controls.closed
                driver.grip(0.0 if closed else 1.0)
            clock.sleep(min(0.01, due - now))
        due = max(due + period, now + period / 2)
        running, found = watch() == State.RUNNING, sensors.state
        if found is None or not running:
            return "; ".join(watchdog.reasons) or "no joints"
        delta = np.clip(found.q - commanded, -config.max_delta, config.max_delta)
        commanded = commanded + delta
        action = np.append(delta, float(closed)).astype(np.float32)
        subscriber.on_step({**before, "action": action, "time_action": clock.now()})
        if controls.part_ended:
            return ""
        before = observe(found)
    return ""

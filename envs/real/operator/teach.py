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
        controls: the gripper and the end of the episode.
        subscriber: receives each step: images, proprio, action, time, time_action, camera_age (see `control.subscriber`).

    Raises:
        EnvError: the arm refuses, or images or joints are not fresh.
    """
    driver: Any = runtime.driver
    try:
        driver.lead()
        return _Teaching(runtime, controls).run(max_steps, subscriber)
    finally:
        driver.stop("teaching has ended")
        runtime.rest()


class _Teaching:
    def __init__(self, runtime: ArmRuntime, controls: Controls):
        self._runtime, self._controls, self._clock = runtime, controls, runtime.clock
        self._driver: Any = runtime.driver
        self._config, loop = runtime.loop.config, runtime.loop
        self._watchdog = Watchdog(loop.watchdog.limits, MANUAL)
        self._sensors = Sensors(runtime.driver, loop.sensors.cameras, self._watchdog, clock=runtime.clock)
        self._closed = controls.closed

    def run(self, max_steps: int, subscriber: Subscriber) -> str:
        clock, config = self._clock, self._config
        state = self._sensors.wait_ready(self._watch, config.ready_s, "teaching")
        self._watchdog.start(clock.now())
        commanded, before = state.q, self._observe(state)
        period = 1 / config.policy_hz
        due = clock.now() + period
        for _ in range(max_steps):
            now = self._wait(due)
            due = max(due + period, now + period / 2)
            running = self._watch() == State.RUNNING
            found = self._sensors.state
            if found is None or not running:
                return "; ".join(self._watchdog.reasons) or "no joints"
            delta = np.clip(found.q - commanded, -config.max_delta, config.max_delta)
            commanded = commanded + delta
            action = np.append(delta, float(self._closed)).astype(np.float32)
            subscriber.on_step({**before, "action": action, "time_action": clock.now()})
            if self._controls.part_ended:
                return ""
            before = self._observe(found)
        return ""

    def _wait(self, due: float) -> float:
        """Wait until a time, s, while the gripper follows its key; return the time."""
        while (now := self._clock.now()) < due:
            self._runtime.on_beat()
            if self._controls.closed != self._closed:  # at once, not at the next step
                self._closed = self._controls.closed
                self._driver.grip(0.0 if self._closed else 1.0)
            self._clock.sleep(min(0.01, due - now))
        return now

    def _watch(self) -> State:
        """Read the arm; a reading that fails leaves no joints."""
        self._runtime.on_beat()
        self._sensors.forget()
        return self._sensors.watch()

    def _observe(self, state: ArmState) -> dict:
        seen = self._sensors.observe(self._config.image_size)
        return {
            **{f"images_{name}": image for name, image in seen["images"].items()},
            "proprio": seen["proprio"],
            "time": state.t_mono,
            "camera_age": self._sensors.ages(self._clock.now()),
        }

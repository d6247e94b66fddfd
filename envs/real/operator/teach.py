"""Kinesthetic teaching: a person leads the arm by hand, and what it did becomes actions.

    teaching = Teaching(driver, cameras, controls, TeachConfig(), subscriber=recorder)
    reason = teaching.run(max_steps=200)       # empty: it ended as it should

Ten times a second joints and pictures are noted. The action of a step is what leads the *commanded* joints, which
start where the arm is, to the joints that the next reading found: played back, the actions reach the joints that
were taught. A hand faster than an action may be is caught up with in the next steps. The gripper command is the one
at the step's end. A stale picture or a fault ends the episode, and it is not to be kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from s2robot.envs.frames import ImageSize
from s2robot.envs.real.arms.driver import ArmState, DriverStatus
from s2robot.envs.real.control.clock import REAL, Clock
from s2robot.envs.real.control.sensors import Camera, Sensors
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State, Watchdog, WatchdogLimits
from s2robot.envs.real.operator.teleop import Controls


class LedArm(Protocol):
    """An arm that a person can lead."""

    def lead(self) -> None: ...
    def grip(self, opening: float) -> None: ...
    def read(self) -> ArmState: ...
    def status(self) -> DriverStatus: ...
    def stop(self, reason: str) -> bool: ...


@dataclass(frozen=True)
class TeachConfig:
    """How teaching is noted."""

    rate_hz: float = 10.0  # steps a second, the policy's
    image_size: ImageSize = 256  # pixels, as the policy wants them
    max_delta: float = 0.25  # rad an action may move a joint
    ready_s: float = 5.0  # s to wait for fresh frames and joints
    mode: int = 2  # the arm's mode while it is led


class Teaching:
    """One arm, its cameras and a person.

    Args:
        driver: connected.
        cameras: name -> started reader.
        controls: gripper and end.
        config, limits: see there.
        subscriber: hears of each step: images, proprio, action, time, time_action, camera_age (see
            `s2robot.envs.real.control.recorder`).
        clock: of everything but the driver and the cameras.
        beat, rest: of the supervisor, which stops the arm when this process no longer beats (`ArmRuntime`).
    """

    def __init__(
        self,
        driver: LedArm,
        cameras: Mapping[str, Camera],
        controls: Controls,
        config: TeachConfig | None = None,
        limits: WatchdogLimits | None = None,
        subscriber: Subscriber | None = None,
        clock: Clock = REAL,
        beat: Callable[[], None] = lambda: None,
        rest: Callable[[], None] = lambda: None,
    ):
        self.driver, self.cameras, self.controls, self.clock = driver, dict(cameras), controls, clock
        self.config, self._limits = config or TeachConfig(), limits or WatchdogLimits()
        self._beat, self._rest = beat, rest
        self._subscriber = Subscriber() if subscriber is None else subscriber

    def run(self, max_steps: int) -> str:
        """One episode; why it broke off, or nothing. The arm is stopped when it returns.

        Raises:
            EnvError: the arm refuses, or frames or joints are not fresh.
        """
        try:
            self.driver.lead()
            return self._run(max_steps)
        finally:
            self.driver.stop("teaching has ended")
            self._rest()

    def _run(self, max_steps: int) -> str:
        watchdog, clock = Watchdog(self._limits, self.config.mode), self.clock
        self._sensors = Sensors(self.driver, self.cameras, watchdog, clock=clock)
        state = self._sensors.wait_ready(self._watch, self.config.ready_s, "teaching")
        watchdog.start(clock.now())
        self._closed = self.controls.closed
        commanded, before = state.q, self._look(state)
        period = 1 / self.config.rate_hz
        due = clock.now() + period
        for _ in range(max_steps):
            now = self._wait(due)
            due = max(due + period, now + period / 2)
            going_on = self._watch() == State.RUNNING
            found = self._sensors.state
            if found is None or not going_on:
                return "; ".join(watchdog.reasons) or "no joints"
            delta = np.clip(found.q - commanded, -self.config.max_delta, self.config.max_delta)
            commanded = commanded + delta
            action = np.append(delta, float(self._closed)).astype(np.float32)
            self._subscriber.on_step({**before, "action": action, "time_action": clock.now()})
            if self.controls.ended:
                return ""
            before = self._look(found)
        return ""

    def _wait(self, due: float) -> float:
        """Until a time, s, while the gripper obeys; the time then."""
        while (now := self.clock.now()) < due:
            self._beat()
            if self.controls.closed != self._closed:  # at once, not at the next step
                self._closed = self.controls.closed
                self.driver.grip(0.0 if self._closed else 1.0)
            self.clock.sleep(min(0.01, due - now))
        return now

    def _watch(self) -> State:
        """Joints, and the watchdog's view of them; those of a while ago are none."""
        self._beat()
        self._sensors.forget()
        return self._sensors.watch()

    def _look(self, state: ArmState) -> dict:
        """What a policy would see now."""
        now = self.clock.now()
        seen = self._sensors.observe(self.config.image_size)
        return {
            **{f"images_{name}": image for name, image in seen["images"].items()},
            "proprio": seen["proprio"],
            "time": state.t_mono,
            "camera_age": self._sensors.ages(now),
        }

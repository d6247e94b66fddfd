"""Kinesthetic teaching: a person leads the arm by hand, and what it did becomes actions.

    teaching = Teaching(driver, cameras, controls, TeachConfig(), on_step=recorder.add)
    reason = teaching.run(max_steps=200)       # empty: it ended as it should

Ten times a second joints and pictures are noted. The action of a step is what leads the *commanded* joints, which
start where the arm is, to the joints that the next reading found: played back, the actions reach the joints that
were taught. A hand faster than an action may be is caught up with in the next steps. The gripper command is the one
at the step's end. A stale picture or a fault ends the episode, and it is not to be kept.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmState, DriverStatus
from s2robot.envs.real.cameras.camera import CameraReader, square
from s2robot.envs.real.control.watchdog import Inputs, State, Watchdog, WatchdogLimits
from s2robot.envs.real.people.teleop import Controls


class LedArm(Protocol):
    """An arm that a person can lead."""

    def lead(self) -> None: ...
    def grip(self, opening: float) -> None: ...
    def read(self) -> ArmState: ...
    def status(self) -> DriverStatus: ...
    def stop(self, reason: str) -> None: ...


@dataclass(frozen=True)
class TeachConfig:
    """How teaching is noted."""

    rate_hz: float = 10.0  # steps a second, the policy's
    image_size: int = 256  # pixels, as the policy wants them
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
        on_step: called with each step: images, proprio, action, time, time_action, camera_age (see
            `s2robot.envs.real.control.recorder`).
    """

    def __init__(
        self,
        driver: LedArm,
        cameras: Mapping[str, CameraReader],
        controls: Controls,
        config: TeachConfig | None = None,
        limits: WatchdogLimits | None = None,
        on_step: Callable[[dict], None] = lambda step: None,
    ):
        self.driver, self.cameras, self.controls = driver, dict(cameras), controls
        self.config, self._limits, self._on_step = config or TeachConfig(), limits, on_step

    def run(self, max_steps: int) -> str:
        """One episode; why it broke off, or nothing. The arm is stopped when it returns.

        Raises:
            EnvError: the arm refuses, or frames or joints are not fresh.
        """
        self.driver.lead()
        try:
            return self._run(max_steps)
        finally:
            self.driver.stop("teaching has ended")

    def _run(self, max_steps: int) -> str:
        watchdog = Watchdog(self._limits or WatchdogLimits(), self.config.mode)
        state = self._ready(watchdog)
        watchdog.start(time.monotonic())
        commanded, closed = state.q, self.controls.closed
        before = self._look(state)
        period = 1 / self.config.rate_hz
        due = time.monotonic() + period
        for _ in range(max_steps):
            while (now := time.monotonic()) < due:
                if self.controls.closed != closed:  # at once, not at the next step
                    closed = self.controls.closed
                    self.driver.grip(0.0 if closed else 1.0)
                time.sleep(min(0.01, due - now))
            due = max(due + period, now + period / 2)
            found = self._read(watchdog)
            if found is None or watchdog.state != State.RUNNING:
                return "; ".join(watchdog.reasons) or "no joints"
            delta = np.clip(found.q - commanded, -self.config.max_delta, self.config.max_delta)
            commanded = commanded + delta
            action = np.append(delta, float(closed)).astype(np.float32)
            self._on_step({**before, "action": action, "time_action": time.monotonic()})
            if self.controls.ended:
                return ""
            before = self._look(found)
        return ""

    def _ready(self, watchdog: Watchdog) -> ArmState:
        end = time.monotonic() + self.config.ready_s
        while True:
            state = self._read(watchdog)
            if state is not None and watchdog.state == State.READY:
                return state
            if watchdog.state == State.FAULT or time.monotonic() > end:
                why = "; ".join(watchdog.reasons) or "no joints"
                raise EnvError(f"teaching: found {watchdog.state.value} ({why}), expected ready")
            time.sleep(0.01)

    def _read(self, watchdog: Watchdog) -> ArmState | None:
        """Joints, and the watchdog's view of them."""
        try:
            state = self.driver.read()
        except EnvError:
            state = None
        now, status = time.monotonic(), self.driver.status()
        watchdog.update(
            now,
            Inputs(
                camera_age={name: reader.age(now) for name, reader in self.cameras.items()},
                state_age=np.inf if state is None else now - state.t_mono,
                error=(state.error if state is not None else 0) or status.error,
                mode=status.mode,
                connected=status.connected,
                report_age=status.report_age_s,
            ),
        )
        return state

    def _look(self, state: ArmState) -> dict:
        """What a policy would see now."""
        now = time.monotonic()
        step: dict = {}
        for name, reader in self.cameras.items():
            frame = reader.latest()
            assert frame is not None  # the watchdog let nobody get here without
            step[f"images_{name}"] = square(frame.image, self.config.image_size)
        step["proprio"] = np.append(state.q, state.gripper).astype(np.float32)
        step["time"] = state.t_mono
        step["camera_age"] = np.array([reader.age(now) for reader in self.cameras.values()], np.float32)
        return step

"""Commands to the arm: actions become waypoints, waypoints become a filtered stream, and each step is recorded."""

from typing import Literal

import numpy as np
from pydantic import Field

from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.frames import ImageSize
from s2robot.envs.real.arms.driver import OK, ArmLimits, ArmState, Array
from s2robot.envs.real.control.motion import Interpolator
from s2robot.envs.real.control.safety import Safe, SafetyFilter, Verdict


class LoopConfig(Settings, at="bridge.loop", file="bridge/default"):
    max_steps: int = from_yaml(ge=1)
    max_delta: float = from_yaml(gt=0)
    check_chunks: bool = from_yaml()
    gripper_hold: int = from_yaml(ge=0)
    ready_s: float = from_yaml(gt=0)
    warm_up_s: float = from_yaml(gt=0)
    frozen_s: float = from_yaml(gt=0)
    frozen_motion: float = from_yaml(gt=0)
    live: bool = Field(default=False, exclude=True)  # False: do everything except sending
    policy_hz: float = Field(default=10.0, gt=0, exclude=True)  # observations per second, as in the demos
    image_size: ImageSize = Field(default=256, exclude=True)  # pixels, as the policy requires
    gripper: Literal["binary", "continuous"] | None = Field(default="binary", exclude=True)  # the arm's
    absolute: bool = Field(default=False, exclude=True)  # whether actions are joints, not deltas


class CommandStream:
    """The commands of one episode; every target passes the filter."""

    def __init__(self, limits: ArmLimits, safety: SafetyFilter, config: LoopConfig):
        self.safety, self.config, self.path = safety, config, Interpolator(limits)
        self._low = np.add(limits.q_min, limits.margin)  # (N,)
        self._high = np.subtract(limits.q_max, limits.margin)
        self._period = 1 / config.policy_hz
        self._commanded = self.path.q  # (N,) rad, last waypoint
        self._opening: float | None = None  # of the gripper, commanded
        self._turned = 0  # actions since the opening changed
        self._clamped = False  # whether the filter changed anything since the last action
        self.step: dict | None = None  # being executed

    @property
    def commanded(self) -> Array:
        """The joints (N,) rad to which the next action's deltas are added; not the stream's present joints."""
        return self.path.q if self._clamped else self._commanded

    def start(self, q: Array) -> None:
        """Start at rest at measured joints (N,). Raises EnvError if they are outside the limits."""
        self.safety.reset(q)
        self._rest_at(self.safety.q_last)
        self._opening, self._turned, self._clamped, self.step = None, 0, False, None

    def resume_from_rest(self) -> None:
        """Resume from rest: the arm has come to rest because nothing was sent."""
        self.safety.rest()
        self.path.q, self.path.dq = self.safety.q_last, self.safety.dq_last

    def hold(self, now: float, state: ArmState, reason: str) -> Safe:
        """Brake, or stay at rest; drop the current waypoints."""
        fresh = self.config.live and now - state.t_mono <= self.safety.config.state_age_max
        safe = self.safety.hold(reason, state.q if fresh else None)
        self._rest_at(safe.q)
        return safe

    def release(self, now: float, q: Array) -> None:
        """From rest, move to joints (N,) within the period of an action."""
        self._rest_at(self.safety.q_last)
        self.path.push(now, now + self._period, np.clip(q, self._low, self._high))

    def chunk_problem(self, actions: Array, state: ArmState) -> str | None:
        """Return which of the planned actions (k, A) would break a limit, and how, if all were executed from now; or None."""
        begin, n = self.commanded if self.config.live else state.q, len(self._low)
        for i, action in enumerate(actions):
            end, far = begin + action[:n], np.abs(action[:n]).max() > self.config.max_delta
            if not far and (np.clip(end, self._low, self._high) == end).all():
                end = self.safety.above_table(end)  # as `take` does
            why = "bridge.loop.max_delta" if far else self.safety.problem_between(begin, end, self._period)
            if why:
                return f"action {i + 1} of the {len(actions)} planned breaks a limit ({why})"
            begin = end
        return None

    def take(
        self, now: float, action: Array, state: ArmState, observation: dict, t_observed: float, ages: np.ndarray
    ) -> None:  # fmt: skip
        """Turn an action (A,) into the next waypoint, due one period later, and begin a step.

        The action answers `observation`, made at `t_observed`; `state` and the camera frames' `ages` are current.
        """
        if not self.config.live:  # the arm has not moved: the hypothetical commands start at its joints
            self.safety.reset(state.q)
            self._rest_at(self.safety.q_last)
        elif self._clamped:  # drop the motion that the filter did not pass
            self._commanded = self.path.q
        n = len(self._commanded)
        requested = action[:n] - self._commanded if self.config.absolute else action[:n]
        delta = np.clip(requested, -self.config.max_delta, self.config.max_delta)
        grip = self._grip(action[n:])
        target = self.safety.above_table(np.clip(self._commanded + delta, self._low, self._high))
        before, self._commanded = self._commanded, target
        self.path.push(now, now + self._period, self._commanded)
        self._clamped = False
        self.step = {
            **{f"images_{name}": image for name, image in observation["images"].items()},
            "proprio": observation["proprio"],
            "action": np.append(self._commanded - before, grip).astype(np.float32),
            "action_raw": action.astype(np.float32), "time": t_observed, "time_action": now,
            "verdict": np.uint8(Verdict.PASS), "code": np.int32(OK), "camera_age": ages, "start": self.safety.q_last,
        }  # fmt: skip

    def _grip(self, action: Array) -> Array:
        """Apply an action's gripper value; return the executed value.  # (1,), or (0,) without a gripper"""
        if self.config.gripper == "continuous":
            action = np.clip(action, 0.0, 1.0)
            self._opening = float(action[0])
        elif self.config.gripper == "binary":
            opening, self._turned = 0.0 if action[0] >= 0.5 else 1.0, self._turned + 1
            may_change = self._opening is None or self._turned > self.config.gripper_hold
            if opening != self._opening and may_change:
                # earlier, the policy would see fingers that have not moved yet, and toggle back and forth
                self._opening, self._turned = opening, 0
            action = np.array([float(self._opening == 0)])
        return action

    def next(self, now: float, state: ArmState) -> tuple[Safe, bool]:
        """Return the stream's next joints, filtered, and whether it is at rest with no waypoint pending."""
        q, late = self.path.step(now)
        measured = state.q if self.config.live else self.safety.q_last
        safe = self.safety(q, self._opening, measured, now - state.t_mono)
        if safe.verdict != Verdict.PASS:
            self.path.q, self.path.dq = safe.q, self.safety.dq_last
            self._clamped = True
        return safe, late and not self.safety.dq_last.any()

    def note(self, safe: Safe, code: int) -> None:
        """Record the worst verdict of the current step, and the arm's last error code."""
        if self.step is not None:
            self.step["verdict"] = np.uint8(max(self.step["verdict"], safe.verdict))
            if code != OK:
                self.step["code"] = np.int32(code)

    def finish(self) -> dict | None:
        """End the current step and return it with the executed motion; None if there is none."""
        if self.step is None:
            return None
        step, self.step = self.step, None
        moved = self.safety.q_last - step.pop("start")
        step["action_sent"] = np.append(moved, step["action"][len(moved) :]).astype(np.float32)
        return step

    def _rest_at(self, q: Array) -> None:
        self.path.reset(q)
        self._commanded = q

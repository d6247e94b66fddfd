"""What may go on: a pure state machine over ages and codes, with faults that stay.

    watchdog = Watchdog()
    state = watchdog.update(time.monotonic(), inputs)     # every period of the stream

IDLE: not started. READY: everything is fresh, motion is allowed to begin. RUNNING: moving. HOLD: standing still
and waiting; RUNNING again by itself when the cause is gone. FAULT: latched; only `clear`, which an operator asks
for, leads out of it, and to IDLE at that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK

UNSURE = "the policy's members disagree"


class State(Enum):
    IDLE = "idle"
    READY = "ready"
    RUNNING = "running"
    HOLD = "hold"
    FAULT = "fault"


class WatchdogLimits(Settings, at="bridge.watchdog", file="bridge/default"):
    camera_hold: float = from_yaml(gt=0)
    camera_fault: float = from_yaml(gt=0)
    state_hold: float = from_yaml(gt=0)
    state_fault: float = from_yaml(gt=0)
    policy_hold: float = from_yaml(gt=0)
    policy_fault: float = from_yaml(gt=0)
    hold_fault: float = from_yaml(gt=0)
    report_fault: float = from_yaml(gt=0)
    disagreement: float | None = from_yaml(gt=0)

    def rules(self) -> Iterable[tuple[Any, ...]]:
        for name in ("camera", "state", "policy"):
            hold, fault = getattr(self, f"{name}_hold"), getattr(self, f"{name}_fault")
            yield f"{name}_hold", hold <= fault, f"<= {name}_fault, {fault}"

    @property
    def gap(self) -> float:
        """s between two commands after which this process was suspended: a period holds two exchanges with the arm, and
        either may take as long as `state_fault`."""
        return 2 * self.state_fault


@dataclass(frozen=True)
class Inputs:
    """What is known at one moment. Ages in s; NaN counts as never seen."""

    camera_age: dict[str, float]  # of each camera's newest frame
    state_age: float  # of the measured joints
    policy_late: float = 0.0  # by how much the next target is overdue; 0 = in time
    policy_error: str = ""  # the policy crashed, or its answer was no action
    code: int = OK  # of the last command
    error: int = 0  # the arm's
    mode: int = 0  # the arm's
    connected: bool = True
    report_age: float = 0.0  # since the arm last reported by itself
    frozen_cameras: tuple[str, ...] = ()  # whose pictures no longer change
    disagreement: float = 0.0  # rad, of the members of the policy about the newest plan


@dataclass
class Watchdog:
    """The state and why it is so.

    `reasons` are those of the present state; `history` holds (time, state, reasons) of every change.
    """

    limits: WatchdogLimits = field(default_factory=WatchdogLimits)
    mode: int = 1  # the arm's mode while it is ours
    state: State = State.IDLE
    reasons: tuple[str, ...] = ()
    history: list[tuple[float, State, tuple[str, ...]]] = field(default_factory=list)
    _held_since: float = np.nan

    def update(self, now: float, inputs: Inputs) -> State:
        """The state at the time `now` (s, monotonic)."""
        if self.state == State.FAULT:
            return self.state
        started = self.state in (State.RUNNING, State.HOLD)
        faults, holds = self._faults(inputs, started), self._holds(inputs, started)
        if faults:
            return self._enter(now, State.FAULT, faults)
        if not started:
            # before the start a missing frame is waited for
            return self._enter(now, State.IDLE if holds else State.READY, holds)
        if not holds:
            return self._enter(now, State.RUNNING, ())
        self._enter(now, State.HOLD, holds)
        if not now - self._held_since <= self.limits.hold_fault:
            held = f"held for more than {self.limits.hold_fault:g} s"
            return self._enter(now, State.FAULT, (held, *holds))
        return self.state

    def start(self, now: float) -> None:
        """READY to RUNNING, on the operator's word. Raises EnvError from any other state."""
        if self.state != State.READY:
            why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
            raise EnvError(f"watchdog: expected state ready, got {self.state.value}{why}")
        self._enter(now, State.RUNNING, ())

    def fault(self, now: float, reason: str) -> None:
        """Latch a fault from outside; an earlier one stays."""
        if self.state != State.FAULT:
            self._enter(now, State.FAULT, (reason,))

    def pause(self, now: float) -> None:
        """The end of an episode: back to IDLE, unless there is a fault."""
        if self.state != State.FAULT:
            self._enter(now, State.IDLE, ())

    def clear(self, now: float) -> None:
        """FAULT to IDLE: the operator has looked at the arm and says so. Never called by a program."""
        if self.state == State.FAULT:
            self._enter(now, State.IDLE, ())

    def _faults(self, x: Inputs, started: bool) -> tuple[str, ...]:
        limits = self.limits
        found = {
            "connection lost": not x.connected,
            f"arm error {x.error}": x.error != 0,
            f"command code {x.code}": x.code != OK,
            f"policy: {x.policy_error}": x.policy_error != "",
        }
        if started:
            found[f"mode {x.mode}, expected {self.mode}"] = x.mode != self.mode
            found |= {
                f"camera {n} is gone": _over(age, limits.camera_fault) for n, age in x.camera_age.items()
            }
            found["joint state is gone"] = _over(x.state_age, limits.state_fault)
            found["policy is gone"] = _over(x.policy_late, limits.policy_fault)
            found["arm reports nothing"] = _over(x.report_age, limits.report_fault)
            found |= {f"camera {name} is frozen": True for name in x.frozen_cameras}
        return tuple(text for text, wrong in found.items() if wrong)

    def _holds(self, x: Inputs, started: bool) -> tuple[str, ...]:
        limits, most = self.limits, self.limits.disagreement
        found = {f"camera {n} is stale": _over(age, limits.camera_hold) for n, age in x.camera_age.items()}
        found["joint state is stale"] = _over(x.state_age, limits.state_hold)
        found["policy is late"] = _over(x.policy_late, limits.policy_hold)
        # before the start, it was of another episode
        found[UNSURE] = started and most is not None and not x.disagreement <= most
        return tuple(text for text, waits in found.items() if waits)

    def _enter(self, now: float, state: State, reasons: tuple[str, ...]) -> State:
        if state == State.HOLD and self.state != State.HOLD:
            self._held_since = now
        if (state, reasons) != (self.state, self.reasons):
            self.state, self.reasons = state, reasons
            self.history.append((now, state, reasons))
        return state


def _over(age: float, limit: float) -> bool:
    return not 0 <= age <= limit  # NaN and a clock that ran backwards are over as well

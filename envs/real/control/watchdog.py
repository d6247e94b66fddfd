"""The watchdog: a pure state machine over ages and codes, with latched faults, that decides whether the arm may move.

    watchdog = Watchdog()
    state = watchdog.update(time.monotonic(), inputs)     # every period of the stream

IDLE: not started. READY: all readings are fresh, motion may begin. RUNNING: moving. HOLD: at rest and waiting;
returns to RUNNING by itself once the cause has disappeared. FAULT: latched; only `clear`, at an operator's request,
leaves it, and leads to IDLE.
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
        """s between two commands beyond which this process must have been suspended: a period contains two exchanges with
        the arm, and each may take as long as `state_fault`."""
        return 2 * self.state_fault


@dataclass(frozen=True)
class Inputs:
    """The readings at one moment. Ages in s; NaN means never received."""

    camera_age: dict[str, float]  # of each camera's newest frame
    state_age: float  # of the measured joints
    policy_late: float = 0.0  # by how much the next target is overdue; 0 = on time
    policy_error: str = ""  # the policy crashed, or its answer was not an action
    code: int = OK  # of the last command
    error: int = 0  # the arm's
    mode: int = 0  # the arm's
    connected: bool = True
    report_age: float = 0.0  # since the arm's last unsolicited report
    frozen_cameras: tuple[str, ...] = ()  # whose images no longer change
    disagreement: float = 0.0  # rad, between the policy's members about the newest plan
    state_error: str = ""  # ": " and why the newest reading failed


@dataclass
class Watchdog:
    """The state and its reasons.

    `reasons` belong to the present state; `history` contains (time, state, reasons) of every change.
    """

    limits: WatchdogLimits = field(default_factory=WatchdogLimits)
    mode: int = 1  # the arm's mode while this program controls it
    state: State = State.IDLE
    reasons: tuple[str, ...] = ()
    history: list[tuple[float, State, tuple[str, ...]]] = field(default_factory=list)
    _held_since: float = np.nan

    def update(self, now: float, inputs: Inputs) -> State:
        """Update and return the state at the time `now` (s, monotonic)."""
        if self.state == State.FAULT:
            return self.state
        started = self.state in (State.RUNNING, State.HOLD)
        faults, holds = self._faults(inputs, started), self._holds(inputs, started)
        if faults:
            return self._enter(now, State.FAULT, faults)
        if not started:
            # before the start, wait for a missing frame
            return self._enter(now, State.IDLE if holds else State.READY, holds)
        if not holds:
            return self._enter(now, State.RUNNING, ())
        self._enter(now, State.HOLD, holds)
        if not now - self._held_since <= self.limits.hold_fault:
            held = f"held for more than {self.limits.hold_fault:g} s"
            return self._enter(now, State.FAULT, (held, *holds))
        return self.state

    def start(self, now: float) -> None:
        """Go from READY to RUNNING, at the operator's request. Raises EnvError in any other state."""
        if self.state != State.READY:
            why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
            raise EnvError(f"watchdog: expected state ready, got {self.state.value}{why}")
        self._enter(now, State.RUNNING, ())

    def fault(self, now: float, reason: str) -> None:
        """Latch a fault found elsewhere; keep an earlier one."""
        if self.state != State.FAULT:
            self._enter(now, State.FAULT, (reason,))

    def pause(self, now: float) -> None:
        """End an episode: return to IDLE unless there is a fault."""
        if self.state != State.FAULT:
            self._enter(now, State.IDLE, ())

    def clear(self, now: float) -> None:
        """Go from FAULT to IDLE, after an operator has inspected the arm and confirmed it. Never called automatically."""
        if self.state == State.FAULT:
            self._enter(now, State.IDLE, ())

    def _faults(self, x: Inputs, started: bool) -> tuple[str, ...]:
        limits = self.limits
        faults = {
            "connection lost": not x.connected,
            f"arm error {x.error}": x.error != 0,
            f"command code {x.code}": x.code != OK,
            f"policy: {x.policy_error}": x.policy_error != "",
        }
        if started:
            faults[f"mode {x.mode}, expected {self.mode}"] = x.mode != self.mode
            faults |= {
                f"camera {n} is gone": _over(age, limits.camera_fault) for n, age in x.camera_age.items()
            }
            faults[f"joint state is gone{x.state_error}"] = _over(x.state_age, limits.state_fault)
            faults["policy is gone"] = _over(x.policy_late, limits.policy_fault)
            faults["arm reports nothing"] = _over(x.report_age, limits.report_fault)
            faults |= {f"camera {name} is frozen": True for name in x.frozen_cameras}
        return tuple(text for text, present in faults.items() if present)

    def _holds(self, x: Inputs, started: bool) -> tuple[str, ...]:
        limits, limit = self.limits, self.limits.disagreement
        holds = {f"camera {n} is stale": _over(age, limits.camera_hold) for n, age in x.camera_age.items()}
        holds[f"joint state is stale{x.state_error}"] = _over(x.state_age, limits.state_hold)
        holds["policy is late"] = _over(x.policy_late, limits.policy_hold)
        # before the start, the disagreement is from another episode
        holds[UNSURE] = started and limit is not None and not x.disagreement <= limit
        return tuple(text for text, present in holds.items() if present)

    def _enter(self, now: float, state: State, reasons: tuple[str, ...]) -> State:
        if state == State.HOLD and self.state != State.HOLD:
            self._held_since = now
        if (state, reasons) != (self.state, self.reasons):
            self.state, self.reasons = state, reasons
            self.history.append((now, state, reasons))
        return state


def _over(age: float, limit: float) -> bool:
    return not 0 <= age <= limit  # NaN and a clock that ran backwards count as over

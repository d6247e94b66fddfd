"""The last check before the arm: a pure filter on the stream of joint commands.

    safety = SafetyFilter(XARM7_LIMITS, XArm7Points())
    safety.reset(state.q)
    safe = safety(q_target, gripper, state.q, state_age)   # once per period, 100 times a second
    driver.command(safe.q, safe.gripper)                   # safe.q is within limits for any input

It does no I/O and reads no clock: a call stands for one period of `limits.rate_hz`. The caller must never send commands
faster than that, not even to catch up.

The filter guarantees by induction: from the last command, every joint can brake to rest, independently and with its
full deceleration, such that all joints stay in range, all monitored points stay in the box and above the table, and no
point is too fast. A target passes only if the same holds from there. Otherwise the filter tries a part of the way to it,
and finally falls back to the next step of the braking checked before. An arm without a model has no monitored points:
only its joints are limited.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmLimits, Array, finite_joints
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.motion import braking_steps, pursuit_speed, stopping_speed

_SLACK = 1e-6  # relative, and in rad or m: keeps rounding errors during braking from crossing a limit
_EXACT = 1e-9  # rad, a target met this closely counts as unchanged
_BOTH = np.array([[1.0], [-1.0]])  # directions
_PARTS = (1.0, 0.5, 0.25)  # fractions of the way from braking to the target, tried in this order
_RISE = 1e-5  # m
_DIFFERENCE = 1e-5  # rad, step of numerical derivatives
_ABOVE = 1e-3  # m, `above_table`'s clearance: a straight line in joint space sags between two such targets
_BLOCKED_S = 1.0  # s without motion of a joint that is `stall_lag` behind its command
_STANDS = 0.01  # rad that it may move in that time


class Verdict(IntEnum):
    """The filter's decision about a target, from harmless to serious."""

    PASS = 0  # unchanged
    CLAMP = 1  # changed to stay within limits
    HOLD = 2  # braking and waiting; resumes once the cause has disappeared
    STOP = 3  # braking, latched until `reset`: the caller must stop the driver


class SafetyConfig(Settings, at="bridge.safety", file="bridge/default"):
    state_age_max: float = from_yaml(gt=0)
    clamps_max: int = from_yaml(ge=1)
    clamps_leak: float = from_yaml(gt=0)


@dataclass(frozen=True)
class Safe:
    q: Array  # (N,) rad, safe to send
    gripper: float | None  # opening, 0 closed to 1 open; None: no gripper command
    verdict: Verdict
    reasons: tuple[str, ...]  # empty for PASS


class SafetyFilter:
    """Filters a stream of joint targets; the module's docstring states the guarantees.

    `q_last` (N,) rad and `dq_last` (N,) rad/s are its last output.
    """

    def __init__(self, limits: ArmLimits, points: ArmPoints, config: SafetyConfig | None = None):
        self.limits, self.points, self.config = limits, points, config or SafetyConfig()
        self.dt = 1 / limits.rate_hz
        self._low = np.array(limits.q_min) + limits.margin + _SLACK  # (N,)
        self._high = np.array(limits.q_max) - limits.margin - _SLACK
        self._ends = np.stack([self._high, -self._low])  # (2, N)
        self._dq = np.array(limits.dq_max) * (1 - _SLACK)
        self._ddq = np.array(limits.ddq_max) * (1 - _SLACK)
        room = points.radius[:, None] + _SLACK
        arm_box = ((-np.inf, np.inf),) * 3 if limits.arm_box is None else limits.arm_box
        boxes = np.where(points.in_box[:, None, None], limits.box, arm_box)  # (P, 3, 2)
        self._point_low, self._point_high = boxes[..., 0] + room, boxes[..., 1] - room  # (P, 3)
        self._table = limits.table_z + limits.table_clearance + points.radius + _SLACK  # (P,)
        self._hand = np.flatnonzero(points.in_box)  # indices of the points
        self._stride = limits.point_speed * (1 - _SLACK) * self.dt  # m a point may move in a period
        self.q_last = np.full(limits.joints, np.nan)
        self.dq_last = np.zeros(limits.joints)
        self._target_last = self.q_last
        self._stopped: tuple[str, ...] = ("not started",)
        self._clamps = 0.0
        self._held = np.zeros(limits.joints)  # periods for which each joint has stood behind its command
        self._held_at = self.q_last  # rad, where

    def reset(self, q_measured: Any) -> None:
        """Start at rest at the measured joints, or where the arm was sent if it rests there. EnvError outside the limits."""
        q = finite_joints(q_measured, n := self.limits.joints)
        if q is None:
            raise EnvError(f"safety: expected {n} finite measured joints, got {q_measured!r}")
        if not self.dq_last.any() and (np.abs(q - self.q_last) <= self._ddq * self.dt**2).all():
            q = self.q_last  # it rests where it was sent, maybe at a wall
        if (q < self._low).any() or (q > self._high).any():
            i = int(np.argmax(np.maximum(self._low - q, q - self._high)))
            wrong = f"expected {self._low[i]:.3f} to {self._high[i]:.3f} rad, got {q[i]:.3f}"
            raise EnvError(f"safety: joint {i + 1}: {wrong}; move the arm by hand first")
        places = self.points.along(q[None])
        if problem := self._problem(places, places[0]):
            raise EnvError(f"safety: the arm starts outside its limits ({problem}); move it by hand first")
        self.q_last, self.dq_last, self._places_last = q, np.zeros(n), places[0]
        self._target_last = q
        self._stopped, self._clamps, self._held, self._held_at = (), 0.0, np.zeros(n), q

    def __call__(self, q_target: Any, gripper: Any, q_measured: Any, state_age: float) -> Safe:
        """Filter one target.

        Args:
            q_target: (N,) rad, absolute; any other value, NaN, infinity or a jump (`limits.step_max`) causes STOP.
            gripper: target opening, 0 to 1, or None.
            q_measured: (N,) rad, the newest reading.
            state_age: s, age of that reading.
        """
        if self._stopped:
            return self._brake(Verdict.STOP, *self._stopped)
        # invalid values
        n = self.limits.joints
        target, measured = finite_joints(q_target, n), finite_joints(q_measured, n)
        if target is None:
            return self._stop(f"target is not {n} finite numbers")
        if measured is None:
            return self._stop(f"measured joints are not {n} finite numbers")
        opening = None if gripper is None else _number(gripper)
        if gripper is not None and opening is None:
            return self._stop("gripper command is not a finite number")
        # the interpolator never jumps: this is a bug or a corrupted value, and no part of it can be trusted
        jump = np.abs(target - self.q_last)
        if jump.max() > self.limits.step_max:
            return self._stop(f"jump of joint {int(jump.argmax()) + 1} by {jump.max():.3g} rad")
        # no fresh state
        if not 0 <= state_age <= self.config.state_age_max:  # NaN is not fresh either
            return self._brake(Verdict.HOLD, "state is stale")
        reasons = []
        if opening is not None and not 0 <= opening <= 1:
            opening = min(max(opening, 0.0), 1.0)
            reasons.append("gripper range")
        # range, lag
        inside = np.clip(target, self._low, self._high)
        reasons += _named("range", inside != target)
        # speed, acceleration, braking before the end of the range
        speed = pursuit_speed(self.q_last, self._target_last, inside, self._dq, self._ddq, self.dt)
        speed = self._within(speed)
        # one call for the measured points and those of the path takes half the time
        places = self.points.along(np.concatenate([measured[None], self._way(speed)]))  # (1 + T, P, 3)
        if lag := self._lag(measured, places[0]):
            return self._stop(lag)
        places = places[1:]
        short = np.abs(self.q_last + speed * self.dt - inside) > _EXACT
        reasons += _named("speed or acceleration", short)
        self._target_last = inside
        # the monitored points
        if problem := self._problem(places, self._places_last):
            reasons.append(problem)
            detour = self._detour(speed, places)
            if detour is None:
                return self._clamped(self._braked(), None, opening, reasons)
            speed, places = detour
        if reasons:
            return self._clamped(speed, places[0], opening, reasons)
        self._clamps = max(self._clamps - self.config.clamps_leak, 0.0)
        self._advance(self.q_last + speed * self.dt, speed, places[0])
        return Safe(self.q_last, opening, Verdict.PASS, ())

    def problem_between(self, begin: Array, end: Array, seconds: float) -> str | None:
        """Return which limit a straight line in joint space (N,), rad, breaks at this duration, or None; corners are not checked."""
        fast = np.abs(end - begin) > self._dq * seconds
        if reasons := _named("range", np.clip(end, self._low, self._high) != end) + _named("speed", fast):
            return reasons[0]
        shares = np.linspace(0, 1, 1 + int(np.ceil(seconds / self.dt - _SLACK)))[:, None]
        places = self.points.along(begin + shares * (end - begin))
        return self._problem(places[1:], places[0])

    def above_table(self, q: Array) -> Array:
        """Return joints (N,) rad with the hand raised, if necessary, until no monitored point is below the table.

        For targets: a policy that pushes its fingers onto the table then slides along it, instead of being stopped by the
        filter at the first touch. This is no guarantee: the result is filtered like any target.
        """
        for _ in range(3):  # the table is flat and the steps are small: one is enough, as a rule
            depth = float((self._table + _ABOVE - self.points.at(q)[:, 2]).max(initial=-np.inf))
            if depth <= 0:
                break
            q = np.clip(q + self._raising(q, depth), self._low, self._high)
        return q

    def hold(self, reason: str, q_measured: Array | None = None) -> Safe:
        """Filter a period without a target: brake to rest, or stay at rest. `q_measured` (N,) rad, a fresh reading, may not lag."""
        if q_measured is not None and not self._stopped:
            if lag := self._lag(q_measured, self.points.at(q_measured)):
                return self._stop(lag)
        verdict = Verdict.STOP if self._stopped else Verdict.HOLD
        return self._brake(verdict, *(self._stopped or (reason,)))

    def rest(self) -> None:
        """Resume at rest from the last command: nothing was sent for so long that the arm has come to rest there."""
        self.dq_last, self._target_last = np.zeros_like(self.q_last), self.q_last

    def _lag(self, measured: Array, places: Array) -> str | None:
        """Return which measured joint (N,) or point (P, 3) is too far behind the last command, or None."""
        lag = np.abs(self.q_last - measured)
        if lag.max() > self.limits.lag_max:
            return f"joint {int(lag.argmax()) + 1} lags {lag.max():.2f} rad behind its command"
        held = (lag > self.limits.stall_lag) & (np.abs(measured - self._held_at) < _STANDS)
        self._held, self._held_at = held * (self._held + 1), np.where(held, self._held_at, measured)
        if self._held.max() > _BLOCKED_S / self.dt:
            joint = int(self._held.argmax())
            return f"joint {joint + 1} lags {lag[joint]:.2f} rad behind its command and does not move"
        behind = np.linalg.norm(places - self._places_last, axis=1)
        if behind.max(initial=0.0) > self.limits.point_lag_max:
            return f"{self._name(behind == behind.max())} lags {behind.max():.3f} m behind its command"
        return None

    def _within(self, speed: Array) -> Array:
        """Clip a speed (N,) to what every joint may have now."""
        room = self._ends - _BOTH * self.q_last  # (2, N) rad, distances to the upper and the lower end
        up, down = np.minimum(self._dq, stopping_speed(room, self._ddq, self.dt))
        high = np.minimum(up, self.dq_last + self._ddq * self.dt)
        low = np.maximum(-down, self.dq_last - self._ddq * self.dt)
        return np.clip(speed, low, high)

    def _detour(self, rejected: Array, places: Array) -> tuple[Array, Array] | None:
        """Return an allowed speed (N,) close to a rejected one, and its points (T, P, 3); None if only braking remains.

        It reduces the speed, and redirects motion below the table along it: when the arm starts to rise, a fingertip may first
        sink slightly, because the joints accelerate differently, and the arm would otherwise be stuck at the table.
        """
        braked = self._braked()
        for part in _PARTS:
            speed = braked + part * (rejected - braked)
            if part < 1:
                places = self.points.along(self._way(speed))
                if self._problem(places, self._places_last) is None:
                    return speed, places
            depth = float((self._table - places[..., 2]).max())
            if depth > 0:
                # slightly more than necessary, to compensate for the linear approximation
                speed = self._within(speed + self._raising(self.q_last, 1.1 * depth + _RISE) / self.dt)
                places = self.points.along(self._way(speed))
                if self._problem(places, self._places_last) is None:
                    return speed, places
        return None

    def _raising(self, q: Array, height: float) -> Array:
        """Return the change of joints `q` (N,) that raises the hand by `height`, m, without shifting or turning it.  # (N,)"""
        steps = _DIFFERENCE * np.eye(len(q))
        around = self.points.along(np.concatenate([q[None], q + steps]))[:, self._hand, :]
        slopes = (around[1:] - around[0]).reshape(len(q), -1).T / _DIFFERENCE  # (3 P, N)
        up = np.tile([0.0, 0.0, height], len(self._hand))
        return np.linalg.lstsq(slopes, up, rcond=1e-3)[0]

    def _way(self, speed: Array) -> Array:
        """Return the joints after a period at `speed` (N,), and while braking to rest from there.  # (T, N)"""
        speeds = np.concatenate([speed[None], braking_steps(speed, self._ddq, self.dt)])
        return self.q_last + np.cumsum(speeds, 0) * self.dt

    def _braked(self) -> Array:
        return np.sign(self.dq_last) * np.maximum(np.abs(self.dq_last) - self._ddq * self.dt, 0.0)

    def beyond(self, q: Array) -> float:
        """Return how far any point is outside its box or below the table at joints (N,), m; negative if none is."""
        places = self.points.at(q)  # (P, 3)
        outside = np.maximum(self._point_low - places, places - self._point_high)
        return max(float(x.max(initial=-np.inf)) for x in (outside, self._table - places[:, 2]))

    def _problem(self, places: Array, before: Array) -> str | None:
        """Return which rule the points break on a path (T, P, 3) from `before` (P, 3); None if they break none."""
        outside = (places < self._point_low) | (places > self._point_high)
        if outside.any():
            return f"box: {self._name(outside.any((0, 2)))}"
        below = places[..., 2] < self._table
        if below.any():
            return f"table: {self._name(below.any(0))}"
        move = np.diff(places, axis=0, prepend=before[None])
        fast = np.einsum("npi,npi->np", move, move) > self._stride**2
        return f"point speed: {self._name(fast.any(0))}" if fast.any() else None

    def _name(self, which: Array) -> str:
        return self.points.names[int(np.argmax(which))]

    def _clamped(self, speed: Array, places: Array | None, opening: float | None, reasons: list[str]) -> Safe:
        self._clamps += 1
        if self._clamps >= self.config.clamps_max:
            return self._stop(f"clamped too often ({reasons[0]})", *reasons)
        self._advance(self.q_last + speed * self.dt, speed, places)
        return Safe(self.q_last, opening, Verdict.CLAMP, tuple(reasons))

    def _stop(self, *reasons: str) -> Safe:
        self._stopped = reasons
        return self._brake(Verdict.STOP, *reasons)

    def _brake(self, verdict: Verdict, *reasons: str) -> Safe:
        """Take the next step of the braking that was checked when the last target passed."""
        speed = self._braked()
        self._advance(self.q_last + speed * self.dt, speed, None)
        self._target_last = self.q_last
        return Safe(self.q_last, None, verdict, reasons)

    def _advance(self, q: Array, speed: Array, places: Array | None) -> None:
        self.q_last, self.dq_last = q, speed
        self._places_last = self.points.at(q) if places is None else places


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except Exception:
        return None
    return number if np.isfinite(number) else None


def _named(what: str, which: Array) -> list[str]:
    """Return one reason that names the joints, or none."""
    if not which.any():
        return []
    return [f"{what}: joint {', '.join(str(i + 1) for i in np.flatnonzero(which))}"]

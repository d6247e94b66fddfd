"""The speed from which a joint can still stop in time, and the stream of joints derived from it.

Time is discrete. A joint that brakes from speed v with deceleration a moves (v - a dt) dt in the next step, (v - 2 a dt) dt
in the one after, and so on to rest.

    path = Interpolator(limits)
    path.reset(state.q)
    path.push(now, now + 0.1, target)     # for each new target, with the time at which to reach it
    q, late = path.step(now)              # once per period of the stream

Between two waypoints the reference is a straight line in joint space. The stream pursues it: a corner causes a lag of at
most v²/2a, recovered without overshoot. After the last waypoint the reference rests, so if the next waypoint is late, the
arm holds at the last one.
"""

from collections import deque

import numpy as np
from numpy.typing import ArrayLike

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmLimits, Array, finite_joints

SHARE = 0.95  # fraction of the limits' speed and acceleration, so that the filter has nothing to clamp


def stopping_speed(distance: ArrayLike, acceleration: ArrayLike, dt: float) -> Array:
    """Return the greatest speed for the next step such that it and the braking after it cover at most `distance`.

    Exact for the discrete law above; 0 where `distance` is 0 or less. Shapes broadcast.
    """
    unit = np.asarray(acceleration) * dt * dt  # each braking step is this much shorter than the last
    units = np.maximum(distance, 0.0) / unit
    n = np.floor((np.sqrt(1 + 8 * units) - 1) / 2)  # full braking steps after the next one
    return (units + n * (n + 1) / 2) / (n + 1) * unit / dt


def pursuit_speed(
    q: Array, before: Array, target: Array, speed: ArrayLike, acceleration: ArrayLike, dt: float
) -> Array:
    """Return the next step's speed for a joint at `q` that pursues a target, now at `target` and one step ago at `before`.

    The joint moves along with the target, at `speed` at most, and closes the gap so that it could stop relative to the
    target without overshoot. Once it has reached the target, it follows exactly. All (N,), rad and rad/s.
    """
    along = np.clip((target - before) / dt, -np.asarray(speed), speed)
    gap = target - along * dt - q
    return along + np.sign(gap) * stopping_speed(np.abs(gap), acceleration, dt)


def braking_steps(speed: ArrayLike, acceleration: ArrayLike, dt: float) -> Array:
    """Return the speeds after a step at `speed` (N,) if every joint brakes independently; the last are 0.  # (steps, N)"""
    speed = np.asarray(speed, float)
    loss = np.asarray(acceleration) * dt
    steps = np.arange(1, int(np.ceil(np.max(np.abs(speed) / loss))) + 1)[:, None]
    return np.sign(speed) * np.maximum(np.abs(speed) - steps * loss, 0.0)


class Interpolator:
    """A path of timed waypoints and the stream that follows it.

    `q` (N,) rad and `dq` (N,) rad/s are the stream's last values; set both to those sent if the filter has changed them.
    """

    def __init__(self, limits: ArmLimits, grace_s: float = 0.02):
        self.dt = 1 / limits.rate_hz
        self.grace_s = grace_s  # s past the last waypoint's time before the stream counts as late
        self._dq = np.array(limits.dq_max) * SHARE
        self._ddq = np.array(limits.ddq_max) * SHARE
        self._points: deque[tuple[float, Array]] = deque()
        self.q, self.dq = np.full(limits.joints, np.nan), np.zeros(limits.joints)
        self._reference = self.q

    def reset(self, q: Array) -> None:
        """Rest at `q` (N,), with no waypoints. Raises EnvError unless `q` is N finite numbers."""
        self.q, self.dq = self._finite(q, "start"), np.zeros(len(self._dq))
        self._reference = self.q
        self._points.clear()

    def push(self, now: float, due: float, q: Array) -> None:
        """Add a waypoint `q` (N,), rad, to reach at time `due`, s, after the previous one; later if that would be too fast.

        Raises EnvError unless `q` is N finite numbers.
        """
        q = self._finite(q, "waypoint")
        self._drop_passed(now)
        if not self._points or now > self._points[-1][0] + self.grace_s:
            # no motion in progress: the line starts here and now, not at the time of a past waypoint
            self._points.clear()
            self._points.append((now, self._reference))
        since, origin = self._points[-1]
        shortest = float(np.max(np.abs(q - origin) / self._dq))
        self._points.append((max(due, since + max(shortest, self.dt)), q))

    def step(self, now: float) -> tuple[Array, bool]:
        """Return the stream's next joints (N,), rad, and whether the next waypoint is late."""
        before, self._reference = self._reference, self._at(now)
        speed = pursuit_speed(self.q, before, self._reference, self._dq, self._ddq, self.dt)
        change = self._ddq * self.dt
        self.dq = np.clip(np.clip(speed, -self._dq, self._dq), self.dq - change, self.dq + change)
        self.q = self.q + self.dq * self.dt
        return self.q, not self._points or now > self._points[-1][0] + self.grace_s

    def _at(self, now: float) -> Array:
        """Return the reference at a time, (N,)."""
        self._drop_passed(now)
        if not self._points:
            return self._reference
        (start, origin), *rest = self._points
        if not rest or now <= start:
            return origin
        end, target = rest[0]
        return origin + (target - origin) * ((now - start) / (end - start))

    def _drop_passed(self, now: float) -> None:
        while len(self._points) > 1 and self._points[1][0] <= now:
            self._points.popleft()

    def _finite(self, q: Array, what: str) -> Array:
        if (array := finite_joints(q, n := len(self._dq))) is None:
            raise EnvError(f"{what}: expected {n} finite joints, got {q!r}")
        return array

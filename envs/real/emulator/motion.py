"""The set point of seven joints over time, in each of the box's motion modes. Radians, seconds.

Servo: the newest target at full speed. Plan: a target with a speed and acceleration of its own, replaceable on
the way (mode 6) or queued (mode 0). Velocity: joint velocities until their watchdog ends. Stop: brake and hold.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAX_SPEED = np.pi  # rad/s, 180 deg/s
MAX_ACCELERATION = 20.0  # rad/s²
STOP_DECELERATION = 20.0  # rad/s²; [assumed] for every stop, the emergency stop included
MAX_QUEUED = 1024  # planned targets; as many as the vendor's SDK lets wait
HAND_SPEED = 0.8  # rad/s, of a person who leads the arm in manual mode
_ARRIVED = 1e-5  # rad


@dataclass
class Plan:
    """One planned target."""

    target: np.ndarray  # (7,)
    speed: float
    acceleration: float
    done: Callable[[int], None] | None = None  # called with 0 once reached, 2 if thrown away


class Motion:
    """Set point ``joints`` and its velocity, advanced in small steps."""

    def __init__(self, joints: np.ndarray):
        self.joints = np.array(joints, float)  # (7,)
        self.velocity = np.zeros(7)
        self.kind = "hold"  # hold, servo, plan, velocity, stop, hand
        self.paused = False
        self.speed_limit = MAX_SPEED  # lower in the box's reduced mode
        self._target = self.joints.copy()
        self._plans: deque[Plan] = deque()
        self._time_left: float | None = None
        self._share = np.ones(7)  # of speed and acceleration, so that all joints arrive together

    # ------------------------------------------------------------------------------------------- commands

    def servo(self, target: np.ndarray) -> None:
        """Go to ``target`` (7,) at full speed, from now."""
        self._switch("servo")
        self._target = np.array(target, float)

    def plan(self, plan: Plan, replace: bool) -> None:
        """Go to a planned target: at once (``replace``) or after those before it."""
        if replace or self.kind != "plan":
            self._switch("plan")
            self._discard()
            self._share = np.ones(7)
        self._plans.append(plan)

    def go_velocity(self, velocity: np.ndarray, duration: float | None) -> None:
        """Keep ``velocity`` (7,) for ``duration`` seconds, or for ever."""
        self._switch("velocity")
        self._target = np.array(velocity, float)
        self._time_left = duration

    def hand(self, target: np.ndarray) -> None:
        """A person leads the arm to ``target`` (7,)."""
        self._switch("hand")
        self._target = np.array(target, float)

    def stop(self, joints: np.ndarray | None = None, velocity: np.ndarray | None = None) -> None:
        """Brake and hold, from the measured ``joints`` and ``velocity`` (7,) if given; forget all targets."""
        if self.kind in ("hold", "stop"):
            return
        self._discard()
        if joints is not None and velocity is not None:
            self.joints, self.velocity = np.array(joints, float), np.array(velocity, float)
        self.kind, self.paused = "stop", False

    def place(self, joints: np.ndarray) -> None:
        """The arm stands still at ``joints`` (7,): no motion on the way there."""
        self._discard()
        self.joints, self.velocity = np.array(joints, float), np.zeros(7)
        self._target = self.joints.copy()
        self.kind, self.paused = "hold", False

    # ---------------------------------------------------------------------------------------------- state

    @property
    def moving(self) -> bool:
        """Whether the set point will change with the next steps."""
        if self.kind == "hold":
            return False
        if self.kind in ("servo", "hand"):
            return bool(np.abs(self._target - self.joints).max() > _ARRIVED)
        return True

    @property
    def queued(self) -> int:
        """Planned targets not yet reached."""
        return len(self._plans)

    @property
    def goal(self) -> np.ndarray:
        """Where the set point is going.  # (7,)"""
        if self.kind == "plan" and self._plans:
            return self._plans[-1].target
        return self._target if self.kind in ("servo", "hand") else self.joints

    def advance(self, dt: float) -> np.ndarray:
        """The set point ``dt`` later.  # (7,)"""
        before = self.joints
        if self.paused:
            self._brake(dt)
        elif self.kind in ("servo", "hand"):
            speed = HAND_SPEED if self.kind == "hand" else self.speed_limit
            step = np.clip(self._target - before, -speed * dt, speed * dt)
            self.joints, self.velocity = before + step, step / dt
        elif self.kind == "plan":
            self._follow_plan(dt)
        elif self.kind == "velocity":
            self._follow_velocity(dt)
        elif self.kind == "stop":
            self._brake(dt)
            if not self.velocity.any():
                self.kind = "hold"
        return self.joints

    # --------------------------------------------------------------------------------------------- inside

    def _switch(self, kind: str) -> None:
        if self.kind == "plan" and kind != "plan":
            self._discard()
        self.kind, self._time_left = kind, None

    def _discard(self) -> None:
        plans, self._plans = self._plans, deque()
        for plan in plans:
            if plan.done:
                plan.done(2)

    def _change_velocity(self, wanted: np.ndarray, acceleration: np.ndarray | float, dt: float) -> None:
        change = np.clip(wanted - self.velocity, -acceleration * dt, acceleration * dt)
        self.velocity = self.velocity + change
        self.joints = self.joints + self.velocity * dt

    def _brake(self, dt: float) -> None:
        self._change_velocity(np.zeros(7), STOP_DECELERATION, dt)

    def _follow_velocity(self, dt: float) -> None:
        if self._time_left is not None:
            self._time_left -= dt
        over = self._time_left is not None and self._time_left <= 0
        fastest = max(np.abs(self._target).max(), 1e-9)
        wanted = self._target * min(1.0, self.speed_limit / fastest)  # slowed alike: the direction stays
        self._change_velocity(np.zeros(7) if over else wanted, MAX_ACCELERATION, dt)
        if (over or not self._target.any()) and not self.velocity.any():
            self.kind = "hold"

    def _follow_plan(self, dt: float) -> None:
        if not self._plans:
            self.kind = "hold"
            return
        plan = self._plans[0]
        error = plan.target - self.joints
        distance = np.abs(error)
        speed = np.full(7, min(plan.speed, self.speed_limit))
        acceleration = np.full(7, min(plan.acceleration, MAX_ACCELERATION))
        if not self.velocity.any():  # from rest, the joints arrive together
            self._share = np.maximum(distance / max(distance.max(), _ARRIVED), 0.02)
        speed, acceleration = speed * self._share, acceleration * self._share
        # the fastest from which the joint can still stop at the target, less what one step adds
        stoppable = (
            np.sqrt(2 * acceleration * distance + (acceleration * dt / 2) ** 2) - acceleration * dt / 2
        )
        wanted = np.sign(error) * np.minimum(np.minimum(speed, stoppable), distance / dt)
        self._change_velocity(wanted, acceleration, dt)
        if (np.abs(plan.target - self.joints) < 1e-4).all() and (np.abs(self.velocity) < 2e-2).all():
            self.joints, self.velocity = plan.target.copy(), np.zeros(7)
            self._plans.popleft()
            if plan.done:
                plan.done(0)
            if not self._plans:
                self.kind = "hold"

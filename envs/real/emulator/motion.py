"""The set point of seven joints over time, in the box's motion modes, and a body that follows it. Radians, seconds."""

from typing import Protocol

import numpy as np

MAX_SPEED = np.pi  # rad/s, 180 deg/s
MAX_ACCELERATION = 20.0  # rad/s²
STOP_DECELERATION = 20.0  # rad/s²; [assumed] for every stop, the emergency stop included
HAND_SPEED = 0.8  # rad/s, of a person who leads the arm in manual mode
_ARRIVED = 1e-5  # rad


class Motion:
    """Set point `joints` (7,) and its `velocity`, advanced in small steps."""

    def __init__(self, joints: np.ndarray):
        self.speed_limit = MAX_SPEED  # lower in the box's reduced mode
        self.place(joints)

    def servo(self, target: np.ndarray) -> None:
        """Go to `target` (7,) at full speed, from now."""
        self.kind, self.goal = "servo", np.array(target, float)

    def plan(self, target: np.ndarray, speed: float, acceleration: float) -> None:
        """Go to `target` (7,) with a speed and acceleration of its own, from now."""
        self.kind, self.goal = "plan", np.array(target, float)
        self._speed, self._acceleration = np.clip([speed, acceleration], 0.01, [MAX_SPEED, MAX_ACCELERATION])
        self._share = np.ones(7)  # of both, so that all joints arrive together

    def hand(self, target: np.ndarray) -> None:
        """A person leads the arm to `target` (7,)."""
        self.kind, self.goal = "hand", np.array(target, float)

    def stop(self, joints: np.ndarray, velocity: np.ndarray) -> None:
        """Brake and hold, from the measured `joints` and `velocity` (7,); forget the target."""
        if self.kind not in ("hold", "stop"):
            self.joints, self.velocity, self.kind = np.array(joints, float), np.array(velocity, float), "stop"

    def place(self, joints: np.ndarray) -> None:
        """The arm stands still at `joints` (7,): no motion on the way there."""
        self.joints, self.velocity = np.array(joints, float), np.zeros(7)
        self.kind, self.goal = "hold", self.joints.copy()  # hold, servo, plan, stop, hand

    @property
    def moving(self) -> bool:
        """Whether the set point will change with the next steps."""
        if self.kind in ("servo", "hand"):
            return bool(np.abs(self.goal - self.joints).max() > _ARRIVED)
        return self.kind != "hold"

    def advance(self, dt: float) -> np.ndarray:
        """The set point `dt` later.  # (7,)"""
        if self.kind in ("servo", "hand"):
            speed = HAND_SPEED if self.kind == "hand" else self.speed_limit
            step = np.clip(self.goal - self.joints, -speed * dt, speed * dt)
            self.joints, self.velocity = self.joints + step, step / dt
        elif self.kind == "plan":
            self._follow_plan(dt)
        elif self.kind == "stop":
            self._change_velocity(np.zeros(7), STOP_DECELERATION, dt)
            if not self.velocity.any():
                self.place(self.joints)
        return self.joints

    def _change_velocity(self, wanted: np.ndarray, acceleration: np.ndarray | float, dt: float) -> None:
        change = np.clip(wanted - self.velocity, -acceleration * dt, acceleration * dt)
        self.velocity = self.velocity + change
        self.joints = self.joints + self.velocity * dt

    def _follow_plan(self, dt: float) -> None:
        error = self.goal - self.joints
        distance = np.abs(error)
        if not self.velocity.any():  # from rest, the joints arrive together
            self._share = np.maximum(distance / max(distance.max(), _ARRIVED), 0.02)
        speed, gain = min(self._speed, self.speed_limit) * self._share, self._acceleration * self._share
        # the fastest from which the joint can still stop at the target, less what one step adds
        stoppable = np.sqrt(2 * gain * distance + (gain * dt / 2) ** 2) - gain * dt / 2
        wanted = np.sign(error) * np.minimum(np.minimum(speed, stoppable), distance / dt)
        self._change_velocity(wanted, gain, dt)
        if (np.abs(self.goal - self.joints) < 1e-4).all() and (np.abs(self.velocity) < 2e-2).all():
            self.place(self.goal)


class Plant(Protocol):
    """The body: follows a joint set point in steps of fixed length. Radians, seconds, newtons."""

    joints: np.ndarray  # (7,) measured
    velocities: np.ndarray  # (7,) measured, rad/s
    torques: np.ndarray  # (7,) Nm
    opening: float  # of the gripper, measured: 0 closed to 1 open
    contact: float  # N, the strongest push on the arm by anything but what it holds

    def step(self, set_point: np.ndarray, grip: float, dt: float) -> None:
        """Move for `dt` towards `set_point` (7,) with the gripper going to opening `grip`."""

    def place(self, joints: np.ndarray) -> None:
        """Stand still at `joints` (7,)."""


class KinematicPlant:
    """No physics: each joint is a critically damped spring to its set point, the gripper follows at once."""

    joints: np.ndarray
    velocities: np.ndarray
    stiffness = 4000.0  # 1/s²; the lag behind a moving set point is 2 / sqrt(stiffness)

    def __init__(self, joints: np.ndarray):
        self.torques, self.opening, self.contact = np.zeros(7), 1.0, 0.0
        self.place(joints)

    def step(self, set_point: np.ndarray, grip: float, dt: float) -> None:
        for _ in range(2):  # stable for steps of 4 ms
            pull = self.stiffness * (set_point - self.joints) - 2 * self.stiffness**0.5 * self.velocities
            self.velocities = self.velocities + pull * dt / 2
            self.joints = self.joints + self.velocities * dt / 2
        self.opening = grip

    def place(self, joints: np.ndarray) -> None:
        self.joints, self.velocities = np.array(joints, float), np.zeros(7)

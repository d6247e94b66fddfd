"""The body that the emulated box moves: joints, gripper and whatever they touch."""

from typing import Protocol

import numpy as np


class Plant(Protocol):
    """Follows a joint set point in steps of fixed length. Radians, seconds, newtons."""

    joints: np.ndarray  # (7,) measured
    velocities: np.ndarray  # (7,) measured, rad/s
    torques: np.ndarray  # (7,) Nm
    opening: float  # of the gripper, measured: 0 closed to 1 open
    contact: float  # N, the strongest push on the arm by anything but what it holds

    def step(self, set_point: np.ndarray, grip: float, dt: float) -> None:
        """Move for ``dt`` towards ``set_point`` (7,) with the gripper going to opening ``grip``."""

    def place(self, joints: np.ndarray) -> None:
        """Stand still at ``joints`` (7,)."""


class KinematicPlant:
    """No physics: each joint is a critically damped spring to its set point, the gripper follows at once.

    Args:
        joints: (7,) where it starts.
        stiffness: 1/s²; the lag behind a moving set point is 2 / sqrt(stiffness).
    """

    joints: np.ndarray  # (7,) rad
    velocities: np.ndarray  # (7,) rad/s

    def __init__(self, joints: np.ndarray, stiffness: float = 4000.0):
        self._stiffness, self._damping = stiffness, 2 * np.sqrt(stiffness)
        self.torques = np.zeros(7)
        self.opening = 1.0
        self.contact = 0.0
        self.joints, self.velocities = np.array(joints, float), np.zeros(7)

    def step(self, set_point: np.ndarray, grip: float, dt: float) -> None:
        for _ in range(2):  # stable for steps of 4 ms
            pull = self._stiffness * (set_point - self.joints) - self._damping * self.velocities
            self.velocities = self.velocities + pull * dt / 2
            self.joints = self.joints + self.velocities * dt / 2
        self.opening = grip

    def place(self, joints: np.ndarray) -> None:
        self.joints, self.velocities = np.array(joints, float), np.zeros(7)

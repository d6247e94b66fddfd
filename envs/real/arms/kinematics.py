"""Kinematics of the xArm7 from its published modified Denavit-Hartenberg parameters. Metres and radians.

The frame is the arm's base; the tool centre point is the flange (no tool offset), as the box reports it.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from s2robot.envs.real.arms.driver import Array

# per joint: twist (rad) and length (m) before the joint, offset (m) along it
_ALPHA = np.array([0, -1, 1, 1, 1, 1, -1]) * np.pi / 2
_A = np.array([0, 0, 0, 0.0525, 0.0775, 0, 0.076])
_D = np.array([0.267, 0, 0.293, 0, 0.3425, 0, 0.097])


def _links() -> tuple[Array, Array, Array]:
    """Each link's pose in the one before is fixed + cos q · turning + sin q · crossing.  # 3 times (7, 4, 4)"""
    fixed, turning, crossing = np.zeros((3, 7, 4, 4))
    ca, sa = np.round(np.cos(_ALPHA)), np.round(np.sin(_ALPHA))  # all twists are quarter turns
    turning[:, 0, 0], turning[:, 1, 1], turning[:, 2, 1] = 1, ca, sa
    crossing[:, 0, 1], crossing[:, 1, 0], crossing[:, 2, 0] = -1, ca, sa
    fixed[:, 1, 2], fixed[:, 2, 2] = -sa, ca
    fixed[:, :, 3] = np.stack([_A, -sa * _D, ca * _D, np.ones(7)], 1)
    return fixed, turning, crossing


_FIXED, _TURNING, _CROSSING = _links()
LINKS = np.stack([_FIXED, _TURNING, _CROSSING], 1)  # (7, 3, 4, 4): of 1, cos q and sin q of each joint


def frames(joints: Array) -> Array:
    """The frame after each joint; the last is the flange.  # (7,) -> (7, 4, 4)"""
    q = np.asarray(joints, float)[:, None, None]
    result = _FIXED + np.cos(q) * _TURNING + np.sin(q) * _CROSSING  # each in the frame of the link before
    for i in range(1, 7):
        result[i] = result[i - 1] @ result[i]
    return result


def jacobian(all_frames: Array, point: Array) -> Array:
    """Velocity of a point (3,) m on the last link (m/s, rad/s, in the base's frame) per joint velocity.

    # (7, 4, 4) -> (6, 7)
    """
    axes = all_frames[:, :3, 2]  # (7, 3)
    arms = point - all_frames[:, :3, 3]
    return np.concatenate([np.cross(axes, arms).T, axes.T])


def damped_step(jacobian: Array, error: Array, damping: float = 1e-4) -> Array:
    """The change of joints (7,) rad that takes an error (6,) away, by damped (m², rad²) least squares."""
    return jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + damping * np.eye(6), error)


def turn_of(rotation: Array) -> Array:
    """A rotation matrix (3, 3) as axis times angle (3,), rad; for half a turn, one of its two axes."""
    return Rotation.from_matrix(rotation).as_rotvec()


def to_rpy(rotation: Array) -> Array:
    """Roll, pitch, yaw about the fixed axes x, y, z.  # (3, 3) -> (3,)"""
    pitch = np.arctan2(-rotation[2, 0], np.hypot(rotation[0, 0], rotation[1, 0]))
    if abs(abs(pitch) - np.pi / 2) < 1e-6:  # yaw and roll turn about the same axis
        return np.array([0.0, pitch, np.arctan2(-rotation[0, 1], rotation[1, 1])])
    roll = np.arctan2(rotation[2, 1], rotation[2, 2])
    return np.array([roll, pitch, np.arctan2(rotation[1, 0], rotation[0, 0])])


def from_rpy(rpy: Array) -> Array:
    """The inverse of :func:`to_rpy`.  # (3,) -> (3, 3)"""
    return Rotation.from_euler("xyz", rpy).as_matrix()


def forward(joints: Array) -> Array:
    """x, y, z (m), roll, pitch, yaw (rad) of the flange.  # (7,) -> (6,)"""
    flange = frames(joints)[-1]
    return np.concatenate([flange[:3, 3], to_rpy(flange[:3, :3])])

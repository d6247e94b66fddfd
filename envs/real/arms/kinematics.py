"""Kinematics of the xArm7 from its published modified Denavit-Hartenberg parameters. Metres and radians.

The frame is the arm's base; the tool centre point is the flange (no tool offset), as the box reports it.
"""

import numpy as np
from scipy.spatial.transform import Rotation

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import XARM7_LIMITS, Array
from s2robot.envs.robots import robot_spec

# per joint: twist (rad) and length (m) before the joint, offset (m) along it
_ALPHA = np.array([0, -1, 1, 1, 1, 1, -1]) * np.pi / 2
_A = np.array([0, 0, 0, 0.0525, 0.0775, 0, 0.076])
_D = np.array([0.267, 0, 0.293, 0, 0.3425, 0, 0.097])


# the hand in the flange's frame: its base plate is behind the flange, and it is turned by half a turn
HAND = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, -0.027], [0, 0, 0, 1]])
TOOL = (0.0, 0.0, 0.147)  # m, on the hand: between the finger tips
_DAMPING = 1e-4  # m² and rad²; keeps steps small near a singularity
_POSTURE = 0.05  # share of the way to the home joints that the redundant joint takes in an iteration
_ITERATIONS = 8


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


def forward(joints: Array) -> Array:
    """x, y, z (m), roll, pitch, yaw (rad) of the flange.  # (7,) -> (6,)"""
    flange = frames(joints)[-1]
    return np.concatenate([flange[:3, 3], to_rpy(flange[:3, :3])])


class ToolIK:
    """Inverse kinematics of the tool: damped least squares from the commanded joints, close to the home pose.

    Positions are of the point between the finger tips, in the base's frame. Raises EnvError for another arm than xarm7.
    """

    def __init__(self, robot: str = "xarm7"):
        if robot != "xarm7":
            raise EnvError(f"ik: found robot '{robot}', expected xarm7")
        room = (
            XARM7_LIMITS.margin + 1e-3
        )  # the filter starts from nowhere nearer to the end of a joint's range
        self._low, self._high = (
            np.array(XARM7_LIMITS.q_min) + room,
            np.array(XARM7_LIMITS.q_max) - room,
        )  # (7,) rad
        self._home = np.array(robot_spec(robot).home)
        self._tool = HAND @ [*TOOL, 1.0]  # (4,) in the flange's frame

    def pose(self, q: Array) -> tuple[Array, Array]:
        """Position (3,) m and rotation (3, 3) at joints (7,) rad."""
        return self._pose(frames(q)[-1])

    def _pose(self, flange: Array) -> tuple[Array, Array]:
        return (flange @ self._tool)[:3], flange[:3, :3] @ HAND[:3, :3]

    def solve(self, q: Array, position: Array, rotation: Array) -> Array:
        """Joints (7,) near `q` that bring the tool as close to a pose as a few steps can."""
        q = np.array(q, float)
        for _ in range(_ITERATIONS):
            arm = frames(q)
            here, turned = self._pose(arm[-1])
            error = np.concatenate([position - here, turn_of(rotation @ turned.T)])
            slopes = jacobian(arm, here)
            inverse = slopes.T @ np.linalg.inv(slopes @ slopes.T + _DAMPING * np.eye(6))  # (7, 6)
            free = np.eye(7) - inverse @ slopes
            q = q + inverse @ error + free @ (_POSTURE * (self._home - q))
            q = np.clip(q, self._low, self._high)
        return q

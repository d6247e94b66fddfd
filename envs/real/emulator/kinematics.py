"""Kinematics of the xArm7 from its published modified Denavit-Hartenberg parameters. Metres and radians.

The frame is the arm's base; the tool centre point is the flange (no tool offset), as the box reports it.
"""

import numpy as np

# per joint: twist (rad) and length (m) before the joint, offset (m) along it
_ALPHA = np.array([0, -1, 1, 1, 1, 1, -1]) * np.pi / 2
_A = np.array([0, 0, 0, 0.0525, 0.0775, 0, 0.076])
_D = np.array([0.267, 0, 0.293, 0, 0.3425, 0, 0.097])
_COS, _SIN = np.cos(_ALPHA), np.sin(_ALPHA)

# the vendor SDK's range of an xArm7 with a serial number below 1305
JOINT_LOW = np.array([-2 * np.pi, -2.059488, -2 * np.pi, -0.191986, -2 * np.pi, -1.692969, -2 * np.pi])
JOINT_HIGH = np.array([2 * np.pi, 2.094395, 2 * np.pi, 3.92699, 2 * np.pi, np.pi, 2 * np.pi])

_COLUMN_RADIUS, _COLUMN_HEIGHT = 0.11, 0.36  # m, a cylinder around the base that the wrist must not enter


def frames(joints: np.ndarray) -> np.ndarray:
    """The frame after each joint; the last is the flange.  # (7,) -> (7, 4, 4)"""
    result = np.empty((7, 4, 4))
    pose = np.eye(4)
    for i, (c, s) in enumerate(zip(np.cos(joints), np.sin(joints), strict=True)):
        ca, sa = _COS[i], _SIN[i]
        link = np.array(
            [
                [c, -s, 0, _A[i]],
                [s * ca, c * ca, -sa, -sa * _D[i]],
                [s * sa, c * sa, ca, ca * _D[i]],
                [0, 0, 0, 1],
            ]
        )
        pose = pose @ link
        result[i] = pose
    return result


def to_rpy(rotation: np.ndarray) -> np.ndarray:
    """Roll, pitch, yaw about the fixed axes x, y, z.  # (3, 3) -> (3,)"""
    pitch = np.arctan2(-rotation[2, 0], np.hypot(rotation[0, 0], rotation[1, 0]))
    if abs(abs(pitch) - np.pi / 2) < 1e-6:  # yaw and roll turn about the same axis
        return np.array([0.0, pitch, np.arctan2(-rotation[0, 1], rotation[1, 1])])
    roll = np.arctan2(rotation[2, 1], rotation[2, 2])
    return np.array([roll, pitch, np.arctan2(rotation[1, 0], rotation[0, 0])])


def from_rpy(rpy: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_rpy`.  # (3,) -> (3, 3)"""
    (cr, cp, cy), (sr, sp, sy) = np.cos(rpy), np.sin(rpy)
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def forward(joints: np.ndarray) -> np.ndarray:
    """x, y, z (m), roll, pitch, yaw (rad) of the flange.  # (7,) -> (6,)"""
    flange = frames(joints)[-1]
    return np.concatenate([flange[:3, 3], to_rpy(flange[:3, :3])])


def jacobian(all_frames: np.ndarray) -> np.ndarray:
    """Flange velocity (m/s, rad/s in the base frame) per joint velocity.  # (7, 4, 4) -> (6, 7)"""
    axes = all_frames[:, :3, 2]  # (7, 3)
    arms = all_frames[-1, :3, 3] - all_frames[:, :3, 3]
    return np.concatenate([np.cross(axes, arms).T, axes.T])


def inverse(pose: np.ndarray, start: np.ndarray, iterations: int = 30) -> np.ndarray | None:
    """Joints near ``start`` that put the flange at ``pose`` (6,), to 0.1 mm and 0.001 rad.  # (7,) or None"""
    if not np.isfinite(pose).all():
        return None
    joints, goal = np.array(start, float), from_rpy(pose[3:])
    for _ in range(iterations):
        all_frames = frames(joints)
        flange = all_frames[-1]
        turn = goal @ flange[:3, :3].T
        axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
        sine, cosine = np.linalg.norm(axis), (np.trace(turn) - 1) / 2
        angle = np.arctan2(sine, cosine)
        error = np.concatenate([pose[:3] - flange[:3, 3], axis * (angle / sine if sine > 1e-9 else 1)])
        if np.linalg.norm(error[:3]) < 1e-4 and angle < 1e-3:
            inside = (joints >= JOINT_LOW) & (joints <= JOINT_HIGH)
            return joints if inside.all() else None
        j = jacobian(all_frames)
        step = j.T @ np.linalg.solve(j @ j.T + 1e-4 * np.eye(6), error)
        joints = np.clip(joints + np.clip(step, -0.4, 0.4), JOINT_LOW, JOINT_HIGH)
    return None


def self_collides(all_frames: np.ndarray) -> bool:
    """Whether wrist or flange is inside the base's column: a coarse stand-in for the box's own check."""
    points = all_frames[[4, 6], :3, 3]
    inside = np.hypot(points[:, 0], points[:, 1]) < _COLUMN_RADIUS
    return bool((inside & (points[:, 2] < _COLUMN_HEIGHT)).any())

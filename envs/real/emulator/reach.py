"""What the emulated box knows of its arm beside `s2robot.envs.real.arms.kinematics`: range, inverse, self-collision."""

import numpy as np

from s2robot.envs.real.arms.kinematics import damped_step, frames, from_rpy, jacobian, turn_of

# the vendor SDK's range of an xArm7 with a serial number below 1305
JOINT_LOW = np.array([-2 * np.pi, -2.059488, -2 * np.pi, -0.191986, -2 * np.pi, -1.692969, -2 * np.pi])
JOINT_HIGH = np.array([2 * np.pi, 2.094395, 2 * np.pi, 3.92699, 2 * np.pi, np.pi, 2 * np.pi])

_COLUMN_RADIUS, _COLUMN_HEIGHT = 0.11, 0.36  # m, a cylinder around the base that the wrist must not enter


def inverse(pose: np.ndarray, start: np.ndarray, iterations: int = 30) -> np.ndarray | None:
    """Joints near ``start`` that put the flange at ``pose`` (6,), to 0.1 mm and 0.001 rad.  # (7,) or None"""
    if not np.isfinite(pose).all():
        return None
    joints, goal = np.array(start, float), from_rpy(pose[3:])
    for _ in range(iterations):
        all_frames = frames(joints)
        flange = all_frames[-1]
        error = np.concatenate([pose[:3] - flange[:3, 3], turn_of(goal @ flange[:3, :3].T)])
        if np.linalg.norm(error[:3]) < 1e-4 and np.linalg.norm(error[3:]) < 1e-3:
            inside = (joints >= JOINT_LOW) & (joints <= JOINT_HIGH)
            return joints if inside.all() else None
        step = damped_step(jacobian(all_frames, flange[:3, 3]), error)
        joints = np.clip(joints + np.clip(step, -0.4, 0.4), JOINT_LOW, JOINT_HIGH)
    return None


def self_collides(all_frames: np.ndarray) -> bool:
    """Whether wrist or flange is inside the base's column: a coarse stand-in for the box's own check."""
    points = all_frames[[4, 6], :3, 3]
    inside = np.hypot(points[:, 0], points[:, 1]) < _COLUMN_RADIUS
    return bool((inside & (points[:, 2] < _COLUMN_HEIGHT)).any())

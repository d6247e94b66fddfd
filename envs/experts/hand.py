"""What an expert knows of a robosuite world: where the gripper is, what it touches, where bodies are."""

from typing import Any

import mujoco
import numpy as np

from s2robot.envs.mujoco_task import geoms_of, touching


def angle_of(vector: np.ndarray) -> float:
    """Of a vector's shadow on the table, rad."""
    return float(np.arctan2(vector[1], vector[0]))


def nearest(angle: float, to: float, period: float) -> float:
    """The one of ``angle + n * period`` that is nearest to ``to``."""
    return to + (angle - to + period / 2) % period - period / 2


class Hand:
    """The parallel gripper of a one-armed robosuite environment. Lengths in m, angles in rad, world frame."""

    def __init__(self, env: Any):
        robot = env.robots[0]
        self.env = env
        self.model: mujoco.MjModel = env.sim.model._model
        self.data: mujoco.MjData = env.sim.data._data
        self.site = robot.eef_site_id["right"]
        gripper = robot.gripper["right"]
        self._joints = [self.model.joint(name).qposadr[0] for name in gripper.joints]
        self._fingers = [
            {self.model.geom(name).id for name in gripper.important_geoms[side]}
            for side in ("left_finger", "right_finger")
        ]
        pads = [
            self.model.geom(gripper.important_geoms[side][0]).id
            for side in ("left_fingerpad", "right_fingerpad")
        ]
        # constant in the gripper's frame; taken in it, for the arm may stand anywhere
        apart = self.rotation.T @ (self.data.geom_xpos[pads[0]] - self.data.geom_xpos[pads[1]])
        self._axis = np.eye(3)[np.argmax(np.abs(apart))]
        ranges = [self.model.jnt_range[self.model.joint(name).id] for name in gripper.joints]
        self.widest = float(sum(np.abs(r).max() for r in ranges))

    @property
    def position(self) -> np.ndarray:
        """The centre between the finger tips.  # (3,)"""
        return self.data.site_xpos[self.site].copy()

    @property
    def rotation(self) -> np.ndarray:
        """Of the gripper.  # (3, 3)"""
        return self.data.site_xmat[self.site].reshape(3, 3).copy()

    @property
    def yaw(self) -> float:
        """The direction in which the fingers close, in the table's plane."""
        return angle_of(self.rotation @ self._axis)

    def level(self, yaw: float) -> np.ndarray:
        """The gripper's rotation when it points straight down and closes along ``yaw``.  # (3, 3)"""
        down = np.array([0.0, 0.0, -1.0])
        along = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        i = int(np.argmax(self._axis))  # 0 or 1: which column of the rotation the fingers close along
        return np.stack(
            [along, np.cross(down, along), down] if i == 0 else [np.cross(along, down), along, down], axis=1
        )

    @property
    def gap(self) -> float:
        """Between the fingers."""
        return float(np.abs(self.data.qpos[self._joints]).sum())

    def pose(self, body: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a body.  # (3,), (3, 3)"""
        return self.data.xpos[body].copy(), self.data.xmat[body].reshape(3, 3).copy()

    def geoms(self, body: int) -> set[int]:
        """Of a body and of what is fixed to it."""
        return geoms_of(self.model, body)

    def touches(self, geoms: set[int]) -> list[bool]:
        """Whether the left and the right finger touch one of these."""
        return touching(self.data, self._fingers, geoms)

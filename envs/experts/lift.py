"""Lift: grasp the cube and lift it."""

import numpy as np

from s2robot.envs.experts.expert import Expert, Target
from s2robot.envs.experts.hand import angle_of, nearest


class Lift(Expert):
    busy = 14
    gain, speed = 1.5, 1.0

    @property
    def body(self) -> int:
        return self.env.cube_body_id

    def grasp(self) -> Target:
        position, rotation = self.hand.pose(self.body)
        return Target(position, nearest(angle_of(rotation[:, 0]), self.home, np.pi / 2))

    def place(self) -> None:
        return None

    def to_go(self) -> float:
        position, _ = self.hand.pose(self.body)
        return max(0.0, float(self.env.model.mujoco_arena.table_offset[2] + 0.1 - position[2]))

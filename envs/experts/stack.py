"""Stack: put the red cube on the green one."""

import numpy as np

from s2robot.envs.experts.expert import Expert, Target
from s2robot.envs.experts.hand import angle_of, nearest


class Stack(Expert):
    @property
    def body(self) -> int:
        return self.env.cubeA_body_id

    def grasp(self) -> Target:
        position, rotation = self.hand.pose(self.body)
        other, _ = self.hand.pose(self.env.cubeB_body_id)
        yaw = nearest(angle_of(rotation[:, 0]), self.home, np.pi / 2)
        towards = other - position
        if np.linalg.norm(towards[:2]) < 0.11:  # the fingers beside the other cube, not into it
            bearing = angle_of(towards)
            yaws = [nearest(yaw + i * np.pi / 2, self.home, np.pi) for i in (0, 1)]
            yaw = min(yaws, key=lambda y: abs(np.cos(y - bearing)))
        return Target(position + [0, 0, 0.004], yaw)

    def place(self) -> tuple[Target, bool]:
        a, _ = self.hand.pose(self.body)
        b, _ = self.hand.pose(self.env.cubeB_body_id)
        off = b + [0, 0, 0.047] - a
        there = float(np.linalg.norm(off[:2])) < 0.01 and abs(off[2]) < 0.006
        return Target(self.hand.position + off, self.hand.yaw), there

    def to_go(self) -> float:
        a, _ = self.hand.pose(self.body)
        b, _ = self.hand.pose(self.env.cubeB_body_id)
        return float(np.linalg.norm(b + [0, 0, 0.045] - a))

    def placed(self) -> bool:
        a, _ = self.hand.pose(self.body)
        b, _ = self.hand.pose(self.env.cubeB_body_id)
        return bool(np.linalg.norm((a - b)[:2]) < 0.025 and abs(a[2] - b[2] - 0.045) < 0.012)

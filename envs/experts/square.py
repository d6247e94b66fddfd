"""NutAssemblySquare: put the square nut on the square peg."""

import numpy as np

from s2robot.envs.experts.expert import Expert, Target
from s2robot.envs.experts.hand import angle_of, nearest

PEG = 0.1  # m, half its length


class Square(Expert):
    clear = 0.15
    close_z = 0.005
    easy = 0.5
    place_slope = 20.0
    place_mouth = 0.004
    busy = 75
    rough, extra, low = 2, 4, True
    slips, askew = True, 0.3

    @property
    def _nut(self):
        return self.env.nuts[self.env.nut_id]

    @property
    def body(self) -> int:
        return self.env.obj_body_id[self._nut.name]

    def _handle(self) -> np.ndarray:
        return self.hand.data.site_xpos[self.env.object_site_ids[self.env.nut_id]].copy()

    def _peg(self) -> np.ndarray:
        return self.hand.pose(self.env.peg1_body_id)[0]

    def grasp(self) -> Target:
        _, rotation = self.hand.pose(self.body)
        # towards the handle's end, for beside its middle the fingers would stand on the nut; and a little over it, for
        # their tips reach 15 mm further down, and there is the table
        return Target(
            self._handle() + 0.011 * rotation[:, 0] + [0, 0, 0.007],
            nearest(angle_of(rotation[:, 1]), self.hand.yaw, np.pi),
        )

    def place(self) -> tuple[Target, bool]:
        position, rotation = self.hand.pose(self.body)
        hand = self.hand
        # a square peg: of the quarter turns that do not leave the arm beyond the peg, out of its reach, the one after
        # which the gripper hangs most as at home
        handle = angle_of(rotation[:, 0])  # from the nut to the gripper
        turns = [nearest(i * np.pi / 2 - handle, 0.0, 2 * np.pi) for i in (1, 2, 3)]
        now = nearest(hand.yaw, self.home, 2 * np.pi) - self.home
        turn = min(
            turns, key=lambda turn: abs(now + turn) + 0.2 * abs(turn)
        )  # of two alike the one that is begun
        cos, sin = np.cos(turn), np.sin(turn)
        arm = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ (hand.position - position)
        goal = self._goal()
        off = position - goal
        there = float(np.linalg.norm(off[:2])) < 0.02 and off[2] < 0.015
        return Target(goal + arm, hand.yaw + turn), there

    def height(self, off: float) -> float:
        position, _ = self.hand.pose(self.body)
        away = position - self._peg() - [0, 0, PEG]
        around = float(np.abs(away[:2]).max()) < 0.012 and away[2] < 0.0  # the peg holds it: nothing but down
        return 0.0 if around else super().height(off)

    def to_go(self) -> float:
        position, _ = self.hand.pose(self.body)
        return float(np.linalg.norm(self._goal() - position))

    def _goal(self) -> np.ndarray:
        return self._peg() * [1, 1, 0] + [0, 0, self.env.table_offset[2] + 0.012]

    def placed(self) -> bool:
        position, _ = self.hand.pose(self.body)
        off = position - self._peg() * [1, 1, 0]
        return bool(np.abs(off[:2]).max() < 0.03 and off[2] < self.env.table_offset[2] + 0.05)

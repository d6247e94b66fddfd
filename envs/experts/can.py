"""PickPlaceCan: bring the can from the left bin to its place in the right one."""

import numpy as np

from s2robot.envs.experts.expert import Expert, Target
from s2robot.envs.experts.hand import nearest

WALL = 0.1  # m, of the bins, over their position


class Can(Expert):
    clear = 0.11
    close_z = 0.012
    busy = 40

    @property
    def _name(self) -> str:
        return self.env.obj_to_use

    @property
    def body(self) -> int:
        return self.env.obj_body_id[self._name]

    def grasp(self) -> Target:
        position, _ = self.hand.pose(self.body)
        return Target(position + [0, 0, 0.005], self._yaw(position))

    def _yaw(self, position: np.ndarray) -> float:
        """A can is round: as at home, but along a wall that is near."""
        room = np.array(self.env.bin_size[:2]) / 2 - np.abs(position - self.env.bin1_pos)[:2]  # (2,) to x and y walls
        along = [0.0, np.pi / 2]  # closing along x needs room in x
        home = nearest(self.home, along[int(np.argmax(np.abs([np.cos(self.home), np.sin(self.home)])))], np.pi)
        axis = int(np.argmax(np.abs([np.cos(home), np.sin(home)])))
        return self.home if room[axis] > 0.09 or room[axis] >= room[1 - axis] else self.home + np.pi / 2

    def _goal(self) -> np.ndarray:
        """In the can's quarter of the bin, where the arm still reaches over the wall."""
        return self.env.target_bin_placements[self.env.object_id] - [0.045, 0.05, 0]

    def place(self) -> tuple[Target, bool]:
        position, _ = self.hand.pose(self.body)
        off = self._goal() + [0, 0, 0.075] - position
        there = float(np.linalg.norm(off[:2])) < 0.03 and off[2] > -0.015
        return Target(self.hand.position + off, self.home), there

    def placed(self) -> bool:
        position, _ = self.hand.pose(self.body)
        off = position - self._goal()
        return bool(np.abs(off[:2]).max() < 0.045 and off[2] < 0.1)

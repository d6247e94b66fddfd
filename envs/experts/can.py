"""PickPlaceCan: bring the can from the left bin to its place in the right one."""

import numpy as np

from s2robot.envs.experts.expert import Expert, Target

_ROOM = 0.10  # m to a wall, below which the fingers turn away from it,
_RAMP = 0.04  # m, over which they do so


class Can(Expert):
    clear = 0.11
    close_z = 0.015
    easy = 1.7
    busy = 40

    @property
    def body(self) -> int:
        return self.env.obj_body_id[self.env.obj_to_use]

    def grasp(self) -> Target:
        position, _ = self.hand.pose(self.body)
        return Target(position + [0, 0, 0.005], self._yaw(position))

    def _yaw(self, position: np.ndarray) -> float:
        """A can is round: as at home, which needs room in y, turned the more the nearer a wall is there, up to along it, or
        in a corner to half of that. Nothing flips from one place to the next, so there is no line where a policy errs."""
        room = np.array(self.env.bin_size[:2]) / 2 - np.abs(position - self.env.bin1_pos)[:2]  # to the walls
        near = np.clip((_ROOM - room) / _RAMP, 0.0, 1.0)  # (2,)
        return self.home + np.pi / 2 * float(near[1] * (1.0 - near[0] / 2))

    def _goal(self) -> np.ndarray:
        """In the can's quarter of the bin, where the arm still reaches over the wall."""
        return self.env.target_bin_placements[self.env.object_id] - [0.045, 0.05, 0]

    def place(self) -> tuple[Target, bool]:
        position, _ = self.hand.pose(self.body)
        off = self._goal() + [0, 0, 0.075] - position
        there = float(np.linalg.norm(off[:2])) < 0.03 and off[2] > -0.015
        return Target(self.hand.position + off, self.home), there

    def to_go(self) -> float:
        position, _ = self.hand.pose(self.body)
        return float(np.linalg.norm(self._goal() + [0, 0, 0.06] - position))

    def placed(self) -> bool:
        position, _ = self.hand.pose(self.body)
        off = position - self._goal()
        return bool(np.abs(off[:2]).max() < 0.045 and off[2] < 0.1)

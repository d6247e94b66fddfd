"""The experts of Lift, Stack, PickPlaceCan and NutAssemblySquare, named like robosuite's environments."""

import numpy as np

from s2robot.envs.experts.expert import Expert, Target, angle_of, nearest

_ROOM = 0.10  # m to a wall, below which the fingers turn away from it
_RAMP = 0.04  # m, over which they turn
PEG = 0.1  # m, half its length
# Extent of the open fingers' pads: start and end along their direction, and half their width, with a margin, m.
_INNER, _OUTER, _WIDE = 0.038, 0.053, 0.012
_OTHER = 0.026  # half of the other cube's side, with a margin, m


def _ahead(direction: float) -> np.ndarray:
    """Return the unit vector in a direction on the table.  # (2,)"""
    return np.array([np.cos(direction), np.sin(direction)])


def _corners(centre: np.ndarray, direction: float, along: float, across: float) -> np.ndarray:
    """Return the corners of a rectangle on the table, from its centre, direction and half sides.  # (4, 2)"""
    ahead = _ahead(direction)
    aside = np.array([-ahead[1], ahead[0]])
    return np.array([centre + i * along * ahead + j * across * aside for i in (-1, 1) for j in (-1, 1)])


def _apart(a: np.ndarray, b: np.ndarray, directions: tuple[float, float]) -> bool:
    """Whether a line along a side of one of two rectangles (4, 2), turned by `directions`, separates them."""
    for axis in (turn + quarter for turn in directions for quarter in (0.0, np.pi / 2)):
        one, two = a @ _ahead(axis), b @ _ahead(axis)
        if one.max() < two.min() or two.max() < one.min():
            return True
    return False


class Lift(Expert):
    busy = 14
    gain, speed = 1.5, 1.0

    @property
    def body(self) -> int:
        return self.env.cube_body_id

    def grasp(self) -> Target:
        position, rotation = self.hand.pose(self.body)
        return Target(position, nearest(angle_of(rotation[:, 0]), self.home, np.pi / 2))

    def to_go(self) -> float:
        position, _ = self.hand.pose(self.body)
        return max(0.0, float(self.env.model.mujoco_arena.table_offset[2] + 0.1 - position[2]))


class Stack(Expert):
    busy = 60
    # Six to ten kicks by default: with two to six, a policy rises and turns at poses that no demo covers
    rough, extra, low = 2, 4, True
    # A policy grasps at corners and starts to release next to its goal: without examples of how to continue, it opens
    # and closes until the time is up.
    slips, askew = True, 0.4
    # the lower cube's edge is 25 mm from its centre, and the pose of a held cube is hard to see
    place_mouth = 0.015
    leave = 0.0  # the task is then done, and a hand leaving a cube looks like one approaching it

    @property
    def body(self) -> int:
        return self.env.cubeA_body_id

    def grasp(self) -> Target:
        """Grasp the faces closest to the fingers' current yaw, or the other two if the other cube is in the way."""
        position, rotation = self.hand.pose(self.body)
        yaw = nearest(angle_of(rotation[:, 0]), self.hand.yaw, np.pi / 2)
        if self._in_the_way(position, yaw) and not self._in_the_way(position, yaw + np.pi / 2):
            yaw += np.pi / 2
        return Target(position + [0, 0, 0.004], yaw)

    def _in_the_way(self, position: np.ndarray, yaw: float) -> bool:
        """Whether fingers that close along ``yaw`` around the red cube would descend on the other one."""
        other, rotation = self.hand.pose(self.env.cubeB_body_id)
        direction = angle_of(rotation[:, 0])
        cube = _corners(other[:2], direction, _OTHER, _OTHER)
        ahead, half = (_INNER + _OUTER) / 2 * _ahead(yaw), ((_OUTER - _INNER) / 2, _WIDE)
        fingers = (_corners(position[:2] + side * ahead, yaw, *half) for side in (-1, 1))
        return any(not _apart(finger, cube, (yaw, direction)) for finger in fingers)

    def place(self) -> tuple[Target, bool]:
        a, b = self._cubes()
        off = b + [0, 0, 0.047] - a
        there = float(np.linalg.norm(off[:2])) < 0.017 and abs(off[2]) < 0.008
        return Target(self.hand.position + off, self.hand.yaw), there

    def to_go(self) -> float:
        a, b = self._cubes()
        return float(np.linalg.norm(b + [0, 0, 0.045] - a))

    def placed(self) -> bool:
        a, b = self._cubes()
        return bool(np.linalg.norm((a - b)[:2]) < 0.025 and abs(a[2] - b[2] - 0.045) < 0.012)

    def _cubes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.hand.pose(self.body)[0], self.hand.pose(self.env.cubeB_body_id)[0]


class PickPlaceCan(Expert):
    clear, close_z, easy, busy = 0.11, 0.015, 1.7, 40

    @property
    def body(self) -> int:
        return self.env.obj_body_id[self.env.obj_to_use]

    def grasp(self) -> Target:
        position, _ = self.hand.pose(self.body)
        return Target(position + [0, 0, 0.005], self._yaw(position))

    def _yaw(self, position: np.ndarray) -> float:
        """Return home's yaw, which needs room in y, turned gradually near a wall, up to parallel to it, or half of that
        in a corner. A can is round, so the yaw can vary continuously, without a boundary where a policy errs."""
        room = np.array(self.env.bin_size[:2]) / 2 - np.abs(position - self.env.bin1_pos)[:2]  # to the walls
        near = np.clip((_ROOM - room) / _RAMP, 0.0, 1.0)  # (2,)
        return self.home + np.pi / 2 * float(near[1] * (1.0 - near[0] / 2))

    def _goal(self) -> np.ndarray:
        """Return a point in the can's quarter of the bin that the arm can reach over the wall."""
        return self.env.target_bin_placements[self.env.object_id] - [0.045, 0.05, 0]

    def place(self) -> tuple[Target, bool]:
        position, _ = self.hand.pose(self.body)
        off = self._goal() + [0, 0, 0.075] - position
        there = float(np.linalg.norm(off[:2])) < 0.03 and off[2] > -0.015
        return Target(self.hand.position + off, self.home), there

    def to_go(self) -> float:
        return float(np.linalg.norm(self._goal() + [0, 0, 0.06] - self.hand.pose(self.body)[0]))

    def placed(self) -> bool:
        off = self.hand.pose(self.body)[0] - self._goal()
        return bool(np.abs(off[:2]).max() < 0.045 and off[2] < 0.1)


class NutAssemblySquare(Expert):
    clear, close_z, easy, busy = 0.15, 0.005, 0.5, 75
    place_slope, place_mouth = 20.0, 0.004
    rough, extra, low = 2, 4, True
    slips, askew = True, 0.3

    @property
    def body(self) -> int:
        return self.env.obj_body_id[self.env.nuts[self.env.nut_id].name]

    def _peg(self) -> np.ndarray:
        return self.hand.pose(self.env.peg1_body_id)[0]

    def grasp(self) -> Target:
        _, rotation = self.hand.pose(self.body)
        handle = self.hand.data.site_xpos[self.env.object_site_ids[self.env.nut_id]]
        # towards the handle's end, or the fingers would hit the nut; slightly above it, or they would hit the table
        over = handle + 0.011 * rotation[:, 0] + [0, 0, 0.007]
        return Target(over, nearest(angle_of(rotation[:, 1]), self.hand.yaw, np.pi))

    def place(self) -> tuple[Target, bool]:
        position, rotation = self.hand.pose(self.body)
        hand = self.hand
        # choose the quarter turn within reach that leaves the gripper closest to its home yaw
        handle = angle_of(rotation[:, 0])  # from the nut to the gripper
        turns = [nearest(i * np.pi / 2 - handle, 0.0, 2 * np.pi) for i in (1, 2, 3)]
        now = nearest(hand.yaw, self.home, 2 * np.pi) - self.home
        # break ties in favour of the turn already begun
        turn = min(turns, key=lambda turn: abs(now + turn) + 0.2 * abs(turn))
        cos, sin = np.cos(turn), np.sin(turn)
        arm = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ (hand.position - position)
        off = position - self._goal()
        there = float(np.linalg.norm(off[:2])) < 0.02 and off[2] < 0.015
        return Target(self._goal() + arm, hand.yaw + turn), there

    def height(self, off: float) -> float:
        position, _ = self.hand.pose(self.body)
        away = position - self._peg() - [0, 0, PEG]
        around = float(np.abs(away[:2]).max()) < 0.012 and away[2] < 0.0  # on the peg: only down
        return 0.0 if around else super().height(off)

    def to_go(self) -> float:
        return float(np.linalg.norm(self._goal() - self.hand.pose(self.body)[0]))

    def _goal(self) -> np.ndarray:
        return self._peg() * [1, 1, 0] + [0, 0, self.env.table_offset[2] + 0.012]

    def placed(self) -> bool:
        position, _ = self.hand.pose(self.body)
        off = position - self._peg() * [1, 1, 0]
        return bool(np.abs(off[:2]).max() < 0.03 and off[2] < self.env.table_offset[2] + 0.05)


EXPERT_OF = {kind.__name__: kind for kind in (Lift, Stack, PickPlaceCan, NutAssemblySquare)}

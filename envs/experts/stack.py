"""Stack: put the red cube on the green one."""

import numpy as np

from s2robot.envs.experts.expert import Expert, Target
from s2robot.envs.experts.hand import angle_of, nearest

# Where the open fingers' pads are: from and to along their direction, and half their width, with some room, m.
_INNER, _OUTER, _WIDE = 0.038, 0.053, 0.012
_OTHER = 0.026  # half of the other cube's side, with some room, m


def _ahead(direction: float) -> np.ndarray:
    """A unit of length that way on the table.  # (2,)"""
    return np.array([np.cos(direction), np.sin(direction)])


def _corners(centre: np.ndarray, direction: float, along: float, across: float) -> np.ndarray:
    """Of a rectangle on the table, half its sides given.  # (4, 2)"""
    ahead = _ahead(direction)
    aside = np.array([-ahead[1], ahead[0]])
    return np.array([centre + i * along * ahead + j * across * aside for i in (-1, 1) for j in (-1, 1)])


def _apart(a: np.ndarray, b: np.ndarray, directions: tuple[float, float]) -> bool:
    """Whether a line along a side of one of two rectangles (4, 2), turned by `directions`, lies between them."""
    for axis in (turn + quarter for turn in directions for quarter in (0.0, np.pi / 2)):
        one, two = a @ _ahead(axis), b @ _ahead(axis)
        if one.max() < two.min() or two.max() < one.min():
            return True
    return False


class Stack(Expert):
    busy = 60
    # Six to ten kicks by default: with two to six a policy rises and turns where none of them has led
    rough, extra, low = 2, 4, True
    # What a policy does that no expert would: it grasps by the corners, and begins to let go beside its goal. It has to be shown that
    # it carries on; else it opened and closed until the time was over
    slips, askew = True, 0.4
    # Far less exact than the expert could be: the lower cube's edge is 25 mm from its middle, and how far beside it a cube is held
    # is hard to see
    place_mouth = 0.015
    # The task is done when the cube is let go, and a hand that rises from a cube looks like one that comes to one.
    leave = 0.0

    @property
    def body(self) -> int:
        return self.env.cubeA_body_id

    def grasp(self) -> Target:
        """On the faces that are nearest to how the fingers are turned now: what was begun is gone on with, so a policy that
        has turned a little knows where to. Where the other cube is in their way, on the next ones, always to the same side.
        """
        position, rotation = self.hand.pose(self.body)
        yaw = nearest(angle_of(rotation[:, 0]), self.hand.yaw, np.pi / 2)
        if self._in_the_way(position, yaw) and not self._in_the_way(position, yaw + np.pi / 2):
            yaw += np.pi / 2
        return Target(position + [0, 0, 0.004], yaw)

    def _in_the_way(self, position: np.ndarray, yaw: float) -> bool:
        """Whether fingers that close along ``yaw`` around the red cube come down on the other one."""
        other, rotation = self.hand.pose(self.env.cubeB_body_id)
        direction = angle_of(rotation[:, 0])
        cube = _corners(other[:2], direction, _OTHER, _OTHER)
        ahead = (_INNER + _OUTER) / 2 * _ahead(yaw)
        half = (_OUTER - _INNER) / 2, _WIDE
        return any(
            not _apart(_corners(position[:2] + side * ahead, yaw, *half), cube, (yaw, direction))
            for side in (-1, 1)
        )

    def place(self) -> tuple[Target, bool]:
        a, _ = self.hand.pose(self.body)
        b, _ = self.hand.pose(self.env.cubeB_body_id)
        off = b + [0, 0, 0.047] - a
        there = float(np.linalg.norm(off[:2])) < 0.017 and abs(off[2]) < 0.008
        return Target(self.hand.position + off, self.hand.yaw), there

    def to_go(self) -> float:
        a, _ = self.hand.pose(self.body)
        b, _ = self.hand.pose(self.env.cubeB_body_id)
        return float(np.linalg.norm(b + [0, 0, 0.045] - a))

    def placed(self) -> bool:
        a, _ = self.hand.pose(self.body)
        b, _ = self.hand.pose(self.env.cubeB_body_id)
        return bool(np.linalg.norm((a - b)[:2]) < 0.025 and abs(a[2] - b[2] - 0.045) < 0.012)

"""Monitored points of an arm, and the xArm7's points and kinematics, from published modified Denavit-Hartenberg parameters.

Metres and radians in the frame of the arm's base. Each fingertip is two sets of points fixed to the hand, one for the open
gripper and one where the tip reaches lowest while closing, so the checks hold for every opening.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, FiniteFloat
from scipy.spatial.transform import Rotation

from s2robot.envs.real.arms.driver import XARM7_LIMITS, Array
from s2robot.envs.robots import robot_spec

# per joint: twist (rad) and link length (m) before the joint, offset (m) along its axis
_ALPHA = np.array([0, -1, 1, 1, 1, 1, -1]) * np.pi / 2
_A = np.array([0, 0, 0, 0.0525, 0.0775, 0, 0.076])
_D = np.array([0.267, 0, 0.293, 0, 0.3425, 0, 0.097])
# pose of the hand in the flange's frame: its base plate is behind the flange, and it is rotated by half a turn
HAND = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 1, -0.027], [0, 0, 0, 1]])
TOOL = (0.0, 0.0, 0.147)  # m, in the hand's frame: between the fingertips
_DAMPING = 1e-4  # m² and rad²; keeps steps small near a singularity
_POSTURE = 0.05  # fraction of the way to the home joints that the redundant joint moves per iteration
_ITERATIONS = 8


def _links() -> tuple[Array, Array, Array]:
    """Return each link's pose in the previous one as fixed + cos q · turning + sin q · crossing.  # 3 x (7, 4, 4)"""
    fixed, turning, crossing = np.zeros((3, 7, 4, 4))
    ca, sa = np.round(np.cos(_ALPHA)), np.round(np.sin(_ALPHA))  # all twists are quarter turns
    turning[:, 0, 0], turning[:, 1, 1], turning[:, 2, 1] = 1, ca, sa
    crossing[:, 0, 1], crossing[:, 1, 0], crossing[:, 2, 0] = -1, ca, sa
    fixed[:, 1, 2], fixed[:, 2, 2] = -sa, ca
    fixed[:, :, 3] = np.stack([_A, -sa * _D, ca * _D, np.ones(7)], 1)
    return fixed, turning, crossing


_FIXED, _TURNING, _CROSSING = _links()
LINKS = np.stack([_FIXED, _TURNING, _CROSSING], 1)  # (7, 3, 4, 4): factors of 1, cos q, sin q per joint


def frames(joints: Array) -> Array:
    """Return the frame after each joint; the last one is the flange.  # (7,) -> (7, 4, 4)"""
    q = np.asarray(joints, float)[:, None, None]
    result = _FIXED + np.cos(q) * _TURNING + np.sin(q) * _CROSSING  # each in the previous link's frame
    for i in range(1, 7):
        result[i] = result[i - 1] @ result[i]
    return result


def jacobian(all_frames: Array, point: Array) -> Array:
    """Return the velocity (m/s, rad/s) per joint velocity of a point (3,) m on the last link.  # (7, 4, 4) -> (6, 7)"""
    axes = all_frames[:, :3, 2]  # (7, 3)
    arms = point - all_frames[:, :3, 3]
    return np.concatenate([np.cross(axes, arms).T, axes.T])


def forward(joints: Array) -> Array:
    """Return the flange's x, y, z (m) and roll, pitch, yaw (rad) about fixed axes.  # (7,) -> (6,)"""
    flange = frames(joints)[-1]
    return np.concatenate([flange[:3, 3], Rotation.from_matrix(flange[:3, :3]).as_euler("xyz")])


class ToolIK:
    """Inverse kinematics of the point between the fingertips: damped least squares, close to the home pose."""

    def __init__(self) -> None:
        # the filter rejects a start closer to the end of a joint's range
        room = XARM7_LIMITS.margin + 1e-3
        self._low = np.array(XARM7_LIMITS.q_min) + room  # (7,) rad
        self._high = np.array(XARM7_LIMITS.q_max) - room
        self._home = np.array(robot_spec("xarm7").home)
        self._tool = HAND @ [*TOOL, 1.0]  # (4,) in the flange's frame

    def pose(self, q: Array, flange: Array | None = None) -> tuple[Array, Array]:
        """Return the tool's position (3,) m and rotation (3, 3) at joints (7,) rad, or for a given flange pose."""
        flange = frames(q)[-1] if flange is None else flange
        return (flange @ self._tool)[:3], flange[:3, :3] @ HAND[:3, :3]

    def solve(self, q: Array, position: Array, rotation: Array) -> Array:
        """Return joints (7,) near `q` that bring the tool towards a pose, within a fixed number of iterations."""
        q = np.array(q, float)
        for _ in range(_ITERATIONS):
            arm = frames(q)
            here, turned = self.pose(q, arm[-1])
            error = np.concatenate([position - here, Rotation.from_matrix(rotation @ turned.T).as_rotvec()])
            slopes = jacobian(arm, here)
            inverse = slopes.T @ np.linalg.inv(slopes @ slopes.T + _DAMPING * np.eye(6))  # (7, 6)
            free = np.eye(7) - inverse @ slopes
            q = q + inverse @ error + free @ (_POSTURE * (self._home - q))
            q = np.clip(q, self._low, self._high)
        return q


@dataclass(frozen=True)
class Point:
    """A sphere fixed to one body of the arm."""

    name: str
    body: str
    position: tuple[FiniteFloat, FiniteFloat, FiniteFloat]  # m, in the body's frame
    radius: Annotated[FiniteFloat, Field(ge=0)]  # m
    in_box: bool  # whether it must stay in the workspace box (else in the arm's box); it always stays above the table


# The xArm's gripper: its base is mounted on `right_hand`. Knuckle and finger form a parallelogram, so a finger keeps
# its orientation and its tip moves on a circle about the knuckle's joint.
_KNUCKLE = (0.035, 0.059098)  # m, the joint's y and z
_CRANK = (0.035465, 0.042039)  # m, from the knuckle to the finger at opening 1
_TIP = (-0.024, 0.0595)  # m, from the finger to the middle of the pad's end
_PAD_HALF_WIDTH = 0.015  # m, along x


def finger_tip(angle: float) -> tuple[float, float]:
    """Return y and z of the left fingertip in the gripper's frame, m, for an angle of 0 (open) to 0.85 rad (closed)."""
    c, s = np.cos(angle), np.sin(angle)
    y = _KNUCKLE[0] + _CRANK[0] * c - _CRANK[1] * s + _TIP[0]
    z = _KNUCKLE[1] + _CRANK[0] * s + _CRANK[1] * c + _TIP[1]
    return float(y), float(z)


def _xarm7_points() -> tuple[Point, ...]:
    lowest = float(np.arctan2(*_CRANK))  # where the crank points straight down
    points, sides = [Point("TCP", "right_hand", TOOL, 0.0, True)], (("left", 1), ("right", -1))
    for side, sign in sides:
        for y, z in (finger_tip(0.0), finger_tip(lowest)):
            for x in (-_PAD_HALF_WIDTH, _PAD_HALF_WIDTH):
                points.append(Point(f"{side} finger tip", "right_hand", (x, sign * y, z), 0.0, True))
    for side, sign in sides:
        points.append(Point(f"{side} knuckle", "right_hand", (0.0, sign * 0.0705, 0.101), 0.015, True))
    return (
        *points,
        Point("wrist", "link6", (0.0, 0.0, 0.0), 0.06, False),
        Point("elbow", "link4", (0.0, 0.0, 0.0), 0.08, False),
        Point("forearm", "link4", (0.0775, 0.0, 0.0), 0.08, False),
    )


class ArmPoints:
    """Forward kinematics of an arm's monitored points; this base class, for an arm without a model, has none."""

    def __init__(self, points: Sequence[Point] = ()):
        self.points = tuple(points)
        self.names = tuple(p.name for p in points)
        self.radius = np.array([p.radius for p in points])  # (P,)
        self.in_box = np.array([p.in_box for p in points], bool)  # (P,)

    def along(self, way: Array) -> Array:
        """Return the points at each of the joint vectors (T, N), rad.  # (T, P, 3) m"""
        return np.zeros((len(way), 0, 3))

    def at(self, q: Array) -> Array:
        """Return the points at joints (N,), rad.  # (P, 3) m"""
        return self.along(np.asarray(q, float)[None])[0]


class XArm7Points(ArmPoints):
    """The xArm7's points on hand, fingers, wrist, forearm and elbow."""

    def __init__(self) -> None:
        super().__init__(_xarm7_points())
        # Every entry of a chain of link poses is a sum of products with one factor out of 1, cos q and sin q per joint, so
        # two matrix products replace seven in a row. Joints 1 to 4 carry the elbow, joints 5 to 7 the hand on it.
        arm = np.einsum("aij,bjk,ckl,dlm->abcdim", *LINKS[:4])[..., :3, :]  # (3, 3, 3, 3, 3, 4)
        on_hand = HAND @ self._on("right_hand")  # (4, H)
        hand = np.einsum("aij,bjk,ckl,lp->abcip", *LINKS[4:], on_hand)  # (3, 3, 3, 4, H)
        fixed = np.zeros((3, 3, 3, 4, 3))
        # the wrist is the origin of joint 6, which joint 5 does not move
        fixed[0, 0, 0] = np.concatenate([LINKS[4, 0, :, 3:], self._on("link4")], 1)
        self._elbow = arm.reshape(81, 12)
        self._on_elbow = np.concatenate([hand, fixed], 4).reshape(27, -1)  # (27, 4 P)

    def _on(self, body: str) -> Array:
        """Return the points of a body, in its frame.  # (4, n)"""
        return np.array([(*p.position, 1.0) for p in self.points if p.body == body]).T

    def along(self, way: Array) -> Array:
        n = len(way)
        terms = np.ones((7, n, 3))
        np.cos(way.T, out=terms[..., 1])
        np.sin(way.T, out=terms[..., 2])
        pairs = (terms[0:6:2, :, :, None] * terms[1:6:2, :, None, :]).reshape(3, n, 9)
        # one product per pose: in a single product, the last bits would depend on the number of poses
        arm = (pairs[0, :, :, None] * pairs[1, :, None, :]).reshape(n, 1, 81)
        hand = (pairs[2, :, :, None] * terms[6, :, None, :]).reshape(n, 1, 27)
        elbow = (arm @ self._elbow).reshape(n, 3, 4)  # pose of link 4 in the base's frame
        on_elbow = (hand @ self._on_elbow).reshape(n, 4, -1)  # the points in link 4's frame, (N, 4, P)
        return (elbow @ on_elbow).transpose(0, 2, 1)

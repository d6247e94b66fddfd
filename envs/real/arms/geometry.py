"""Where an arm's points are at given joints: TCP, finger tips, knuckles, wrist and elbow, in the base's frame.

MuJoCo does the forward kinematics on robosuite's model of the arm, stripped to its joints: about 4 µs a pose.
The fingers are points fixed to the hand, where they are open and where they reach lowest while closing, so that
the answer holds for every opening.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import Array


@dataclass(frozen=True)
class Point:
    """A sphere fixed to one body of the arm."""

    name: str
    body: str
    position: tuple[float, float, float]  # m, in the body's frame
    radius: float  # m
    in_box: bool  # whether the workspace box binds it, not the arm's; the table always does


# The gripper of the xArm: its base sits on `right_hand`. Knuckle and finger are a parallelogram, so a finger keeps
# its orientation and its tip moves on a circle about the knuckle's joint.
_KNUCKLE = (0.035, 0.059098)  # m, the joint's y and z
_CRANK = (0.035465, 0.042039)  # m, from there to the finger at opening 1
_TIP = (-0.024, 0.0595)  # m, from the finger to the middle of the pad's end
_PAD_HALF_WIDTH = 0.015  # m, along x


def finger_tip(angle: float) -> tuple[float, float]:
    """y and z of the left finger's tip in the gripper's frame, m; angle 0 (open) to 0.85 rad (closed)."""
    c, s = np.cos(angle), np.sin(angle)
    y = _KNUCKLE[0] + _CRANK[0] * c - _CRANK[1] * s + _TIP[0]
    z = _KNUCKLE[1] + _CRANK[0] * s + _CRANK[1] * c + _TIP[1]
    return float(y), float(z)


def _xarm7_points() -> tuple[Point, ...]:
    lowest = float(np.arctan2(*_CRANK))  # where the crank points straight down
    tips = [
        Point(f"{side} finger tip", "right_hand", (x, sign * y, z), 0.0, True)
        for side, sign in (("left", 1), ("right", -1))
        for y, z in (finger_tip(0.0), finger_tip(lowest))
        for x in (-_PAD_HALF_WIDTH, _PAD_HALF_WIDTH)
    ]
    knuckles = [
        Point(f"{side} knuckle", "right_hand", (0.0, sign * 0.0705, 0.101), 0.015, True)
        for side, sign in (("left", 1), ("right", -1))
    ]
    return (
        Point("TCP", "right_hand", (0.0, 0.0, 0.147), 0.0, True),
        *tips,
        *knuckles,
        Point("wrist", "link6", (0.0, 0.0, 0.0), 0.06, False),
        Point("elbow", "link4", (0.0, 0.0, 0.0), 0.08, False),
        Point("forearm", "link4", (0.0775, 0.0, 0.0), 0.08, False),
    )


def bare_arm(robot: str) -> mujoco.MjSpec:
    """robosuite's model of an arm, stripped to its joints. Raises EnvError for an arm without points."""
    if robot != "xarm7":
        raise EnvError(f"safety: found robot '{robot}' without points to watch, expected xarm7")
    package = find_spec("robosuite")  # its files, without the second that importing it takes
    assert package is not None and package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "models/assets/robots/xarm7/robot.xml"
    spec = mujoco.MjSpec.from_file(str(file))
    # what has no part in kinematics; meshes would be read from disk and compiled
    for thing in [*spec.geoms, *spec.meshes, *spec.sites, *spec.cameras, *spec.actuators]:
        spec.delete(thing)
    return spec


class ArmPoints:
    """Forward kinematics of an arm's points. Not for two threads at once.

    Raises:
        EnvError: an arm without points.
    """

    def __init__(self, robot: str = "xarm7"):
        spec, self.points = bare_arm(robot), _xarm7_points()
        for point in self.points:
            spec.body(point.body).add_site(pos=point.position)
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        # compiling orders sites by body; the points stay in the order of their names
        bodies = [self._model.body(p.body).id for p in self.points]
        self._order = np.argsort(np.argsort(bodies, kind="stable"), kind="stable")
        self.names = tuple(p.name for p in self.points)
        self.radius = np.array([p.radius for p in self.points])  # (P,)
        self.in_box = np.array([p.in_box for p in self.points])  # (P,)

    def of(self, body: str) -> NDArray[np.bool_]:
        """Which points are fixed to a body.  # (P,)"""
        return np.array([p.body == body for p in self.points])

    def along(self, way: Array) -> Array:
        """The points at each of the joint vectors (N, 7), rad.  # (N, P, 3) m"""
        model, data = self._model, self._data
        qpos, found, kinematics = data.qpos, data.site_xpos, mujoco.mj_kinematics
        out = np.empty((len(way), len(self.names), 3))
        for i, q in enumerate(way):
            qpos[:] = q
            kinematics(model, data)
            out[i] = found
        return out[:, self._order]

    def at(self, q: Array) -> Array:
        """The points at joints (7,), rad.  # (P, 3) m"""
        return self.along(np.asarray(q, float)[None])[0]

"""Any arm in a MuJoCo model, an MJCF or a URDF: its watched points for the safety filter.

The model's world frame is that of the arm's base. Its joints beyond the arm's, such as fingers, stay where the model has them.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.arms.geometry import ArmPoints

RANGE_SLACK = 0.01  # rad by which a stated range may exceed the model's
# of a model, in an order in which nothing is deleted before what refers to it
_UNNEEDED = (
    "keys sensors actuators tendons equalities pairs excludes skins flexes sites cameras geoms meshes hfields"
)


def model_file(model: str) -> Path:
    """Return the file of `robot.model`: a path, or `package:path` for one in an installed package."""
    package, _, inside = model.rpartition(":")
    found = find_spec(package) if package.isidentifier() else None
    path = Path(found.origin).parent / inside if found and found.origin else Path(model)
    if not path.is_file():
        raise EnvError(f"robot.model: expected an MJCF or URDF, got no file '{path}'")
    return path


def read_spec(robot: ArmDescription) -> Any:
    """Return the `MjSpec` of an arm's model. Raises EnvError if MuJoCo cannot read it."""
    path = model_file(str(robot.model))
    try:
        spec = mujoco.MjSpec.from_file(str(path))
    except ValueError as error:
        raise EnvError(f"robot.model: {path}: {' '.join(str(error).split())}") from None
    spec.compiler.fusestatic = False  # points may be fixed to a URDF's links without joints
    return spec


def compiled(robot: ArmDescription, spec: Any) -> tuple[mujoco.MjModel, Array]:
    """Compile the model; return also the ids of the arm's joints.  # int (N,)

    Raises EnvError: a model of other joints than the description, by number, name or range, or one that is broken.
    """
    where = f"robot.model: {robot.model}"
    try:
        model = spec.compile()
    except ValueError as error:
        raise EnvError(f"{where}: {' '.join(str(error).split())}") from None
    moving = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    found = {model.joint(i).name: i for i in range(model.njnt) if model.jnt_type[i] in moving}
    names = robot.joints or tuple(found)
    if len(names) != (n := len(robot.q_min)):
        raise EnvError(
            f"{where}: expected {n} joints as in robot.q_min, got {len(names)}: {', '.join(names)}"
        )
    for i, name in enumerate(names):
        if name not in found:
            raise EnvError(f"{where}: expected a joint '{name}' as in robot.joints, got {', '.join(found)}")
        low, high = model.jnt_range[found[name]]
        q_min, q_max = robot.q_min[i], robot.q_max[i]
        if model.jnt_limited[found[name]] and (q_min < low - RANGE_SLACK or q_max > high + RANGE_SLACK):
            expected = f"joint {i + 1} within the model's {low:.4g} to {high:.4g}"
            raise EnvError(
                f"{where}: expected {expected}, got {q_min:g} to {q_max:g} in robot.q_min and q_max"
            )
    return model, np.array([found[name] for name in names])


class ModelPoints(ArmPoints):
    """The points of `robot.points`, by MuJoCo's kinematics. Raises EnvError: a model that does not fit."""

    def __init__(self, robot: ArmDescription):
        super().__init__(robot.points)
        spec = read_spec(robot)
        for kind in _UNNEEDED.split():
            for thing in list(getattr(spec, kind)):
                spec.delete(thing)
        spec.compiler.boundmass, spec.compiler.boundinertia = 1.0, 1.0  # geoms may have been all that weighs
        for i, point in enumerate(self.points):
            if (body := spec.body(point.body)) is None:
                raise EnvError(f"robot.points: expected a body of {robot.model}, got '{point.body}'")
            body.add_site(name=f"watched {i}", pos=point.position)
        self._model, joints = compiled(robot, spec)
        self._data = mujoco.MjData(self._model)
        self._q = self._model.jnt_qposadr[joints]
        self._sites = [self._model.site(f"watched {i}").id for i in range(len(self.points))]

    def along(self, way: Array) -> Array:
        places = np.empty((len(way), len(self.points), 3))
        for place, q in zip(places, way, strict=True):
            self._data.qpos[self._q] = q
            mujoco.mj_kinematics(self._model, self._data)
            place[:] = self._data.site_xpos[self._sites]
        return places

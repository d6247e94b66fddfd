"""Monitored points for the safety filter, for any arm with a MuJoCo model (MJCF or URDF).

The model's world frame is that of the arm's base. Other joints, such as fingers, stay at their default in the model.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from s2robot.core.errors import reported
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.arms.geometry import ArmPoints

RANGE_SLACK = 0.01  # rad by which a stated range may exceed the model's
# parts of a model to delete, in an order in which no remaining part refers to a deleted one
_UNNEEDED = (
    "keys sensors actuators tendons equalities pairs excludes skins flexes sites cameras geoms meshes hfields"
)


def compiled(robot: ArmDescription, prepare: Callable[[Any], None]) -> tuple[mujoco.MjModel, Array]:
    """Compile an arm's model after `prepare` has changed its `MjSpec`; return it and the ids of its joints.  # int (N,)

    `robot.model` is a file, or `package:file` for one in an installed package. Raises EnvError if MuJoCo cannot read the model,
    or if its joints differ from the description in number, name or range.
    """
    package, _, inside = str(robot.model).rpartition(":")
    module = find_spec(package) if package.isidentifier() else None
    file = Path(module.origin).parent / inside if module and module.origin else robot.model
    with reported(f"robot.model: {robot.model}", kinds=(ValueError,), kind=EnvError):
        spec = mujoco.MjSpec.from_file(str(file))
        spec.compiler.fusestatic = False  # points may be fixed to a URDF's links without joints
        prepare(spec)
        model = spec.compile()
        return model, _joints(robot, model)


def _joints(robot: ArmDescription, model: mujoco.MjModel) -> Array:
    moving = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    ids = {model.joint(i).name: i for i in range(model.njnt) if int(model.jnt_type[i]) in moving}
    names = robot.joints or tuple(ids)
    if len(names) != (n := len(robot.q_min)):
        raise ValueError(f"expected {n} joints as in robot.q_min, got {len(names)}: {', '.join(names)}")
    for i, name in enumerate(names):
        if name not in ids:
            raise ValueError(f"expected a joint '{name}' as in robot.joints, got {', '.join(ids)}")
        (low, high), q_min, q_max = model.jnt_range[ids[name]], robot.q_min[i], robot.q_max[i]
        if model.jnt_limited[ids[name]] and (q_min < low - RANGE_SLACK or q_max > high + RANGE_SLACK):
            expected = f"robot.q_min and q_max within {low:.4g} to {high:.4g}"
            raise ValueError(f"expected {expected} for joint {i + 1}, got {q_min:g} to {q_max:g}")
    return np.array([ids[name] for name in names])


class ModelPoints(ArmPoints):
    """The points of `robot.points`, from MuJoCo's kinematics. Raises EnvError if the model does not fit."""

    def __init__(self, robot: ArmDescription):
        super().__init__(robot.points)
        self._model, joints = compiled(robot, self._strip)
        self._data = mujoco.MjData(self._model)
        self._q = self._model.jnt_qposadr[joints]
        self._sites = [self._model.site(f"watched {i}").id for i in range(len(self.points))]

    def _strip(self, spec: Any) -> None:
        """Delete everything but bodies and joints, and add a site at each point."""
        for kind in _UNNEEDED.split():
            for element in list(getattr(spec, kind)):
                spec.delete(element)
        spec.compiler.boundmass = spec.compiler.boundinertia = 1.0  # the mass may have come from geoms only
        for i, point in enumerate(self.points):
            if (body := spec.body(point.body)) is None:
                raise ValueError(f"expected a body '{point.body}' as in robot.points, got none")
            body.add_site(name=f"watched {i}", pos=point.position)

    def along(self, way: Array) -> Array:
        positions = np.empty((len(way), len(self.points), 3))
        for position, q in zip(positions, way, strict=True):
            self._data.qpos[self._q] = q
            mujoco.mj_kinematics(self._model, self._data)
            position[:] = self._data.site_xpos[self._sites]
        return positions

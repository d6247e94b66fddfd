"""An arm, as its YAML in configs/robot describes it: joints, gripper, driver, and the model that its watched points are in."""

from typing import Any, Literal, Self

import numpy as np
from pydantic import model_validator

from s2robot.core.parts import Part, default_parts
from s2robot.core.settings import Settings, invalid, read
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmDriver, ArmLimits, Array, Joints, Rates
from s2robot.envs.real.arms.geometry import Point
from s2robot.envs.robots import ROBOTS, robot_spec
from s2robot.envs.tasks import import_class

BUILT_IN = "xarm7"  # the model that needs no file


class ArmDescription(Settings, at="robot"):
    """`robot`; configs/robot/xarm7.yaml documents each value."""

    name: str
    ip: str | None = None
    driver: str | None = None
    model: str | None = None
    joints: tuple[str, ...] | None = None
    home: Joints | None = None
    q_min: Joints
    q_max: Joints
    dq_max: Rates | float | None = None
    ddq_max: Rates | float | None = None
    gripper: Literal["binary", "continuous"] | None = "binary"
    points: tuple[Point, ...] = ()

    @model_validator(mode="after")
    def _one_value_a_joint(self) -> Self:
        n = len(self.q_min)
        for key in ("q_max", "joints", "home", "dq_max", "ddq_max"):
            if isinstance(values := getattr(self, key), tuple) and len(values) != n:
                raise invalid(key, f"{n} values, one a joint as in q_min", list(values))
        if self.home is None and self.name not in ROBOTS:
            raise invalid("home", f"{n} values, rad", None)
        if (np.subtract(self.start, self.q_min) < 0).any() or (np.subtract(self.q_max, self.start) < 0).any():
            raise invalid("home", "joints within q_min and q_max", self.start.tolist())
        if self.model == BUILT_IN and n != 7:
            raise invalid("model", f"null or a file of an arm of {n} joints", self.model)
        if self.model not in (None, BUILT_IN) and not any(point.in_box for point in self.points):
            raise invalid(
                "points", "a point of the model that is in_box, such as the tool's", list(self.points)
            )
        return self

    @property
    def joint_names(self) -> tuple[str, ...]:
        return self.joints or tuple(f"joint{i + 1}" for i in range(len(self.q_min)))

    def parts(self, key: str) -> tuple[Part, ...]:
        """Return what the numbers of an `action` or `proprio` (the key) are."""
        return default_parts(f"{key}_parts", len(self.q_min), self.gripper)

    @property
    def start(self) -> Array:
        """Joints at which an episode starts, rad.  # (N,)"""
        return np.array(self.home or robot_spec(self.name).home)

    def limits(self, node: Any = None) -> ArmLimits:
        """Return the settings `bridge.limits` (the defaults for None) for this arm's joints, no faster than it is."""
        given = read(ArmLimits, {**(node or {}), "q_min": self.q_min, "q_max": self.q_max})
        return given.at_most(self.dq_max, self.ddq_max)

    def driver_class(self) -> Any:
        """Return the driver, made as `driver(ip, limits, gripper=True)`. Raises EnvError if there is none."""
        found: Any = import_class(str(self.driver), "robot.driver")
        if not (isinstance(found, type) and issubclass(found, ArmDriver)):
            raise EnvError(f"robot.driver: expected a subclass of ArmDriver, got '{self.driver}'")
        return found

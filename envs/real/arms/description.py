"""The description of an arm, from its YAML in configs/robot: joints, gripper, driver, model and monitored points."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from pydantic import PositiveFloat

from s2robot.core.parts import Part, default_parts
from s2robot.core.settings import Settings, read
from s2robot.envs.errors import expect
from s2robot.envs.real.arms.driver import ArmDriver, ArmLimits, Array, Joints, Rates
from s2robot.envs.real.arms.geometry import Point
from s2robot.envs.robots import ROBOTS, robot_spec
from s2robot.envs.tasks import import_class

BUILT_IN = "xarm7"  # its model needs no file


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
    dq_max: Rates | PositiveFloat | None = None
    ddq_max: Rates | PositiveFloat | None = None
    gripper: Literal["binary", "continuous"] | None = "binary"
    points: tuple[Point, ...] = ()
    # only for LeRobot's robots: configs/robot/lerobot.yaml documents these
    type: str | None = None
    port: str | None = None
    id: str | None = None
    options: Mapping[str, Any] = {}
    units: Literal["degrees", "normalised", "radians"] | None = None
    stop: Literal["hold", "torque_off"] | None = None
    gripper_joint: str = "gripper"
    gripper_range: tuple[float, float] = (0.0, 100.0)

    def rules(self) -> Iterable[tuple[Any, ...]]:
        n = len(self.q_min)
        for key in ("q_max", "joints", "home", "dq_max", "ddq_max"):
            values = getattr(self, key)
            fits = not isinstance(values, tuple) or len(values) == n
            yield key, fits, f"{n} values, one per joint as in q_min"
        known = self.home is not None or self.name in ROBOTS
        yield "home", known and len(self.start) == n, f"{n} values, rad"
        start, own = self.start, self.model in (None, BUILT_IN)
        inside = (start >= self.q_min).all() and (start <= self.q_max).all()
        yield "home", inside, "joints within q_min and q_max", start.tolist()
        yield "model", self.model != BUILT_IN or n == 7, f"null or a file of an arm of {n} joints"
        watched = any(point.in_box for point in self.points)
        closed, opened = self.gripper_range
        yield "gripper_range", closed != opened, "two different numbers, closed and open"
        if self.type is not None:
            yield "units", self.units is not None, "degrees, normalised or radians, as its datasets have"
            yield "stop", self.stop is not None, "hold (the torque stays on) or torque_off (the arm falls)"
            yield "gripper", self.gripper != "binary", "continuous or null for a LeRobot robot"
        yield "points", self.model != BUILT_IN or not self.points, f"none with robot.model={BUILT_IN}"
        yield "points", own or watched, "at least one point with in_box, such as the tool's"

    @property
    def joint_names(self) -> tuple[str, ...]:
        return self.joints or tuple(f"joint{i + 1}" for i in range(len(self.q_min)))

    def parts(self, key: str) -> tuple[Part, ...]:
        """Return the parts (joints, gripper) of the vector `key`, "action" or "proprio"."""
        return default_parts(f"{key}_parts", len(self.q_min), self.gripper)

    @property
    def start(self) -> Array:
        """The joint positions at which an episode starts, rad.  # (N,)"""
        return np.array(self.home or robot_spec(self.name).home)

    def limits(self, node: Any = None) -> ArmLimits:
        """Return `bridge.limits` (defaults if None) with this arm's joint ranges, capped at its own speed and acceleration."""
        limits = read(ArmLimits, {**(node or {}), "q_min": self.q_min, "q_max": self.q_max})
        return limits.at_most(self.dq_max, self.ddq_max)

    def driver_class(self) -> Any:
        """Return the driver class, called as `driver(ip, limits, gripper=True)`; see `ArmDriver.described`. Raises EnvError."""
        driver: Any = import_class(str(self.driver), "robot.driver")
        fits = isinstance(driver, type) and issubclass(driver, ArmDriver)
        expect(fits, "robot.driver", "a subclass of ArmDriver", f"'{self.driver}'")
        return driver

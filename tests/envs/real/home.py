"""Where the tests' arm stands."""

import numpy as np

from s2robot.core.settings import yaml_defaults
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.robots import robot_spec

HOME = np.array(robot_spec("xarm7").home)  # (7,) rad


def described(robot: str, **changes) -> ArmDescription:
    """An arm of configs/robot."""
    return ArmDescription(**{**yaml_defaults(f"robot/{robot}"), **changes})

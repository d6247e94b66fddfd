"""The home position and descriptions of the arms in the tests."""

from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from s2robot.core.settings import plain, yaml_defaults
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.robots import robot_spec

HOME = np.array(robot_spec("xarm7").home)  # (7,) rad
OWN = Path(__file__).parents[3] / "examples" / "own_arm"


def described(robot: str, **changes) -> ArmDescription:
    """Describe an arm of configs/robot, or `ur5e`, the six-joint arm of examples/own_arm."""
    own = OWN / "configs" / "robot" / "ur5e.yaml"
    values = plain(OmegaConf.load(own)) if robot == "ur5e" else yaml_defaults(f"robot/{robot}")
    return ArmDescription(**{**values, **changes})

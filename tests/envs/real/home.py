"""Where the tests' arm stands."""

import numpy as np

from s2robot.envs.robots import robot_spec

HOME = np.array(robot_spec("xarm7").home)  # (7,) rad

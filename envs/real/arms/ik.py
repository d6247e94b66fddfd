"""Inverse kinematics of an arm's tool: damped least squares from the commanded joints, close to the home pose.

ik = ToolIK("xarm7")
position, rotation = ik.pose(q)              # of the point between the finger tips, in the base's frame
q = ik.solve(q, position + [0, 0, 0.01], rotation)
"""

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import XARM7_LIMITS, Array
from s2robot.envs.real.arms.geometry import HAND, TOOL
from s2robot.envs.real.arms.kinematics import frames, jacobian, turn_of
from s2robot.envs.robots import robot_spec

_DAMPING = 1e-4  # m² and rad²; keeps steps small near a singularity
_POSTURE = 0.05  # share of the way to the home joints that the redundant joint takes in an iteration
_ITERATIONS = 8


class ToolIK:
    """Poses and joints of the tool. Raises EnvError for an arm without known kinematics."""

    def __init__(self, robot: str = "xarm7"):
        if robot != "xarm7":
            raise EnvError(f"ik: found robot '{robot}', expected xarm7")
        self._low, self._high = np.array(XARM7_LIMITS.q_min), np.array(XARM7_LIMITS.q_max)  # (7,) rad
        self._home = np.array(robot_spec(robot).home)
        self._tool = HAND @ [*TOOL, 1.0]  # (4,) in the flange's frame

    def pose(self, q: Array) -> tuple[Array, Array]:
        """Position (3,) m and rotation (3, 3) at joints (7,) rad."""
        return self._pose(frames(q)[-1])

    def _pose(self, flange: Array) -> tuple[Array, Array]:
        return (flange @ self._tool)[:3], flange[:3, :3] @ HAND[:3, :3]

    def solve(self, q: Array, position: Array, rotation: Array) -> Array:
        """Joints (7,) near `q` that bring the tool as close to a pose as a few steps can."""
        q = np.array(q, float)
        for _ in range(_ITERATIONS):
            arm = frames(q)
            here, turned = self._pose(arm[-1])
            error = np.concatenate([position - here, turn_of(rotation @ turned.T)])
            slopes = jacobian(arm, here)
            inverse = slopes.T @ np.linalg.inv(slopes @ slopes.T + _DAMPING * np.eye(6))  # (7, 6)
            free = np.eye(7) - inverse @ slopes
            q = q + inverse @ error + free @ (_POSTURE * (self._home - q))
            q = np.clip(q, self._low, self._high)
        return q

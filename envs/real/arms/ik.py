"""Inverse kinematics of an arm's tool: damped least squares from the commanded joints, close to the home pose.

ik = ToolIK("xarm7")
position, rotation = ik.pose(q)              # of the point between the finger tips, in the base's frame
q = ik.solve(q, position + [0, 0, 0.01], rotation)
"""

import mujoco
import numpy as np

from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.arms.geometry import bare_arm
from s2robot.envs.robots import robot_spec

TOOL = (0.0, 0.0, 0.147)  # m, on `right_hand`: the TCP of s2robot.envs.real.arms.geometry
_DAMPING = 1e-4  # m² and rad²; keeps steps small near a singularity
_POSTURE = 0.05  # share of the way to the home joints that the redundant joint takes in an iteration
_ITERATIONS = 8


class ToolIK:
    """Poses and joints of the tool. Not for two threads at once.

    Raises:
        EnvError: an arm without a model here.
    """

    def __init__(self, robot: str = "xarm7"):
        spec = bare_arm(robot)
        spec.body("right_hand").add_site(name="tool", pos=TOOL)
        self._model = spec.compile()
        self._data = mujoco.MjData(self._model)
        self._site = self._model.site("tool").id
        self._low, self._high = self._model.jnt_range.T  # (7,) rad
        self._home = np.array(robot_spec(robot).home)
        self._jacobian = np.zeros((6, self._model.nv))

    def pose(self, q: Array) -> tuple[Array, Array]:
        """Position (3,) m and rotation (3, 3) at joints (7,) rad."""
        self._data.qpos[:] = q
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._site].copy(), self._data.site_xmat[self._site].reshape(3, 3).copy()

    def solve(self, q: Array, position: Array, rotation: Array) -> Array:
        """Joints (7,) near `q` that bring the tool as close to a pose as a few steps can."""
        q, jacobian = np.array(q, float), self._jacobian
        for _ in range(_ITERATIONS):
            here, turned = self.pose(q)
            error = np.concatenate([position - here, _turn(rotation @ turned.T)])
            mujoco.mj_comPos(self._model, self._data)
            mujoco.mj_jacSite(self._model, self._data, jacobian[:3], jacobian[3:], self._site)
            inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + _DAMPING * np.eye(6))  # (7, 6)
            free = np.eye(7) - inverse @ jacobian
            q = q + inverse @ error + free @ (_POSTURE * (self._home - q))
            q = np.clip(q, self._low, self._high)
        return q


def _turn(rotation: Array) -> Array:
    """A rotation matrix (3, 3) as axis times angle (3,), rad."""
    quaternion, turn = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    mujoco.mju_quat2Vel(turn, quaternion, 1.0)
    return turn

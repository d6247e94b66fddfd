"""A scripted expert for gym-aloha's two tasks: both hands follow waypoints by inverse kinematics.

s2robot run experiment=aloha_transfer      # records 50 demonstrations with it; aloha_insertion is the other task
"""

import gymnasium
import mujoco
import numpy as np
from gym_aloha.env import AlohaEnv
from scipy.spatial.transform import Rotation

ARMS = {
    "left": (0, Rotation.identity()),
    "right": (8, Rotation.from_euler("z", np.pi)),
}  # first joint; forward direction
TIP = 0.13  # m from the gripper's link to the point between its fingers
DOWN, LEVEL = Rotation.from_euler("y", 60, degrees=True), Rotation.identity()
ON_EDGE = Rotation.from_euler("x", 90, degrees=True)  # fingers above and below
OPEN, CLOSED = 1.0, 0.0


def transfer(cube, peg=None):
    """Pick the cube up with the right hand and pass it to the left one: (step, finger position, turn, gripper)."""
    meet = np.array([0.0, 0.5, 0.25])
    right = [
        (70, cube + [0, 0, 0.09], DOWN, OPEN), (110, cube + [0, 0, -0.01], DOWN, OPEN),
        (130, cube + [0, 0, -0.01], DOWN, CLOSED), (200, meet + [0.01, 0, 0], DOWN, CLOSED),
        (275, meet + [0.01, 0, 0], DOWN, CLOSED), (290, meet + [0.01, 0, 0], DOWN, OPEN), (330, meet + [0.12, 0, 0.03], DOWN, OPEN),
    ]  # fmt: skip
    left = [
        (120, meet + [-0.15, 0, -0.01], ON_EDGE, OPEN), (200, meet + [-0.12, 0, -0.01], ON_EDGE, OPEN),
        (245, meet + [-0.01, 0, -0.01], ON_EDGE, OPEN), (270, meet + [-0.01, 0, -0.01], ON_EDGE, CLOSED),
        (295, meet + [-0.01, 0, -0.01], ON_EDGE, CLOSED), (330, meet + [-0.1, 0, 0], ON_EDGE, CLOSED),
    ]  # fmt: skip
    return {"left": left, "right": right}


def insertion(peg, socket):
    """Pick up peg and socket with the two hands, face each other and push the peg into the socket."""
    meet, paths = np.array([0.0, 0.5, 0.2]), {}
    for side, thing, sign, height, held in (
        ("left", socket, -1, 0.03, 0.03),
        ("right", peg, 1, 0.015, 0.043),
    ):
        thing, meets = np.array([*thing[:2], height]), meet + [0, 0, held]  # it lies on the table
        apart, joined = meets + [0.12 * sign, 0, 0], meets + [0.045 * sign, 0, 0]
        paths[side] = [
            (80, thing + [0, 0, 0.1], DOWN, OPEN), (120, thing, DOWN, OPEN), (145, thing, DOWN, CLOSED),
            (230, apart, DOWN, CLOSED), (260, apart, DOWN, CLOSED),
            (340, joined, DOWN, CLOSED), (400, joined, DOWN, CLOSED),
        ]  # fmt: skip
    return paths


class Aloha(AlohaEnv):
    """gym-aloha, drawing the observed camera alone: three with shadows take twelve times as long on a CPU."""

    def __init__(self, size=(240, 320), **kwargs):
        super().__init__(**kwargs, observation_height=size[0], observation_width=size[1])
        physics, world = self._env.physics, self._env.task
        physics.model.vis.quality.shadowsize = physics.model.vis.quality.offsamples = 0
        world.get_observation = lambda physics: {
            "qpos": world.get_qpos(physics),
            "images": {"top": physics.render(*size, camera_id="top")},
        }


gymnasium.register("Transfer-v0", Aloha, kwargs={"task": "transfer_cube"})
gymnasium.register("Insertion-v0", Aloha, kwargs={"task": "insertion"})


class expert:
    """Follows the waypoints of both hands; created with the task and a generator after a reset."""

    failed = False

    def __init__(self, task, rng):
        env = task.inner.unwrapped
        self.model, self.time = env._env.physics.model.ptr, 0
        self.data = mujoco.MjData(self.model)  # a separate copy, to try joints
        self.data.qpos[:] = env._env.physics.data.qpos
        things = [self.data.qpos[at : at + 3].copy() for at in range(16, self.model.nq, 7)]
        paths = transfer(*things) if env.task == "transfer_cube" else insertion(*things)
        self.paths = {side: [(0, *self.pose(side), OPEN), *paths[side]] for side in ARMS}

    def link(self, side):
        return self.data.body(f"vx300s_{side}/gripper_link")

    def pose(self, side):
        """Return the current position of the fingers, and their turn from level."""
        mujoco.mj_kinematics(self.model, self.data)
        turn = Rotation.from_matrix(self.link(side).xmat.reshape(3, 3))
        return self.link(side).xpos + turn.apply([TIP, 0, 0]), ARMS[side][1].inv() * turn

    def act(self):
        self.time += 1
        return np.concatenate([self.reach(side) for side in ARMS]).astype(np.float32)

    def reach(self, side):
        """Return joints and gripper (7,) of one arm at the current step."""
        path = self.paths[side]
        after = min(sum(step < self.time for step, *_ in path), len(path) - 1)
        (start, a, turn_a, grip_a), (end, b, turn_b, grip_b) = path[after - 1], path[after]
        share = min((self.time - start) / (end - start), 1.0)
        turn = turn_a * Rotation.from_rotvec(share * (turn_a.inv() * turn_b).as_rotvec())
        first, forward = ARMS[side]
        self.solve(side, a + share * (b - a), forward * turn)
        return [*self.data.qpos[first : first + 6], grip_a + share * (grip_b - grip_a)]

    def solve(self, side, position, turn):
        """Solve by damped least squares from the joints of the previous step."""
        first, jacobian = ARMS[side][0], np.zeros((2, 3, self.model.nv))
        for _ in range(20):
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_comPos(self.model, self.data)
            now = Rotation.from_matrix(self.link(side).xmat.reshape(3, 3))
            tip = self.link(side).xpos + now.apply([TIP, 0, 0])
            error = np.concatenate([position - tip, 0.3 * (turn * now.inv()).as_rotvec()])
            if np.abs(error).max() < 1e-4:
                return
            mujoco.mj_jac(self.model, self.data, *jacobian, tip, self.link(side).id)
            own = np.concatenate([jacobian[0], 0.3 * jacobian[1]])[:, first : first + 6]
            self.data.qpos[first : first + 6] += own.T @ np.linalg.solve(
                own @ own.T + 1e-4 * np.eye(6), error
            )
            low, high = self.model.jnt_range[first : first + 6].T
            self.data.qpos[first : first + 6] = self.data.qpos[first : first + 6].clip(low, high)

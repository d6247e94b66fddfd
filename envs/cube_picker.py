"""A scripted picker that generates the demos.

Inverse kinematics by mink, from the *commanded* joints; decisions from the *measured* pose. The approach is a funnel, not a
list of waypoints: the farther the gripper is from above the cube, the higher it moves. So the action depends on what
the cameras can see, wherever a perturbation has moved the gripper, and a policy learns a function, not a schedule.
"""

from typing import Any

import mink
import numpy as np

from s2robot.core.parts import MAX_DELTA
from s2robot.envs.cube_config import PickerConfig
from s2robot.envs.task import PredictingExpert
from s2robot.envs.world import TABLE_HEIGHT


class _Arm(mink.Configuration):
    def check_limits(self, tol: float = 1e-6, safety_break: bool = True) -> None:
        """Skip the check for joints beyond their limits, which would take a tenth of a demo's time."""


class Picker(PredictingExpert):
    """Picks the cube of one :class:`CubePick`.

    Pushes (kicks, and grasps next to the cube) are executed and recorded but flagged: training imitates the recoveries.
    """

    memory = ("_step", "_firm", "_closing", "_pushes", "_miss_left", "_kick_left", "_will_miss", "push")

    def __init__(self, env: Any, config: PickerConfig | None = None):
        self.world, self.env, self.config = env, env, config or PickerConfig()
        self._ik = _Arm(env.model)
        costs = {"position_cost": 1.0, "orientation_cost": 0.3, "lm_damping": 1e-6}
        self._task = mink.FrameTask(frame_name=env.model.site(env.grip_site).name, frame_type="site", **costs)
        self._posture = mink.PostureTask(env.model, cost=1e-4)
        self._limits = [mink.ConfigurationLimit(env.model)]
        limited = env.model.jnt_limited.astype(bool)
        self._limited = env.model.jnt_qposadr[limited]
        self._low, self._high = env.model.jnt_range[limited].T

    def begin(self, rng: np.random.Generator) -> None:
        env, c, self._rng = self.env, self.config, rng
        # loose and tight grasps, so that lifting follows any firm grip and not only a perfect one
        self._close_xy, self._close_yaw = rng.uniform(*c.close_xy), rng.uniform(*c.close_yaw)
        # a kick starts at a step drawn over the usual length of the approach
        count = rng.integers(c.kicks[0], c.kicks[1] + 1)
        self._kick_at = set(rng.choice(np.arange(1, 14), size=count, replace=False).tolist())
        self._will_miss = rng.random() < c.misses
        habit = ("left", "right")[int(rng.integers(2))] if c.habit == "either" else c.habit
        self._min_turn = {"nearest": -np.pi / 4, "left": 0.0, "right": -np.pi / 2}[habit]
        self._kick_left = self._miss_left = 0
        self._step, self._firm, self._closing, self._pushes = -1, 0, False, True
        self.push = ""  # of the last action: a kick, a miss, or none
        home = env.data.qpos.copy()
        home[env.joint_index] = env.spec_robot.home
        self._posture.set_target(home)
        self._ik.update(home)
        self._yaw_home = self._grip_yaw(self._ik.data)

    def act(self) -> tuple[np.ndarray, bool]:
        """Return the next action and whether it is a push; `push` names it.  # float32 (8,), bool"""
        env, c = self.env, self.config
        cube, grip = env.cube_pose, env.grip_position
        yaw_error = self._yaw_error(cube, self._grip_yaw())
        far = float(np.linalg.norm(cube[:2] - grip[:2]))
        grasp_z = max(cube[2], env.config.cube_size / 2)
        self._step += 1
        self.push = ""

        if self._closing and env.grips_nothing:
            self._closing = False  # closed on nothing: open and retry
        if not self._closing and not self._miss_left:
            low = abs(grip[2] - grasp_z) < c.close_z and env.opening > c.open_enough
            self._closing = low and far < self._close_xy and abs(yaw_error) < self._close_yaw
        if self._closing:
            return self._grasp(), False
        if self._pushes and (push := self._push_off(cube, grip, far, grasp_z)):
            action, self.push = push
            return action, True

        misaligned = far + c.funnel_yaw * abs(yaw_error)
        if env.opening < c.open_enough:
            misaligned = np.inf  # stay above the cube until the gripper is open
        height = min(c.hover, c.funnel_slope * max(0.0, misaligned - c.funnel_mouth))
        return self._move(np.array([*cube[:2], grasp_z + height]), yaw_error, closed=False), False

    def ask(self, steps: int, memory: dict[str, Any] | None = None) -> np.ndarray:
        joints = self._ik.q.copy()
        actions = super().ask(steps, memory)
        self._ik.update(joints)
        return actions

    def calm(self) -> None:
        self._pushes, self._miss_left = False, 0

    def take_over(self, actions) -> None:
        """Continue without perturbations after a policy's actions (T, 8), T >= 0."""
        closed = len(actions) > 0 and bool(actions[-1][7] >= 0.5)
        self.calm()
        self._firm = 0
        self._closing = closed and not self.env.grips_nothing

    def _grasp(self) -> np.ndarray:
        """Close where the gripper is; lift at the first contact with both fingers."""
        c = self.config
        self._firm = self._firm + 1 if self.env._touching() else 0
        target, _ = self._commanded_pose()
        if self._firm > c.grip_steps:
            target[2] = self.env.config.cube_size / 2 + c.lift
        return self._move(target, 0.0, closed=True)

    def _push_off(self, cube, grip, far: float, grasp_z: float) -> tuple[np.ndarray, str] | None:
        """Return the action and name of a perturbation that is due: a kick, or a miss (a grasp next to the cube)."""
        env, c, rng = self.env, self.config, self._rng
        if self._will_miss and far < 0.04 and grip[2] < grasp_z + 0.08:
            self._will_miss = False
            self._miss_left = int(rng.integers(c.miss_steps[0], c.miss_steps[1] + 1))
            angle, distance = rng.uniform(-np.pi, np.pi), rng.uniform(*c.miss_by)
            beside = cube[:2] + distance * np.array([np.cos(angle), np.sin(angle)])
            self._miss_at = np.array([*beside, grasp_z])
            self._miss_rise = int(rng.integers(0, 4))  # its last steps may lift nothing, as policies do
        if self._miss_left:
            self._miss_left -= 1
            if self._miss_left == 0 and env._touching():
                self._closing = True  # it has the cube after all
            target = self._miss_at + [0, 0, 0.12 if self._miss_left < self._miss_rise else 0.0]
            down = abs(grip[2] - grasp_z) < 0.02 or env.opening < 0.9
            return self._move(target, 0.0, closed=bool(down)), "miss"
        if self._kick_left == 0 and self._step in self._kick_at:
            self._kick_left = int(rng.integers(c.kick_steps[0], c.kick_steps[1] + 1))
            push = rng.uniform(-1, 1, 3) * c.kick_size
            if grip[2] < 0.08:
                push[2] = abs(push[2])  # never into the table
                push[:2] *= 0.5  # nor through the cube
            self._push = push, rng.uniform(-c.kick_yaw, c.kick_yaw)
        if self._kick_left:
            self._kick_left -= 1
            target = self._commanded_pose()[0] + self._push[0]
            target[2] = np.clip(target[2], 0.03, 0.40)
            return self._move(target, self._push[1], closed=False, limit=False), "kick"
        return None

    def _grip_yaw(self, data: Any = None) -> float:
        """Return the yaw of the grip site's y axis in the table's plane, rad; ``data``: the solver's, by default the world's."""
        rotation = (data or self.env.data).site_xmat[self.env.grip_site].reshape(3, 3)
        return float(np.arctan2(rotation[1, 1], rotation[0, 1]))

    def _yaw_error(self, cube: np.ndarray, yaw: float) -> float:
        """Return the turn that aligns the fingers with two faces: at most a quarter turn from home, in the direction of
        the picker's habit, or the smallest; a cube looks the same after a quarter turn."""
        w, x, y, z = cube[3:]
        cube_yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
        quarter = np.pi / 2
        # near the diagonal both turns are equal: prefer the one towards home, so that similar poses agree
        from_home = (cube_yaw - self._yaw_home - self._min_turn) % quarter + self._min_turn
        return float((self._yaw_home + from_home - yaw + np.pi) % (2 * np.pi) - np.pi)

    def _commanded_pose(self) -> tuple[np.ndarray, float]:
        """Return the pose of the grip centre at the commanded joints.  # (3,) m table frame, rad"""
        qpos = self.env.data.qpos.copy()
        # a closing gripper slightly exceeds its joint limits, which the solver would reject
        qpos[self._limited] = np.clip(qpos[self._limited], self._low, self._high)
        qpos[self.env.joint_index] = self.env.commanded
        self._ik.update(qpos)
        position = self._ik.data.site_xpos[self.env.grip_site] - [0, 0, TABLE_HEIGHT]
        return position, self._grip_yaw(self._ik.data)

    def _move(self, target: np.ndarray, turn: float, closed: bool, limit: bool = True) -> np.ndarray:
        """Return the action of one step towards ``target`` (table frame), turning by ``turn``."""
        c = self.config
        position, yaw = self._commanded_pose()  # also sets the IK to the commanded joints
        step = target - position
        if limit:
            step[:2] *= min(1.0, c.step_xy / max(float(np.linalg.norm(step[:2])), 1e-9))
            step[2] = np.clip(step[2], -c.step_z, c.step_z)
            turn = np.clip(self._grip_yaw() + turn - yaw if turn else 0.0, -c.step_yaw, c.step_yaw)
        goal_yaw = yaw + turn - self._yaw_home
        cos, sin = np.cos(goal_yaw), np.sin(goal_yaw)
        rotation = mink.SO3.from_matrix(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ self._level())
        point = position + step + [0, 0, TABLE_HEIGHT]
        self._task.set_target(mink.SE3.from_rotation_and_translation(rotation, point))
        options = {"dt": 1.0, "solver": "quadprog", "limits": self._limits, "damping": 1e-5}
        for _ in range(4):
            self._ik.integrate_inplace(mink.solve_ik(self._ik, [self._task, self._posture], **options), 1.0)
        delta = self._ik.q[self.env.joint_index] - self.env.commanded
        return np.append(np.clip(delta, -MAX_DELTA, MAX_DELTA), float(closed)).astype(np.float32)

    def _level(self) -> np.ndarray:
        y = np.array([np.cos(self._yaw_home), np.sin(self._yaw_home), 0.0])
        z = np.array([0.0, 0.0, -1.0])
        return np.stack([np.cross(y, z), y, z], axis=1)

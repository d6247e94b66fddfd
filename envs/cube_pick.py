"""CubePick: pick up a cube anywhere in a box on the table, in joint space at 10 Hz."""

from typing import Any

import mujoco
import numpy as np

from s2robot.core.parts import MAX_DELTA
from s2robot.envs.cube_config import SHUT, CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.mujoco_task import MujocoTask, geoms_of, touching
from s2robot.envs.robots import robot_spec
from s2robot.envs.world import TABLE_HEIGHT, CubeWorld

_CLEAR = 0.09  # m, minimum distance of the centres of clutter from each other and from the cube's


class CubePick(MujocoTask):
    """A gymnasium environment over :class:`s2robot.envs.world.CubeWorld`, as described in :class:`Task`.

    Proprioception: 7 measured joints (rad) + gripper opening (0 closed, 1 open).
    Action: 7 joint deltas (rad, at most 0.25) against the last commanded joints + gripper command (0.5 and above closes).
    ``info`` also has ``cube_pose`` (x, y, z, qw, qx, qy, qz in the table's frame) and ``distance`` (m, grip centre to cube
    centre). Options of a reset: ``cube_xy`` (m, table frame), ``cube_yaw`` (rad) and ``start_joints`` (7,) override the
    sampled values; the random stream does not depend on them.
    """

    Settings = CubePickConfig
    settings: CubePickConfig

    def __init__(self, config: CubePickConfig | None = None, render_mode=None, draw: bool = True, **settings):
        c = self.settings = self.config = config or CubePickConfig(**settings)
        self.spec_robot = robot_spec(c.robot)
        if why := c.camera_problem():
            raise EnvError(why)
        self.render_mode, self.draw = render_mode, draw
        self.world = CubeWorld(self.spec_robot, c)
        self.model, self.data = self.world.sim.model._model, self.world.sim.data._data
        self._resolve_names()
        self._change_looks()
        self._picker: Any = None
        self.spaces([-MAX_DELTA] * 7 + [0], [MAX_DELTA] * 7 + [1], 8)
        self.commanded = np.array(self.spec_robot.home)  # (7,)
        self._open_gripper()
        self._held_steps, self._closed = 0, False

    def _resolve_names(self) -> None:
        model, robot = self.model, self.world.robots[0]
        self.joint_index = np.array(robot._ref_joint_pos_indexes)  # (7,)
        self.joint_names = tuple(robot.robot_model.joints)
        ranges = model.jnt_range[[model.joint(name).id for name in self.joint_names]]
        self.joint_low, self.joint_high = ranges[:, 0], ranges[:, 1]  # (7,) rad
        self.grip_site = robot.eef_site_id["right"]
        self._gripper = robot.gripper["right"]
        self._gripper_index = model.joint(self.spec_robot.gripper_joint).qposadr[0]
        self._cube_index = model.joint("cube_joint0").qposadr[0]
        self._cube_geoms = {g for g in range(model.ngeom) if model.geom_bodyid[g] == self.world.cube_body_id}
        self._finger_geoms = [geoms_of(model, model.body(n).id) for n in self.spec_robot.finger_bodies]
        self.camera_ids = {name: model.camera(name).id for name in self.config.cameras}

    def _change_looks(self) -> None:
        """Apply the config's lighting and shift of the cameras, except the hand's."""
        m, c = self.model, self.config
        for name, i in self.camera_ids.items():
            if name != "hand":
                m.cam_pos[i] += c.camera_shift * m.cam_mat0[i].reshape(3, 3)[:, 0]
        head = m.vis.headlight
        lights = m.light_ambient, m.light_diffuse, m.light_specular, head.ambient, head.diffuse, head.specular
        for light in lights:
            light[:] *= c.lighting
        self._clutter = [m.geom(f"clutter{i}").id for i in range(c.clutter)]

    def _scatter(self, rng: np.random.Generator, cube_xy: np.ndarray) -> None:
        occupied = [cube_xy]
        for geom in self._clutter:
            for _ in range(200):
                position = rng.uniform((-0.2, -0.28), (0.2, 0.28))
                if min(np.linalg.norm(position - other) for other in occupied) > _CLEAR:
                    break
            occupied.append(position)
            self.model.geom_pos[geom, :2] = position

    def begin(self, rng, options) -> None:
        c = self.config
        xy, yaw, start = c.draw_start(rng)
        cube_xy = np.asarray(options.get("cube_xy", xy), float)
        if self._clutter:  # after all other draws, so that they do not depend on it
            self._scatter(rng, cube_xy)
        yaw = float(options.get("cube_yaw", yaw))
        start = np.asarray(options.get("start_joints", start), float)

        self.world.reset()
        self._open_gripper()
        self.data.qpos[self.joint_index] = start
        height, quaternion = TABLE_HEIGHT + c.cube_size / 2 + 1e-3, [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self.data.qpos[self._cube_index : self._cube_index + 7] = [*cube_xy, height, *quaternion]
        mujoco.mj_forward(self.model, self.data)
        self.commanded = start.copy()
        self._furthest = self._held_steps = 0
        for _ in range(3):  # the cube settles and the gripper opens
            self._apply(close=False)
        self._cube_rest = self.cube_pose[2]
        self.layout = c.layout_of({"cube_pose": self.cube_pose})

    def apply(self, action) -> None:
        delta = np.clip(action[:7], -MAX_DELTA, MAX_DELTA)
        self.commanded = np.clip(self.commanded + delta, self.joint_low, self.joint_high)
        self._closed = bool(action[7] >= 0.5)
        self._apply(close=self._closed)
        self._judge()

    keeps_contacts = True

    def _memory(self) -> list[tuple[Any, str]]:
        return [(self._gripper, "current_action"), (self, "commanded")]

    def _counters(self) -> list[tuple[Any, str]]:
        return [(self, name) for name in ("_furthest", "_held_steps", "_steps", "_closed")]

    @property
    def joints(self) -> np.ndarray:
        """Measured joints, rad.  # (7,)"""
        return self.data.qpos[self.joint_index].copy()

    @property
    def opening(self) -> float:
        """Gripper opening, 0 closed to 1 open."""
        spec = self.spec_robot
        span = spec.gripper_open - spec.gripper_closed
        return float(np.clip((self.data.qpos[self._gripper_index] - spec.gripper_closed) / span, 0, 1))

    @property
    def proprio(self) -> np.ndarray:
        """7 joints + gripper opening.  # float32 (8,)"""
        return np.append(self.joints, self.opening).astype(np.float32)

    @property
    def cube_pose(self) -> np.ndarray:
        """x, y, z, qw, qx, qy, qz in the table's frame.  # (7,)"""
        pose = self.data.qpos[self._cube_index : self._cube_index + 7].copy()
        pose[2] -= TABLE_HEIGHT
        return pose

    @property
    def grip_position(self) -> np.ndarray:
        """The centre between the finger tips in the table's frame, m.  # (3,)"""
        return self.data.site_xpos[self.grip_site] - [0, 0, TABLE_HEIGHT]

    def project(self, position) -> dict[str, np.ndarray]:
        """Return where each camera sees a point of the table's frame (3,), m: x to the right and y downwards in 0..1 of
        the upright frame, clamped to its border, NaN if behind the camera.  # {camera: float32 (2,)}"""
        return self.projected(np.asarray(position) + [0, 0, TABLE_HEIGHT])

    @property
    def distance(self) -> float:  # m, from the grip centre to the cube's
        return float(np.linalg.norm(self.grip_position - self.cube_pose[:3]))

    progress = property(lambda self: -self.distance)

    grip_points = property(lambda self: self.project(self.grip_position))

    def info(self) -> dict:
        return super().info() | {"cube_pose": self.cube_pose, "distance": self.distance}

    @property
    def remaining(self) -> float:
        """Remaining distance, m: decreases on the way to the cube and while lifting it."""
        return self.distance - max(self.cube_pose[2] - self._cube_rest, 0.0)

    @property
    def grips_nothing(self) -> bool:
        """Whether the gripper is shut and does not touch the cube with both fingers."""
        return self.opening < SHUT and not self._touching()

    @property
    def grasp_missed(self) -> bool:
        return self._closed and self.grips_nothing

    def expert(self, rng, settings=None):
        from s2robot.envs.cube_picker import Picker  # mink takes a second to import

        if self._picker is None or self._picker.config != (settings or self._picker.config):
            self._picker = Picker(self, settings)
        self._picker.begin(rng)
        return self._picker

    def demo_fields(self) -> dict[str, np.ndarray]:
        return {"cube_pose": self.cube_pose}

    def record_fields(self, layout, progress) -> tuple[dict, dict]:
        xy = [round(float(layout[name]), 5) for name in "xy"]
        where = {"cube_xy": xy, "cube_yaw": round(float(layout["yaw"]), 5)}
        return where, {"closest_m": round(-float(progress), 5)}

    def _apply(self, close: bool) -> None:
        self.world.advance(np.append(self.commanded, 1.0 if close else -1.0))
        self._refresh_poses()

    def _open_gripper(self) -> None:
        for _ in range(int(np.ceil(2 / self._gripper.speed))):
            self._gripper.format_action(np.array([-1.0]))

    def _touching(self) -> bool:
        return all(touching(self.data, self._finger_geoms, self._cube_geoms))

    def _judge(self) -> None:
        c, raised, gripped = self.config, self.cube_pose[2] - self._cube_rest, self._touching()
        self._held_steps = self._held_steps + 1 if gripped and raised >= c.success_height else 0
        stage = (2 if raised >= 0.02 else 1) if gripped else 0
        if self._held_steps >= max(1, round(c.success_hold * c.rate_hz)):
            stage = 3
        self._furthest = max(self._furthest, stage)

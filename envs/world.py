"""The physics of CubePick: robosuite's Lift with our cameras, cube and base.

Facts about robosuite 1.5.2 that shape this file: xArm7's named controller config does not exist, so the part
controller is spelled out; the gripper moves a fixed increment per control *step*, so its speed is scaled to the
control rate; stock placement is within 3 cm, so CubePick places the cube itself.
"""

import xml.etree.ElementTree as ElementTree
from typing import Any

import mujoco
import numpy as np
from robosuite.environments.manipulation.lift import Lift
from robosuite.models.arenas import TableArena
from robosuite.models.objects import BoxObject
from robosuite.models.tasks import ManipulationTask
from robosuite.utils.mjcf_utils import CustomMaterial, array_to_string, find_elements

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.robots import RobotSpec

TABLE_HEIGHT = 0.8  # m, the table's top
# (shape, MuJoCo size in m, colour) of clutter; none is red like the cube
CLUTTER = (
    ("box", (0.02, 0.02, 0.02), (0.1, 0.3, 0.8, 1)),
    ("cylinder", (0.025, 0.04), (0.9, 0.8, 0.1, 1)),
    ("sphere", (0.025,), (0.1, 0.6, 0.2, 1)),
    ("box", (0.03, 0.015, 0.01), (0.9, 0.5, 0.1, 1)),
    ("cylinder", (0.035, 0.012), (0.5, 0.2, 0.6, 1)),
    ("box", (0.015, 0.015, 0.04), (0.2, 0.7, 0.7, 1)),
    ("sphere", (0.018,), (0.9, 0.9, 0.9, 1)),
    ("box", (0.025, 0.025, 0.015), (0.25, 0.25, 0.25, 1)),
)
_GRIPPER_STEPS_PER_S = 20 * 0.2  # robosuite's increment of 0.2 per step, meant for 20 Hz


def _arm_controller(stiffness: float) -> dict:
    """Return robosuite's config of an absolute joint-position controller, critically damped; stiffness in 1/s²."""
    arm = {
        "type": "JOINT_POSITION", "input_type": "absolute", "impedance_mode": "fixed",
        "input_max": 1, "input_min": -1, "output_max": 1, "output_min": -1,
        "kp": stiffness, "damping_ratio": 1, "kp_limits": [0, 1000], "damping_ratio_limits": [0, 10],
        "qpos_limits": None, "interpolation": None, "ramp_ratio": 0.2, "gripper": {"type": "GRIP"},
    }  # fmt: skip
    return {"type": "BASIC", "body_parts": {"right": arm}}


def look_at(position, target, up=(0.0, 0.0, 1.0)) -> np.ndarray:
    """Return the ``xyaxes`` (6,) of a camera at ``position`` facing ``target``; if straight down, x is up in the image."""
    backward = np.subtract(position, target).astype(float)
    backward /= np.linalg.norm(backward)
    right = np.cross(up, backward)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross((1.0, 0.0, 0.0), backward)
    right /= np.linalg.norm(right)
    return np.concatenate([right, np.cross(backward, right)])


class CubeWorld(Lift):
    """One arm, a table, a cube and clutter without collisions, stepped with absolute joint targets."""

    def __init__(self, spec: RobotSpec, config: CubePickConfig):
        self._spec, self._config = spec, config
        arm = _arm_controller(config.stiffness)
        super().__init__(
            robots=spec.robosuite_name, controller_configs=arm, control_freq=config.rate_hz, initialization_noise=None,
            use_camera_obs=False, use_object_obs=False, has_renderer=False, has_offscreen_renderer=False,
            hard_reset=False, ignore_done=True,
        )  # fmt: skip
        gripper = self.robots[0].gripper["right"]
        # `speed` is a property without a setter, so the instance gets its own class
        speed = _GRIPPER_STEPS_PER_S / config.rate_hz
        gripper.__class__ = type("RateGripper", (gripper.__class__,), {"speed": speed})

    def advance(self, action: np.ndarray) -> None:
        """Step the physics like robosuite's ``step``, bit for bit, in a fraction of its time.

        robosuite computes poses, velocities and Jacobians of the hand, limits and observations in each physics step, which
        are not used here. Its code sets the goals and does the first step; the joint controller, in its own order of
        operations, does the others. The gripper's command stays that of the first step.
        """
        model, data = self.sim.model._model, self.sim.data._data
        mujoco.mj_step1(model, data)
        self._pre_action(action, policy_step=True)
        mujoco.mj_step2(model, data)
        robot = self.robots[0]
        arm, motors = robot.part_controllers["right"], np.array(robot._ref_actuators_indexes_dict["right"])
        low, high = model.actuator_ctrlrange[motors].T
        qpos, qvel = np.array(arm.qpos_index), np.array(arm.qvel_index)
        goal, kp, kd = np.array(arm.goal_qpos), arm.kp, arm.kd
        mass = np.empty((model.nv, model.nv))
        for _ in range(int(self.control_timestep / self.model_timestep) - 1):
            mujoco.mj_step1(model, data)
            mujoco.mj_fullM(model, mass, data.qM)
            acceleration = (goal - data.qpos[qpos]) * kp + -data.qvel[qvel] * kd
            torque = np.dot(mass[qvel, :][:, qvel], acceleration) + data.qfrc_bias[qvel]
            data.ctrl[motors] = np.minimum(np.maximum(torque, low), high)
            mujoco.mj_step2(model, data)
        self.timestep += 1
        self.cur_time += self.control_timestep

    def _load_model(self) -> None:
        super(Lift, self)._load_model()  # Lift's own would place a cube of a fixed size
        robot = self.robots[0].robot_model
        base_z = robot.base_xpos_offset["table"](self.table_full_size[0])[2]
        robot.set_base_xpos((self._spec.base_x, 0.0, base_z))
        spec = self._spec
        hand = find_elements(robot.worldbody, "body", {"name": spec.camera_body})
        view = look_at(spec.camera_pos, spec.camera_target, spec.camera_up)
        _add(hand, "camera", name="hand", pos=spec.camera_pos, xyaxes=view, fovy=str(spec.camera_fovy))
        arena = TableArena(self.table_full_size, self.table_friction, table_offset=self.table_offset)
        arena.set_origin([0, 0, 0])
        for name, (position, target, fovy) in self._config.views().items():
            place, view = np.add(position, self.table_offset), look_at(position, target)
            _add(arena.worldbody, "camera", name=name, pos=place, xyaxes=view, fovy=str(fovy))
        for i, (shape, size, colour) in enumerate(CLUTTER[: self._config.clutter]):
            height = size[0] if shape == "sphere" else size[-1]  # half the height, as it stands on the table
            place = np.add((0, 0, height), self.table_offset)
            look = {"rgba": colour, "group": "1", "contype": "0", "conaffinity": "0"}  # 1: the visual group
            _add(arena.worldbody, "geom", name=f"clutter{i}", type=shape, size=size, pos=place, **look)
        wood = CustomMaterial(
            texture="WoodRed", tex_name="redwood", mat_name="redwood_mat",
            tex_attrib={"type": "cube"},
            mat_attrib={"texrepeat": "1 1", "specular": "0.4", "shininess": "0.1"},
        )  # fmt: skip
        half = self._config.cube_size / 2
        self.cube = BoxObject(name="cube", size=[half] * 3, rgba=[1, 0, 0, 1], material=wood)
        self.model = ManipulationTask(mujoco_arena=arena, mujoco_robots=[robot], mujoco_objects=self.cube)

    def _reset_internal(self) -> None:
        super(Lift, self)._reset_internal()  # Lift's own would sample a placement; CubePick places the cube


def _add(parent: ElementTree.Element, tag: str, **attributes: Any) -> None:
    texts = {k: v if isinstance(v, str) else array_to_string(v) for k, v in attributes.items()}
    parent.append(ElementTree.Element(tag, texts))

"""Any robosuite environment with its controller, as a task.

Facts about robosuite 1.5.2 that shape this file: all random draws of a reset come from ``env.rng``, which its samplers
share, so an episode's seed is set in place; a hard reset recompiles the scene (0.3 s) and may draw other object sizes, so
resets are soft, and sizes are those of the first compilation (seed 0) in every process; actions are scaled to -1..1,
here they are in m, rad and 0..1 (a gripper's), so that rotations can be composed.
"""

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
import robosuite
from robosuite.controllers import load_part_controller_config
from robosuite.environments.base import REGISTERED_ENVS
from robosuite.robots import ROBOT_CLASS_MAPPING, FixedBaseRobot

from s2robot.core.errors import reported
from s2robot.envs.errors import EnvError, check_known, expect
from s2robot.envs.experts.worlds import EXPERT_OF
from s2robot.envs.mujoco_task import MujocoTask, geoms_of, touching
from s2robot.envs.robosuite_config import GRASPED, ExpertSettings, RobosuiteSettings
from s2robot.envs.robots import ROBOTS

VERSION = robosuite.__version__
# arguments of robosuite.make that task.kwargs must not contain, and their replacements: after a hard reset this class
# would use the old scene, and an episode that robosuite has ended cannot be stepped further
_RESERVED = {
    "robots": "task.robot", "controller_configs": "task.controller", "control_freq": "task.rate_hz",
    "horizon": "task.max_steps", "ignore_done": "task.max_steps", "hard_reset": "none: resets are soft",
}  # fmt: skip
# arrays of an arm's controller that the next step depends on; it sets all others itself. A redundant arm is pulled
# towards the joints in which the episode started.
_GOALS = ("goal_pos", "goal_ori", "goal_qpos", "initial_joint")
_FAR = 5.0  # m: robosuite moves objects away that an episode does not need


class RobosuiteTask(MujocoTask):
    """One robosuite environment; EnvError for a name that robosuite does not have."""

    Settings = RobosuiteSettings
    settings: RobosuiteSettings

    def __init__(self, settings: RobosuiteSettings | None = None, draw: bool = True):
        self.settings, self.draw = settings or RobosuiteSettings(), draw
        self.raw = _create(self.settings)
        self._reset_raw()
        self._bind_scene()
        self.action_parts, low, high, self._scale, self._offset = _actions(self.raw)
        self.proprio_parts = self._proprio_parts()
        self._guide: Any = None  # an expert that never acts, for the remaining distance
        self.spaces(low, high, sum(part["size"] for part in self.proprio_parts))

    def _bind_scene(self) -> None:
        self.model, self.data = self.raw.sim.model._model, self.raw.sim.data._data
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        check_known("task.cameras", self.settings.cameras, known)
        self.camera_ids = {name: known.index(name) for name in self.settings.cameras}
        self._fingers = self._own_fingers()

    def _proprio_parts(self) -> list[dict]:
        observed = self._observed()
        known = [key for key in observed if not key.endswith("-state")]
        check_known("task.proprio", self.settings.proprio, known)
        return [
            {"name": key.removesuffix("_quat"), "size": 6, "kind": "rotation", "form": "rot6d"}
            if key.endswith("_quat")
            else {"name": key, "size": int(np.size(observed[key])), "kind": "absolute"}
            for key in self.settings.proprio
        ]

    def _observed(self) -> dict[str, Any]:
        """Return robosuite's observables, and `robot0_gripper_command`: the commanded opening, -1..1, which takes some
        steps from one end to the other. With an object between the fingers, the measured opening does not show it."""
        commands = {
            f"robot{number}_{'' if len(robot.arms) == 1 else f'{arm}_'}gripper_command": gripper.current_action
            for number, robot in enumerate(self.raw.robots)
            for arm, gripper in robot.gripper.items()
        }
        return {**self.raw._get_observations(force_update=True), **commands}

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any]) -> None:
        self.raw.rng.bit_generator.state = np.random.PCG64(int(rng.integers(2**63))).state
        self._reset_raw()
        self._drop_poses()  # cached before the start noise; they would make a rehearsal change the next step
        self._refresh_poses()
        self._guide = EXPERT_OF[self.settings.env](self, None) if self.settings.Expert else None
        self._furthest = 0
        self.layout = self._layout()
        self._judge()

    def apply(self, action: np.ndarray) -> None:
        self.raw.step(self.to_raw(action))
        self._refresh_poses()
        self._judge()

    def to_raw(self, action: np.ndarray) -> np.ndarray:
        """Return an action in robosuite's own units, -1..1.  # (A,)"""
        box: Any = self.action_space
        return (np.clip(action, box.low, box.high) - self._offset) / self._scale

    def from_raw(self, action: np.ndarray) -> np.ndarray:
        """Return an action of robosuite's own environment in our units.  # float32 (A,)"""
        return (np.clip(action, -1, 1) * self._scale + self._offset).astype(np.float32)

    @property
    def proprio(self) -> np.ndarray:
        seen = self._observed()
        rows = [_rot6d(seen[k]) if k.endswith("_quat") else np.ravel(seen[k]) for k in self.settings.proprio]
        return np.concatenate(rows).astype(np.float32)

    # robosuite's own reward, shaped where available; the remaining distance is in m if there is an expert
    progress = property(lambda self: float(self.raw.reward(None)))
    remaining = property(lambda self: self._guide.remaining() if self._guide else -self.progress)
    grasp_missed = property(lambda self: self._guide is not None and self._guide.grasp_missed())

    def expert(self, rng: np.random.Generator, settings: ExpertSettings | None = None) -> Any:
        if not self.settings.Expert:  # only some settings have one
            return super().expert(rng)
        return EXPERT_OF[self.settings.env](self, rng, settings)

    @property
    def grip_points(self) -> dict[str, np.ndarray]:
        return self.projected(self.data.site_xpos[next(iter(self.raw.robots[0].eef_site_id.values()))])

    def _memory(self) -> list[tuple[Any, str]]:
        """Return what determines the next step besides MuJoCo's state; a reset creates new controllers."""
        holders: list[tuple[Any, str]] = []
        for robot in self.raw.robots:
            holders += [(gripper, "current_action") for gripper in robot.gripper.values()]
            composite = robot.composite_controller
            for part, controller in composite.part_controllers.items():
                if part not in composite.grippers:
                    arrays = (n for n in _GOALS if isinstance(getattr(controller, n, None), np.ndarray))
                    holders += [(controller, name) for name in arrays]
        return holders

    def _counters(self) -> list[tuple[Any, str]]:
        return [(self, "_steps"), (self, "_furthest"), (self.raw, "timestep"), (self.raw, "cur_time")]

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that create this environment in `robosuite.make` and in robomimic, as JSON types."""
        return {"env_version": VERSION, "env_kwargs": _arguments(self.settings)}

    def load_scene(self, xml: str) -> None:
        """Load a recording's scene; EnvError if this robosuite cannot load it, such as that of another version."""
        # errors are of many types: other names of joints, sites and meshes; malformed XML
        with reported(f"scene: expected one that robosuite {VERSION} can load, got", kind=EnvError):
            self.raw.reset_from_xml_string(self.raw.edit_model_xml(xml))
        self.close()  # the renderer belongs to the previous scene
        self._bind_scene()

    def show(self, flat: np.ndarray) -> None:
        size = 1 + self.model.nq + self.model.nv
        expect(np.shape(flat) == (size,), "state", f"({size},) for this scene", np.shape(flat))
        self.raw.sim.set_state_from_flattened(flat)
        self.raw.sim.forward()

    def _reset_raw(self) -> None:
        self.raw.reset()
        for robot in self.raw.robots:
            for gripper in robot.gripper.values():
                gripper.format_action(np.zeros(gripper.dof))  # the shape that it has after a step

    def _drop_poses(self) -> None:
        for robot in self.raw.robots:
            for controller in robot.composite_controller.part_controllers.values():
                controller.new_update = True

    def _judge(self) -> None:
        if self.raw._check_success():
            self._furthest = len(self.settings.stages) - 1
        elif (target := self._object_to_grasp()) is not None and self._grasps(target):
            self._furthest = max(self._furthest, 1)

    def _grasps(self, target: Any) -> bool:
        if not self._fingers:
            return self.raw._check_grasp(self._first_gripper(), target)
        return all(touching(self.data, self._fingers, {self.model.geom(n).id for n in target.contact_geoms}))

    def _first_gripper(self) -> Any:
        return next(iter(self.raw.robots[0].gripper.values()))

    def _own_fingers(self) -> list[set[int]]:
        """Return the geoms of each finger if robosuite's own check would never detect a grasp, because it names pads
        that are not in the scene (XArm7's); else none."""
        geoms = {self.model.geom(i).name for i in range(self.model.ngeom)}
        bodies = {self.model.body(i).name for i in range(self.model.nbody)}
        pads = self._first_gripper().important_geoms
        if geoms.issuperset([*pads.get("left_fingerpad", ()), *pads.get("right_fingerpad", ())]):
            return []
        known = (spec.finger_bodies for spec in ROBOTS.values() if bodies.issuperset(spec.finger_bodies))
        return [geoms_of(self.model, self.model.body(name).id) for name in next(known, ())]

    def _object_to_grasp(self) -> Any:
        """Return robosuite's object to grasp, if it is known."""
        raw = self.raw
        if self.settings.env not in GRASPED:
            return None
        if hasattr(raw, "object_id") and hasattr(raw, "objects"):
            return raw.objects[raw.object_id]
        return raw.nuts[raw.nut_id] if hasattr(raw, "nut_id") else next(iter(raw.model.mujoco_objects), None)

    def _layout(self) -> dict[str, float]:
        """Return x, y (m, world) and yaw (rad) of all free objects, by body name."""
        layout: dict[str, float] = {}
        for joint in np.flatnonzero(self.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
            at = self.model.jnt_qposadr[joint]
            x, y, _, w, i, j, k = self.data.qpos[at : at + 7]
            name = self.model.body(self.model.jnt_bodyid[joint]).name.removesuffix("_main")
            if max(abs(x), abs(y)) < _FAR:
                yaw = np.arctan2(2 * (w * k + i * j), 1 - 2 * (j * j + k * k))
                layout |= {f"{name}_x": float(x), f"{name}_y": float(y), f"{name}_yaw": float(yaw)}
        return layout


def _create(s: RobosuiteSettings) -> Any:
    """Create robosuite's environment; EnvError for an unknown name, or an unknown or reserved argument."""
    known = {name for name, world in REGISTERED_ENVS.items() if world.__module__.startswith("robosuite.")}
    check_known("task.env", [s.env], sorted(known))
    # the others have a second arm, a base or legs, and only arms have a controller here
    arms = [name for name, kind in ROBOT_CLASS_MAPPING.items() if kind is FixedBaseRobot and name != "Baxter"]
    check_known("task.robot", s.robot.split("+"), sorted(arms))
    controllers = set(robosuite.ALL_PART_CONTROLLERS) - {"IK_POSE"}  # its limits are those of joints
    check_known("task.controller", [s.controller], sorted(controllers))
    for key, instead in _RESERVED.items():
        expect(key not in s.kwargs, f"task.kwargs.{key}", instead, s.kwargs.get(key))
    with reported(f"task: robosuite rejects {s.env} with {s.robot} and {s.kwargs}", kind=EnvError):
        return robosuite.make(s.env, **{"seed": 0, **_arguments(s)})


def _arguments(s: RobosuiteSettings) -> dict[str, Any]:
    robots = s.robot.split("+")
    part = load_part_controller_config(default_controller=s.controller)
    config = {"type": "BASIC", "body_parts": {"right": {**part, "gripper": {"type": "GRIP"}}}}
    defaults = {
        "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False, "use_object_obs": False,
        "reward_shaping": True, "hard_reset": False, "ignore_done": True,
    }  # fmt: skip
    return {
        "robots": robots if len(robots) > 1 else robots[0],
        "controller_configs": [config] * len(robots) if len(robots) > 1 else config,
        "control_freq": s.rate_hz,
        **defaults,
        **s.kwargs,
    }


def _actions(raw: Any) -> tuple[list[dict], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return an action's parts and limits, and the scale and offset that convert robosuite's -1..1 to our units."""
    actions: list[tuple[dict, np.ndarray, np.ndarray]] = []
    for number, robot in enumerate(raw.robots):
        composite = robot.composite_controller
        for name, controller in composite.part_controllers.items():
            first, last = composite._action_split_indexes[name]
            prefix = f"robot{number}_" if len(raw.robots) > 1 else ""
            prefix += f"{name}_" if len(robot.arms) > 1 else ""
            if name in composite.grippers and last > first:
                size, half = last - first, np.full(last - first, 0.5)
                limits = {"low": [0.0] * size, "high": [1.0] * size}
                part = {"name": f"{prefix}gripper", "size": size, "kind": "binary", **limits}
                actions.append((part, half, half))
            elif last > first:
                actions += _arm_parts(prefix, controller, last - first)
    parts, scales, offsets = zip(*actions, strict=True)
    scale, offset = np.concatenate(scales), np.concatenate(offsets)
    return list(parts), offset - scale, offset + scale, scale, offset


def _arm_parts(prefix: str, controller: Any, size: int) -> list[tuple[dict, np.ndarray, np.ndarray]]:
    """Return each (part, scale, offset) of one of robosuite's arm controllers."""
    is_delta = getattr(controller, "input_type", "") == "delta"
    kind = "delta" if is_delta else "absolute"
    if controller.name.startswith(("OSC", "IK", "JOINT_POSITION")) and is_delta:
        limit = np.broadcast_to(np.asarray(controller.output_max, float), (size,))
    else:  # velocities, torques, and targets in robosuite's own units
        limit = np.ones(size)
    if controller.name.startswith("JOINT"):
        labels: list[tuple[str, int, dict]] = [("joints", size, {"kind": kind})]
    else:
        labels = [("position", 3, {"kind": kind})]
        turn = {"kind": "rotation", "form": "axis_angle", "relative": is_delta}
        labels += [("rotation", 3, turn)] if size >= 6 else []
        labels += [("other", size % 3, {"kind": "absolute"})] if size % 3 else []
    actions, at = [], 0
    for label, count, about in labels:
        scale, at = limit[at : at + count], at + count
        limits = {"low": (-scale).tolist(), "high": scale.tolist()}
        part = {"name": f"{prefix}{label}", "size": count, **about, **limits}
        actions.append((part, scale, np.zeros(count)))
    return actions


def _rot6d(quaternion: np.ndarray) -> np.ndarray:
    """Return the first two columns of the matrix of robosuite's quaternion (x, y, z, w).  # (6,)"""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, np.roll(np.asarray(quaternion, float), 1))
    return matrix.reshape(3, 3)[:, :2].T.ravel()

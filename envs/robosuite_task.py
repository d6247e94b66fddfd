"""Any robosuite world with its controller, as a task.

env = make(RobosuiteSettings(env="Stack", robot="Panda", controller="OSC_POSE"))
observation, info = env.reset(seed=0)
env.raw                                       # the robosuite environment inside

Facts about robosuite 1.5.2 that shape this file: all that it draws at a reset comes from ``env.rng``, which its
samplers share, so an episode's seed is set in place; a hard reset compiles the scene anew (0.3 s) and may draw other
sizes of the objects, so resets are soft, and sizes are those of the first compilation (seed 0) in every process;
actions are scaled to -1..1, here they are in m, rad and 0..1 (a gripper's), so that rotations can be composed.
"""

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.experts.in_task import TaskExpert
from s2robot.envs.experts.settings import EXPERTS, ExpertSettings
from s2robot.envs.frames import sizes_of
from s2robot.envs.mujoco_task import MujocoTask, geoms_of, touching
from s2robot.envs.robosuite_config import GRASPED, RobosuiteSettings
from s2robot.envs.robosuite_make import VERSION, arguments, made
from s2robot.envs.robots import ROBOTS

# arrays of an arm's controller that the next step depends on; all others are set anew by it. A redundant arm is drawn
# to the joints in which the episode began.
_GOALS = ("goal_pos", "goal_ori", "goal_qpos", "initial_joint")
_FAR = 5.0  # m: robosuite puts away what an episode does not need


class RobosuiteTask(MujocoTask):
    """One robosuite environment; see the module for what is done to it.

    Raises:
        EnvError: an environment, robot, controller, camera or observable that robosuite lacks.
    """

    Settings = RobosuiteSettings
    settings: RobosuiteSettings

    def __init__(self, settings: RobosuiteSettings | None = None, draw: bool = True):
        self.settings, self.draw = settings or RobosuiteSettings(), draw
        self.raw = made(self.settings)
        self._reset_raw()
        self.sizes = sizes_of(self.settings.image_size, self.settings.cameras)
        self._look_at_scene()
        self.action_parts, low, high, self._scale, self._offset = _actions(self.raw)
        self.proprio_parts = self._proprio_parts()
        self._guide: Any = None  # an expert that never acts, for the remaining distance
        self._furthest = 0
        self._layout: dict[str, float] = {}
        self.spaces(low, high, sum(part["size"] for part in self.proprio_parts))

    def _look_at_scene(self) -> None:
        self.model, self.data = self.raw.sim.model._model, self.raw.sim.data._data
        self.camera_ids = {name: self._camera(name) for name in self.settings.cameras}
        self._fingers = self._own_fingers()

    def _camera(self, name: str) -> int:
        known = [self.model.camera(i).name for i in range(self.model.ncam)]
        if name not in known:
            raise EnvError(f"task.cameras: found '{name}', expected some of {', '.join(known)}")
        return known.index(name)

    def _proprio_parts(self) -> list[dict]:
        seen = self._observed()
        parts = []
        for key in self.settings.proprio:
            if key not in seen:
                known = ", ".join(k for k in seen if not k.endswith("-state"))
                raise EnvError(f"task.proprio: found '{key}', expected some of {known}")
            if key.endswith("_quat"):
                parts.append(
                    {"name": key.removesuffix("_quat"), "size": 6, "kind": "rotation", "form": "rot6d"}
                )
            else:
                parts.append({"name": key, "size": int(np.size(seen[key])), "kind": "absolute"})
        return parts

    def _observed(self) -> dict[str, Any]:
        """robosuite's observables, and `robot0_gripper_command`: the commanded opening, -1..1, which takes some steps from one
        to the other. An object between the fingers hides it."""
        commands = {
            f"robot{number}_{'' if len(robot.arms) == 1 else f'{arm}_'}gripper_command": gripper.current_action
            for number, robot in enumerate(self.raw.robots)
            for arm, gripper in robot.gripper.items()
        }
        return {**self.raw._get_observations(force_update=True), **commands}

    # ---------------------------------------------------------------- an episode

    def begin(self, rng: np.random.Generator, options: Mapping[str, Any]) -> None:
        """What robosuite draws at a reset, from a seed of its own."""
        seed = int(rng.integers(2**63))
        self.raw.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._reset_raw()
        self._forget_poses()  # of before the noise on the start; else the first step would differ after a rehearsal
        self._refresh_poses()
        self._guide = TaskExpert(self, None).inner if self.settings.Expert else None
        self._furthest = 0
        self._layout = self._places()
        self._judge()

    def apply(self, action: np.ndarray) -> None:
        self.raw.step(self.to_raw(action))
        self._refresh_poses()
        self._judge()

    def to_raw(self, action: np.ndarray) -> np.ndarray:
        """An action as robosuite's own environment takes it: -1..1.  # (A,)"""
        box: Any = self.action_space
        return (np.clip(action, box.low, box.high) - self._offset) / self._scale

    def from_raw(self, action: np.ndarray) -> np.ndarray:
        """An action of robosuite's own environment in our units.  # float32 (A,)"""
        return (np.clip(action, -1, 1) * self._scale + self._offset).astype(np.float32)

    @property
    def proprio(self) -> np.ndarray:
        seen = self._observed()
        rows = [_rot6d(seen[k]) if k.endswith("_quat") else np.ravel(seen[k]) for k in self.settings.proprio]
        return np.concatenate(rows).astype(np.float32)

    @property
    def is_success(self) -> bool:
        return self._furthest == len(self.settings.stages) - 1

    @property
    def stage(self) -> str:
        return self.settings.stages[self._furthest]

    @property
    def progress(self) -> float:
        """robosuite's own reward, shaped where it knows how."""
        return float(self.raw.reward(None))

    @property
    def remaining(self) -> float:
        """m, where there is an expert that knows the way."""
        return self._guide.remaining() if self._guide else -self.progress

    @property
    def grasp_missed(self) -> bool:
        return self._guide is not None and self._guide.grasp_missed()

    def expert(self, rng: np.random.Generator, settings: ExpertSettings | None = None) -> Any:
        if not self.settings.Expert:
            raise EnvError(
                f"task.env: found {self.settings.env} with {self.settings.robot} and {self.settings.controller}, "
                f"expected one of {', '.join(EXPERTS)} with Panda and OSC_POSE: no other has a scripted expert"
            )
        return TaskExpert(self, rng, settings)

    @property
    def layout(self) -> dict[str, float]:
        return self._layout

    @property
    def grip_points(self) -> dict[str, np.ndarray]:
        """Of the first arm."""
        sites = self.raw.robots[0].eef_site_id
        at = self.data.site_xpos[next(iter(sites.values()))]
        return self._projected(at)

    # ---------------------------------------------------------------- state

    def _memory(self) -> list[tuple[Any, str]]:
        """What decides the next step beside MuJoCo's state; a reset makes new controllers."""
        found: list[tuple[Any, str]] = []
        for robot in self.raw.robots:
            found += [(gripper, "current_action") for gripper in robot.gripper.values()]
            composite = robot.composite_controller
            for part, controller in composite.part_controllers.items():
                names = _GOALS if part not in composite.grippers else ()
                found += [
                    (controller, n) for n in names if isinstance(getattr(controller, n, None), np.ndarray)
                ]
        return found

    def _counters(self) -> list[tuple[Any, str]]:
        return [(self, "_steps"), (self, "_furthest"), (self.raw, "timestep"), (self.raw, "cur_time")]

    # ---------------------------------------------------------------- robosuite's own recordings

    def arguments(self) -> dict[str, Any]:
        """What makes this world in `robosuite.make` and in robomimic, as JSON types."""
        return {"env_version": VERSION, "env_kwargs": arguments(self.settings)}

    def load_scene(self, xml: str) -> None:
        """Take the scene that a recording keeps in the place of one's own, until the next is loaded.

        Raises:
            EnvError: one that this robosuite cannot read; another version's, most often.
        """
        try:
            self.raw.reset_from_xml_string(self.raw.edit_model_xml(xml))
        except (
            Exception
        ) as error:  # names that another version gave to joints, sites and meshes; XML that is none
            text = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise EnvError(
                f"found a scene that robosuite {VERSION} cannot load ({text}), expected one of its own"
            ) from None
        self.close()  # the renderer is of the scene before
        self._look_at_scene()

    def show(self, flat: np.ndarray) -> None:
        """Go to a state as recordings keep it: time, positions, velocities.  # (1 + nq + nv,)"""
        size = 1 + self.model.nq + self.model.nv
        if np.shape(flat) != (size,):
            raise EnvError(f"found a state of shape {np.shape(flat)}, expected ({size},) for this scene")
        self.raw.sim.set_state_from_flattened(flat)
        self.raw.sim.forward()

    # ---------------------------------------------------------------- inside

    def _reset_raw(self) -> None:
        self.raw.reset()
        for robot in self.raw.robots:
            for gripper in robot.gripper.values():
                gripper.format_action(np.zeros(gripper.dof))  # the shape that it has after a step

    def _forget_poses(self) -> None:
        """What the controllers know of the arm is of another state."""
        for robot in self.raw.robots:
            for controller in robot.composite_controller.part_controllers.values():
                controller.new_update = True

    def _judge(self) -> None:
        last = len(self.settings.stages) - 1
        reached = 0
        if self.raw._check_success():
            reached = last
        elif last == 2 and (thing := self.grasped_thing()) is not None:
            reached = int(self._grasps(thing))
        self._furthest = max(self._furthest, reached)

    def _grasps(self, thing: Any) -> bool:
        if not self._fingers:
            return self.raw._check_grasp(self._gripper, thing)
        return all(touching(self.data, self._fingers, {self.model.geom(n).id for n in thing.contact_geoms}))

    @property
    def _gripper(self) -> Any:
        """Of the first arm."""
        return next(iter(self.raw.robots[0].gripper.values()))

    def _own_fingers(self) -> list[set[int]]:
        """Geoms of each finger where robosuite's own check would never see a grasp, because it names pads that are not in
        the scene (XArm7's); else none."""
        geoms = {self.model.geom(i).name for i in range(self.model.ngeom)}
        bodies = {self.model.body(i).name for i in range(self.model.nbody)}
        pads = self._gripper.important_geoms
        if geoms.issuperset([*pads.get("left_fingerpad", ()), *pads.get("right_fingerpad", ())]):
            return []
        known = (spec.finger_bodies for spec in ROBOTS.values() if bodies.issuperset(spec.finger_bodies))
        return [geoms_of(self.model, self.model.body(name).id) for name in next(known, ())]

    def grasped_thing(self) -> Any:
        """The object that is to be grasped, where it is known: robosuite's own object."""
        if self.settings.env not in GRASPED:
            return None
        raw = self.raw
        if hasattr(raw, "object_id") and hasattr(raw, "objects"):
            return raw.objects[raw.object_id]
        if hasattr(raw, "nut_id"):
            return raw.nuts[raw.nut_id]
        things = raw.model.mujoco_objects
        return things[0] if things else None

    def _places(self) -> dict[str, float]:
        """x, y (m, world) and yaw (rad) of all that lies about, by its body's name."""
        places: dict[str, float] = {}
        for joint in np.flatnonzero(self.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE):
            at = self.model.jnt_qposadr[joint]
            x, y, _, w, i, j, k = self.data.qpos[at : at + 7]
            name = self.model.body(self.model.jnt_bodyid[joint]).name.removesuffix("_main")
            if max(abs(x), abs(y)) < _FAR:
                yaw = np.arctan2(2 * (w * k + i * j), 1 - 2 * (j * j + k * k))
                places |= {f"{name}_x": float(x), f"{name}_y": float(y), f"{name}_yaw": float(yaw)}
        return places


def _actions(raw: Any) -> tuple[list[dict], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The parts of an action, its limits, and what makes ours of robosuite's -1..1: times scale, plus offset."""
    parts: list[dict] = []
    scales: list[np.ndarray] = []
    offsets: list[np.ndarray] = []
    several = len(raw.robots) > 1
    for number, robot in enumerate(raw.robots):
        composite = robot.composite_controller
        for name, controller in composite.part_controllers.items():
            first, last = composite._action_split_indexes[name]
            if first == last:
                continue
            prefix = f"robot{number}_" if several else ""
            prefix += f"{name}_" if len(robot.arms) > 1 else ""
            for part, scale, offset in _parts(prefix, name, controller, last - first, composite):
                parts.append(part)
                scales.append(scale)
                offsets.append(offset)
    scale, offset = np.concatenate(scales), np.concatenate(offsets)
    return parts, offset - scale, offset + scale, scale, offset


def _parts(prefix: str, name: str, controller: Any, size: int, composite: Any) -> list[tuple]:
    """(part, scale, offset) of one of robosuite's controllers."""
    if name in composite.grippers:
        half = np.full(size, 0.5)
        return [({"name": f"{prefix}gripper", "size": size, "kind": "binary", "low": [0.0] * size, "high": [1.0] * size},
                 half, half)]  # fmt: skip
    kind = controller.name
    moves = getattr(controller, "input_type", "") == "delta"
    if kind.startswith(("OSC", "IK", "JOINT_POSITION")) and moves:
        most = np.broadcast_to(np.asarray(controller.output_max, float), (size,))
    else:  # velocities, torques, and targets in robosuite's own units
        most = np.ones(size)
    if kind.startswith("JOINT"):
        words: list[tuple] = [(f"{prefix}joints", size, "delta" if moves else "absolute", {})]
    else:
        turn = {"form": "axis_angle", "relative": moves}
        words = [(f"{prefix}position", 3, "delta" if moves else "absolute", {})]
        words += [(f"{prefix}rotation", 3, "rotation", turn)] if size >= 6 else []
        words += [(f"{prefix}other", size % 3, "absolute", {})] if size % 3 else []
    found, at = [], 0
    for label, count, what, more in words:
        scale = most[at : at + count]
        limits = {"low": (-scale).tolist(), "high": scale.tolist()}
        found.append(({"name": label, "size": count, "kind": what, **limits, **more}, scale, np.zeros(count)))
        at += count
    return found


def _rot6d(quaternion: np.ndarray) -> np.ndarray:
    """The first two columns of the matrix of robosuite's quaternion (x, y, z, w).  # (6,)"""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, np.roll(np.asarray(quaternion, float), 1))
    return matrix.reshape(3, 3)[:, :2].T.ravel()

"""Read robomimic's hdf5 files and robosuite's own recordings.

Format: ARISE-Initiative/robomimic, docs/datasets/overview.md. Actions of robosuite's OSC_POSE in -1..1 are converted to
m and rad (as in `task=robosuite`) if env_args holds the controller's scale. If a file has no observations, images and
proprioception are read from the world in the file: each state is set in the scene of its demo (`model_file`).
"""

import json
import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from s2robot.core.errors import UserError, require
from s2robot.demos.bounds import check_size, json_object, number_type
from s2robot.demos.errors import DatasetError, mismatch, readable
from s2robot.demos.formats.source import NAME, Choice, Piece, Source, chosen, part_of, piece_slices
from s2robot.demos.schema import check_finite
from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.envs.tasks import make

FILTERS = (1, 2, 3, 32000)  # hdf5 filters: deflate, shuffle, checksum, lzf
HAND = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # the proprioception of `task=robosuite`
EXACT = f"{NAME}/action"  # our writer's action in our units; `actions` are scaled to -1..1
# keys of `env_kwargs` that are ignored: rendering, and settings of `task=robosuite` itself
NOT_THE_WORLD = (
    "env_name", "robots", "controller_configs", "control_freq", "renderer", "has_renderer", "has_offscreen_renderer",
    "render_camera", "render_gpu_device_id", "use_camera_obs", "use_object_obs", "reward_shaping", "hard_reset",
    "ignore_done", "camera_names", "camera_heights", "camera_widths", "camera_depths", "camera_segmentations", "seed",
    "lite_physics", "horizon",
)  # fmt: skip
QUAT = r"(obs/)?robot\d_.*_quat"  # robosuite's, x, y, z, w; others may be w, x, y, z
Scale = tuple[np.ndarray, np.ndarray]  # our units = file's units * first + second


class DemoFile(Source):
    """The selected demos of an hdf5 file."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path, choice)
        with open_file(path) as file:
            self._demos = demo_names(file, path, choice)
            if others := file["data"].keys() - {*self._demos} if choice.mask is None else ():
                self.notes.append(f"data: {', '.join(sorted(others))} left out, expected demo_0, demo_1 ...")
            self.lengths = [len(array_of(file["data"][d], "actions", path)) for d in self._demos]
            args = env_args(file["data"], path, choice.rate_hz or 20)
            self._prepare(file["data"], file["data"][self._demos[0]], args)

    @abstractmethod
    def _prepare(self, data: Any, first: Any, args: dict[str, Any]) -> None:
        """Choose the arrays to read; `first` is the first demo, and `args` describes its world."""

    def name_of(self, number: int) -> str:
        return f"{self.path}: data/{self._demos[number]}"

    def values_of(self, number: int) -> dict[str, Any]:
        return {"source_episode": number_of(self._demos[number])}

    def describe_world(self, first: Any, args: dict[str, Any], *facts: Any) -> None:
        """Like `describe`, and choose the action parts; ``facts``: name, robot, rate, cameras and proprio_parts."""
        name, robot, rate, cameras, proprio = facts
        if stored := (kwargs := args.get("env_kwargs", {})).get("control_freq"):
            self.check_rate(float(stored), f"{self.path}: data: env_args")
        parts, frame = action_parts(kwargs, first, self.keys["action"], self.choice)
        self.describe(name, robot, rate, cameras, parts, proprio, env_args=args)
        self.attributes |= {"action_frame": frame} if frame else {}
        self._scale: Scale | None = None
        if frame:  # from robosuite's -1..1 to the limits of the parts
            low, high = (np.concatenate([p[key] for p in parts], dtype=np.float64) for key in ("low", "high"))
            self._scale = (high - low) / 2, (high + low) / 2

    def scaled(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Join the columns of an action, and convert them from -1..1 to our units.  # float32 (t, A)"""
        if self._scale is None:
            return super().joined("action", columns)
        joined = np.concatenate(columns, 1).astype(np.float64)
        return (np.clip(joined, -1, 1) * self._scale[0] + self._scale[1]).astype(np.float32)


class Robomimic(DemoFile):
    """An hdf5 file with observations; see :class:`Source`."""

    def _prepare(self, data: Any, first: Any, args: dict[str, Any]) -> None:
        # LIBERO stores images as OpenGL draws them
        self._bottom_up = data.attrs.get("macros_image_convention") in ("opengl", b"opengl")
        where = f"{self.path}: data: {NAME}"
        if NAME in data.attrs and self.restore(json_object(where, data.attrs[NAME]), where):
            if self.keys["action"] != [EXACT]:  # written by an older version
                raise mismatch(where, f"action at {EXACT}; convert the dataset again", self.keys["action"])
            return
        obs = {name: array for name, array in first["obs"].items() if hasattr(array, "ndim")}
        images = {k: a for k, a in obs.items() if a.ndim == 4 and a.dtype == np.uint8 and a.shape[3] == 3}
        numbers = [k for k, a in obs.items() if a.ndim == 2 and a.dtype.kind in "fiu"]
        floats = [k for k in numbers if obs[k].dtype.kind == "f"]
        hands = [k.replace("robot0", f"robot{i}") for i in range(4) for k in HAND]
        usual = [k for k in hands if k in numbers] or [k for k in floats if k.startswith("robot")] or floats
        names = {k: k.removesuffix("_image") for k in images}
        tables = [k for k, a in first.items() if getattr(a, "ndim", 0) == 2]
        cameras = self.choose(names, action=(tables, ["actions"]), proprio=(numbers, usual))
        proprio = self.keys["proprio"]
        rest = {f"obs/{k}": a for k, a in first["obs"].items() if k not in (*proprio, *images)}
        self.leave_out(rest, list(cameras))
        self.keys["proprio"] = [f"obs/{k}" for k in proprio]
        self.keys |= {f"images_{name}": [f"obs/{key}"] for key, name in cameras.items()}
        kwargs = args.get("env_kwargs", {})
        robots, rate = kwargs.get("robots"), self.choice.rate_hz or kwargs.get("control_freq")
        if rate is None:
            raise mismatch(f"{self.path}: data: env_args: control_freq", "a rate, or rate_hz=20", "none")
        robot = "+".join(robots) if isinstance(robots, list) else robots
        sizes = {name: images[key].shape[1:3] for key, name in cameras.items()}
        parts = [_proprio_part(k, obs[k].shape[1]) for k in proprio]
        name = str(args.get("env_name", "robomimic"))
        self.describe_world(first, args, name, robot, float(rate), sizes, parts)

    def values_of(self, number: int) -> dict[str, Any]:
        if self.sidecar is None:
            return super().values_of(number)
        with open_file(self.path) as file:
            attrs = dict(file["data"][self._demos[number]].attrs)
        stored = {k.removeprefix(f"{NAME}:"): v for k, v in attrs.items() if k.startswith(f"{NAME}:")}
        return self.sidecar.episode_values(stored, self.name_of(number))

    def pieces_of(self, number: int) -> Iterator[Piece]:
        count, path = self.lengths[number], self.path
        with open_file(path) as file:
            demo = file["data"][self._demos[number]]
            arrays = {k: [array_of(demo, n, path, count) for n in names] for k, names in self.keys.items()}
            yield from self.sliced(arrays, 0, count)

    def joined(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        if self.sidecar is None and key == "action":
            return self.scaled(columns)
        if self.sidecar is None and key == "proprio":
            named = zip(self.keys[key], columns, strict=True)
            columns = [rot6d(a) if re.fullmatch(QUAT, name) else a for name, a in named]
        joined = super().joined(key, columns)
        return joined[:, ::-1] if self._bottom_up and key.startswith("images_") else joined


class RobosuiteStates(DemoFile):
    """An hdf5 file with simulator states only; see :class:`Source`."""

    def _prepare(self, data: Any, first: Any, args: dict[str, Any]) -> None:
        require("robosuite", "mujoco", extra="sim")
        for name, count in zip(self._demos, self.lengths, strict=True):
            array_of(data[name], "states", self.path, count)
        self.keys["action"] = list(self.choice.action or ("actions",))
        for key in self.keys["action"]:
            array_of(first, key, self.path)
        self._version = str(args.get("env_version") or "an unknown version")
        if args.get("type", 1) != 1 or not args.get("env_name"):
            got = f"{args.get('env_name') or 'no world'}, type {args.get('type')}"
            raise mismatch(f"{self.path}: data", "obs, or states of a robosuite world (type 1)", got)
        with self._named(f"{self.path}: env_args"):
            self._world, self._scene = cast(Any, make(_world(args, self.choice))), ""
        s, world = self._world.settings, self._world
        self.describe_world(first, args, s.env, s.robot, s.rate_hz, world.camera_sizes, world.proprio_parts)

    @contextmanager
    def _named(self, where: str) -> Iterator[None]:
        """Prefix errors with `where` and the version of robosuite."""
        try:
            yield
        except UserError as error:
            raise DatasetError(f"{where} (of robosuite {self._version}): {error}") from None

    def pieces_of(self, number: int) -> Iterator[Piece]:
        where, count = self.name_of(number), self.lengths[number]
        with open_file(self.path) as file:
            demo = file["data"][self._demos[number]]
            states = demo["states"][:]
            check_finite(f"{where}: states", states)
            scene = demo.attrs.get("model_file")
            if scene not in (None, self._scene):
                with self._named(f"{where}: model_file"):
                    if "ep_meta" in demo.attrs and hasattr(self._world.raw, "set_ep_meta"):
                        self._world.raw.set_ep_meta(json.loads(demo.attrs["ep_meta"]))
                    self._world.load_scene(scene)
                self._scene = scene
            actions = self.scaled([array_of(demo, k, self.path, count)[:] for k in self.keys["action"]])
        row = sum(height * width * 3 for height, width in self._world.camera_sizes.values())
        for rows in piece_slices(0, count, row):
            steps: list[Piece] = []
            with self._named(f"{where}: states"):
                for state in states[rows]:
                    self._world.show(state)
                    images = {f"images_{k}": image for k, image in self._world.render_cameras().items()}
                    steps.append({"proprio": self._world.proprio} | images)
            piece = {key: np.stack([step[key] for step in steps]) for key in steps[0]}
            yield piece | {"action": actions[rows]}


def _world(args: Mapping[str, Any], choice: Choice) -> RobosuiteSettings:
    """Return the settings of the world described in a file."""
    kwargs = dict(args.get("env_kwargs", {}))
    robots = kwargs.get("robots", "Panda")
    robots = [robots] if isinstance(robots, str) else list(robots)
    hands = [key.replace("robot0", f"robot{i}") for i in range(len(robots)) for key in HAND]
    eyes = [f"robot{i}_eye_in_hand" for i in range(len(robots))]
    cameras = choice.cameras or kwargs.get("camera_names") or ("agentview", *eyes)
    sides = [kwargs.get(key) for key in ("camera_heights", "camera_widths")]
    return RobosuiteSettings(
        env=str(args["env_name"]),
        robot="+".join(robots),
        rate_hz=choice.rate_hz or float(kwargs.get("control_freq", 20)),
        cameras=(cameras,) if isinstance(cameras, str) else tuple(cameras),
        image_size=choice.image_size or (sides if all(isinstance(s, int) for s in sides) else 256),
        proprio=tuple(choice.proprio or hands),
        kwargs={k: v for k, v in kwargs.items() if k not in NOT_THE_WORLD},
    )


def world_of_file(about: Mapping[str, Any]) -> RobosuiteSettings | None:
    """Return the world of an imported file if its attributes describe one: robosuite with OSC_POSE."""
    args = about.get("env_args") or {}
    if about["action_frame"] != "robosuite:OSC_POSE" or args.get("type", 1) != 1 or not args.get("env_name"):
        return None
    proprio = (p["name"] + ("_quat" if "form" in p else "") for p in about["proprio_parts"])
    return _world(args, Choice(cameras=about["cameras"], proprio=tuple(proprio), rate_hz=about["rate_hz"]))


def osc_parts(kwargs: Mapping[str, Any], size: int) -> list[dict]:
    """Return the action parts of arms with delta OSC_POSE, as in `task=robosuite`; [] for other controllers."""
    arms, left = divmod(size, 7)
    prefixes, controllers = _prefixes(kwargs, arms), _controllers(kwargs, arms)
    if left or not prefixes or len(controllers) != arms:
        return []
    parts: list[dict] = []
    for prefix, config in zip(prefixes, controllers, strict=True):
        limit: Any = config.get("output_max")
        if not _is_delta(config) or config.get("type") != "OSC_POSE" or np.shape(limit) != (6,):
            return []
        expected = {"input_max": 1, "input_min": -1, "output_min": np.negative(limit)}
        if any(key in config and not np.all(np.equal(config[key], x)) for key, x in expected.items()):
            return []
        shift, turn = ({"size": 3, "low": [-v for v in m], "high": list(m)} for m in (limit[:3], limit[3:]))
        turn |= {"kind": "rotation", "form": "axis_angle", "relative": True}
        parts += [
            {"name": f"{prefix}position", "kind": "delta", **shift},
            {"name": f"{prefix}rotation", **turn},
            {"name": f"{prefix}gripper", "size": 1, "kind": "binary", "low": [0.0], "high": [1.0]},
        ]
    return parts


def _prefixes(kwargs: Mapping[str, Any], arms: int) -> list[str]:
    """Return the prefix of each arm's part names; [] if the order of the arms is unknown."""
    robots = kwargs.get("robots")
    count = len(robots) if isinstance(robots, list) else 1
    if count == arms:
        return [f"robot{i}_" for i in range(arms)] if arms > 1 else [""]
    config = kwargs.get("controller_configs")
    first = (config[0] if isinstance(config, list) else config) or {}
    # robosuite 1.4: one robot with two arms and a gripper each
    return ["right_", "left_"] if count == 1 and arms == 2 and "body_parts" not in first else []


def _controllers(kwargs: Mapping[str, Any], arms: int) -> list[dict]:
    """Return the controller settings of each arm; a single controller applies to all arms."""
    stored = kwargs.get("controller_configs") or {}
    configs = [c if isinstance(c, dict) else {} for c in (stored if isinstance(stored, list) else [stored])]
    for i, config in enumerate(configs):
        if (parts := config.get("body_parts")) is not None:
            configs[i] = parts.get("right") or (parts.get("arms") or {}).get("right") or {}
    return configs * arms if len(configs) == 1 else configs


def _is_delta(config: Mapping[str, Any]) -> bool:
    """Return whether a controller's actions are deltas."""
    known = str(config.get("type")).startswith(("OSC", "IK", "JOINT_POSITION")) and "output_max" in config
    return known and bool(config.get("control_delta", config.get("input_type", "delta") == "delta"))


def action_parts(
    kwargs: Mapping[str, Any], demo: Any, keys: list[str], choice: Choice
) -> tuple[list[dict], str]:
    """Return the parts of a demo's actions, and the action frame or "" for an unknown controller."""
    kind = choice.action_kind
    # diffusion_policy's files of absolute poses keep the `env_args` of deltas: a hand that points down is turned by pi
    if keys == ["actions"] and (np.abs(demo["actions"][:, 3:6]) <= 1).all(1).any():
        if parts := osc_parts(kwargs, demo["actions"].shape[1]):
            # several robots may stand turned, and robosuite 1.4 had only one kind of axes
            axes = {config.get("input_ref_frame", "world") for config in _controllers(kwargs, 1)}
            turned = parts[0]["name"].startswith("robot0") and "world" in axes
            return parts, "robosuite:OSC_POSE" + " in world axes" * turned
        kind = "delta" if any(map(_is_delta, _controllers(kwargs, 1))) else kind
    return [part_of(k, demo[k].shape[1], kind) for k in keys], ""


def rot6d(quats: np.ndarray) -> np.ndarray:
    """Convert quaternions (x, y, z, w) to the first two columns of rotation matrices.  # (t, 4) -> (t, 6)"""
    x, y, z, w = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    first = 1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)
    second = 2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)
    return np.stack([*first, *second], 1)


def _proprio_part(key: str, size: int) -> dict[str, Any]:
    if re.fullmatch(QUAT, key) and size == 4:
        return {"name": key.removesuffix("_quat"), "size": 6, "kind": "rotation", "form": "rot6d"}
    return part_of(key, size, "absolute")


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open the file to read (DatasetError)."""
    import h5py

    with readable(path), h5py.File(path, "r") as file:
        yield file


def demo_names(file: Any, path: Path, choice: Choice) -> list[str]:
    """Return the names of the selected demos in numerical order."""
    if "data" not in file:
        raise mismatch(path, "robomimic's group data with demo_0, demo_1 ...", ", ".join(file) or "nothing")
    check_inside(file["data"], path)
    names = sorted((n for n in file["data"] if re.fullmatch(r"demo_\d+", n)), key=number_of)
    if choice.mask is not None:
        where = f"mask/{choice.mask}"
        chosen([choice.mask], list(file.get("mask", {})), "mask", path)
        mask = check_inside(file["mask"][choice.mask], path)
        check_size(f"{path}: {where}", mask.nbytes, mask.id.get_storage_size())
        # check each: several may share their bytes
        masked = {name.decode() if isinstance(name, bytes) else str(name) for name in mask}
        names = sorted(chosen(sorted(masked), names, where, path), key=number_of)
    if not names:
        raise mismatch(f"{path}: data", "demo_0, demo_1 ...", ", ".join(file["data"]) or "none")
    for name in names:
        check_inside(file["data"][name], path)
    return names


def check_inside(node: Any, path: Path) -> Any:
    """Return the group or array itself; DatasetError if it links to, or stores values in, another file."""
    elsewhere = Path(node.file.filename) != path
    if elsewhere or getattr(node, "is_virtual", False) or getattr(node, "external", None):
        got = node.file.filename if elsewhere else "values in other files"
        raise mismatch(f"{path}: {(node.name or '').strip('/')}", "everything in this file", got)
    return node


def env_args(data: Any, path: Path, rate: float) -> dict[str, Any]:
    """Read the world's arguments from robomimic's `env_args` or robosuite's `env_info`; {} without either."""
    attrs, where = data.attrs, f"{path}: data: env"
    if "env_args" in attrs:
        return json_object(f"{where}_args", attrs["env_args"])
    if "env_info" not in attrs:
        return {}
    args = json_object(f"{where}_info", attrs["env_info"])
    return {
        "env_name": args.pop("env_name", None) or str(attrs.get("env")),
        "env_version": str(attrs.get("repository_version", "")),
        "type": 1,
        "env_kwargs": {"control_freq": rate, **args},  # robosuite's script does not store the rate
    }


def number_of(name: str) -> int:
    return int(name.rpartition("_")[2])


def array_of(demo: Any, key: str, path: Path, count: int | None = None) -> Any:
    """Return a numeric array of a demo with `count` steps (DatasetError: none, filtered, or larger than stored)."""
    where = f"{path}: {demo.name.strip('/')}: {key}"
    shape = getattr(demo.get(key), "shape", ())
    if not shape or count not in (None, shape[0]):
        raise mismatch(where, "an array with one row per action", f"{shape}" if shape else "none")
    array = check_inside(demo[key], path)
    plist, item = array.id.get_create_plist(), number_type(where, array.dtype).itemsize
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if not {*filters} <= {*FILTERS}:
        raise mismatch(where, f"hdf5 filters of {FILTERS}", filters)
    # chunks that are not stored read as the fill value
    stored = min(array.id.get_storage_size(), path.stat().st_size)
    check_size(where, item * (math.prod(shape) + math.prod(array.chunks or ())), stored)
    return array

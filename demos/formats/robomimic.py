"""robomimic's hdf5 files.

    Robomimic(Path("lift/ph/image.hdf5"), Choice())

Format: ARISE-Initiative/robomimic, docs/datasets/overview.md. Actions of robosuite's OSC_POSE in -1..1 become m and rad
(as in `task=robosuite`) where env_args holds the controller's scale. Files without observations: robosuite_states.py.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.bounds import check_size, number_type
from s2robot.demos.errors import mismatch, one_line
from s2robot.demos.formats.sidecar import EXACT, NAME, SCALE, Sidecar
from s2robot.demos.formats.source import (
    Choice,
    Piece,
    Source,
    chosen,
    chosen_cameras,
    left_out,
    part_of,
    piece_slices,
    require,
    store_attributes,
)

FILTERS = (1, 2, 3, 32000)  # of hdf5: deflate, shuffle, checksum, lzf
HAND = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # the proprioception of `task=robosuite`
Scale = tuple[np.ndarray, np.ndarray]  # ours = theirs * first + second


def has_observations(path: Path, choice: Choice) -> bool:
    """Return whether a file holds observations, or states only.

    Raises:
        DatasetError: it cannot be read, or lacks the demos that `choice` asks for.
    """
    require("h5py")
    with open_file(path) as file:
        return "obs" in file["data"][demo_names(file, path, choice)[0]]


class DemoFile(Source):
    """The chosen demos of an hdf5 file."""

    _demos: list[str]
    _lengths: list[int]

    def __len__(self) -> int:
        return len(self._demos)

    def length(self, i: int) -> int:
        return self._lengths[i]

    def name(self, i: int) -> str:
        return f"{self.path}: data/{self._demos[i]}"

    def values(self, i: int) -> dict[str, Any]:
        return {"source_episode": number_of(self._demos[i])}


class Robomimic(DemoFile):
    """A file with observations; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path)
        self._sidecar: Sidecar | None = None
        self._scale: Scale | None = None
        with open_file(path) as file:
            data = file["data"]
            self._demos = demo_names(file, path, choice)
            self._lengths = [len(array_of(data[d], "actions", path)) for d in self._demos]
            if NAME in data.attrs:
                self._sidecar = Sidecar.parse(data.attrs[NAME], f"{path}: data: {NAME}").for_choice(
                    choice, path
                )
            if self._sidecar:
                self._keys = self._sidecar.places
                self.attributes = self._sidecar.attributes
                self._scale = _stored_scale(data.attrs, path)
            else:
                self._choose_arrays(data[self._demos[0]], env_args(data, path), choice)

    def _choose_arrays(self, demo: Any, args: dict[str, Any], choice: Choice) -> None:
        """Decide which arrays make action, proprio and cameras."""
        obs = {name: array for name, array in demo["obs"].items() if hasattr(array, "ndim")}
        images = {k: a for k, a in obs.items() if a.ndim == 4 and a.dtype == np.uint8 and a.shape[3] == 3}
        numbers = [k for k, a in obs.items() if a.ndim == 2 and a.dtype.kind == "f"]
        cameras = chosen_cameras({k: k.removesuffix("_image") for k in images}, choice, self.path)
        hands = [k.replace("robot0", f"robot{i}") for i in range(4) for k in HAND]
        usual = [k for k in hands if k in numbers] or [k for k in numbers if k.startswith("robot")] or numbers
        proprio = usual if choice.proprio is None else chosen(choice.proprio, numbers, "proprio", self.path)
        action = chosen(choice.action or ("actions",), list(demo), "action", self.path)
        self._keys = {"action": tuple(action), "proprio": tuple(f"obs/{k}" for k in proprio)}
        self._keys |= {f"images_{name}": (f"obs/{key}",) for key, name in cameras.items()}
        self.notes += left_out({f"obs/{k}": obs.get(k) for k in demo["obs"] if k not in (*proprio, *images)})
        kwargs = args.get("env_kwargs", {})
        parts, frame = action_parts(kwargs, demo, action, choice)
        robots = kwargs.get("robots")
        self.attributes = store_attributes(
            self.path,
            str(args.get("env_name", "robomimic")),
            "+".join(robots) if isinstance(robots, list) else robots,
            choice.rate_hz or float(kwargs.get("control_freq", 20)),
            {name: images[key].shape[1:3] for key, name in cameras.items()},
            parts,
            [_proprio_part(k, obs[k].shape[1]) for k in proprio],
            env_args=args,
        ) | ({"action_frame": frame} if frame else {})
        self._scale = scale_of(self.attributes)

    def values(self, i: int) -> dict[str, Any]:
        if self._sidecar is None:
            return super().values(i)
        with open_file(self.path) as file:
            attrs = dict(file["data"][self._demos[i]].attrs)
        stored = {k.removeprefix(f"{NAME}:"): v for k, v in attrs.items() if k.startswith(f"{NAME}:")}
        return self._sidecar.episode_values(stored, self.name(i))

    def pieces(self, i: int) -> Iterator[Piece]:
        count = self._lengths[i]
        with open_file(self.path) as file:
            demo = file["data"][self._demos[i]]
            keys = dict(self._keys)
            exact = self._sidecar is not None and keys["action"] == ("actions",) and EXACT in demo
            if exact:
                keys["action"] = (EXACT,)  # as they were, where scaling would change them
            arrays = {
                key: [array_of(demo, k, self.path, count) for k in names] for key, names in keys.items()
            }
            row = sum(a[0].dtype.itemsize * int(np.prod(a[0].shape[1:])) for a in arrays.values())
            for rows in piece_slices(0, count, row):
                yield {k: self._joined(k, [a[rows] for a in several], exact) for k, several in arrays.items()}

    def _joined(self, key: str, arrays: list[np.ndarray], exact: bool) -> np.ndarray:
        if key == "action" and not exact:
            dtype = self._sidecar.arrays[key][0] if self._sidecar else np.float32
            return scaled(arrays, self._scale).astype(dtype)
        if self._sidecar:
            return self._sidecar.array(key, arrays)
        if key.startswith("images_"):
            return arrays[0]
        quats = [k.endswith("_quat") for k in self._keys[key]]
        numbers = [rot6d(a) if quat else a for a, quat in zip(arrays, quats, strict=True)]
        return np.concatenate(numbers, 1).astype(np.float32)


def scaled(arrays: list[np.ndarray], scale: Scale | None) -> np.ndarray:
    """Join the columns of an action, and convert -1..1 to our units.  # float64 (t, A)"""
    joined = np.concatenate(arrays, 1).astype(np.float64)
    return joined if scale is None else np.clip(joined, -1, 1) * scale[0] + scale[1]


# -------------------------------------------------------------------- robosuite


def osc_parts(kwargs: Mapping[str, Any], size: int) -> tuple[list[dict] | None, str]:
    """The parts of an action of arms with OSC_POSE in deltas, as `task=robosuite` has them, and its action frame."""
    arms, left = divmod(size, 7)
    prefixes, controllers = _prefixes(kwargs, arms), _controllers(kwargs, arms)
    if left or not prefixes or len(controllers) != arms:
        return None, ""
    parts: list[dict] = []
    for prefix, config in zip(prefixes, controllers, strict=True):
        most: Any = config.get("output_max")
        if not _is_delta(config) or config.get("type") != "OSC_POSE" or np.shape(most) != (6,):
            return None, ""
        limits = [{"low": [-v for v in m], "high": list(m)} for m in (most[:3], most[3:])]
        turn = {"form": "axis_angle", "relative": True}
        parts += [
            {"name": f"{prefix}position", "size": 3, "kind": "delta", **limits[0]},
            {"name": f"{prefix}rotation", "size": 3, "kind": "rotation", **limits[1], **turn},
            {"name": f"{prefix}gripper", "size": 1, "kind": "binary", "low": [0.0], "high": [1.0]},
        ]
    return parts, "robosuite:OSC_POSE"


def _prefixes(kwargs: Mapping[str, Any], arms: int) -> list[str]:
    """Return the prefix of each arm's parts; none if the order of the arms is unknown."""
    robots = kwargs.get("robots")
    count = len(robots) if isinstance(robots, list) else 1
    if count == arms:
        return [f"robot{i}_" for i in range(arms)] if arms > 1 else [""]
    config = kwargs.get("controller_configs")
    first = (config[0] if isinstance(config, list) else config) or {}
    # robosuite 1.4: one robot of two arms, each with its gripper
    return ["right_", "left_"] if count == 1 and arms == 2 and "body_parts" not in first else []


def _controllers(kwargs: Mapping[str, Any], arms: int) -> list[dict]:
    """Return the settings of each arm's controller; a single one is used for all arms."""
    configs = kwargs.get("controller_configs") or {}
    configs = configs if isinstance(configs, list) else [configs]
    controllers = []
    for config in configs * arms if len(configs) == 1 else configs:
        if isinstance(config, dict) and "body_parts" in config:
            parts = config["body_parts"]
            config = parts.get("right") or (parts.get("arms") or {}).get("right") or {}
        controllers.append(config if isinstance(config, dict) else {})
    return controllers


def _is_delta(config: Mapping[str, Any]) -> bool:
    """Whether a controller's actions are deltas."""
    known = str(config.get("type")).startswith(("OSC", "IK", "JOINT_POSITION")) and "output_max" in config
    return known and bool(config.get("control_delta", config.get("input_type", "delta") == "delta"))


def action_parts(
    kwargs: Mapping[str, Any], demo: Any, keys: list[str], choice: Choice
) -> tuple[list[dict], str]:
    """Return the parts of a demo's actions and their frame, "" if the controller is unknown."""
    kind = choice.action_kind
    if keys == ["actions"]:
        parts, frame = osc_parts(kwargs, demo["actions"].shape[1])
        if parts:
            return parts, frame
        kind = "delta" if any(map(_is_delta, _controllers(kwargs, 1))) else kind
    return [part_of(k, demo[k].shape[1], kind) for k in keys], ""


def scale_of(attributes: Mapping[str, Any]) -> Scale | None:
    """Return the scale from robosuite's -1..1 to our units, for actions of one of its controllers."""
    parts = attributes.get("action_parts") or []
    if not str(attributes.get("action_frame", "")).startswith("robosuite:") or not parts:
        return None
    if any("low" not in part for part in parts):
        return None
    low, high = (np.concatenate([np.asarray(p[k], np.float64) for p in parts]) for k in ("low", "high"))
    return (high - low) / 2, (high + low) / 2


def rot6d(quats: np.ndarray) -> np.ndarray:
    """Convert quaternions x y z w to the first two columns of their matrices.  # (t, 4) -> (t, 6)"""
    x, y, z, w = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    first = 1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)
    second = 2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)
    return np.stack([*first, *second], 1)


def _proprio_part(key: str, size: int) -> dict[str, Any]:
    if key.endswith("_quat") and size == 4:
        return {"name": key.removesuffix("_quat"), "size": 6, "kind": "rotation", "form": "rot6d"}
    return part_of(key, size, "absolute")


# -------------------------------------------------------------------- the file


@contextmanager
def open_file(path: Path) -> Iterator[Any]:
    """Open the file to read; DatasetError if it is broken."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise mismatch(path, f"an hdf5 file that cannot be read ({one_line(error)})", "a whole one") from None


def demo_names(file: Any, path: Path, choice: Choice) -> list[str]:
    """Return the names of the chosen demos, in the order of their numbers."""
    if not hasattr(file.get("data"), "keys"):
        raise mismatch(path, f"groups {', '.join(file) or 'none'}", "'data' among them")
    _check_inside(file["data"], path)
    names = sorted((n for n in file["data"] if re.fullmatch(r"demo_\d+", n)), key=number_of)
    if not names:
        raise mismatch(f"{path}: data", f"{', '.join(file['data']) or 'nothing'}", "demo_0, demo_1 ...")
    if choice.mask is not None:
        import h5py

        chosen([choice.mask], list(file.get("mask", {})), "mask", path)
        mask = _check_inside(file["mask"][choice.mask], path)
        if (
            mask.dtype.kind not in "SO"
            or mask.dtype.hasobject
            and h5py.check_string_dtype(mask.dtype) is None
        ):
            raise mismatch(f"{path}: mask/{choice.mask}", f"dtype {mask.dtype}", "names")
        check_size(f"{path}: mask/{choice.mask}", mask.nbytes, mask.id.get_storage_size())
        # one by one: they may share their bytes
        masked = {n.decode() if isinstance(n, bytes) else str(n) for n in mask}
        if not masked:
            raise mismatch(f"{path}: mask/{choice.mask}", "no demos", "one or more")
        names = sorted(chosen(sorted(masked), names, f"mask/{choice.mask}", path), key=number_of)
    for name in names:
        _check_inside(file["data"][name], path)
    return names


def _check_inside(node: Any, path: Path) -> Any:
    """Return a group or array; DatasetError for a link to another file, or values outside this one."""
    where = f"{path}: {(node.name or '').strip('/')}"
    if Path(node.file.filename) != path:
        raise mismatch(where, f"a link to {node.file.filename}", "everything in this file")
    if getattr(node, "is_virtual", False) or getattr(node, "external", None):
        raise mismatch(where, "values in other files", "all in this one")
    return node


def env_args(data: Any, path: Path) -> dict[str, Any]:
    """Read the world's arguments: robomimic's `env_args`, or the `env_info` of robosuite's own script; {} without them.

    Raises:
        DatasetError: text that is no JSON.
    """
    attrs, name = data.attrs, "env_args" if "env_args" in data.attrs else "env_info"
    if name not in attrs:
        return {}
    try:
        args = json.loads(attrs[name])
    except (TypeError, ValueError) as error:
        raise mismatch(f"{path}: data: {name}", f"text that is no JSON ({error})", "JSON") from None
    if not isinstance(args, dict) or not isinstance(args.get("env_kwargs", {}), dict):
        raise mismatch(f"{path}: data: {name}", f"{str(args)[:80]}", "an object")
    if name == "env_args":
        return args
    return {
        "env_name": args.pop("env_name", None) or str(attrs.get("env")),
        "env_version": str(attrs.get("repository_version", "")),
        "type": 1,
        "env_kwargs": {"control_freq": 20, **args},  # the script does not store its rate
    }


def _stored_scale(attrs: Mapping[str, Any], path: Path) -> Scale:
    scale = np.asarray(attrs.get(SCALE, ()), np.float64)
    if scale.ndim != 2 or len(scale) != 2:
        raise mismatch(f"{path}: data: {SCALE}", f"shape {scale.shape}", "(2, numbers of an action)")
    return scale[0], scale[1]


def number_of(name: str) -> int:
    return int(name.rpartition("_")[2])


def array_of(demo: Any, key: str, path: Path, count: int | None = None) -> Any:
    """Return an array of a demo; DatasetError if it is missing or has another number of steps than ``count``."""
    where = f"{path}: {demo.name.strip('/')}"
    if key not in demo:
        raise mismatch(where, f"no {key}", "one")
    array, where = _check_inside(demo[key], path), f"{where}: {key}"
    if not hasattr(array, "shape") or not array.ndim:
        raise mismatch(where, "no array over time", "one")
    plist, item = array.id.get_create_plist(), number_type(where, array.dtype).itemsize
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if not {*filters} <= {*FILTERS}:
        raise mismatch(where, f"hdf5 filters {filters}", f"some of {FILTERS}")
    # a chunk that is not stored reads as the fill value
    stored = min(array.id.get_storage_size(), path.stat().st_size)
    check_size(where, item * (math.prod(array.shape) + math.prod(array.chunks or ())), stored)
    if count is not None and len(array) != count:
        raise mismatch(where, f"{len(array)} steps", f"{count} as in actions")
    return array

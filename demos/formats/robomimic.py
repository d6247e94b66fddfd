"""robomimic's hdf5 files.

    Robomimic(Path("lift/ph/image.hdf5"), Choice())

Format: ARISE-Initiative/robomimic, docs/datasets/overview.md. Actions of robosuite's OSC_POSE in -1..1 become m and rad
(those of `task=robosuite`) where env_args tell the controller's scale. Files of states alone: robosuite_states.py.
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
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.kept import EXACT, NAME, SCALE, Kept
from s2robot.demos.formats.source import (
    Choice,
    Piece,
    Source,
    about,
    chosen,
    different,
    finite,
    left_out,
    part_of,
    require,
    steps_of,
)

FILTERS = (1, 2, 3, 32000)  # of hdf5: deflate, shuffle, checksum, lzf
HAND = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # what `task=robosuite` tells a policy
Scale = tuple[np.ndarray, np.ndarray]  # ours = theirs * first + second


def has_observations(path: Path, choice: Choice) -> bool:
    """Whether a file holds what was seen, or states alone.

    Raises:
        DatasetError: it cannot be read, or lacks the demos that `choice` asks for.
    """
    require("h5py")
    with opened(path) as file:
        return "obs" in file["data"][demos_of(file, path, choice)[0]]


class DemosOfFile(Source):
    """What any of its kinds of files gives: `_demos` are the names of those that are asked for."""

    _demos: list[str]
    _lengths: list[int]

    def __len__(self) -> int:
        return len(self._demos)

    def length(self, i: int) -> int:
        return self._lengths[i]

    def values(self, i: int) -> dict[str, Any]:
        return {"source_episode": number_of(self._demos[i])}


class Robomimic(DemosOfFile):
    """A file with `obs`; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path)
        with opened(path) as file:
            data = file["data"]
            self._demos = demos_of(file, path, choice)
            self._lengths = [len(array_of(data[d], "actions", path)) for d in self._demos]
            self._scale: Scale | None = None
            self._kept = Kept.of(data.attrs[NAME], f"{path}: data: {NAME}") if NAME in data.attrs else None
            if self._kept and self._kept.fits(choice):
                self._kept = self._kept.as_asked(choice, path)
                self._keys = {key: tuple(places) for key, places in self._kept.places.items()}
                self.attributes = self._kept.attributes
                self._scale = _kept_scale(data.attrs, path)
            else:
                self._kept = None
                self._name(data[self._demos[0]], env_args(data, path), choice)

    def _name(self, demo: Any, args: dict[str, Any], choice: Choice) -> None:
        """Decide what makes action and proprio, and what the arrays are called."""
        obs = {name: found for name, found in demo["obs"].items() if hasattr(found, "ndim")}
        pictures = {k: a for k, a in obs.items() if a.ndim == 4 and a.dtype == np.uint8 and a.shape[3] == 3}
        numbers = [k for k, a in obs.items() if a.ndim == 2 and a.dtype.kind == "f"]
        cameras = {k: k.removesuffix("_image") for k in pictures}
        different(cameras, self.path)
        if choice.cameras is not None:
            known = {name: key for key, name in cameras.items()}
            wanted = chosen(choice.cameras, [*known, *cameras], "cameras", self.path)
            cameras = {known.get(w, w): cameras[known.get(w, w)] for w in wanted}
        hands = [k.replace("robot0", f"robot{i}") for i in range(4) for k in HAND]
        habit = [k for k in hands if k in numbers] or [k for k in numbers if k.startswith("robot")] or numbers
        proprio = habit if choice.proprio is None else chosen(choice.proprio, numbers, "proprio", self.path)
        action = list(chosen(choice.action or ("actions",), list(demo), "action", self.path))
        self._keys = {"action": tuple(action), "proprio": tuple(f"obs/{k}" for k in proprio)}
        self._keys |= {f"images_{name}": (f"obs/{key}",) for key, name in cameras.items()}
        self.notes += left_out(
            {f"obs/{k}": obs.get(k) for k in demo["obs"] if k not in (*proprio, *pictures)}
        )
        kwargs = args.get("env_kwargs", {})
        parts, frame = action_parts(kwargs, demo, action, choice)
        self.attributes = about(
            self.path,
            str(args.get("env_name", "robomimic")),
            robot_of(kwargs),
            choice.rate_hz or float(kwargs.get("control_freq", 20)),
            {name: pictures[key].shape[1:3] for key, name in cameras.items()},
            parts,
            [_seen_part(k, obs[k].shape[1]) for k in proprio],
            env_args=args,
        )
        if frame:
            self.attributes["action_frame"] = frame
            self._scale = scale_of(self.attributes)

    def values(self, i: int) -> dict[str, Any]:
        if self._kept is None:
            return super().values(i)
        with opened(self.path) as file:
            found = dict(file["data"][self._demos[i]].attrs)
        found = {k.removeprefix(f"{NAME}:"): v for k, v in found.items() if k.startswith(f"{NAME}:")}
        return self._kept.episode_values(found, f"{self.path}: data/{self._demos[i]}")

    def pieces(self, i: int) -> Iterator[Piece]:
        name, count = self._demos[i], self._lengths[i]
        where = f"{self.path}: {name}"
        with opened(self.path) as file:
            demo = file["data"][name]
            arrays = {key: [array_of(demo, k, self.path, count) for k in self._found(demo, keys)]
                      for key, keys in self._keys.items()}  # fmt: skip
            exact = EXACT in demo
            row = sum(a[0].dtype.itemsize * int(np.prod(a[0].shape[1:])) for a in arrays.values())
            for start in range(0, count, steps_of(row)):
                at = slice(start, min(start + steps_of(row), count))
                piece = {k: self._joined(k, [a[at] for a in several], exact) for k, several in arrays.items()}
                yield finite(piece, where, start)

    def _found(self, demo: Any, keys: tuple[str, ...]) -> tuple[str, ...]:
        """Where they lie in a demo: our actions as they were, where -1..1 could not hold them."""
        return (EXACT,) if self._kept and keys == ("actions",) and EXACT in demo else keys

    def _joined(self, key: str, arrays: list[np.ndarray], exact: bool) -> np.ndarray:
        if key == "action" and not (self._kept and exact):
            joined = np.concatenate(arrays, 1).astype(np.float64)
            if self._scale:
                joined = np.clip(joined, -1, 1) * self._scale[0] + self._scale[1]
            return joined.astype(self._kept.arrays[key][0] if self._kept else np.float32)
        if self._kept:
            return self._kept.array(key, arrays)
        if key.startswith("images_"):
            return arrays[0]
        quats = [k.endswith("_quat") for k in self._keys[key]]
        seen = [rot6d(a) if quat else a for a, quat in zip(arrays, quats, strict=True)]
        return np.concatenate(seen, 1).astype(np.float32)


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
        if not _moves(config) or config.get("type") != "OSC_POSE" or np.shape(most) != (6,):
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
    """What the parts of each arm's action begin with; none where their order is unknown."""
    robots = kwargs.get("robots")
    count = len(robots) if isinstance(robots, list) else 1
    if count == arms:
        return [f"robot{i}_" for i in range(arms)] if arms > 1 else [""]
    config = kwargs.get("controller_configs")
    both = (
        count == 1
        and arms == 2
        and "body_parts" not in (config[0] if isinstance(config, list) else config or {})
    )
    return ["right_", "left_"] if both else []  # robosuite 1.4: each arm with its gripper


def _controllers(kwargs: Mapping[str, Any], arms: int) -> list[dict]:
    """The settings of each arm's controller; one stands for all."""
    given = kwargs.get("controller_configs") or {}
    several = given if isinstance(given, list) else [given]
    found = []
    for config in several * arms if len(several) == 1 else several:
        if isinstance(config, dict) and "body_parts" in config:
            parts = config["body_parts"]
            config = parts.get("right") or (parts.get("arms") or {}).get("right") or {}
        found.append(config if isinstance(config, dict) else {})
    return found


def _moves(config: Mapping[str, Any]) -> bool:
    """Whether a controller's actions are steps."""
    known = str(config.get("type")).startswith(("OSC", "IK", "JOINT_POSITION")) and "output_max" in config
    return known and bool(config.get("control_delta", config.get("input_type", "delta") == "delta"))


def action_parts(
    kwargs: Mapping[str, Any], demo: Any, keys: list[str], choice: Choice
) -> tuple[list[dict], str]:
    """The parts of a demo's actions and their frame, which is empty where nothing is known of them."""
    kind = choice.action_kind
    if keys == ["actions"]:
        parts, frame = osc_parts(kwargs, demo["actions"].shape[1])
        if parts:
            return parts, frame
        kind = "delta" if any(map(_moves, _controllers(kwargs, 1))) else kind
    return [part_of(k, demo[k].shape[1], kind) for k in keys], ""


def scale_of(attributes: Mapping[str, Any]) -> Scale | None:
    """What makes ours of robosuite's -1..1, for actions of one of its controllers."""
    parts = attributes.get("action_parts") or []
    if not str(attributes.get("action_frame", "")).startswith("robosuite:") or not parts:
        return None
    if any("low" not in part for part in parts):
        return None
    low, high = (np.concatenate([np.asarray(p[k], np.float64) for p in parts]) for k in ("low", "high"))
    return (high - low) / 2, (high + low) / 2


def rot6d(quats: np.ndarray) -> np.ndarray:
    """Quaternions x y z w as the first two columns of their matrices.  # (t, 4) -> (t, 6)"""
    x, y, z, w = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    first = 1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w)
    second = 2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w)
    return np.stack([*first, *second], 1)


def _seen_part(key: str, size: int) -> dict[str, Any]:
    if key.endswith("_quat") and size == 4:
        return {"name": key.removesuffix("_quat"), "size": 6, "kind": "rotation", "form": "rot6d"}
    return part_of(key, size, "absolute")


def robot_of(kwargs: Mapping[str, Any]) -> str | None:
    robots = kwargs.get("robots")
    return "+".join(robots) if isinstance(robots, list) else robots


# -------------------------------------------------------------------- the file


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, to read; DatasetError where it cannot be."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except DatasetError:
        raise
    except (OSError, RuntimeError, KeyError) as error:
        found = " ".join(str(error).split())[:160]
        raise mismatch(path, f"an hdf5 file that cannot be read ({found})", "a whole one") from None


def demos_of(file: Any, path: Path, choice: Choice) -> list[str]:
    """Names of the demos that are asked for, in the order of their numbers."""
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
        kept = {
            n.decode() if isinstance(n, bytes) else str(n) for n in mask
        }  # one by one: they may share their bytes
        if not kept:
            raise mismatch(f"{path}: mask/{choice.mask}", "no demos", "one or more")
        names = sorted(chosen(sorted(kept), names, f"mask/{choice.mask}", path), key=number_of)
    for name in names:
        _check_inside(file["data"][name], path)
    return names


def _check_inside(found: Any, path: Path) -> Any:
    """The group or array; DatasetError where a link led to another file, or the array's values lie outside this one."""
    where = f"{path}: {(found.name or '').strip('/')}"
    if Path(found.file.filename) != path:
        raise mismatch(where, f"a link to {found.file.filename}", "everything in this file")
    if getattr(found, "is_virtual", False) or getattr(found, "external", None):
        raise mismatch(where, "values in other files", "all in this one")
    return found


def env_args(data: Any, path: Path) -> dict[str, Any]:
    """What makes the world again: robomimic's `env_args`, or what robosuite's own script writes; {} of no known one.

    Raises:
        DatasetError: text that is no JSON.
    """
    attrs, name = data.attrs, "env_args" if "env_args" in data.attrs else "env_info"
    if name not in attrs:
        return {}
    try:
        found = json.loads(attrs[name])
    except (TypeError, ValueError) as error:
        raise mismatch(f"{path}: data: {name}", f"text that is no JSON ({error})", "JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("env_kwargs", {}), dict):
        raise mismatch(f"{path}: data: {name}", f"{str(found)[:80]}", "an object")
    if name == "env_args":
        return found
    kwargs = found
    name = kwargs.pop("env_name", None) or str(attrs.get("env"))
    version = str(attrs.get("repository_version", ""))
    # the script's own rate, which it does not write down
    return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": {"control_freq": 20, **kwargs}}


def _kept_scale(attrs: Mapping[str, Any], path: Path) -> Scale:
    found = np.asarray(attrs.get(SCALE, ()), np.float64)
    if found.ndim != 2 or len(found) != 2:
        raise mismatch(f"{path}: data: {SCALE}", f"shape {found.shape}", "(2, numbers of an action)")
    return found[0], found[1]


def number_of(name: str) -> int:
    return int(name.rpartition("_")[2])


def array_of(demo: Any, key: str, path: Path, count: int | None = None) -> Any:
    """An array of a demo, of so many steps; DatasetError where it is not there or of others."""
    if key not in demo:
        raise mismatch(f"{path}: {demo.name.strip('/')}", f"no {key}", "one")
    found = _check_inside(demo[key], path)
    where = f"{path}: {demo.name.strip('/')}: {key}"
    if not hasattr(found, "shape") or not found.ndim:
        raise mismatch(where, "no array over time", "one")
    plist, item = found.id.get_create_plist(), number_type(where, found.dtype).itemsize
    used = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if not {*used} <= {*FILTERS}:
        raise mismatch(where, f"hdf5 filters {used}", f"some of {FILTERS}")
    # a chunk that is not stored is filled in
    stored = min(found.id.get_storage_size(), path.stat().st_size)
    check_size(where, item * (math.prod(found.shape) + math.prod(found.chunks or ())), stored)
    if count is not None and len(found) != count:
        raise mismatch(where, f"{len(found)} steps", f"{count} as in actions")
    return found

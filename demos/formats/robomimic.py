"""robomimic's hdf5 files.

    Robomimic(Path("lift/ph/image.hdf5"), Choice())

Format: ARISE-Initiative/robomimic, docs/datasets/overview.md. Actions of robosuite's OSC_POSE in -1..1 become m and rad
(those of `task=robosuite`) where env_args tell the controller's scale.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.source import (
    Choice,
    Piece,
    Source,
    about,
    chosen,
    different,
    finite,
    part_of,
    require,
    steps_of,
)

HAND = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")  # what `task=robosuite` tells a policy
Scale = tuple[np.ndarray, np.ndarray]  # ours = theirs * first + second


class Robomimic(Source):
    """One file; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        require("h5py")
        super().__init__(path)
        with opened(path) as file:
            if "data" not in file:
                raise mismatch(path, f"groups {', '.join(file)}", "'data' among them")
            data = file["data"]
            self._demos = _demos(file, path, choice.mask)[: choice.episodes]
            first = data[self._demos[0]]
            if "obs" not in first:
                expected = "'obs' (robomimic's dataset_states_to_obs.py draws them from states)"
                raise mismatch(f"{path}: data/{self._demos[0]}", ", ".join(first), expected)
            self._lengths = [len(_array(data[d], "actions", path)) for d in self._demos]
            self._scale: Scale | None = None
            self._name(first, json.loads(data.attrs.get("env_args", "{}")), choice)

    def _name(self, demo: Any, env_args: dict[str, Any], choice: Choice) -> None:
        """Decide what makes action and proprio, and what the arrays are called."""
        obs = {name: demo["obs"][name] for name in demo["obs"]}
        pictures = {k: a for k, a in obs.items() if a.ndim == 4 and a.dtype == np.uint8 and a.shape[3] == 3}
        numbers = [k for k, a in obs.items() if a.ndim == 2 and a.dtype.kind == "f"]
        self.notes += [f"obs/{k} is left out" for k in obs if k.endswith("_depth")]
        cameras = {k: k.removesuffix("_image") for k in pictures}
        different(cameras, self.path)
        if choice.cameras is not None:
            known = {name: key for key, name in cameras.items()}
            wanted = chosen(choice.cameras, [*known, *cameras], "cameras", self.path)
            cameras = {known.get(w, w): cameras[known.get(w, w)] for w in wanted}
        habit = [k for k in HAND if k in numbers] or [k for k in numbers if k.startswith("robot")] or numbers
        proprio = habit if choice.proprio is None else chosen(choice.proprio, numbers, "proprio", self.path)
        action = list(chosen(choice.action or ("actions",), list(demo), "action", self.path))
        self._keys = {"action": tuple(action), "proprio": tuple(f"obs/{k}" for k in proprio)}
        self._keys |= {f"images_{name}": (f"obs/{key}",) for key, name in cameras.items()}
        kwargs = env_args.get("env_kwargs", {})
        parts, frame = osc_parts(kwargs, demo["actions"].shape[1]) if action == ["actions"] else (None, "")
        parts = parts or [part_of(k, demo[k].shape[1], choice.action_kind) for k in action]
        self.attributes = about(
            self.path,
            str(env_args.get("env_name", "robomimic")),
            _robot(kwargs),
            choice.rate_hz or float(kwargs.get("control_freq", 20)),
            {name: pictures[key].shape[1:3] for key, name in cameras.items()},
            parts,
            [_seen_part(k, obs[k].shape[1]) for k in proprio],
            env_args=env_args,
        )
        if frame:
            self.attributes["action_frame"] = frame
            self._scale = scale_of(self.attributes)

    def __len__(self) -> int:
        return len(self._demos)

    def length(self, i: int) -> int:
        return self._lengths[i]

    def values(self, i: int) -> dict[str, Any]:
        return {"source_episode": _number(self._demos[i])}

    def pieces(self, i: int) -> Iterator[Piece]:
        name, count = self._demos[i], self._lengths[i]
        where = f"{self.path}: {name}"
        with opened(self.path) as file:
            demo = file["data"][name]
            arrays = {key: [_array(demo, k, self.path) for k in keys] for key, keys in self._keys.items()}
            for keys, several in zip(self._keys.values(), arrays.values(), strict=True):
                for key, array in zip(keys, several, strict=True):
                    if len(array) != count:
                        raise mismatch(f"{where}: {key}", f"{len(array)} steps", f"{count} as in actions")
            row = sum(a[0].dtype.itemsize * int(np.prod(a[0].shape[1:])) for a in arrays.values())
            for start in range(0, count, steps_of(row)):
                at = slice(start, min(start + steps_of(row), count))
                piece = {key: self._joined(key, [a[at] for a in several]) for key, several in arrays.items()}
                yield finite(piece, where, start)

    def _joined(self, key: str, arrays: list[np.ndarray]) -> np.ndarray:
        if key.startswith("images_"):
            return arrays[0]
        if key == "action":
            joined = np.concatenate(arrays, 1).astype(np.float64)
            if self._scale:
                joined = np.clip(joined, -1, 1) * self._scale[0] + self._scale[1]
            return joined.astype(np.float32)
        quats = [k.endswith("_quat") for k in self._keys[key]]
        seen = [rot6d(a) if quat else a for a, quat in zip(arrays, quats, strict=True)]
        return np.concatenate(seen, 1).astype(np.float32)


# -------------------------------------------------------------------- robosuite


def osc_parts(kwargs: Mapping[str, Any], size: int) -> tuple[list[dict] | None, str]:
    """The parts of an action of one arm with OSC_POSE in deltas, as `task=robosuite` has them, and its action frame."""
    config = kwargs.get("controller_configs") or {}
    if isinstance(config, list) and len(config) == 1:
        config = config[0]
    if isinstance(config, dict) and "body_parts" in config:
        config = config["body_parts"].get("right") or {}
    most: Any = config.get("output_max") if isinstance(config, dict) else None
    delta = bool(config.get("control_delta", config.get("input_type", "delta") == "delta")) if most else False
    if not delta or config.get("type") != "OSC_POSE" or size != 7 or np.shape(most) != (6,):
        return None, ""
    limits = [{"low": [-v for v in m], "high": list(m)} for m in (most[:3], most[3:])]
    return [
        {"name": "position", "size": 3, "kind": "delta", **limits[0]},
        {
            "name": "rotation",
            "size": 3,
            "kind": "rotation",
            **limits[1],
            "form": "axis_angle",
            "relative": True,
        },
        {"name": "gripper", "size": 1, "kind": "binary", "low": [0.0], "high": [1.0]},
    ], "robosuite:OSC_POSE"


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


def _robot(kwargs: Mapping[str, Any]) -> str | None:
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


def _demos(file: Any, path: Path, mask: str | None) -> list[str]:
    """Names of the demos in the order of their numbers."""
    names = [n for n in file["data"] if re.fullmatch(r"demo_\d+", n)]
    if mask is not None:
        chosen([mask], list(file.get("mask", {})), "mask", path)
        kept = {n.decode() if isinstance(n, bytes) else str(n) for n in file["mask"][mask][:]}
        names = chosen(sorted(kept), names, f"mask/{mask}", path)
    if not names:
        raise mismatch(f"{path}: data", f"{', '.join(file['data']) or 'nothing'}", "demo_0, demo_1 ...")
    return sorted(names, key=_number)


def _number(name: str) -> int:
    return int(name.rpartition("_")[2])


def _array(demo: Any, key: str, path: Path) -> Any:
    if key not in demo:
        raise mismatch(f"{path}: {demo.name}", f"no {key}", "one")
    return demo[key]

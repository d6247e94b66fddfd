"""What a dataset has to hold: its attributes, and episodes that fit those before them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.envs.errors import EnvError
from s2robot.envs.parts import check_parts, check_values, size_of, usual, words

SCHEMA_VERSION = 1
KINDS = ("states", "images")
REQUIRED = {  # attributes: type, and what it is to a reader of an error
    "robot": (str, "a name"),
    "joint_names": (list, "a list of names"),
    "rate_hz": (int | float, "a number"),
    "cameras": (list, "a list of names, in order"),
    "camera_geometry": (dict, "a mapping: camera -> size, fovy, pose ..."),
    "action_frame": (str, "a name"),
    "env_version": (str, "a name"),
    "env_config": (dict, "a mapping"),
    "seed": (int, "a whole number"),
    "kind": (str, "states or images"),
}


KEY = r"(data|meta)/\w([\w./: -]*\w)?"  # a camera is called as its owner calls it: observation.images.top
# array -> the attribute that says what it holds
PARTS = {"action": "action_parts", "proprio": "proprio_parts"}
JOINTS = 7  # of an arm without parts; a gripper stands beside them in actions and proprio


def checked_episode(
    where: str, specs: Mapping, episode: Mapping, meta: Mapping, about: Mapping[str, Any]
) -> tuple[dict, dict]:
    """The arrays and values of an episode that fits.

    Args:
        where: for messages.
        specs: array name -> [dtype, shape], of the episodes before it; empty for the first.
        episode, meta: what :meth:`EpisodeStore.append` was given.
        about: the dataset's attributes.

    Raises:
        DatasetError: names key, what was found and what was expected.
    """
    if not episode:
        raise mismatch(where, "no arrays", "at least one")
    arrays = {k: np.asarray(v) for k, v in episode.items()}
    values = {k: np.asarray(v) for k, v in meta.items()}
    named = {f"data/{k}": v for k, v in arrays.items()} | {f"meta/{k}": v for k, v in values.items()}
    for name, array in named.items():
        if not re.fullmatch(KEY, name, re.ASCII) or name == "meta/episode_ends":
            raise mismatch(
                where, f"key '{name}'", "letters, digits and _ . / : - inside, and not episode_ends"
            )
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise mismatch(f"{where}: {name}", array.dtype, "numbers")
    first = next(iter(arrays))
    for key, array in arrays.items():
        if array.ndim == 0 or array.size == 0:
            raise mismatch(f"{where}: {key}", f"shape {array.shape}", "(T, ...) with T >= 1")
        if len(array) != len(arrays[first]):
            expected = f"{len(arrays[first])} as in {first}"
            raise mismatch(f"{where}: {key}", f"{len(array)} steps", expected)
        check_finite(f"{where}: {key}", array)
    _check_use(where, arrays, about)
    if specs:
        if named.keys() != specs.keys():
            found, expected = ", ".join(sorted(named)), ", ".join(sorted(specs))
            raise mismatch(where, f"keys {found}", expected)
        for name, array in named.items():
            dtype, shape = np.dtype(specs[name][0]), specs[name][1]
            is_data = name.startswith("data/")
            row = list(array.shape[is_data:])
            # Python's numbers have no dtype of their own: whole ones may fill a float column
            fits = array.dtype == dtype if is_data else np.can_cast(array.dtype, dtype, "safe")
            if not fits or row != shape:
                raise mismatch(f"{where}: {name}", f"{array.dtype} {row}", f"{dtype} {shape}")
    return arrays, values


def check_finite(where: str, array: np.ndarray, start: int = 0) -> None:
    """Refuse NaN and infinity (DatasetError); ``start``: number of the array's first step in the episode."""
    if array.dtype.kind != "f":
        return
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        step = int(bad.argmax())
        value = array[step][~np.isfinite(array[step])].flat[0]
        raise mismatch(where, f"{value} at step {start + step}", "finite numbers")


def check_joints(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse to begin a dataset of an arm that no policy can act on: one that is not the usual, and without parts.

    Raises:
        DatasetError: says how many joints were found and expected.
    """
    if all(key in about for key in PARTS.values()):
        return
    if (found := len(about["joint_names"])) != JOINTS:
        expected = f"{JOINTS}, without the gripper's"
        raise mismatch(f"{path}: attribute joint_names", f"{found} names", expected)


def _check_use(where: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Refuse at the door what encoding and training would refuse hours later; frames need not be square."""
    for key, array in arrays.items():
        if key in ("action", "proprio", "expert"):
            _check_numbers(f"{where}: {key}", "proprio" if key == "proprio" else "action", array, about)
    if about["kind"] != "images":
        return
    for camera in about["cameras"]:
        if (frames := arrays.get(f"images_{camera}")) is None:
            raise mismatch(where, f"keys {', '.join(sorted(arrays))}", f"'images_{camera}' among them")
        found = f"{frames.dtype} {frames.shape}"
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise mismatch(f"{where}: images_{camera}", found, "uint8 (T, H, W, 3), RGB, upright")


def parts_of(about: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """What the numbers of `action` or `proprio` (the key) are."""
    return about.get(PARTS[key]) or usual(PARTS[key], len(about["joint_names"]))


def _check_numbers(where: str, key: str, array: np.ndarray, about: Mapping[str, Any]) -> None:
    """Refuse an action, proprio or expert's chunk (T, [K,] A) that is not of the dataset's parts."""
    parts = parts_of(about, key)
    width, lead = size_of(parts), "T, K" if where.endswith("expert") else "T"
    if array.ndim != lead.count(",") + 2 or array.shape[-1] != width or array.dtype.kind != "f":
        what = words(parts) if PARTS[key] in about else f"{width - 1} joints and the gripper"
        raise mismatch(where, f"{array.dtype} {array.shape}", f"floats ({lead}, {width}): {what}")
    if PARTS[key] in about:
        try:
            check_values(parts, array, where)
        except EnvError as error:
            raise DatasetError(str(error)) from None


def checked_attributes(path: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes as JSON gives them back, with the schema version."""
    plain: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for name, value in attributes.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=_plain, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{path}: attribute {name}: {error}, expected JSON types") from None
    for name, (kind, what) in REQUIRED.items():
        if name not in plain:
            raise mismatch(path, f"no attribute {name}", f"all of {', '.join(REQUIRED)}")
        if not isinstance(plain[name], kind) or isinstance(plain[name], bool):
            raise mismatch(f"{path}: attribute {name}", repr(plain[name]), what)
    for name, good, what in (
        ("joint_names", _different(plain["joint_names"]), "different names"),
        ("cameras", _different(plain["cameras"]), "different names"),
        ("rate_hz", plain["rate_hz"] > 0, "a rate above 0"),
        ("kind", plain["kind"] in KINDS, " or ".join(KINDS)),
        ("schema_version", plain["schema_version"] == SCHEMA_VERSION, str(SCHEMA_VERSION)),
        ("arrays", "arrays" not in plain, "another name (this one is the store's)"),
    ):
        if not good:
            raise mismatch(f"{path}: attribute {name}", repr(plain[name]), what)
    for name in PARTS.values():
        if name in plain:
            try:
                check_parts(plain[name], f"{path}: attribute {name}")
            except EnvError as error:
                raise DatasetError(str(error)) from None
    return plain


def _different(names: list) -> bool:
    return all(isinstance(n, str) for n in names) and len(set(names)) == len(names)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON type")

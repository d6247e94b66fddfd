"""Validate a dataset's attributes, and that each episode matches the earlier ones."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from s2robot.core.errors import reported
from s2robot.core.parts import check_values, parts_of, read_parts, size_of, words
from s2robot.core.settings import Different, Stored, read
from s2robot.demos.bounds import number_type
from s2robot.demos.errors import mismatch

SCHEMA_VERSION = 1
KEY = r"(data|meta)/\w([\w./: -]*\w)?"  # cameras keep their original names: observation.images.top
# array -> the attribute that describes its numbers
PARTS = {"action": "action_parts", "proprio": "proprio_parts"}
JOINTS = 7  # of an arm without parts; actions and proprio add the gripper


Names = Annotated[tuple[str, ...], Different]


class _Attributes(Stored):
    """The attributes that every dataset has; others are stored unchanged."""

    schema_version: Literal[1]
    robot: str
    joint_names: Names
    rate_hz: float = Field(gt=0)
    cameras: Names  # in order
    camera_geometry: dict[str, Any]  # camera -> size, fovy, pose ...
    action_frame: str
    env_version: str
    env_config: dict[str, Any]
    seed: int
    kind: Literal["states", "images"]
    arrays: None = None  # reserved by the store


def checked_attributes(path: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes as plain JSON values, with the schema version (UserError)."""
    plain: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for name, value in attributes.items():
        with reported(f"{path}: {name}: expected JSON types or arrays, with finite numbers, got"):
            plain[name] = json.loads(json.dumps(value, default=lambda array: array.tolist(), allow_nan=False))
    read(_Attributes, plain, f"{path}: ")
    for name in plain.keys() & set(PARTS.values()):
        read_parts(plain[name], f"{path}: {name}")
    return plain


def check_joints(path: Path, about: Mapping[str, Any]) -> None:
    """Reject a new dataset for an arm that no policy supports: no parts and other than seven joints."""
    if not about.keys() >= set(PARTS.values()) and (found := len(about["joint_names"])) != JOINTS:
        raise mismatch(f"{path}: joint_names", f"{JOINTS}, without the gripper's", found)


def checked_episode(
    where: str, specs: Mapping, episode: Mapping, meta: Mapping, about: Mapping[str, Any]
) -> tuple[dict, dict]:
    """Return an episode's arrays and values as numpy arrays after validation (UserError names the key).

    ``specs``: array name -> [dtype, shape] of the earlier episodes; empty for the first. ``about``: the attributes.
    """
    arrays = {k: np.asarray(v) for k, v in episode.items()}
    values = {k: np.asarray(v) for k, v in meta.items()}
    named = {f"data/{k}": v for k, v in arrays.items()} | {f"meta/{k}": v for k, v in values.items()}
    for name, array in named.items():
        if not re.fullmatch(KEY, name, re.ASCII) or name == "meta/episode_ends":
            raise mismatch(where, "keys of letters and digits, with _ . / : - in between", f"'{name}'")
        number_type(f"{where}: {name}", array.dtype)
    lengths = {len(a) if a.ndim and a.size else 0 for a in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        got = ", ".join(f"{key} {a.shape}" for key, a in arrays.items()) or "none"
        raise mismatch(where, "arrays (T, ...) of one T >= 1", got)
    for key, array in arrays.items():
        check_finite(f"{where}: {key}", array)
    _check_use(where, arrays, about)
    for name in sorted(named.keys() | specs.keys()) if specs else ():
        found, (dtype, shape) = named.get(name), specs.get(name, (None, None))
        is_data, fits = name.startswith("data/"), found is not None and dtype is not None
        if found is not None and fits:  # Python numbers have no dtype: an int may go into a float column
            same = found.dtype == dtype if is_data else np.can_cast(found.dtype, dtype, "safe")
            fits = same and list(found.shape[is_data:]) == shape
        if not fits:
            got = "none" if found is None else f"{found.dtype} {found.shape}"
            raise mismatch(f"{where}: {name}", f"{dtype} rows of {shape}" if dtype else "none", got)
    return arrays, values


def check_finite(where: str, array: np.ndarray, start: int = 0) -> None:
    """Reject NaN and infinity (DatasetError); ``start``: index of the array's first step in the episode."""
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array).reshape(len(array), -1).all(1)).any():
        step = int(bad.argmax())
        value = array[step][~np.isfinite(array[step])].flat[0]
        raise mismatch(where, "finite numbers", f"{value} at step {start + step}")


def _check_use(where: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Reject data now that encoding or training would reject hours later; images need not be square."""
    for key in (key for key in ("action", "proprio", "expert") if key in arrays):
        kind = "proprio" if key == "proprio" else "action"
        parts = parts_of(about, kind)
        lead = ("T", "K") if key == "expert" else ("T",)
        _check_rows(f"{where}: {key}", arrays[key], "f", (*lead, size_of(parts)), words(parts))
        if PARTS[kind] in about:
            check_values(parts, arrays[key], f"{where}: {key}")
    for camera in about["cameras"] if about["kind"] == "images" else ():
        frames = arrays.get(f"images_{camera}", np.empty(0))
        _check_rows(f"{where}: images_{camera}", frames, "u1", ("T", "H", "W", 3), "RGB, upright")


def _check_rows(where: str, array: np.ndarray, dtype: str, shape: tuple[str | int, ...], what: str) -> None:
    """Reject an array of another dtype or shape; strings in ``shape`` match any size (DatasetError)."""
    sizes = [n if isinstance(n, int) else found for n, found in zip(shape, array.shape, strict=False)]
    kinds = array.dtype.kind, array.dtype.str[1:]
    if len(shape) != array.ndim or list(array.shape) != sizes or dtype not in kinds:
        expected = f"{'floats' if dtype == 'f' else 'uint8'} ({', '.join(map(str, shape))}): {what}"
        raise mismatch(where, expected, f"{array.dtype} {array.shape}" if array.size else "none")

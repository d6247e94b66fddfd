"""What a dataset has to hold: its attributes, and episodes that fit those before them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from s2robot.core.errors import UserError
from s2robot.core.parts import check_values, parts_of, read_parts, size_of, words
from s2robot.core.settings import Stored, read
from s2robot.demos.bounds import number_type
from s2robot.demos.errors import DatasetError, mismatch

SCHEMA_VERSION = 1
KEY = r"(data|meta)/\w([\w./: -]*\w)?"  # a camera is called as its owner calls it: observation.images.top
# array -> the attribute that says what it holds
PARTS = {"action": "action_parts", "proprio": "proprio_parts"}
JOINTS = 7  # of an arm without parts; a gripper stands beside them in actions and proprio


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"expected different names, got {list(names)}")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(_different)]


class _Attributes(Stored):
    """The attributes that every dataset has; others are kept as they are."""

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
    arrays: None = None  # the store's own name


def checked_attributes(path: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes as JSON gives them back, with the schema version (DatasetError)."""
    plain: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for name, value in attributes.items():
        try:
            plain[name] = json.loads(json.dumps(value, default=_plain, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise DatasetError(f"{path}: {name}: {error}, expected JSON types") from None
    try:
        read(_Attributes, plain, f"{path}: ")
        for name in PARTS.values():
            if name in plain:
                read_parts(plain[name], f"{path}: {name}")
    except UserError as error:
        raise DatasetError(str(error)) from None
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def check_joints(path: Path, about: Mapping[str, Any]) -> None:
    """Refuse to begin a dataset of an arm that no policy can act on: not seven joints, and without parts."""
    if not all(key in about for key in PARTS.values()) and (found := len(about["joint_names"])) != JOINTS:
        expected = f"{JOINTS}, without the gripper's"
        raise mismatch(f"{path}: joint_names", f"{found} names", expected)


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
            expected = "letters, digits and _ . / : - inside, and not episode_ends"
            raise mismatch(where, f"key '{name}'", expected)
        number_type(f"{where}: {name}", array.dtype)
    first = next(iter(arrays))
    for key, array in arrays.items():
        if array.ndim == 0 or array.size == 0:
            raise mismatch(f"{where}: {key}", f"shape {array.shape}", "(T, ...) with T >= 1")
        if len(array) != len(arrays[first]):
            expected = f"{len(arrays[first])} as in {first}"
            raise mismatch(f"{where}: {key}", f"{len(array)} steps", expected)
        check_finite(f"{where}: {key}", array)
    _check_use(where, arrays, about)
    if specs and named.keys() != specs.keys():
        raise mismatch(where, f"keys {', '.join(sorted(named))}", ", ".join(sorted(specs)))
    for name, array in named.items() if specs else ():
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
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array).reshape(len(array), -1).all(1)).any():
        step = int(bad.argmax())
        value = array[step][~np.isfinite(array[step])].flat[0]
        raise mismatch(where, f"{value} at step {start + step}", "finite numbers")


def _check_use(where: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Refuse what encoding and training would refuse hours later; frames need not be square."""
    for key, array in arrays.items():
        if key in ("action", "proprio", "expert"):
            _check_numbers(f"{where}: {key}", "proprio" if key == "proprio" else "action", array, about)
    for camera in about["cameras"] if about["kind"] == "images" else ():
        if (frames := arrays.get(f"images_{camera}")) is None:
            raise mismatch(where, f"keys {', '.join(sorted(arrays))}", f"'images_{camera}' among them")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            found = f"{frames.dtype} {frames.shape}"
            raise mismatch(f"{where}: images_{camera}", found, "uint8 (T, H, W, 3), RGB, upright")


def _check_numbers(where: str, key: str, array: np.ndarray, about: Mapping[str, Any]) -> None:
    """Refuse an action, proprio or expert's chunk (T, [K,] A) that is not of the dataset's parts."""
    parts = parts_of(about, key)
    width, lead = size_of(parts), "T, K" if where.endswith("expert") else "T"
    if array.ndim != lead.count(",") + 2 or array.shape[-1] != width or array.dtype.kind != "f":
        raise mismatch(where, f"{array.dtype} {array.shape}", f"floats ({lead}, {width}): {words(parts)}")
    if PARTS[key] in about:
        try:
            check_values(parts, array, where)
        except UserError as error:
            raise DatasetError(str(error)) from None

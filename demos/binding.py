"""Bind a dataset without a world to a task: check that they match, and fill in the missing attributes.

bound(EpisodeStore.open("pusht.zarr"), settings).attrs["env_config"]     # the world's settings, stored in checkpoints
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.parts import BEYOND, number_names, parts_of, plain, same_parts, size_of, words
from s2robot.demos.errors import DatasetError
from s2robot.demos.replay import camera_sizes
from s2robot.demos.store import EpisodeStore
from s2robot.envs.frames import as_image_size
from s2robot.envs.tasks import DEFAULT, make_cached, settings_class

ANY = ("unknown", "none", "parts")  # robots and action frames that match any other
ASPECT = 0.01  # relative difference of two aspect ratios that is rounding
Limits = tuple[np.ndarray, np.ndarray]


def names_no_world(about: Mapping[str, Any]) -> bool:
    """Return whether a dataset or contract has no known world; recordings of an arm have the default one."""
    is_default = about["action_frame"] == settings_class(DEFAULT).action_frame
    return not (about["env_config"] or is_default or about.get("kind") == "states")


def is_open(about: Mapping[str, Any], world: Any = None) -> bool:
    """Return whether a dataset or contract has no world, and the user chose one other than the default."""
    return names_no_world(about) and world is not None and world.task != DEFAULT


def bind(about: Mapping[str, Any], world: Any, where: object) -> tuple[dict[str, Any], Any]:
    """Return a dataset's or contract's attributes with those of a world, and the world with the dataset's cameras.

    The one line of a UserError lists all differences.
    """
    sizes = {c: tuple(g["size"]) for c, g in about["camera_geometry"].items() if "size" in g}
    world = world.seen_as(about["cameras"])
    if sizes.keys() >= {*world.cameras}:
        world = world.replace(image_size=as_image_size({c: sizes[c] for c in world.cameras}))
    env, wrong = make_cached(world, draw=False), list[str]()
    world_about = env.describe()
    if {*about["cameras"]} - {*world.cameras}:
        both = (", ".join(x["cameras"]) for x in (world_about, about))
        wrong.append("cameras: expected {}, got {}".format(*both))
    for name, (height, width) in env.native_sizes().items():
        size = sizes.get(name, (height, width))
        if abs(size[0] * width / (size[1] * height) - 1) > ASPECT:
            wrong.append(f"camera {name}: expected the shape {height} x {width}, got {size[0]} x {size[1]}")
    return filled(about, world_about, f"{where} in {world_about['env_version']}", wrong), world


def filled(
    about: Mapping[str, Any], world_about: Mapping[str, Any], where: object, wrong: Sequence[str] = ()
) -> dict[str, Any]:
    """Fill attributes in from a world, or a contract bound to it; UserError lists all differences and ``wrong``."""
    attributes, wrong = {"source": {"format": "s2robot", "name": "unknown"}, **about}, list(wrong)

    def check(key: str, same: bool, expected: object, actual: object) -> None:
        if not same:
            wrong.append(f"{key}: expected {expected}, got {actual}")

    for key in ("robot", "action_frame"):
        own, other = about[key], world_about[key]
        check(key, own == other or own in ANY or other in ANY, other, own)
    for key in ("action", "proprio"):
        own_parts, parts = parts_of(about, key), parts_of(world_about, key)
        are_absolute = all(part.kind == "absolute" for part in (*own_parts, *parts))
        extra = size_of(own_parts) - size_of(parts)
        same = same_parts(own_parts, parts) or (are_absolute and not extra)
        hint = f" ({key}=<array>[:{size_of(parts)}] chooses columns)" if extra > 0 else ""
        check(key, same, words(parts), words(own_parts) + hint)
        if same and len(parts) == 1 and any(part.names for part in own_parts):
            parts = (parts[0].replace(names=tuple(number_names(own_parts))),)
        attributes[f"{key}_parts"] = plain(parts)
    rates = world_about["rate_hz"], about["rate_hz"]
    check("rate_hz", math.isclose(*rates, rel_tol=1e-3), *(f"{rate:g}" for rate in rates))
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}")
    keys = ("robot", "action_frame", "rate_hz", "env_version", "env_config")
    return attributes | {key: world_about[key] for key in keys if key in world_about}


class BoundStore(EpisodeStore):
    """A dataset with the attributes of a world; its fingerprint, and so its cached features, stay the same."""

    def __init__(self, path: Path, attributes: dict[str, Any], limits: Limits | None = None):
        super().__init__(path, "r")
        self._attrs, self._limits = attributes, limits

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        values = super().read(key, start, stop)
        if self._limits is None or key != "action":
            return values
        return values.clip(*self._limits).astype(values.dtype)

    def fingerprint_of_first(self, episodes: int) -> str:
        return EpisodeStore.open(self.path).fingerprint_of_first(episodes)


def bound(store: EpisodeStore, world: Any, clip: bool = False, path: object = None) -> EpisodeStore:
    """Bind a dataset without a world to ``world``; return other datasets unchanged. UserError: as :func:`bind`, or for
    actions beyond the world's limits, unless ``clip``. ``path``: the original dataset, if the store is a copy."""
    about, where = store.attrs, path or store.path
    if not is_open(about, world):
        return store
    geometry, sizes = about["camera_geometry"], camera_sizes(store, store.cameras)
    about["camera_geometry"] = {c: {**geometry.get(c, {}), "size": list(size)} for c, size in sizes.items()}
    attributes, _ = bind(about, world, where)
    low, high = _limits(attributes)
    actions = store["action"].astype(np.float64)
    beyond = np.maximum(low - actions, actions - high)
    outside = (beyond > BEYOND * np.nan_to_num(high - low, posinf=0)).any(1)
    if not outside.any():
        return BoundStore(store.path, attributes)
    step, column = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    got = f"{100 * outside.mean():.2g} % of the steps outside, the farthest {actions[step, column]:.4g}"
    if not clip:
        limits = f"{low[column]:g} to {high[column]:g} in {attributes['env_version']}"
        hint = "clip=true clips them; for task=gym, task.bounded=false ignores the limits"
        raise DatasetError(f"{where}: action {column + 1}: expected {limits}, got {got}; {hint}")
    print(f"note: {where}: actions are clipped to the world's limits: {got}", flush=True)
    return BoundStore(store.path, attributes, (low, high))


def _limits(about: Mapping[str, Any]) -> Limits:
    """Return the lower and upper limit of each action component; infinite if it has none."""
    ends: list[Limits] = []
    for part in parts_of(about, "action"):
        known = part.low is not None or part.kind == "binary"
        ends.append(part.limits if known else (np.full(part.size, -np.inf), np.full(part.size, np.inf)))
    low, high = (np.concatenate(each) for each in zip(*ends, strict=True))
    return low, high

"""Bind a dataset that names no world to a task: check that they fit, and fill what the dataset leaves open.

bound(EpisodeStore.open("pusht.zarr"), settings).attrs["env_config"]     # settings of the world, stored in checkpoints
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

ANY = ("unknown", "none", "parts")  # robots and action frames that leave it open
ASPECT = 0.01  # difference of two images' height over width that is rounding
Limits = tuple[np.ndarray, np.ndarray]


def names_no_world(about: Mapping[str, Any]) -> bool:
    """Whether a dataset or a contract is of no known world; recordings of an arm are of the default one."""
    named = about["action_frame"] == settings_class(DEFAULT).action_frame
    return not (about["env_config"] or named or about.get("kind") == "states")


def is_open(about: Mapping[str, Any], world: Any = None) -> bool:
    """Whether a dataset or a contract names no world, and another than the default one was chosen for it."""
    return names_no_world(about) and world is not None and world.task != DEFAULT


def bind(about: Mapping[str, Any], world: Any, where: object) -> tuple[dict[str, Any], Any]:
    """Return attributes of a dataset or a contract with those of a world, and the world with the dataset's cameras.

    UserError names in one line everything in which they differ.
    """
    sizes = {c: tuple(g["size"]) for c, g in about["camera_geometry"].items() if "size" in g}
    world = world.seen_as(about["cameras"])
    if sizes.keys() >= {*world.cameras}:
        world = world.replace(image_size=as_image_size({c: sizes[c] for c in world.cameras}))
    env, wrong = make_cached(world, draw=False), list[str]()
    theirs = env.describe()
    if {*about["cameras"]} - {*world.cameras}:
        both = (", ".join(x["cameras"]) for x in (theirs, about))
        wrong.append("cameras: expected {}, found {}".format(*both))
    for name, (height, width) in env.native_sizes().items():
        size = sizes.get(name, (height, width))
        if abs(size[0] * width / (size[1] * height) - 1) > ASPECT:
            wrong.append(f"camera {name}: expected the shape {height} x {width}, found {size[0]} x {size[1]}")
    return filled(about, theirs, f"{where} in {theirs['env_version']}", wrong), world


def filled(
    about: Mapping[str, Any], theirs: Mapping[str, Any], where: object, wrong: Sequence[str] = ()
) -> dict[str, Any]:
    """Return attributes with those of a world or of a contract bound to it; UserError names what differs, ``wrong`` included."""
    taken, wrong = {"source": {"format": "s2robot", "name": "unknown"}, **about}, list(wrong)

    def check(key: str, same: bool, expected: object, found: object) -> None:
        if not same:
            wrong.append(f"{key}: expected {expected}, found {found}")

    for key in ("robot", "action_frame"):
        own, other = about[key], theirs[key]
        check(key, own == other or own in ANY or other in ANY, other, own)
    for key in ("action", "proprio"):
        ours, parts = parts_of(about, key), parts_of(theirs, key)
        values = all(part.kind == "absolute" for part in (*ours, *parts))
        more = size_of(ours) - size_of(parts)
        same = same_parts(ours, parts) or (values and not more)
        hint = f" ({key}=<array>[:{size_of(parts)}] chooses columns)" if more > 0 else ""
        check(key, same, words(parts), words(ours) + hint)
        if same and len(parts) == 1 and any(part.names for part in ours):
            parts = (parts[0].replace(names=tuple(number_names(ours))),)
        taken[f"{key}_parts"] = plain(parts)
    rates = theirs["rate_hz"], about["rate_hz"]
    check("rate_hz", math.isclose(*rates, rel_tol=1e-3), *(f"{rate:g}" for rate in rates))
    if wrong:
        raise UserError(f"{where}: {'; '.join(wrong)}")
    keys = ("robot", "action_frame", "rate_hz", "env_version", "env_config")
    return taken | {key: theirs[key] for key in keys if key in theirs}


class BoundStore(EpisodeStore):
    """A dataset with the attributes of a world. Its fingerprint stays, and so do its cached features."""

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
    """Return a dataset bound to ``world`` if it names none, else itself; UserError as :func:`bind`, and for actions beyond the
    world's limits, which ``clip`` cuts. ``path``: of the dataset, if the store is a copy."""
    about, where = store.attrs, path or store.path
    if not is_open(about, world):
        return store
    geometry, sizes = about["camera_geometry"], camera_sizes(store, store.cameras)
    about["camera_geometry"] = {c: {**geometry.get(c, {}), "size": list(size)} for c, size in sizes.items()}
    attributes, _ = bind(about, world, where)
    low, high = _limits(attributes)
    actions = store["action"].astype(np.float64)
    beyond = np.maximum(low - actions, actions - high)
    room = BEYOND * np.nan_to_num(high - low, posinf=0)
    outside = (beyond > room).any(1)
    if not outside.any():
        return BoundStore(store.path, attributes)
    step, column = np.unravel_index(int(np.argmax(beyond)), beyond.shape)
    got = f"{100 * outside.mean():.2g} % of the steps outside, {actions[step, column]:.4g} the farthest"
    if not clip:
        limits = f"{low[column]:g} to {high[column]:g} in {attributes['env_version']}"
        hint = "clip=true cuts them, and for task=gym task.bounded=false ignores the limits"
        raise DatasetError(f"{where}: action {column + 1}: expected {limits}, found {got}; {hint}")
    print(f"note: {where}: actions are cut to the world's limits: {got}", flush=True)
    return BoundStore(store.path, attributes, (low, high))


def _limits(about: Mapping[str, Any]) -> Limits:
    """Return the low and high limit of each action component, infinite where it has none."""
    ends: list[Limits] = []
    for part in parts_of(about, "action"):
        known = part.low is not None or part.kind == "binary"
        ends.append(part.limits if known else (np.full(part.size, -np.inf), np.full(part.size, np.inf)))
    low, high = (np.concatenate(each) for each in zip(*ends, strict=True))
    return low, high

"""Copy simulated demos, and add what the scripted picker would do from every step.

    s2robot convert data=demos.zarr out=relabelled.zarr expert=16

The picker follows each episode's states from its seed, so it has the same knowledge of every push. Its actions must match
the dataset, or nothing is written.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.settings import Settings, from_yaml, read
from s2robot.core.workers import worker_pool
from s2robot.demos.errors import mismatch
from s2robot.demos.record import create_or_resume, record_episode
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task import TaskSettings

_SAME = 1e-4  # rad: other builds of the simulator differ in the last bits, another picker in the first


class RelabelSettings(Settings, file="convert"):
    """Settings of the copy; configs/convert.yaml documents each value."""

    out: Path
    expert: int = from_yaml(ge=1)
    imitate_kicks: bool = from_yaml()
    workers: int = from_yaml(ge=1)


def relabel(
    source: EpisodeStore,
    settings: RelabelSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EpisodeStore:
    """Write the copy, or resume an interrupted one; ``progress(episodes, all)`` is called after each episode.

    Raises:
        DatasetError: the dataset has an expert's chunks already or was not recorded by the scripted picker, the picker
            acts differently, or `settings.out` holds anything else.
    """
    picker, world = picker_of(source), world_of_demos(source)
    if "expert" in source.keys:
        raise mismatch(source.path, "an expert's chunks", "a dataset without")
    chosen = {"imitate_kicks": True} if settings.imitate_kicks else {}
    how = (world, picker, settings.expert, settings.imitate_kicks)
    attributes = {**source.attrs, **chosen}
    with create_or_resume(settings.out, attributes, len(source), settings.expert) as store:
        with worker_pool(settings.workers) as pool:
            left = range(len(store), len(source))
            labelled = pool.in_order(labelled_episode, [(source.path, i, *how) for i in left])
            for i, arrays in zip(left, labelled, strict=True):
                store.append(arrays, {key: source.meta(key)[i] for key in source.meta_keys})
                progress(len(store), len(source))
    return EpisodeStore.open(settings.out)


def labelled_episode(
    path: Path, i: int, world: TaskSettings, picker: Any, expert: int, imitate_kicks: bool
) -> dict[str, np.ndarray]:
    """The arrays of episode ``i`` of a dataset with ``expert`` and ``imitate``."""
    source = EpisodeStore.open(path)
    stored, seed = source.episode(i), int(source.meta("seed")[i])
    again, _ = record_episode(world, picker, seed, expert, imitate_kicks, stored["state"])
    if "expert" not in again:
        raise mismatch(path, "a task whose expert cannot be asked", "one that can")
    for key in ("perturbed", "action"):
        away = np.abs(stored[key].astype(float) - again[key]).reshape(len(stored[key]), -1).max(1)
        if (away > _SAME).any():
            step = int(np.argmax(away > _SAME))
            found = f"{key} of step {step} {away[step]:.2g} away"
            raise mismatch(f"{path}: episode {i}", found, "what the expert of these settings does there")
    return stored | {key: again[key] for key in ("expert", "imitate")}


def picker_of(store: EpisodeStore) -> Any:
    """The settings of the scripted expert that recorded a dataset (DatasetError: none did)."""
    given = store.attrs.get("picker")
    if not isinstance(given, dict) or "perturbed" not in store.keys or "seed" not in store.meta_keys:
        raise mismatch(store.path, "no simulated demos of a scripted expert", "those of `s2robot record`")
    if "state" not in store.keys:
        raise mismatch(store.path, "demos without states", "those of a task whose state can be set")
    kind = world_of_demos(store).Expert
    return given if kind is None else read(kind, given, f"{store.path}: attribute picker")

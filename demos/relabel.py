"""A copy of simulated demos with what the picker would do from every step.

    s2robot relabel demos.path=demos.zarr out=relabelled.zarr

Each episode is recorded again from its seed, so that the picker knows of every push what it knew then; it has to do
what the dataset holds, or nothing is written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.picker import PickerConfig
from s2robot.demos.record import begun, record_episode
from s2robot.demos.replay import env_config_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import as_tuples
from s2robot.envs.workers import worker_pool

# rad, m and what else there is: other builds of the simulator differ in the last bits, another picker in the first
_SAME = 1e-4


@dataclass(frozen=True)
class RelabelSettings:
    """configs/relabel.yaml says what each is."""

    out: str
    expert: int = 16
    imitate_kicks: bool = False
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("expert", "workers"):
            if (found := getattr(self, name)) < 1:
                raise DatasetError(f"{name}: found {found}, expected 1 or more")


def relabel(
    source: EpisodeStore,
    settings: RelabelSettings,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EpisodeStore:
    """Write the copy, or go on with an interrupted one; ``progress(episodes, all)`` is called after each episode.

    Raises:
        DatasetError: the dataset has an expert's chunks already, is none of the scripted picker, or the picker does
            something else; or `settings.out` holds anything else.
    """
    world, picker = env_config_of(source), picker_of(source)
    if "expert" in source.keys:
        raise mismatch(source.path, "an expert's chunks", "a dataset without")
    store = begun(Path(settings.out), source.attrs, len(source), settings.expert)
    how = (settings.expert, settings.imitate_kicks)
    try:
        with worker_pool(settings.workers) as pool:
            try:
                seeds = source.meta("seed").tolist()
                jobs = {
                    i: pool.submit(record_episode, world, picker, seeds[i], *how)
                    for i in range(len(store), len(source))
                }
                for i, job in jobs.items():
                    stored, (again, _) = source.episode(i), job.result()
                    _check_same(f"{source.path}: episode {i}", stored, again)
                    stored |= {key: again[key] for key in ("expert", "imitate")}
                    store.append(stored, {key: source.meta(key)[i] for key in source.meta_keys})
                    progress(len(store), len(source))
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        store.close()
    return EpisodeStore.open(settings.out)


def picker_of(store: EpisodeStore) -> PickerConfig:
    """The picker that recorded a dataset.

    Raises:
        DatasetError: none did.
    """
    given = store.attrs.get("picker")
    if (
        not isinstance(given, dict)
        or not {"state", "perturbed"} <= set(store.keys)
        or "seed" not in store.meta_keys
    ):
        raise mismatch(store.path, "no simulated demos of the scripted picker", "those of `s2robot record`")
    if unknown := sorted(set(given) - set(PickerConfig.__dataclass_fields__)):
        raise mismatch(f"{store.path}: attribute picker", ", ".join(unknown), "settings of the picker")
    return PickerConfig(**as_tuples(given))


def _check_same(where: str, stored: dict[str, np.ndarray], again: dict[str, np.ndarray]) -> None:
    """Refuse an episode that the picker does not do again."""
    wrong = "expected what the picker of these settings does from its seed"
    if len(stored["action"]) != len(again["action"]):
        raise DatasetError(f"{where}: found {len(stored['action'])} steps, {wrong}: {len(again['action'])}")
    for key in ("perturbed", "action", "state"):
        away = np.abs(stored[key].astype(float) - again[key]).reshape(len(stored[key]), -1).max(1)
        if (away > _SAME).any():
            step = int(np.argmax(away > _SAME))
            raise DatasetError(f"{where}: found {key} of step {step} {away[step]:.2g} away, {wrong}")

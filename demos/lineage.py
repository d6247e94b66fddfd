"""Track which episodes and positions a policy and its ancestors were trained on, in any dataset format.

An episode has two keys: a hash of its actions and one of its proprioception. Both use float32 and do not depend on the
order of columns, names, formats, dtypes, images (video is lossy) or the rate. One equal key is a match, so a copy with
converted actions, such as absolute targets, is still recognised by its proprioception.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.files import read_json, write_json
from s2robot.demos.arrays import new_path
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore

CORRECTIONS = "corrections.json"  # in a dataset: the positions that correction rounds tried
# how a position was used -> text of the error
USES = {
    "recorded": "the demos of {} were recorded at",
    "corrected": "were tried in the correction rounds of {}",
    "selected": "chose among the checkpoints of {}",
}
TRAINING = ("recorded", "corrected")
Keys = tuple[str, ...]


def episode_keys(store: EpisodeStore) -> list[Keys]:
    """Return the keys of each episode; constant arrays have none, because they do not identify an episode."""
    known: list[Keys] = store.__dict__.setdefault("_episode_keys", [])
    if len(known) == len(store):
        return known
    names = [name for name in ("action", "proprio") if name in store.keys]
    arrays = [np.asarray(store[name], np.float32).reshape(store.num_steps, -1) for name in names]
    known.clear()
    for i in range(len(store)):
        own = [array[store.episode_slice(i)] + 0.0 for array in arrays]  # + 0.0 turns -0 into 0
        changing = [array for array in own if (array != array[0]).any()]
        columns = [
            sorted(hashlib.sha256(column.tobytes()).digest() for column in array.T)
            for array in changing or [np.concatenate(own, 1)]
        ]
        known.append(tuple(hashlib.sha256(b"".join(each)).hexdigest()[:16] for each in columns))
    return known


class Lineage(NamedTuple):
    """The episodes and positions that trained and selected a policy and its ancestors."""

    hashes: frozenset[str] = frozenset()  # keys of the training episodes
    positions: Mapping[str, frozenset[int]] = {}  # key of USES -> seeds
    unknown: tuple[str, ...] = ()  # checkpoints with an incomplete lineage

    @classmethod
    def of(cls, contract: Mapping[str, Any], name: str | Path = "the policy") -> "Lineage":
        """Read it from the contract of the checkpoint ``name``."""
        if (stored := contract.get("lineage")) is None:
            seeds = (contract.get("dataset") or {}).get("seeds") or ()  # only the positions of its own demos
            return cls(positions={"recorded": frozenset(map(int, seeds))}, unknown=(str(name),))
        positions = {use: frozenset(map(int, seeds)) for use, seeds in stored["positions"].items()}
        return cls(frozenset(stored.get("episode_hashes", ())), positions, tuple(stored["unknown"]))

    def stored(self) -> dict[str, Any]:
        """Return the lineage as JSON, to be read by `of`."""
        positions = {use: sorted(seeds) for use, seeds in self.positions.items() if seeds}
        return {"episode_hashes": sorted(self.hashes), "positions": positions, "unknown": list(self.unknown)}

    def trained_on(self, store: EpisodeStore, episodes: Collection[int]) -> "Lineage":
        """Add these episodes of a dataset, and all positions at which it was recorded."""
        keys = episode_keys(store)
        parts = list(store.members) if isinstance(store, Mix) else [store]
        recorded = [int(seed) for part in parts if "seed" in part.meta_keys for seed in part.meta("seed")]
        rounds = [each for part in parts for each in rounds_of(part.path)]
        # including positions that needed no correction
        tried = [seed for each in rounds for seed in range(*each["positions"])]
        lineage = self.with_positions("recorded", recorded).with_positions("corrected", tried)
        return lineage._replace(hashes=self.hashes.union(*(keys[i] for i in episodes)))

    def with_positions(self, use: str, seeds: Collection[int]) -> "Lineage":
        """Add positions with one of the `USES`."""
        combined = self.positions.get(use, frozenset()) | frozenset(seeds)
        return self._replace(positions={**self.positions, use: combined})

    def seen(self, store: EpisodeStore) -> list[int]:
        """Return the indices of the episodes that were trained on."""
        return [i for i, keys in enumerate(episode_keys(store)) if self.hashes.intersection(keys)]

    def spent(self, store: EpisodeStore) -> list[int]:
        """Return the indices of the episodes that cannot be held out: seen ones and duplicates."""
        keys = episode_keys(store)
        counts = Counter(key for own in keys for key in {*own})
        used = self.hashes.union(key for key, count in counts.items() if count > 1)
        return [i for i, own in enumerate(keys) if used.intersection(own)]

    def check_held_out(self, store: EpisodeStore, train: np.ndarray, held_out: np.ndarray) -> None:
        """Reject held-out episodes that were trained on, or whose copy is in the training set (DatasetError)."""
        keys = episode_keys(store) if len(held_out) else []
        copies = {key: i for i in train for key in keys[i]} if len(held_out) else {}
        for i in held_out:
            same = [copies[key] for key in keys[i] if key in copies]
            reason = f"is also episode {same[0]}, which is trained on" if same else ""
            if self.hashes.intersection(keys[i]):
                reason = "train.from's policy was trained on"
            if reason:
                raise mismatch(store.path, "unseen episodes to hold out", f"{i}, which {reason}")

    def refuse(
        self, positions: range, policy: str | Path, key: str, uses: Collection[str] = tuple(USES)
    ) -> None:
        """Reject positions (seeds) from the setting `key` that a policy or an ancestor has used (DatasetError)."""
        for use in uses:
            if used := self.positions.get(use, frozenset()).intersection(positions):
                got = f"{len(used)} that {USES[use].format(policy)} (first {min(used)}); choose another {key}"
                raise DatasetError(f"{key}: positions {positions.start} to {positions.stop - 1} hold {got}")

    @property
    def note(self) -> str:
        """A line for the user about checkpoints with an incomplete lineage; "" without such checkpoints."""
        without = f"{', '.join(self.unknown)} does not store its complete lineage"
        return f"unknown whether all of these are unseen: {without}" if self.unknown else ""


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rounds that :func:`note_round` has stored in a dataset's folder."""
    file = folder / CORRECTIONS
    return read_json(file) if file.is_file() else []


def note_round(folder: Path, current: dict[str, Any]) -> None:
    """Store the `positions` and settings of a correction round once, whether or not they need corrections."""
    if current not in (earlier := rounds_of(folder)):
        write_json(folder / CORRECTIONS, [*earlier, current])


def open_copy(
    out: Path, demos: EpisodeStore, count: int, fill: Callable[[EpisodeStore], None], adds: bool = False
) -> EpisodeStore:
    """Open the dataset of corrections to append to; ``fill`` starts a new one with the first ``count`` demos.
    ``adds``: `fill` also adds arrays. UserError: an existing dataset starts with other episodes."""
    begin = demos.fingerprint_of_first(count)
    if not os.path.lexists(out):
        began = {"began_with": begin} if adds else {}
        with new_path(out) as part, EpisodeStore.create(part, {**demos.attrs, **began}) as copy:
            fill(copy)
            for each in rounds_of(demos.path):
                note_round(part, each)
    store = EpisodeStore.open(out)
    known = store.attrs.get("began_with")  # in a copy to which `fill` has added arrays
    if (known if adds else len(store) >= count and store.fingerprint_of_first(count)) != begin:
        expected = f"a dataset that begins with the {count} episodes of {demos.path}"
        raise UserError(f"{out}: expected {expected}, got other episodes")
    return EpisodeStore.open(out, "a")


def left_to_try(store: EpisodeStore, begin: int, positions: range) -> tuple[range, int]:
    """Return the positions after the last corrected one, and the number corrected; demos end at episode `begin`."""
    known = [seed for seed in store.meta("seed")[begin:].tolist() if seed in positions]
    return positions[positions.index(max(known)) + 1 :] if known else positions, len(known)

"""Several datasets read as one: their episodes end to end, each with the share that a training draws from it.

mix = Mix([EpisodeStore.open("a.zarr"), EpisodeStore.open("b.zarr")], weights=[1, 2])
mix.shares                   # (1/3, 2/3): of the windows that a training sees, however many each holds
mix.member_of(rows)          # which dataset a step is of
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.store import EpisodeStore

# attributes that must be equal for one policy to learn from all
ALIKE = ("rate_hz", "cameras", "action_frame", "action_parts", "proprio_parts", "joint_names", "robot")


class Mix(EpisodeStore):
    """Several datasets, to read only. Holds the arrays and values that all have, and the attributes of the first.

    Raises:
        DatasetError: two that differ in an attribute of `ALIKE`, or a dataset twice.
    """

    def __init__(self, members: Sequence[EpisodeStore], weights: Sequence[float]):
        self.members = tuple(members)
        _check_alike(self.members)
        self.shares = tuple(float(w) for w in np.array(weights, float) / np.sum(weights))
        self.path, self.mode, self._lock = Path(" + ".join(m.path.name for m in self.members)), "r", None
        self._attrs = self.members[0].attrs
        self.rows = np.cumsum([0, *(m.num_steps for m in self.members)])  # where each begins, and the end
        self.firsts = np.cumsum([0, *(len(m) for m in self.members)])  # likewise in episodes
        self.episode_ends = np.concatenate(
            [m.episode_ends + at for m, at in zip(self.members, self.rows, strict=False)]
        )
        about = [[m.fingerprint, s] for m, s in zip(self.members, self.shares, strict=True)]
        self._fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def member_of(self, rows: np.ndarray) -> np.ndarray:
        """Which dataset each of the steps is of, counted from 0."""
        return np.searchsorted(self.rows, rows, "right") - 1

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """How often each of these steps counts, so that those of a dataset have its share together.  # (n,)"""
        which = self.member_of(rows)
        return np.array(self.shares)[which] / np.bincount(which, minlength=len(self.members))[which]

    def fingerprint_of_first(self, episodes: int) -> str:
        """Only of all: a mix does not grow at its end."""
        return self.fingerprint if episodes == len(self) else ""

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self._known("data", key)
        pieces = [
            m.read(key, max(start - at, 0), min(stop - at, m.num_steps))
            for m, at in zip(self.members, self.rows, strict=False)
            if start - at < m.num_steps and stop > at
        ]
        return np.concatenate(pieces) if pieces else self.members[0].read(key, 0, 0)

    def meta(self, key: str) -> np.ndarray:
        self._known("meta", key)
        return np.concatenate([m.meta(key) for m in self.members])

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(k for k in self.members[0].keys if all(k in m.keys for m in self.members))

    @property
    def meta_keys(self) -> tuple[str, ...]:
        return tuple(k for k in self.members[0].meta_keys if all(k in m.meta_keys for m in self.members))

    def shape(self, key: str) -> tuple[int, ...]:
        self._known("data", key)
        return self.members[0].shape(key)

    def _known(self, group: str, key: str) -> None:
        has = self.keys if group == "data" else self.meta_keys
        if key not in has:
            raise mismatch(self.path, f"keys {', '.join(has) or 'none'} in all", f"'{key}' among them")


def _check_alike(members: Sequence[EpisodeStore]) -> None:
    first = members[0]
    for i, other in enumerate(members[1:], 1):
        if any(other.path.resolve() == m.path.resolve() for m in members[:i]):
            raise mismatch("demos.mix", f"{other.path} twice", "each once, with a weight")
        for name in ALIKE:
            if name == "robot" and "source" in first.attrs and "source" in other.attrs:
                continue  # each lab calls it as it likes; the parts say what the numbers are
            a, b = first.attrs.get(name), other.attrs.get(name)
            if (sorted(a) != sorted(b)) if name == "cameras" else a != b:  # type: ignore[type-var, arg-type]
                raise DatasetError(
                    f"demos.mix: found {name} {_short(a)} in {first.path} and {_short(b)} in {other.path}, expected the same"
                )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:120]}…"

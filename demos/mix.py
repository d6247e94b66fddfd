"""Read several datasets as one, end to end; each dataset has a share of the training."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from s2robot.core.errors import UserError, check_same, one_of
from s2robot.demos.errors import mismatch
from s2robot.demos.store import EpisodeStore

# attributes that must be equal for a policy to learn from all datasets
ALIKE = ("rate_hz", "cameras", "action_frame", "action_parts", "proprio_parts", "joint_names", "robot")


class Mix(EpisodeStore):
    """Read-only view of several datasets: their common keys and the first's attributes (DatasetError: they differ)."""

    def __init__(self, members: Sequence[EpisodeStore], weights: Sequence[float]):
        self.members = tuple(members)
        _check_alike(self.members)
        self.shares = tuple(float(w) for w in np.array(weights, float) / np.sum(weights))
        self.path, self.mode, self._lock = Path(" + ".join(m.path.name for m in self.members)), "r", None
        self._attrs = self.members[0].attrs
        first, *others = (member._specs for member in self.members)
        self._specs = {name: first[name] for name in first if all(name in specs for specs in others)}
        # the first step and first episode of each dataset, then the totals
        self.rows = np.cumsum([0, *(m.num_steps for m in self.members)])
        self.firsts = np.cumsum([0, *(len(m) for m in self.members)])
        ends = [m.episode_ends + at for m, at in zip(self.members, self.rows, strict=False)]
        self.episode_ends = np.concatenate(ends)
        about = [[m.fingerprint, s] for m, s in zip(self.members, self.shares, strict=True)]
        self._fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def member_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the index of the dataset that each step belongs to."""
        return np.searchsorted(self.rows, rows, "right") - 1

    def weights_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the sampling weight of each step; the weights of a dataset sum to its share.  # (n,)"""
        which = self.member_of(rows)
        return np.array(self.shares)[which] / np.bincount(which)[which]

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        self._check_key("data", key)
        pieces = [
            m.read(key, max(start - at, 0), min(stop - at, m.num_steps))
            for m, at in zip(self.members, self.rows, strict=False)
            if start - at < m.num_steps and stop > at
        ]
        return np.concatenate(pieces) if pieces else self.members[0].read(key, 0, 0)

    def meta(self, key: str) -> np.ndarray:
        self._check_key("meta", key)
        return np.concatenate([m.meta(key) for m in self.members])


def _check_alike(members: Sequence[EpisodeStore]) -> None:
    first = members[0]
    for i, other in enumerate(members[1:], 1):
        if other.path.resolve() in [m.path.resolve() for m in members[:i]]:
            raise mismatch("demos.mix", "each dataset once, with a weight", f"{other.path} twice")
        one, two = (m.attrs | {"cameras": sorted(m.cameras)} for m in (first, other))
        # labs name the same robot differently; the parts describe the numbers
        names = ALIKE[:-1] if "source" in one and "source" in two else ALIKE
        one, two = ({name: about.get(name) for name in names} for about in (one, two))
        check_same(f"demos.mix: {other.path}", one, two, f" as in {first.path}")


def tasks_of(store: EpisodeStore) -> tuple[str, ...]:
    """Return the distinct task texts of a dataset; UserError if it does not store them, or an episode has none of them."""
    parts = store.members if isinstance(store, Mix) else [store]
    if not all(part.attrs.get("tasks") and "task" in part.meta_keys for part in parts):
        raise UserError(f"policy.by_task: expected demos that store their tasks, got {store.path}")
    for part in parts:
        if not np.isin(own := part.meta("task"), range(count := len(part.attrs["tasks"]))).all():
            raise UserError(f"{part.path}: meta/task: expected below {count}, got {min(own)} to {max(own)}")
    return tuple(dict.fromkeys(str(task) for part in parts for task in part.attrs["tasks"]))


def task_of_steps(store: EpisodeStore, tasks: Sequence[str]) -> np.ndarray:
    """Return the index of each step's task in ``tasks``; UserError for a task that is not there.  # (M,)"""
    for text in tasks_of(store):
        one_of(f"{store.path}: tasks", text, tasks)
    parts = store.members if isinstance(store, Mix) else [store]
    indices = []
    for part in parts:
        part_tasks = np.array([tasks.index(str(task)) for task in part.attrs["tasks"]])
        indices.append(np.repeat(part_tasks[part.meta("task").astype(int)], part.lengths))
    return np.concatenate(indices)

"""Training windows: the context steps that a policy observes, and the actions to imitate from there.

If a dataset has the array ``expert`` (a chunk of actions for every step), the expert is imitated, unless
``labels="recorded"`` selects the executed actions. Chunks of executed actions end before the next step in which the
picker was pushed (``perturbed``). Windows start at the steps marked by ``imitate``, or else at every step without a
push. The context includes all steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from s2robot.demos.errors import mismatch
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore


@dataclass(frozen=True)
class Windows:
    """One row per window."""

    # (W, T) rows in the dataset, oldest first, clipped to the episode's first step
    context: np.ndarray
    pad: np.ndarray  # (W, T) True before the start of the episode
    actions: np.ndarray  # (W, K, A) to imitate
    action_pad: np.ndarray  # (W, K) True beyond the last valid action

    def __len__(self) -> int:
        return len(self.context)

    @property
    def steps(self) -> np.ndarray:
        """The row of the dataset at which each window starts.  # (W,)"""
        return self.context[:, -1]


def make_windows(
    store: EpisodeStore, episodes: np.ndarray, context: int, chunk: int, labels: str = "expert"
) -> Windows:
    """Return all windows of the given episodes, in the order of a mix's datasets (DatasetError: none)."""
    if isinstance(store, Mix):
        windows = []
        for member, first, row in zip(store.members, store.firsts, store.rows, strict=False):
            own = episodes[(episodes >= first) & (episodes < first + len(member))] - first
            if len(own):
                part = make_windows(member, own, context, chunk, labels)
                windows.append(vars(part) | {"context": part.context + row})
        return Windows(**{name: np.concatenate([w[name] for w in windows]) for name in windows[0]})
    by_expert = labels == "expert" and "expert" in store.keys
    chunks = _expert_chunks if by_expert else _executed_chunks
    keys = ("expert" if by_expert else "action", "perturbed", "imitate")
    # read all steps at once: a chunk on disk holds many episodes
    data = {key: store[key] for key in keys if key in store.keys}
    rows: list[tuple[np.ndarray, ...]] = []
    for episode in (store.episode_slice(int(i)) for i in episodes):
        t, actions, beyond = chunks(data, episode, chunk)
        back = t[:, None] + np.arange(1 - context, 1)  # (n, T)
        rows.append((np.maximum(back, episode.start), back < episode.start, actions, beyond))
    if not any(len(columns[0]) for columns in rows):
        raise mismatch(store.path, "a step to imitate", f"none in {len(episodes)} episodes")
    return Windows(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _expert_chunks(data: Mapping[str, np.ndarray], episode: slice, chunk: int) -> tuple[np.ndarray, ...]:
    """Return rows (n,), the expert's actions (n, K, A) and a mask of the missing ones (n, K)."""
    start = data["imitate"][episode].astype(bool) if "imitate" in data else ~_pushed(data, episode)
    actions = data["expert"][episode][start, :chunk]  # (n, up to K, A)
    missing = chunk - actions.shape[1]
    actions = np.pad(actions, ((0, 0), (0, missing), (0, 0)), mode="edge")
    beyond = np.broadcast_to(np.arange(chunk) >= chunk - missing, actions.shape[:2])
    return np.arange(episode.start, episode.stop)[start], actions, beyond


def _executed_chunks(data: Mapping[str, np.ndarray], episode: slice, chunk: int) -> tuple[np.ndarray, ...]:
    """Like `_expert_chunks`, with the executed actions."""
    t = np.arange(episode.start, episode.stop)
    pushed = _pushed(data, episode)
    # for every step: the next pushed step (or the step itself), or the episode's end
    end = np.minimum.accumulate(np.where(pushed, t, episode.stop)[::-1])[::-1]
    t, end = t[~pushed], end[~pushed]
    ahead = t[:, None] + np.arange(chunk)  # (n, K)
    return t, data["action"][np.minimum(ahead, end[:, None] - 1)], ahead >= end[:, None]


def _pushed(data: Mapping[str, np.ndarray], episode: slice) -> np.ndarray:
    """Return a mask of the steps in which the picker was pushed.  # (T,) bool"""
    count = episode.stop - episode.start
    return data["perturbed"][episode].astype(bool) if "perturbed" in data else np.zeros(count, bool)

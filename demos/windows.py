"""Training windows: what a policy sees at a step, and the actions that it should take from there.

Where a dataset holds what its expert would do (``expert``, a chunk of actions for every step), that is imitated, unless
``labels="recorded"`` asks for the executed actions. Of those, a chunk of them ends before the next step in which the picker was pushed
(``perturbed``). Either way no window starts at a pushed step, unless ``imitate`` says from which steps the expert
is imitated. All steps stay in the context, where they did happen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from s2robot.demos.errors import DatasetError
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore


@dataclass(frozen=True)
class Windows:
    """One row per window.

    context: (W, T) rows of the dataset's steps, oldest first, clipped to the episode's first step.
    pad: (W, T) True where the context reaches before the episode.
    actions: (W, K, A) to imitate.
    action_pad: (W, K) True beyond the last that counts.
    """

    context: np.ndarray
    pad: np.ndarray
    actions: np.ndarray
    action_pad: np.ndarray

    def __len__(self) -> int:
        return len(self.context)

    @property
    def steps(self) -> np.ndarray:
        """The row of the dataset that each window starts at.  # (W,)"""
        return self.context[:, -1]


def make_windows(
    store: EpisodeStore, episodes: np.ndarray, context: int, chunk: int, labels: str = "expert"
) -> Windows:
    """Every window of the given episodes; of a mix those of its first dataset come first, and each is as it would be alone.

    Raises:
        DatasetError: no step of these episodes can be imitated.
    """
    if isinstance(store, Mix):
        return _of_members(store, episodes, context, chunk, labels)
    by_expert = labels == "expert" and "expert" in store.keys
    chunks = _expert_chunks if by_expert else _executed_chunks
    wanted = ("expert" if by_expert else "action", "perturbed", "imitate")
    # whole: to read an episode is to unpack all that is stored in one piece with it
    data = {key: store[key] for key in wanted if key in store.keys}
    rows: list[tuple[np.ndarray, ...]] = []
    for episode in (store.episode_slice(int(i)) for i in episodes):
        t, actions, beyond = chunks(data, episode, chunk)
        back = t[:, None] + np.arange(1 - context, 1)  # (n, T)
        rows.append((np.maximum(back, episode.start), back < episode.start, actions, beyond))
    if not any(len(columns[0]) for columns in rows):
        raise DatasetError(f"{store.path}: found no step to imitate in {len(episodes)} episodes")
    return Windows(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _of_members(mix: Mix, episodes: np.ndarray, context: int, chunk: int, labels: str) -> Windows:
    found = []
    for member, first, row in zip(mix.members, mix.firsts, mix.rows, strict=False):
        own = episodes[(episodes >= first) & (episodes < first + len(member))] - first
        if len(own):
            windows = make_windows(member, own, context, chunk, labels)
            found.append(replace(windows, context=windows.context + row))
    fields = ("context", "pad", "actions", "action_pad")
    return Windows(*(np.concatenate([getattr(w, name) for w in found]) for name in fields))


def _expert_chunks(data: Mapping[str, np.ndarray], episode: slice, chunk: int) -> tuple[np.ndarray, ...]:
    """Rows (n,), actions (n, K, A) and what of them is unknown (n, K): what the expert said."""
    start = data["imitate"][episode].astype(bool) if "imitate" in data else ~_pushed(data, episode)
    actions = data["expert"][episode][start, :chunk]  # (n, up to K, A)
    missing = chunk - actions.shape[1]
    actions = np.pad(actions, ((0, 0), (0, missing), (0, 0)), mode="edge")
    beyond = np.broadcast_to(np.arange(chunk) >= chunk - missing, actions.shape[:2])
    return np.arange(episode.start, episode.stop)[start], actions, beyond


def _executed_chunks(data: Mapping[str, np.ndarray], episode: slice, chunk: int) -> tuple[np.ndarray, ...]:
    """As `_expert_chunks`, from what was executed."""
    t = np.arange(episode.start, episode.stop)
    pushed = _pushed(data, episode)
    # for every step, the first pushed step at or after it, or the episode's end
    end = np.minimum.accumulate(np.where(pushed, t, episode.stop)[::-1])[::-1]
    t, end = t[~pushed], end[~pushed]
    ahead = t[:, None] + np.arange(chunk)  # (n, K)
    return t, data["action"][np.minimum(ahead, end[:, None] - 1)], ahead >= end[:, None]


def _pushed(data: Mapping[str, np.ndarray], episode: slice) -> np.ndarray:
    """Which steps the picker was pushed in.  # (T,) bool"""
    if "perturbed" not in data:
        return np.zeros(episode.stop - episode.start, bool)
    return data["perturbed"][episode].astype(bool)

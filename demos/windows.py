"""Training windows: what a policy sees at a step, and the actions that followed.

Steps in which the picker was pushed (``perturbed``) are never imitated: no window starts at one, and a chunk of
actions ends before the next one. They stay in the context, where they did happen.
"""

from dataclasses import dataclass

import numpy as np

from s2robot.demos.errors import DatasetError
from s2robot.demos.store import EpisodeStore


@dataclass(frozen=True)
class Windows:
    """Index arrays into the steps of a dataset, one row per window.

    context: (W, T) rows of the context, oldest first, clipped to the episode's first step.
    pad: (W, T) True where the context reaches before the episode.
    chunk: (W, K) rows of the actions that follow, clipped to the last that counts.
    action_pad: (W, K) True beyond it.
    """

    context: np.ndarray
    pad: np.ndarray
    chunk: np.ndarray
    action_pad: np.ndarray

    def __len__(self) -> int:
        return len(self.context)


def make_windows(store: EpisodeStore, episodes: np.ndarray, context: int, chunk: int) -> Windows:
    """Every window of the given episodes.

    Raises:
        DatasetError: no step of these episodes can be imitated.
    """
    pushed = store["perturbed"].astype(bool) if "perturbed" in store.keys else np.zeros(store.num_steps, bool)
    rows: list[tuple[np.ndarray, ...]] = []
    for i in episodes:
        steps = store.episode_slice(int(i))
        t = np.arange(steps.start, steps.stop)
        # for every step, the first pushed step at or after it, or the episode's end
        stops = np.where(pushed[t], t, steps.stop)
        end = np.minimum.accumulate(stops[::-1])[::-1]
        good = ~pushed[t]
        t, end = t[good], end[good]
        back = t[:, None] + np.arange(1 - context, 1)  # (n, T)
        ahead = t[:, None] + np.arange(chunk)  # (n, K)
        rows.append(
            (
                np.maximum(back, steps.start),
                back < steps.start,
                np.minimum(ahead, end[:, None] - 1),
                ahead >= end[:, None],
            )
        )
    if not any(len(columns[0]) for columns in rows):
        raise DatasetError(f"{store.path}: found no step to imitate in {len(episodes)} episodes")
    return Windows(*(np.concatenate(column) for column in zip(*rows, strict=True)))

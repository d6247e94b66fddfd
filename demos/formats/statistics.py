"""What LeRobot keeps of an episode's values: min, max, mean, std, count, quantiles; and of all episodes together.

    seen = Pictures(len(frames))
    seen.add(frames)                       # uint8 (t, H, W, 3), as they come
    told = {"action": of_numbers(actions), "observation.images.top": seen.told()}
    together([told, ...])

Definitions: huggingface/lerobot 0.4.4, `datasets/compute_stats.py`; here quantiles of an episode are exact, and those of all
episodes their mean weighted by count, as there. Pictures: some of them, every few pixels, 0 to 1, (3, 1, 1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SIDE, LARGE = 150, 300  # pictures with a side from LARGE on are thinned to about SIDE pixels

Told = dict[str, np.ndarray]


def of_numbers(values: np.ndarray) -> Told:
    """Of an episode's numbers.  # (T, ...) -> each (...), or (1,) where a step has one"""
    x = values.reshape(len(values), -1).astype(np.float64)
    told = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    told |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0), strict=True))
    shaped = {name: value.reshape(values.shape[1:] or (1,)) for name, value in told.items()}
    return shaped | {"count": np.array([len(values)])}


class Pictures:
    """Of an episode's pictures, which come a few at a time: a histogram of each colour."""

    def __init__(self, length: int):
        wanted = max(min(length, 100), min(int(length**0.75), 10_000))
        self._wanted = np.round(np.linspace(0, length - 1, wanted)).astype(int)
        self._seen = self._count = 0
        self._bins = np.zeros((3, 256), np.int64)

    def add(self, frames: np.ndarray) -> None:
        """The next ones.  # uint8 (t, H, W, 3)"""
        of_these = self._wanted[(self._wanted >= self._seen) & (self._wanted < self._seen + len(frames))]
        large = max(frames.shape[1:3])
        every = large // SIDE if large >= LARGE else 1
        for frame in frames[of_these - self._seen]:
            for colour in range(3):
                self._bins[colour] += np.bincount(frame[::every, ::every, colour].ravel(), minlength=256)
        self._seen += len(frames)
        self._count += len(of_these)

    def told(self) -> Told:
        """Of all that came."""
        values, total = np.arange(256) / 255, self._bins.sum(1)
        mean = self._bins @ values / total
        std = np.sqrt(np.maximum(self._bins @ values**2 / total - mean**2, 0))
        below = self._bins.cumsum(1)
        told = {
            "min": values[(self._bins > 0).argmax(1)],
            "max": values[255 - (self._bins[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": std,
        }
        for name, q in QUANTILES.items():
            told[name] = values[(below >= q * total[:, None]).argmax(1)]
        return {n: v.reshape(3, 1, 1) for n, v in told.items()} | {"count": np.array([self._count])}


def together(episodes: Sequence[Mapping[str, Told]]) -> dict[str, Told]:
    """Of a data set, from what is told of each of its episodes."""
    found = {}
    for feature in episodes[0]:
        each = {name: np.stack([told[feature][name] for told in episodes]) for name in episodes[0][feature]}
        count = each.pop("count")
        weight = (count / count.sum()).reshape(-1, *[1] * (each["mean"].ndim - 1))
        mean = (weight * each["mean"]).sum(0)
        spread = (weight * (each["std"] ** 2 + (each["mean"] - mean) ** 2)).sum(0)
        found[feature] = {
            "min": each["min"].min(0),
            "max": each["max"].max(0),
            "mean": mean,
            "std": np.sqrt(spread),
            "count": count.sum(0),
        } | {name: (weight * each[name]).sum(0) for name in QUANTILES}
    return found


def plain(told: Mapping[str, Told]) -> dict[str, dict[str, Any]]:
    """As JSON and parquet take it."""
    kept = {"min", "max", "mean", "std", "count", *QUANTILES}
    return {f: {n: v.tolist() for n, v in stats.items() if n in kept} for f, stats in told.items()}

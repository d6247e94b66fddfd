"""Statistics that LeRobot stores: of every episode, and of all episodes together.

    images = ImageStats(len(frames))
    images.add(frames)                       # uint8 (t, H, W, 3), piece by piece
    stats = {"action": number_stats(actions), "observation.images.top": images.stats()}
    combined([stats, ...])

Definitions: huggingface/lerobot 0.4.4, `datasets/compute_stats.py`, except that the quantiles of an episode are exact. The
quantiles of all episodes are their mean weighted by count, as in LeRobot. Image statistics use a sample of frames and
pixels, scaled to 0 to 1, with shape (3, 1, 1).
"""

from collections.abc import Mapping, Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SIDE, LARGE = 150, 300  # images with a side of at least LARGE px are subsampled to about SIDE px

Stats = dict[str, np.ndarray]


def number_stats(values: np.ndarray) -> Stats:
    """Return the statistics of one episode.  # (T, ...) -> each (...), or (1,) for one number a step"""
    x = values.reshape(len(values), -1).astype(np.float64)
    stats = {"min": x.min(0), "max": x.max(0), "mean": x.mean(0), "std": x.std(0)}
    stats |= dict(zip(QUANTILES, np.quantile(x, list(QUANTILES.values()), axis=0), strict=True))
    shaped = {name: value.reshape(values.shape[1:] or (1,)) for name, value in stats.items()}
    return shaped | {"count": np.array([len(values)])}


class ImageStats:
    """Statistics of one episode's images, which arrive in pieces: a histogram of each colour."""

    def __init__(self, length: int):
        count = max(min(length, 100), min(int(length**0.75), 10_000))
        self._sampled = np.round(np.linspace(0, length - 1, count)).astype(int)
        self._seen = self._count = 0
        self._bins = np.zeros((3, 256), np.int64)

    def add(self, frames: np.ndarray) -> None:
        """Add the next frames.  # uint8 (t, H, W, 3)"""
        sampled = self._sampled[(self._sampled >= self._seen) & (self._sampled < self._seen + len(frames))]
        large = max(frames.shape[1:3])
        every = large // SIDE if large >= LARGE else 1
        for frame in frames[sampled - self._seen]:
            for colour in range(3):
                self._bins[colour] += np.bincount(frame[::every, ::every, colour].ravel(), minlength=256)
        self._seen += len(frames)
        self._count += len(sampled)

    def stats(self) -> Stats:
        values, total = np.arange(256) / 255, self._bins.sum(1)
        mean = self._bins @ values / total
        below = self._bins.cumsum(1)
        stats = {
            "min": values[(self._bins > 0).argmax(1)],
            "max": values[255 - (self._bins[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(self._bins @ values**2 / total - mean**2, 0)),
        } | {name: values[(below >= q * total[:, None]).argmax(1)] for name, q in QUANTILES.items()}
        return {n: v.reshape(3, 1, 1) for n, v in stats.items()} | {"count": np.array([self._count])}


def combined(episodes: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Return the statistics of a dataset from those of its episodes."""
    result = {}
    for feature in episodes[0]:
        each = {name: np.stack([stats[feature][name] for stats in episodes]) for name in episodes[0][feature]}
        count = each.pop("count")
        weight = (count / count.sum()).reshape(-1, *[1] * (each["mean"].ndim - 1))
        mean = (weight * each["mean"]).sum(0)
        variance = (weight * (each["std"] ** 2 + (each["mean"] - mean) ** 2)).sum(0)
        result[feature] = {
            "min": each["min"].min(0),
            "max": each["max"].max(0),
            "mean": mean,
            "std": np.sqrt(variance),
            "count": count.sum(0),
        } | {name: (weight * each[name]).sum(0) for name in QUANTILES}
    return result

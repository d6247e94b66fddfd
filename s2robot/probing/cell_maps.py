"""Depth and segments read linearly from single tokens: the dense half of `s2robot readout`.

    report = read_cells(features, CellBank(bank, grid=8).targets(seeds), cameras, split)

One ridge map for all cells of a camera turns the token of a cell into the mean depth there and into the shares of
its pixels that show background, table, arm, gripper and cube. A token grid of another size is brought to the cells
by area, so that all encoders are asked the same. The row "no image" answers with the training mean of each cell:
cameras and table stand still, so that alone tells most of the depth, and `depth_r2` is of what it leaves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2robot.probing.ridge import interval, resample
from s2robot.probing.token_maps import linear_map, sum_up, token_pairs

CLASSES = ("background", "table", "arm", "gripper", "cube")
CELL_METRICS = ("depth_mean_mm", "depth_r2", "class_accuracy", "class_miou", "cube_iou")
PLACE = "no image"
_FOLDS = 5  # of the training episodes, to choose the penalty


@dataclass(frozen=True)
class Split:
    """Episodes of `frames` frames each, the first `train` of which maps are fitted on."""

    frames: int
    train: int
    resamples: int  # of the held-out episodes
    seed: int  # of the resampling


def read_cells(
    features: Mapping[str, np.ndarray], targets: np.ndarray, cameras: Sequence[str], split: Split
) -> dict[str, Any]:
    """Fit a map a camera and encoder on the training episodes, judge it on the others.

    Args:
        features: name -> (episodes * frames, cameras, N, D).
        targets: (episodes * frames, cameras, cells, 6), of `CellBank.targets`.

    Returns "classes", "results" (a row an encoder and camera, "all" = all of them: each of CELL_METRICS with its
    interval on held-out episodes, and under "train" its value on the training ones) and "differences" of every two
    encoders. Intervals: 95 % percentile bootstrap over held-out episodes.
    """
    episodes = len(targets) // split.frames
    parts = {"train": range(split.train), "test": range(split.train, episodes)}
    times = resample(episodes - split.train, split.resamples, split.seed)
    weights = {"train": np.ones((1, split.train)), "test": times}
    tallies: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name in (PLACE, *features):
        for i, camera in enumerate(cameras):
            source = None if name == PLACE else features[name][:, i : i + 1]
            tallies[name, camera] = _tallies(source, targets[:, i : i + 1], split.frames, parts)
        tallies[name, "all"] = {
            part: np.sum([tallies[name, camera][part] for camera in cameras], axis=0) for part in parts
        }
    figures = {
        key: {part: _figures(weights[part] @ found[part]) for part in parts} for key, found in tallies.items()
    }
    results, differences = _judge(figures, list(features))
    return {"classes": list(CLASSES), "results": results, "differences": differences}


def _tallies(
    source: np.ndarray | None, target: np.ndarray, frames: int, parts: Mapping[str, range]
) -> dict[str, np.ndarray]:
    """Fit a camera's map, or take each cell's mean without a source, and tally it on the parts."""
    place = target[: len(parts["train"]) * frames].mean(0, dtype=np.float64)[0]  # (cells, 6)
    read = None if source is None else _fit(source, target, frames, parts["train"])
    source = target if source is None else source
    return {part: _tally(source, target, place, read, frames, chosen) for part, chosen in parts.items()}


def _judge(
    figures: Mapping[tuple[str, str], Mapping[str, Mapping[str, np.ndarray]]], names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of results, and of the differences of every two encoders."""
    results, differences = [], []
    for (name, camera), found in figures.items():
        row: dict[str, Any] = {"encoder": name, "cameras": camera}
        row |= {m: interval(found["test"][m]) for m in CELL_METRICS}
        results.append(row | {"train": {m: interval(found["train"][m])["value"] for m in CELL_METRICS}})
        for other in names[: names.index(name)] if name in names else ():
            less = figures[other, camera]["test"]
            apart = {m: interval(found["test"][m] - less[m]) for m in CELL_METRICS}
            differences.append({"encoder": name, "minus": other, "cameras": camera, **apart})
    return results, differences


def _fit(
    source: np.ndarray, target: np.ndarray, frames: int, episodes: range
) -> Callable[[np.ndarray], np.ndarray]:
    """Depth and shares from tokens, each with a penalty of its own."""
    sums = sum_up(source, target, frames, episodes, min(_FOLDS, len(episodes)))
    depth = linear_map(sums, np.eye(target.shape[-1])[0])
    shares = linear_map(sums, 1 - np.eye(target.shape[-1])[0])
    return lambda x: np.concatenate([depth(x)[:, :1], shares(x)[:, 1:]], 1)


def _tally(
    source: np.ndarray,
    target: np.ndarray,
    place: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray] | None,
    frames: int,
    episodes: range,
) -> np.ndarray:
    """Sums over the cells of each episode, of which all figures are made.  # (E, 5 + 3 * classes)"""
    rows = np.zeros((len(episodes), 5 + 3 * len(CLASSES)))
    for episode, x, y in token_pairs(source, target, frames, episodes):
        middle = np.tile(place, (len(y) // len(place), 1))  # (n, 6)
        found = middle if read is None else read(x)
        error, shares = found[:, 0] - y[:, 0], np.clip(found[:, 1:], 0, 1)
        right = found[:, 1:].argmax(1) == y[:, 1:].argmax(1)
        rows[episode - episodes.start] += np.concatenate(
            [
                [np.abs(error).sum(), (error**2).sum(), ((middle - y)[:, 0] ** 2).sum(), right.sum(), len(y)],
                np.minimum(shares, y[:, 1:]).sum(0),
                np.maximum(shares, y[:, 1:]).sum(0),
                y[:, 1:].sum(0),
            ]
        )
    return rows


def _figures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """CELL_METRICS, each (B,), of weighted sums (B, 5 + 3 * classes).

    IoU is of shares, so that what is smaller than a cell counts too: the sum of min(read, true) over that of
    max(read, true). Its mean is over the classes that are there.
    """
    error, squared, left, right, cells = sums[:, :5].T
    both, either, there = np.split(sums[:, 5:], 3, axis=1)  # (B, classes)
    iou = np.where(there > 0, both / np.where(either > 0, either, 1), np.nan)
    return {
        "depth_mean_mm": 1000 * error / cells,
        "depth_r2": 1 - squared / np.where(left > 0, left, np.nan),
        "class_accuracy": right / cells,
        "class_miou": np.nanmean(iou, axis=1),
        "cube_iou": iou[:, CLASSES.index("cube")],
    }

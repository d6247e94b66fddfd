"""Depth and segments read linearly from single tokens: the dense half of `s2robot readout`.

    truth = CellBank(bank, grid=8)           # a frame is 8 x 8 cells
    truth.fill(seeds, workers=2)             # drawn once, one file an episode, beside the bank's frames
    report = read_cells(features, truth, cfg)

One ridge map for all cells of a camera turns the token of a cell into the mean depth there and into the shares of
its pixels that show background, table, arm, gripper and cube. A token grid of another size is brought to the cells
by area, so that all encoders are asked the same. The row "no image" answers with the training mean of each cell:
cameras and table stand still, so that alone tells most of the depth, and `depth_r2` is of what it leaves.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.renderer import OffscreenRenderer
from s2robot.envs.workers import worker_pool
from s2robot.probing.moments import MomentBank, moments
from s2robot.probing.ridge import interval, resample
from s2robot.probing.token_maps import linear_map, sum_up, token_pairs

CLASSES = ("background", "table", "arm", "gripper", "cube")
CELL_METRICS = ("depth_mean_mm", "depth_r2", "class_accuracy", "class_miou", "cube_iou")
PLACE = "no image"
_PIXELS = 16  # along a side of a cell, drawn to know what is in it
_FOLDS = 5  # of the training episodes, to choose the penalty
_RENDERERS: dict[str, tuple[CubePick, OffscreenRenderer]] = {}  # what a worker keeps between episodes


class CellBank:
    """What the simulator knows of each cell of a bank's frames; kept in files beside them.

    Args:
        bank: whose moments are looked at.
        grid: cells along a side of a frame.
    """

    def __init__(self, bank: MomentBank, grid: int) -> None:
        if grid < 1:
            raise UserError(f"readout.cells: found {grid}, expected 1 or more, or null")
        self.bank, self.grid = bank, grid

    def fill(
        self,
        seeds: Iterable[int],
        workers: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Draw the episodes that are not there yet."""
        missing = [seed for seed in seeds if self._read(seed) is None]
        if not missing:
            return
        self.bank.path.mkdir(parents=True, exist_ok=True)
        with worker_pool(min(workers, len(missing))) as pool:
            try:
                facts = self.bank.world, self.bank.frames, self.grid
                jobs = [pool.submit(_draw_to, self._file(seed), seed, *facts) for seed in missing]
                for done, job in enumerate(jobs, 1):
                    job.result()
                    progress(done, len(missing))
            finally:
                pool.shutdown(cancel_futures=True)

    def targets(self, seeds: Sequence[int]) -> np.ndarray:
        """Depth (m) and the shares of CLASSES, float32 (seeds * frames, cameras, grid * grid, 6)."""
        found = []
        for seed in seeds:
            cells = self._read(seed)
            if cells is None:
                raise UserError(
                    f"{self._file(seed)}: no cells of seed {seed}, expected them: fill the bank first"
                )
            found.append(cells)
        return np.concatenate(found)

    def _file(self, seed: int) -> Path:
        return self.bank.path / f"{seed}.cells-{self.grid}.npz"

    def _read(self, seed: int) -> np.ndarray | None:
        try:
            return np.load(self._file(seed), allow_pickle=False)["cells"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # none yet, or damaged: draw it again


def draw_cells(world: CubePickConfig, seed: int, frames: int, grid: int) -> np.ndarray:
    """The truth of one episode's moments.  # float32 (frames, cameras, grid * grid, 6)"""
    return np.stack([cells_of(env, grid) for env, _ in moments(world, seed, frames)])


def cells_of(env: CubePick, grid: int) -> np.ndarray:
    """Mean depth (m) and shares of CLASSES in each cell of the world's pictures.  # (cameras, grid * grid, 6)"""
    kinds = kinds_of(env)  # (ngeom + 1,), the last for no geom
    found = []
    for camera in env.camera_ids.values():
        depth, geoms = _renderer(env, grid * _PIXELS).truth(env.data, camera)
        shares = np.eye(len(CLASSES))[kinds[geoms]]  # (S, S, 5)
        pixels = np.concatenate([depth[..., None], shares], -1)
        blocks = pixels.reshape(grid, _PIXELS, grid, _PIXELS, -1).mean((1, 3))
        found.append(blocks.reshape(grid * grid, -1))
    return np.stack(found).astype(np.float32)


def kinds_of(env: CubePick) -> np.ndarray:
    """The class of each geom, and of no geom at index -1.  # (ngeom + 1,)"""
    kinds = np.zeros(env.model.ngeom + 1, int)
    prefixes = {"table": "table", "robot": "arm", "fixed_mount": "arm", "gripper": "gripper"}
    for geom in range(env.model.ngeom):
        body = env.model.body(env.model.geom_bodyid[geom]).name
        for prefix, kind in prefixes.items():
            if body.startswith(prefix):
                kinds[geom] = CLASSES.index(kind)
        if geom in env._cube_geoms:
            kinds[geom] = CLASSES.index("cube")
    return kinds


def _renderer(env: CubePick, size: int) -> OffscreenRenderer:
    key = f"{size} {env.config!r}"
    if key not in _RENDERERS or _RENDERERS[key][0] is not env:
        _RENDERERS[key] = env, OffscreenRenderer(env.model, size)
    return _RENDERERS[key][1]


def _draw_to(path: Path, seed: int, world: CubePickConfig, frames: int, grid: int) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, cells=draw_cells(world, seed, frames, grid))
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(buffer.getvalue())
    os.replace(part, path)


# --- maps and their figures --------------------------------------------------------------------------------


def read_cells(
    features: Mapping[str, np.ndarray],
    targets: np.ndarray,
    cameras: Sequence[str],
    frames: int,
    train: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Fit a map a camera and encoder on the first `train` episodes, judge it on the others.

    Args:
        features: name -> (episodes * frames, cameras, N, D).
        targets: (episodes * frames, cameras, cells, 6), of `CellBank.targets`.

    Returns "classes", "results" (a row an encoder and camera, "all" = all of them: each of CELL_METRICS with its
    interval on held-out episodes, and under "train" its value on the training ones) and "differences" of every two
    encoders. Intervals: 95 % percentile bootstrap over held-out episodes.
    """
    episodes = len(targets) // frames
    parts = {"train": range(train), "test": range(train, episodes)}
    weights = {"train": np.ones((1, train)), "test": resample(episodes - train, resamples, seed)}
    tallies: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name in (PLACE, *features):
        for i, camera in enumerate(cameras):
            y = targets[:, i : i + 1]
            place = y[: train * frames].mean(0, dtype=np.float64)[0]  # (cells, 6)
            source = y if name == PLACE else features[name][:, i : i + 1]
            read = None if name == PLACE else _fit(source, y, frames, parts["train"])
            tallies[name, camera] = {
                part: _tally(source, y, place, read, frames, chosen) for part, chosen in parts.items()
            }
        tallies[name, "all"] = {
            part: np.sum([tallies[name, camera][part] for camera in cameras], axis=0) for part in parts
        }
    figures = {
        key: {part: _figures(weights[part] @ found[part]) for part in parts} for key, found in tallies.items()
    }
    results, differences = [], []
    names = list(features)
    for (name, camera), found in figures.items():
        row: dict[str, Any] = {"encoder": name, "cameras": camera}
        row |= {m: interval(found["test"][m]) for m in CELL_METRICS}
        results.append(row | {"train": {m: interval(found["train"][m])["value"] for m in CELL_METRICS}})
        if name in names:
            for other in names[: names.index(name)]:
                less = figures[other, camera]["test"]
                apart = {m: interval(found["test"][m] - less[m]) for m in CELL_METRICS}
                differences.append({"encoder": name, "minus": other, "cameras": camera, **apart})
    return {"classes": list(CLASSES), "results": results, "differences": differences}


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

"""Linear maps from single tokens: depth and segments of a cell, and another encoder's features.

    s2robot probe probe=information                # Table 2 of the S2 paper: mvp-small from mvp-tiny, with and without S2

With the map's mean squared error l and l0 that of the best constant, information is -log(l / l0); the ratio divides it
by that of the upper bound. The paper trains the map by gradient descent; here it is exact ridge regression.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, Self

import numpy as np
import scipy.linalg
import torch
from pydantic import model_validator
from torch.nn import functional as F

from s2robot.core.errors import UserError
from s2robot.core.settings import from_yaml, invalid
from s2robot.encoders.encoder import S2Encoder
from s2robot.probing.frames import CLASSES, FrameFeatures, FrameSettings, columns_of, describe
from s2robot.probing.report import JOINED, PLACE, Outcome, compare, earlier, interval

PENALTIES = 10.0 ** np.arange(-10, 3)  # times the mean eigenvalue of the covariance
ZERO, ALL = "l0", "all"  # the best constant, all sources side by side
_FLOOR = 1e-12  # of l / l0: equal features would otherwise hold infinite information
_FOLDS = 5  # of the training episodes, for the cells' maps


def token_pairs(
    source: np.ndarray, target: np.ndarray, frames: int, episodes: range
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (episode, x (n, D), y (n, K)) at the same places of source (T, C, N, D) and target (T, C, M, K)."""
    for episode in episodes:
        rows = slice(episode * frames, (episode + 1) * frames)
        x = regrid(source[rows], target.shape[2])
        yield episode, x.reshape(-1, x.shape[-1]), target[rows].reshape(-1, target.shape[3]).astype(float)


def regrid(tokens: np.ndarray, count: int) -> np.ndarray:
    """Average square token maps by area: (..., N, D) -> float64 (..., count, D)."""
    *lead, old, dim = tokens.shape
    if old == count:
        return tokens.astype(np.float64)
    if (math.isqrt(old) ** 2, math.isqrt(count) ** 2) != (old, count):
        raise UserError(f"tokens: expected square maps, got {old} and {count} tokens")
    side = math.isqrt(old)
    maps = torch.from_numpy(tokens.astype(np.float64)).reshape(-1, side, side, dim).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, (math.isqrt(count),) * 2, mode="area")
    return resized.permute(0, 2, 3, 1).reshape(*lead, count, dim).numpy()


class TokenMap(NamedTuple):
    weight: np.ndarray  # (D, K)
    bias: np.ndarray  # (K,)
    penalties: list[float]  # of each group
    left_out: np.ndarray  # squared errors by penalty (P, K)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight + self.bias


def fit_tokens(
    source: np.ndarray,
    target: np.ndarray,
    frames: int,
    episodes: range,
    folds: int,
    groups: Sequence[list[int]],
    penalties: np.ndarray = PENALTIES,
) -> TokenMap:
    """Fit one ridge map for the tokens of all places, with an unpenalised bias.

    Episode e belongs to fold e modulo `folds`; channels of a group share the penalty that is best on left-out folds,
    relative to the mean eigenvalue of the standardised source's covariance. A constant source channel counts as zero.
    """
    pairs = token_pairs(source, target, frames, episodes)
    sums = [(len(x), x.sum(0), (x**2).sum(0), y.sum(0)) for _, x, y in pairs]
    count, first, second, last = (np.sum(column, axis=0) for column in zip(*sums, strict=True))
    mean, middle, size = first / count, last / count, 1 + len(first)
    variance = second / count - mean**2
    varies = variance > 1e-12 * second / count  # above rounding
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
    grams = np.zeros((folds, size + len(middle), size + len(middle)))  # of [1, x, y], all that a fit needs
    for episode, x, y in token_pairs(source, target, frames, episodes):
        rows = np.concatenate([np.ones((len(x), 1)), (x - mean) * scale, y - middle], 1)
        grams[episode % folds] += rows.T @ rows

    def solve(gram: np.ndarray, penalty: float) -> np.ndarray:  # (1 + D, K)
        xx = gram[:size, :size].copy()
        spread = (xx.diagonal()[1:] - xx[0, 1:] ** 2 / xx[0, 0]).mean()
        xx[range(1, size), range(1, size)] += penalty * max(spread, 1e-6)  # above rounding
        return scipy.linalg.solve(xx, gram[:size, size:], assume_a="pos")

    total, left_out = grams.sum(0), np.zeros((len(penalties), len(middle)))
    for (p, penalty), gram in product(enumerate(penalties), grams):
        w = solve(total - gram, penalty)
        xx, xy, yy = gram[:size, :size], gram[:size, size:], gram[size:, size:].diagonal()
        left_out[p] += yy - 2 * (w * xy).sum(0) + (w * (xx @ w)).sum(0)
    chosen, w = [], np.empty((size, len(middle)))
    for group in groups:
        chosen.append(float(penalties[left_out[:, group].sum(1).argmin()]))
        w[:, group] = solve(total, chosen[-1])[:, group]
    weight = scale[:, None] * w[1:]
    return TokenMap(weight, w[0] + middle - mean @ weight, chosen, left_out)


def read_cells(features: Mapping[str, np.ndarray], targets: np.ndarray, cfg: FrameSettings) -> dict[str, Any]:
    """Fit a map from tokens (T, cameras, N, D) to targets (T, cameras, cells, 6) for each encoder and camera.

    Cameras and table stand still, so `depth_r2` is of what each cell's mean ("no image") leaves.
    """
    samples: dict[tuple, dict[str, np.ndarray]] = {}
    cameras, weights = columns_of(cfg.world.cameras), cfg.weights()["test"]
    for name in (PLACE, *features):
        source = features.get(name, targets)
        tallies = [_tallies(source[:, [i]], targets[:, [i]], cfg, name == PLACE) for i in cameras[JOINED]]
        for camera, chosen in cameras.items():
            samples[name, camera] = _cell_scores(weights @ np.sum([tallies[i] for i in chosen], 0))
    results, differences = compare(samples, ("encoder", "cameras"), earlier(samples, (PLACE,)))
    return {"classes": list(CLASSES), "results": results, "differences": differences}


def _tallies(source: np.ndarray, target: np.ndarray, cfg: FrameSettings, blind: bool) -> np.ndarray:
    """Fit a camera's map, or take each cell's mean if `blind`; sum over the cells of each held-out episode.

    (E, 5 + 3 * classes): absolute and squared depth error, squared error of the cell's mean, cells whose largest class
    is right, cells; min and max of predicted and true shares, true shares.
    """
    train, test = cfg.parts.values()
    mean = target[: len(train) * cfg.frames].mean(0, dtype=np.float64)[0]  # (cells, 6)
    if not blind:
        groups = [[0], [*range(1, target.shape[-1])]]
        fitted = fit_tokens(source, target, cfg.frames, train, min(_FOLDS, len(train)), groups)
    rows = []
    for _, x, y in token_pairs(source, target, cfg.frames, test):
        middle = np.tile(mean, (cfg.frames, 1))  # (n, 6)
        found = middle if blind else fitted.predict(x)
        error, shares, true = found[:, 0] - y[:, 0], found[:, 1:].clip(0, 1), y[:, 1:]
        left = ((middle - y)[:, 0] ** 2).sum()
        right = (found[:, 1:].argmax(1) == true.argmax(1)).sum()
        sums = [np.minimum(shares, true).sum(0), np.maximum(shares, true).sum(0), true.sum(0)]
        rows.append(np.concatenate([[np.abs(error).sum(), (error**2).sum(), left, right, len(y)], *sums]))
    return np.stack(rows)


def _cell_scores(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return metrics (B,) from weighted sums of `_tallies`; IoU is of shares, its mean over classes that occur."""
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


class InformationSettings(FrameSettings, at="probe", file="probe/information"):
    """configs/probe/information.yaml describes each."""

    upper: str | None = from_yaml()
    folds: int = from_yaml(ge=2)

    @model_validator(mode="after")
    def _an_episode_for_each_fold(self) -> Self:
        if self.folds > self.train_episodes:
            raise invalid("folds", f"<= {self.train_episodes}, the training episodes", self.folds)
        return self


def information(target: S2Encoder, sources: Mapping[str, S2Encoder], cfg: InformationSettings) -> Outcome:
    """Reconstruct the target's tokens from each source's; raise UserError for names and encoders that do not fit."""
    if not sources or {PLACE, ZERO, ALL} & set(sources):
        raise UserError(f"probe.sources: expected names but {PLACE}, {ZERO}, {ALL}, got {[*sources]}")
    if cfg.upper not in (None, ALL, *sources):
        raise UserError(f"probe.upper: expected null, {ALL} or one of {[*sources]}, got {cfg.upper}")
    for name, encoder in {"target": target, **{f"sources.{k}": v for k, v in sources.items()}}.items():
        if encoder.pool != "tokens":
            raise UserError(f"probe.{name}.pool: expected tokens, got {encoder.pool}")
    data = FrameFeatures(cfg, [target, *sources.values()])
    wanted = data.encode("target", target)
    found = {name: data.encode(name, encoder) for name, encoder in sources.items()}
    if cfg.upper == ALL:
        found[ALL] = side_by_side([*found.values()], wanted.shape[2])
    losses, penalties = reconstruct(wanted, found, cfg)
    report = {
        "settings": data.cfg.model_dump(),
        "target": describe(target),
        "sources": {name: describe(encoder) for name, encoder in sources.items()},
        "penalties": penalties,
        **judge_information(losses, cfg),
    }
    points = [
        (metric, f"{row['part']} frames", row["source"], row[metric])
        for metric in (("info", "ratio") if cfg.upper else ("info",))
        for row in report["results"]
    ]
    return Outcome("information", report, points, 2)


def side_by_side(sources: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Concatenate sources (T, C, N, D) of any maps and widths on a map of `count` tokens.  # (T, C, count, sum of D)"""
    return np.concatenate([regrid(s, count).astype(s.dtype) for s in sources], axis=-1)


def reconstruct(
    target: np.ndarray, sources: Mapping[str, np.ndarray], cfg: InformationSettings
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Return losses of "l0", "no image" and every source by part and episode, and the penalties of the maps."""
    train, frames, groups = cfg.parts["train"], cfg.frames, [[*range(target.shape[3])]]
    means = target[: len(train) * frames].mean(0, dtype=np.float64).reshape(-1, target.shape[3])
    maps = {name: fit_tokens(x, target, frames, train, cfg.folds, groups) for name, x in sources.items()}
    losses: dict[str, dict[str, np.ndarray]] = {name: {} for name in (ZERO, PLACE, *sources)}
    for name, (part, episodes) in product(losses, cfg.parts.items()):
        blind = means.mean(0) if name == ZERO else np.tile(means, (frames, 1))
        pairs = token_pairs(sources.get(name, target), target, frames, episodes)
        errors = ((maps[name].predict(x) if name in maps else blind) - y for _, x, y in pairs)
        losses[name][part] = np.array([(error**2).mean() for error in errors])
    if not losses[ZERO]["train"].any():
        raise UserError("probe.target: expected tokens that vary, got the same everywhere")
    return losses, {name: fitted.penalties[0] for name, fitted in maps.items()}


def judge_information(
    losses: Mapping[str, Mapping[str, np.ndarray]], cfg: InformationSettings
) -> dict[str, Any]:
    """Return "l0", "results" and "differences"; a ratio is None where the bound is not clearly above 0."""
    samples: dict[tuple, dict[str, np.ndarray]] = {}
    for part, weights in cfg.weights().items():
        loss = {name: weights @ found[part] / weights.sum(1) for name, found in losses.items()}  # (1 + B,)
        info = {name: -np.log(np.maximum(x / loss[ZERO], _FLOOR)) for name, x in loss.items()}
        best = info[cfg.upper] if cfg.upper else np.full(len(weights), np.nan)
        known = interval(best)
        lowest = known["value"] if known["low"] is None else known["low"]
        best = best if (lowest or 0) > 0 else np.full(len(best), np.nan)
        samples |= {(k, part): {"loss": x, "info": info[k], "ratio": info[k] / best} for k, x in loss.items()}
    l0 = {part: interval(samples[ZERO, part]["loss"]) for part in cfg.parts}
    samples = {key: samples[key] for key in product(losses, cfg.parts) if key[0] != ZERO}
    results, differences = compare(samples, ("source", "part"), earlier(samples))
    return {"l0": l0, "results": results, "differences": differences}

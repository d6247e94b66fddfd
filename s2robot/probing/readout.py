"""Measure the information in frozen features of a scripted pick: about the cube's pose, and another encoder's features.

    s2robot probe                                  # whole frames -> pose
    s2robot probe probe=information                # Table 2 of the S2 paper: mvp-small from mvp-tiny, with and without S2

Ridge maps are fitted on some episodes and evaluated on others; penalties are chosen on left-out training episodes. Yaw
is modulo 90 degrees, since a cube looks the same after a quarter turn. "gripper pose" predicts from the gripper's true
pose instead of an image, "mean" without input.

With a token map's mean squared error l and l0 that of the best constant, information is -log(l / l0); the ratio divides it
by that of the upper bound. The paper trains the map by gradient descent; here it is exact ridge regression.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import scipy.linalg
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from s2robot.core.errors import one_of
from s2robot.encoders.encoder import S2Encoder
from s2robot.probing.frames import FrameFeatures, FrameSettings, columns_of, describe
from s2robot.probing.report import JOINED, NO_IMAGE, Outcome, Samples, compare, earlier, interval

GRIPPER, MEAN = "gripper pose", "mean"  # rows without an image
PLACE = "no image"  # the mean at each token position
ZERO, ALL = "l0", "all"  # the best constant, all sources concatenated
POOLS = ("tokens", "mean")  # all tokens concatenated, and their mean
GROUPS = {"position": [0, 1], "height": [2], "yaw": [3, 4]}  # pose targets that share a penalty
FRAME_PENALTIES = 10.0 ** np.linspace(-8, 4, 37)  # times the mean eigenvalue of the standardised features
TOKEN_PENALTIES = 10.0 ** np.arange(-10, 3)
_BLOCK = 4096  # features standardised at once
_FLAT = 1e-3  # m, or 1 of sin and cos: below this spread R² is undefined
_FAR = 0.10  # m between grip centre and cube centre
_FLOOR = 1e-12  # of l / l0: equal features would otherwise have infinite information


def readout(encoders: Mapping[str, S2Encoder], cfg: FrameSettings) -> Outcome:
    """Compare encoders on the same frames."""
    data = FrameFeatures(cfg, [*encoders.values()])
    features = {name: data.encode(name, encoder) for name, encoder in encoders.items()}
    train, test = data.labels("train"), data.labels("test")
    samples = read_poses(features, train, test, cfg)
    pairs = earlier(samples, without=(GRIPPER, MEAN))
    results, differences = compare(samples, ("encoder", "pool", "cameras", "subset"), pairs)
    report = {
        "settings": data.cfg.model_dump(),
        "encoders": {name: describe(encoder) for name, encoder in encoders.items()},
        "results": results,
        "differences": differences,
    }
    points = [
        (f"{m}, {row['subset']}, {pool}", row["cameras"].replace(NO_IMAGE, PLACE), row["encoder"], row[m])
        for pool, m, row in product(POOLS, ("position_mean_cm", "yaw_mean_deg"), results)
        if row["pool"] in (pool, NO_IMAGE)
    ]
    return Outcome("readout", report, points, 4)


def read_poses(
    features: Mapping[str, np.ndarray],
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    cfg: FrameSettings,
) -> Samples:
    """Return `pose_scores` by (encoder, pool, cameras, subset); features (T, cameras, N, D), training frames first."""
    targets, true = pose_targets(train["cube_pose"]), pose_targets(test["cube_pose"])
    n, cameras = len(targets), columns_of(cfg.world.cameras)
    sources = {(GRIPPER, NO_IMAGE, NO_IMAGE): kernels(train["gripper"], test["gripper"])}
    for (name, tokens_of), pool in product(features.items(), POOLS):
        parts = []
        for i in cameras[JOINED]:
            tokens = tokens_of[:, i] if pool == "tokens" else tokens_of[:, i].mean(1, dtype=np.float64)
            flat = tokens.reshape(len(tokens), -1)
            parts.append(kernels(flat[:n], flat[n:]))
        for camera, chosen in cameras.items():  # the kernel of several cameras is the sum of their kernels
            own, cross = (np.sum([parts[i][j] for i in chosen], 0) for j in (0, 1))
            sources[name, pool, camera] = own, cross
    weights = cfg.weights()["test"][:, test["episode"]]  # (1 + B, m)
    subsets = {"all": np.ones(len(true), bool), "apart": test["distance"] > _FAR}
    poses = {(MEAN, NO_IMAGE, NO_IMAGE): np.broadcast_to(targets.mean(0), true.shape)}
    for key, pair in sources.items():
        poses[key] = fit_frames(*pair, targets, train["episode"], [*GROUPS.values()])[0]
    samples = {}
    for (key, predicted), (subset, keep) in product(poses.items(), subsets.items()):
        samples[*key, subset] = pose_scores(predicted[keep], true[keep], weights[:, keep])
    return samples


def pose_targets(cube_pose: np.ndarray) -> np.ndarray:
    """Return x, y, height (m), sin and cos of 4 yaw of the upright faces: (n, 7) -> (n, 5)."""
    rotation = Rotation.from_quat(cube_pose[:, [4, 5, 6, 3]]).as_matrix()  # (n, 3, 3)
    rows, upright = np.arange(len(rotation)), np.abs(rotation[:, 2]).argmax(1)
    turn = np.zeros((len(rotation), 2))
    for step in (1, 2):  # the two horizontal axes are a quarter turn apart, so equal at four times the angle
        axis = rotation[rows, :, (upright + step) % 3]  # (n, 3)
        angle = 4 * np.arctan2(axis[:, 1], axis[:, 0])
        turn += np.stack([np.sin(angle), np.cos(angle)], 1)
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    return np.concatenate([cube_pose[:, :3], turn], 1)


def yaw_errors(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the degrees between two yaws modulo 90, from sin and cos of 4 yaw: (n, 2) -> (n,), 0 to 45."""
    apart = np.arctan2(predicted[:, 0], predicted[:, 1]) - np.arctan2(true[:, 0], true[:, 1])
    return np.abs(np.degrees(np.arctan2(np.sin(apart), np.cos(apart)))) / 4


def pose_scores(predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean error and R² of position (horizontal), height and yaw, or NaN: (n, 5), (n, 5), (B, n) -> (B,)."""
    errors = {
        "position_mean_cm": 100 * np.linalg.norm(predicted[:, :2] - true[:, :2], axis=1),
        "height_mean_cm": 100 * np.abs(predicted[:, 2] - true[:, 2]),
        "yaw_mean_deg": yaw_errors(predicted[:, 3:], true[:, 3:]),
    }
    count = weights.sum(1)
    count = np.where(count > 0, count, np.nan)  # (B,)
    scores: dict[str, np.ndarray] = {}
    for (key, error), (name, columns) in zip(errors.items(), GROUPS.items(), strict=True):
        scores[key] = weights @ error / count
        centred = true[:, columns] - true[:1, columns]
        missed = weights @ ((predicted - true)[:, columns] ** 2).sum(1) / count
        spread = (weights @ centred**2 / count[:, None] - (weights @ centred / count[:, None]) ** 2).sum(1)
        scores[f"{name}_r2"] = 1 - missed / np.where(spread > _FLAT**2, spread, np.nan)
    return scores


def information(
    target: S2Encoder, sources: Mapping[str, S2Encoder], upper: str | None, cfg: FrameSettings
) -> Outcome:
    """Reconstruct the target's tokens from each source's; `upper` bounds the ratios: a source, ALL of them, or None."""
    one_of("probe.upper", upper, (None, ALL, *sources))
    data = FrameFeatures(cfg, [target, *sources.values()])
    tokens = data.encode("target", target)
    features = {name: data.encode(name, encoder) for name, encoder in sources.items()}
    if upper == ALL:
        features[ALL] = side_by_side([*features.values()], tokens.shape[2])
    losses, penalties = reconstruct(tokens, features, cfg)
    report = {
        "settings": data.cfg.model_dump() | {"upper": upper},
        "target": describe(target),
        "sources": {name: describe(encoder) for name, encoder in sources.items()},
        "penalties": penalties,
        **judge_information(losses, upper, cfg),
    }
    points = [
        (metric, f"{row['part']} frames", row["source"], row[metric])
        for metric, row in product(("info", "ratio") if upper else ("info",), report["results"])
    ]
    return Outcome("information", report, points, 2)


def side_by_side(sources: list[np.ndarray], count: int) -> np.ndarray:
    """Concatenate sources (T, C, N, D) of any map size and width on a map of `count` tokens.  # (T, C, count, sum of D)"""
    return np.concatenate([regrid(s, count).astype(s.dtype) for s in sources], axis=-1)


def reconstruct(
    target: np.ndarray, sources: Mapping[str, np.ndarray], cfg: FrameSettings
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, float]]:
    """Return losses of "l0", "no image" and every source by part and episode, and the penalties of the maps."""
    train, frames = cfg.parts["train"], cfg.frames
    means = target[: len(train) * frames].mean(0, dtype=np.float64).reshape(-1, target.shape[3])
    maps = {name: fit_tokens(x, target, frames, train) for name, x in sources.items()}
    losses: dict[str, dict[str, np.ndarray]] = {name: {} for name in (ZERO, PLACE, *sources)}
    for name, (part, episodes) in product(losses, cfg.parts.items()):
        blind = means.mean(0) if name == ZERO else np.tile(means, (frames, 1))
        pairs = token_pairs(sources.get(name, target), target, frames, episodes)
        errors = ((maps[name][0](x) if name in maps else blind) - y for _, x, y in pairs)
        losses[name][part] = np.array([(error**2).mean() for error in errors])
    return losses, {name: penalty for name, (_, penalty, _) in maps.items()}


def judge_information(
    losses: Mapping[str, Mapping[str, np.ndarray]], upper: str | None, cfg: FrameSettings
) -> dict[str, Any]:
    """Return "l0", "results" and "differences"; a ratio is None if the bound is not clearly above 0."""
    samples: dict[tuple, dict[str, np.ndarray]] = {}
    for part, weights in cfg.weights().items():
        loss = {name: weights @ parts[part] / weights.sum(1) for name, parts in losses.items()}  # (1 + B,)
        info = {name: -np.log(np.maximum(x / loss[ZERO], _FLOOR)) for name, x in loss.items()}
        best = info[upper] if upper else np.full(len(weights), np.nan)
        known = interval(best)
        lowest = known["value"] if known["low"] is None else known["low"]
        best = best if (lowest or 0) > 0 else np.full(len(best), np.nan)
        samples |= {(k, part): {"loss": x, "info": info[k], "ratio": info[k] / best} for k, x in loss.items()}
    l0 = {part: interval(samples[ZERO, part]["loss"]) for part in cfg.parts}
    samples = {key: samples[key] for key in product(losses, cfg.parts) if key[0] != ZERO}
    results, differences = compare(samples, ("source", "part"), earlier(samples))
    return {"l0": l0, "results": results, "differences": differences}


def kernels(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the products of features standardised by the training rows: (n, F), (m, F) -> float64 (n, n), (m, n)."""
    n = len(train)
    own, cross = np.zeros((n, n)), np.zeros((len(test), n))
    for start in range(0, train.shape[1], _BLOCK):
        a, b = (part[:, start : start + _BLOCK].astype(np.float64) for part in (train, test))
        mean, std = a.mean(0), a.std(0)
        varies = std > 1e-9 * (np.abs(mean) + 1e-30)
        scale = np.where(varies, 1 / np.where(varies, std, 1), 0)
        a, b = (a - mean) * scale, (b - mean) * scale
        own += a @ a.T
        cross += b @ a.T
    return own, cross


def fit_frames(
    own: np.ndarray, cross: np.ndarray, targets: np.ndarray, episodes: np.ndarray, groups: Sequence[list[int]]
) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Fit ridge regression from `kernels` to targets (n, k), with a separate penalty for each group.

    One training episode is left out at a time. The left-out errors need no refit: with R the matrix that maps targets
    to residuals, they are R_ee^-1 r_e for the rows e of an episode.

    Return predictions (m, k), the penalty of each group, and left-out squared errors by penalty (P, k).
    """
    n = len(own)
    # For centred features the constant vector has eigenvalue 0. It gets the largest instead, so it comes last.
    values, vectors = np.linalg.eigh(own + 2 * (np.trace(own) + 1) / n)
    values, vectors = np.maximum(values[:-1], 0), vectors[:, :-1]
    mean = targets.mean(0)
    inner = vectors.T @ (targets - mean)  # (n - 1, k)
    absolute = FRAME_PENALTIES * max(np.trace(own) / n, 1e-6)  # above rounding
    episode_rows = [np.flatnonzero(episodes == e) for e in np.unique(episodes)]
    left_out = np.zeros((len(FRAME_PENALTIES), targets.shape[1]))
    for p, penalty in enumerate(absolute):
        shrunk = penalty / (values + penalty)  # (n - 1,)
        residuals = vectors @ (shrunk[:, None] * inner)  # (n, k)
        for e in episode_rows:
            block = (vectors[e] * shrunk) @ vectors[e].T  # (n_e, n_e)
            left_out[p] += (np.linalg.solve(block, residuals[e]) ** 2).sum(0)
    predictions, chosen = np.empty((len(cross), targets.shape[1])), []
    for columns in groups:
        best = int(left_out[:, columns].sum(1).argmin())
        dual = vectors @ (inner[:, columns] / (values + absolute[best])[:, None])
        predictions[:, columns] = mean[columns] + cross @ dual
        chosen.append(float(FRAME_PENALTIES[best]))
    return predictions, chosen, left_out


def token_pairs(
    source: np.ndarray, target: np.ndarray, frames: int, episodes: range
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (episode, x (n, D), y (n, K)) at the same positions of source (T, C, N, D) and target (T, C, M, K)."""
    for episode in episodes:
        rows = slice(episode * frames, (episode + 1) * frames)
        x = regrid(source[rows], target.shape[2])
        yield episode, x.reshape(-1, x.shape[-1]), target[rows].reshape(-1, target.shape[3]).astype(float)


def regrid(tokens: np.ndarray, count: int) -> np.ndarray:
    """Average square token maps by area: (..., N, D) -> float64 (..., count, D)."""
    *lead, old, dim = tokens.shape
    if old == count:
        return tokens.astype(np.float64)
    side = math.isqrt(old)
    maps = torch.from_numpy(tokens.astype(np.float64)).reshape(-1, side, side, dim).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, (math.isqrt(count),) * 2, mode="area")
    return resized.permute(0, 2, 3, 1).reshape(*lead, count, dim).numpy()


def fit_tokens(
    source: np.ndarray, target: np.ndarray, frames: int, episodes: range, folds: int = 5
) -> tuple[Callable[[np.ndarray], np.ndarray], float, np.ndarray]:
    """Fit one ridge map for the tokens of all positions, with an unpenalised bias.

    Episode e belongs to fold e modulo `folds`, which is at most the number of episodes. A constant source channel
    counts as zero.

    Return the map (n, D) -> (n, K), its penalty, and left-out squared errors by penalty (P, K).
    """
    folds = min(folds, len(episodes))
    pairs = token_pairs(source, target, frames, episodes)
    sums = [(len(x), x.sum(0), (x**2).sum(0), y.sum(0)) for _, x, y in pairs]
    count, first, second, last = (np.sum(column, axis=0) for column in zip(*sums, strict=True))
    mean, y_mean, size = first / count, last / count, 1 + len(first)
    variance = second / count - mean**2
    varies = variance > 1e-12 * second / count  # above rounding
    scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
    grams = np.zeros((folds, size + len(y_mean), size + len(y_mean)))  # of [1, x, y], sufficient for a fit
    for episode, x, y in token_pairs(source, target, frames, episodes):
        rows = np.concatenate([np.ones((len(x), 1)), (x - mean) * scale, y - y_mean], 1)
        grams[episode % folds] += rows.T @ rows

    def solve(gram: np.ndarray, penalty: float) -> np.ndarray:  # (1 + D, K)
        xx = gram[:size, :size].copy()
        spread = (xx.diagonal()[1:] - xx[0, 1:] ** 2 / xx[0, 0]).mean()
        xx[range(1, size), range(1, size)] += penalty * max(spread, 1e-6)  # above rounding
        return scipy.linalg.solve(xx, gram[:size, size:], assume_a="pos")

    total, left_out = grams.sum(0), np.zeros((len(TOKEN_PENALTIES), len(y_mean)))
    for (p, penalty), gram in product(enumerate(TOKEN_PENALTIES), grams):
        w = solve(total - gram, penalty)
        xx, xy, yy = gram[:size, :size], gram[:size, size:], gram[size:, size:].diagonal()
        left_out[p] += yy - 2 * (w * xy).sum(0) + (w * (xx @ w)).sum(0)
    chosen = float(TOKEN_PENALTIES[left_out.sum(1).argmin()])
    w = solve(total, chosen)
    weight = scale[:, None] * w[1:]
    bias = w[0] + y_mean - mean @ weight
    return lambda x: x @ weight + bias, chosen, left_out

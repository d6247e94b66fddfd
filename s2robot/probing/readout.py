"""The cube's pose from whole frames, depth and segments from single tokens: what frozen features hold of a pick.

    s2robot probe
    s2robot probe '+probe.encoders.mine={name: mvp-tiny, checkpoint: my.safetensors, scales: [1, 2]}'

Ridge maps are fitted on some episodes and judged on others. Yaw counts modulo 90 degrees, since a cube looks the same
every quarter turn. "gripper pose" predicts from the gripper's true pose instead of an image, "mean" from nothing.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from s2robot.core.errors import UserError
from s2robot.core.settings import from_yaml
from s2robot.encoders.encoder import S2Encoder
from s2robot.probing.frames import FrameFeatures, FrameSettings, columns_of, describe
from s2robot.probing.report import (
    JOINED,
    NO_POOL,
    PLACE,
    READOUT_COLUMNS,
    Outcome,
    Samples,
    compare,
    earlier,
    is_joined,
    readout_points,
)
from s2robot.probing.tokens import read_cells

GRIPPER, MEAN = "gripper pose", "mean"  # rows that see no image
GROUPS = {"position": [0, 1], "height": [2], "yaw": [3, 4]}  # pose targets that share a penalty
PENALTIES = 10.0 ** np.linspace(-8, 4, 37)  # times the mean eigenvalue of the kernel
_BLOCK = 4096  # features standardised at once
_FLAT = 1e-3  # m, or 1 of sin and cos: below this spread R² is undefined
_FAR = 0.10  # m between grip centre and cube centre


class ReadoutSettings(FrameSettings, at="probe", file="probe/readout"):
    """configs/probe/readout.yaml describes each."""

    pools: tuple[Literal["tokens", "mean"], ...] = from_yaml(min_length=1)


def readout(encoders: Mapping[str, S2Encoder], cfg: ReadoutSettings) -> Outcome:
    """Compare encoders on the same frames; raise UserError for no encoders or a reserved name."""
    if not encoders or {GRIPPER, MEAN, PLACE} & set(encoders):
        raise UserError(f"probe.encoders: expected names but {GRIPPER}, {MEAN}, {PLACE}, got {[*encoders]}")
    data = FrameFeatures(cfg, [*encoders.values()])
    features = {name: data.encode(name, encoder) for name, encoder in encoders.items()}
    train, test = data.labels("train"), data.labels("test")
    samples = read_poses(features, train, test, cfg)
    pairs = earlier(samples, without=(GRIPPER, MEAN))
    results, differences = compare(samples, ("encoder", "pool", "cameras", "subset"), pairs)
    dense = {name: found for name, found in features.items() if encoders[name].pool == "tokens"}
    cells = read_cells(dense, np.concatenate([train["cells"], test["cells"]]), cfg) if dense else None
    report = {
        "settings": data.cfg.model_dump(),
        "encoders": {name: describe(encoder) for name, encoder in encoders.items()},
        "results": results,
        "differences": differences,
        "cells": cells,
    }
    return Outcome("readout", report, readout_points(report), READOUT_COLUMNS, is_joined)


def read_poses(
    features: Mapping[str, np.ndarray],
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    cfg: ReadoutSettings,
) -> Samples:
    """Return `pose_scores` by (encoder, pool, cameras, subset); features (T, cameras, N, D), training frames first."""
    targets, true = pose_targets(train["cube_pose"]), pose_targets(test["cube_pose"])
    n, cameras = len(targets), columns_of(cfg.world.cameras)
    sources = {(GRIPPER, NO_POOL, NO_POOL): kernels(train["gripper"], test["gripper"])}
    for name, found in features.items():
        for pool in cfg.pools:
            parts = []
            for i in cameras[JOINED]:
                tokens = found[:, i] if pool == "tokens" else found[:, i].mean(1, dtype=np.float64)
                flat = tokens.reshape(len(tokens), -1)
                parts.append(kernels(flat[:n], flat[n:]))
            for camera, chosen in cameras.items():  # the kernel of several cameras is the sum of theirs
                own, cross = (np.sum([parts[i][j] for i in chosen], 0) for j in (0, 1))
                sources[name, pool, camera] = own, cross
    weights = cfg.weights()["test"][:, test["episode"]]  # (1 + B, m)
    subsets = {"all": np.ones(len(true), bool), "apart": test["distance"] > _FAR}
    episodes, groups = train["episode"], [*GROUPS.values()]
    poses = {(MEAN, NO_POOL, NO_POOL): np.broadcast_to(targets.mean(0), true.shape)}
    poses |= {key: fit_frames(*pair, targets, episodes, groups).predictions for key, pair in sources.items()}
    samples = {}
    for (key, predicted), (subset, keep) in product(poses.items(), subsets.items()):
        samples[*key, subset] = pose_scores(predicted[keep], true[keep], weights[:, keep])
    return samples


def kernels(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return products of features standardised by the training rows: (n, F), (m, F) -> float64 (n, n), (m, n)."""
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


class FrameFit(NamedTuple):
    predictions: np.ndarray  # (m, k)
    penalties: list[float]  # of each group
    left_out: np.ndarray  # squared errors by penalty (P, k)


def fit_frames(
    own: np.ndarray,
    cross: np.ndarray,
    targets: np.ndarray,
    episodes: np.ndarray,
    groups: Sequence[list[int]],
    penalties: np.ndarray = PENALTIES,
) -> FrameFit:
    """Fit ridge regression from `kernels` to targets (n, k), leaving out one training episode at a time.

    Columns of a group share a penalty, relative to the mean eigenvalue of `own`. The left-out errors need no refit:
    with R the matrix that maps targets to residuals, they are R_ee^-1 r_e for the rows e of an episode.
    """
    n = len(own)
    # Centred features leave the constant vector without an eigenvalue. It gets the largest, so it comes last.
    values, vectors = np.linalg.eigh(own + 2 * (np.trace(own) + 1) / n)
    values, vectors = np.maximum(values[:-1], 0), vectors[:, :-1]
    mean = targets.mean(0)
    inner = vectors.T @ (targets - mean)  # (n - 1, k)
    absolute = penalties * max(np.trace(own) / n, 1e-6)  # above rounding
    places = [np.flatnonzero(episodes == e) for e in np.unique(episodes)]
    left_out = np.zeros((len(penalties), targets.shape[1]))
    for p, penalty in enumerate(absolute):
        shrunk = penalty / (values + penalty)  # (n - 1,)
        residuals = vectors @ (shrunk[:, None] * inner)  # (n, k)
        for e in places:
            block = (vectors[e] * shrunk) @ vectors[e].T  # (n_e, n_e)
            left_out[p] += (np.linalg.solve(block, residuals[e]) ** 2).sum(0)
    predictions, chosen = np.empty((len(cross), targets.shape[1])), []
    for columns in groups:
        best = int(left_out[:, columns].sum(1).argmin())
        dual = vectors @ (inner[:, columns] / (values + absolute[best])[:, None])
        predictions[:, columns] = mean[columns] + cross @ dual
        chosen.append(float(penalties[best]))
    return FrameFit(predictions, chosen, left_out)


def pose_targets(cube_pose: np.ndarray) -> np.ndarray:
    """Return x, y, height (m), sin and cos of 4 yaw of the upright faces: (n, 7) -> (n, 5)."""
    rotation = Rotation.from_quat(cube_pose[:, [4, 5, 6, 3]]).as_matrix()  # (n, 3, 3)
    rows, upright = np.arange(len(rotation)), np.abs(rotation[:, 2]).argmax(1)
    turn = np.zeros((len(rotation), 2))
    for step in (1, 2):  # the two level axes are a quarter turn apart: equal at four times the angle
        axis = rotation[rows, :, (upright + step) % 3]  # (n, 3)
        angle = 4 * np.arctan2(axis[:, 1], axis[:, 0])
        turn += np.stack([np.sin(angle), np.cos(angle)], 1)
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    return np.concatenate([cube_pose[:, :3], turn], 1)


def yaw_errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return degrees between two yaws modulo 90, given sin and cos of 4 yaw: (n, 2) -> (n,), 0 to 45."""
    apart = np.arctan2(found[:, 0], found[:, 1]) - np.arctan2(true[:, 0], true[:, 1])
    return np.abs(np.degrees(np.arctan2(np.sin(apart), np.cos(apart)))) / 4


def pose_scores(found: np.ndarray, true: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return mean error and R² of position (horizontal), height and yaw, or NaN: (n, 5), (n, 5), (B, n) -> (B,)."""
    errors = {
        "position_mean_cm": 100 * np.linalg.norm(found[:, :2] - true[:, :2], axis=1),
        "height_mean_cm": 100 * np.abs(found[:, 2] - true[:, 2]),
        "yaw_mean_deg": yaw_errors(found[:, 3:], true[:, 3:]),
    }
    count = weights.sum(1)
    count = np.where(count > 0, count, np.nan)  # (B,)
    scores: dict[str, np.ndarray] = {}
    for (key, error), (name, columns) in zip(errors.items(), GROUPS.items(), strict=True):
        scores[key] = weights @ error / count
        centred = true[:, columns] - true[:1, columns]
        missed = weights @ ((found - true)[:, columns] ** 2).sum(1) / count
        spread = (weights @ centred**2 / count[:, None] - (weights @ centred / count[:, None]) ** 2).sum(1)
        scores[f"{name}_r2"] = 1 - missed / np.where(spread > _FLAT**2, spread, np.nan)
    return scores

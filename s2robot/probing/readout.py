"""What frozen features hold of a scripted pick: the cube's pose, and another encoder's features.

    s2robot probe                                  # whole frames -> pose
    s2robot probe probe=information                # Table 2 of the S2 paper: mvp-small from mvp-tiny, with and without S2

Ridge maps are fitted on some episodes and judged on others. Yaw counts modulo 90 degrees, since a cube looks the same
every quarter turn. "gripper pose" predicts from the gripper's true pose instead of an image, "mean" from nothing.

With a token map's mean squared error l and l0 that of the best constant, information is -log(l / l0); the ratio divides it
by that of the upper bound. The paper trains the map by gradient descent; here it is exact ridge regression.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from s2robot.core.errors import UserError
from s2robot.encoders.encoder import S2Encoder
from s2robot.probing.frames import FrameFeatures, FrameSettings, columns_of, describe
from s2robot.probing.report import JOINED, NO_IMAGE, Outcome, Samples, compare, earlier, interval
from s2robot.probing.ridge import fit_frames, fit_tokens, kernels, regrid, token_pairs

GRIPPER, MEAN = "gripper pose", "mean"  # rows that see no image
PLACE = "no image"  # the mean of each place
ZERO, ALL = "l0", "all"  # the best constant, all sources side by side
POOLS = ("tokens", "mean")  # all tokens side by side, and their mean
GROUPS = {"position": [0, 1], "height": [2], "yaw": [3, 4]}  # pose targets that share a penalty
_FLAT = 1e-3  # m, or 1 of sin and cos: below this spread R² is undefined
_FAR = 0.10  # m between grip centre and cube centre
_FLOOR = 1e-12  # of l / l0: equal features would otherwise hold infinite information


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
    for (name, found), pool in product(features.items(), POOLS):
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


def information(
    target: S2Encoder, sources: Mapping[str, S2Encoder], upper: str | None, cfg: FrameSettings
) -> Outcome:
    """Reconstruct the target's tokens from each source's; `upper` bounds the ratios: a source, ALL of them, or None."""
    if upper not in (None, ALL, *sources):
        raise UserError(f"probe.upper: expected null, {ALL} or one of {[*sources]}, got {upper}")
    data = FrameFeatures(cfg, [target, *sources.values()])
    wanted = data.encode("target", target)
    found = {name: data.encode(name, encoder) for name, encoder in sources.items()}
    if upper == ALL:
        found[ALL] = side_by_side([*found.values()], wanted.shape[2])
    losses, penalties = reconstruct(wanted, found, cfg)
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
    """Concatenate sources (T, C, N, D) of any maps and widths on a map of `count` tokens.  # (T, C, count, sum of D)"""
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
    """Return "l0", "results" and "differences"; a ratio is None where the bound is not clearly above 0."""
    samples: dict[tuple, dict[str, np.ndarray]] = {}
    for part, weights in cfg.weights().items():
        loss = {name: weights @ found[part] / weights.sum(1) for name, found in losses.items()}  # (1 + B,)
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

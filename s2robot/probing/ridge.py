"""The numbers behind `s2robot readout`: what is read, ridge regression, its errors and their intervals.

    own, cross = kernels(train_features, test_features)          # (n, F), (m, F) -> (n, n), (m, n)
    fit = ridge(own, cross, targets_of(train_poses), episodes)   # the penalty by leaving episodes out
    found = scores(fit.read, targets_of(test_poses), weights)    # weights: (B, m) of resample(...)
    interval(found["position_mean_cm"])                          # {"value": 0.93, "low": 0.88, "high": 0.99}

All in float64 and without chance, but for the resampling, which a seed decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

METRICS = (
    "position_mean_cm", "position_median_cm", "position_r2",
    "height_mean_cm", "height_median_cm", "height_r2",
    "yaw_mean_deg", "yaw_median_deg", "yaw_r2",
)  # fmt: skip
GROUPS = ((0, 1), (2,), (3, 4))  # targets that share a penalty: x and y, height, sin and cos of 4 yaw
PENALTIES = 10.0 ** np.linspace(-8, 4, 37)  # times the mean eigenvalue of the kernel
_BLOCK = 4096  # features standardised at once
_FLAT = 1e-3  # m, or 1 of sin and cos: with less spread than this there is nothing for R2 to explain


# --- targets and errors ------------------------------------------------------------------------------------


def targets_of(cube_pose: np.ndarray) -> np.ndarray:
    """What is read: x, y, height (m, table frame), sin and cos of 4 yaw.  # (n, 7) -> (n, 5)

    The yaw is that of the faces which stand upright, so it also holds for a cube that has tipped over.
    """
    w, x, y, z = (cube_pose[:, i] for i in range(3, 7))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)  # (n, 3, 3)
    rows, upright = np.arange(len(rotation)), np.abs(rotation[:, 2]).argmax(1)
    turn = np.zeros((len(rotation), 2))
    for step in (1, 2):  # the two level axes: a quarter turn apart, alike at four times the angle
        axis = rotation[rows, :, (upright + step) % 3]  # (n, 3)
        angle = 4 * np.arctan2(axis[:, 1], axis[:, 0])
        turn += np.stack([np.sin(angle), np.cos(angle)], 1)
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    return np.concatenate([cube_pose[:, :3], turn], 1)


def yaw_errors(read: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Degrees between two yaws modulo 90, each as sin and cos of 4 yaw of any length.  # (n, 2) -> (n,), 0 to 45"""
    apart = np.arctan2(read[:, 0], read[:, 1]) - np.arctan2(true[:, 0], true[:, 1])
    return np.abs(np.degrees(np.arctan2(np.sin(apart), np.cos(apart)))) / 4


def weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The median of `values` (n,), each repeated as often as a row of `weights` (B, n) says.  # (B,)"""
    order = np.argsort(values, kind="stable")
    upto = weights[:, order].cumsum(1)  # (B, n)
    total = upto[:, -1:]
    low = (2 * upto >= total).argmax(1)
    high = (2 * upto > total).argmax(1)
    return (values[order][low] + values[order][high]) / 2


def scores(read: np.ndarray, true: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric, for every row of frame weights: (n, 5), (n, 5), (B, n) -> name: (B,), NaN if undefined.

    Position is the horizontal distance. R2 = 1 - squared error / squared spread, both over these frames, so
    it is 0 for the best constant and below for worse.
    """
    errors = {
        "position": 100 * np.linalg.norm(read[:, :2] - true[:, :2], axis=1),
        "height": 100 * np.abs(read[:, 2] - true[:, 2]),
        "yaw": yaw_errors(read[:, 3:], true[:, 3:]),
    }
    total = weights.sum(1).astype(float)  # (B,)
    count = np.where(total > 0, total, np.nan)
    found: dict[str, np.ndarray] = {}
    for (name, error), columns in zip(errors.items(), GROUPS, strict=True):
        unit = "deg" if name == "yaw" else "cm"
        found[f"{name}_mean_{unit}"] = weights @ error / count
        found[f"{name}_median_{unit}"] = np.where(total > 0, weighted_medians(error, weights), np.nan)
        chosen = list(columns)
        centred = true[:, chosen] - true[:, chosen].mean(0)
        missed = weights @ ((read - true)[:, chosen] ** 2).sum(1) / count
        spread = (weights @ centred**2 / count[:, None] - (weights @ centred / count[:, None]) ** 2).sum(1)
        found[f"{name}_r2"] = 1 - missed / np.where(spread > _FLAT**2, spread, np.nan)
    return found


def resample(episodes: int, resamples: int, seed: int) -> np.ndarray:
    """How often each episode is drawn, first once each, then with replacement.  # (1 + resamples, episodes)"""
    rng = np.random.default_rng([seed, 17])
    drawn = rng.multinomial(episodes, np.full(episodes, 1 / episodes), resamples)
    return np.concatenate([np.ones((1, episodes)), drawn])


def interval(samples: np.ndarray) -> dict[str, float | None]:
    """The first sample as the value, 95 % of the others as the interval; None where undefined."""

    def known(x: float) -> float | None:
        return float(x) if np.isfinite(x) else None

    others = samples[1:][np.isfinite(samples[1:])]
    low, high = np.percentile(others, [2.5, 97.5]) if len(others) else (np.nan, np.nan)
    return {"value": known(samples[0]), "low": known(low), "high": known(high)}


# --- ridge regression --------------------------------------------------------------------------------------


def kernels(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Products of standardised features: (n, F), (m, F) -> float64 (n, n), (m, n).

    Each feature is centred and scaled by the training rows; one that is constant there counts as zero.
    """
    n = len(train)
    own, cross = np.zeros((n, n)), np.zeros((len(test), n))
    for start in range(0, train.shape[1], _BLOCK):
        a = train[:, start : start + _BLOCK].astype(np.float64)
        b = test[:, start : start + _BLOCK].astype(np.float64)
        mean, std = a.mean(0), a.std(0)
        varies = std > 1e-9 * (np.abs(mean) + 1e-30)
        scale = np.where(varies, 1 / np.where(varies, std, 1), 0)
        a, b = (a - mean) * scale, (b - mean) * scale
        own += a @ a.T
        cross += b @ a.T
    return own, cross


@dataclass(frozen=True)
class Fit:
    """A ridge regression: read (m, k), the chosen penalty of each group, and by penalty the errors (P, k)."""

    read: np.ndarray
    penalties: tuple[float, ...]
    left_out: np.ndarray


def ridge(
    own: np.ndarray,
    cross: np.ndarray,
    targets: np.ndarray,
    episodes: np.ndarray,
    groups: Sequence[tuple[int, ...]] = GROUPS,
    penalties: np.ndarray = PENALTIES,
) -> Fit:
    """Ridge with a free intercept, its penalty chosen by leaving out one training episode at a time.

    Args:
        own, cross: `kernels`, (n, n) and (m, n).
        targets: (n, k).
        episodes: (n,), which frames belong together.
        groups: columns of the targets that share a penalty.
        penalties: to choose from, relative to the mean eigenvalue of `own`.

    The errors of the left-out episodes are exact and need no refit: with R the matrix that turns targets into
    residuals, they are R_ee^-1 r_e for the rows e of an episode. (Only the scale of the features is that of all
    training frames.)
    """
    n = len(own)
    # Centred features leave the constant vector without an eigenvalue. It gets the largest, and stands last.
    values, vectors = np.linalg.eigh(own + 2 * (np.trace(own) + 1) / n)
    values, vectors = np.maximum(values[:-1], 0), vectors[:, :-1]
    middle = targets.mean(0)
    inner = vectors.T @ (targets - middle)  # (n - 1, k)
    absolute = penalties * max(np.trace(own) / n, 1e-200)
    places = [np.flatnonzero(episodes == e) for e in np.unique(episodes)]
    left_out = np.zeros((len(penalties), targets.shape[1]))
    for p, penalty in enumerate(absolute):
        kept = penalty / (values + penalty)  # (n - 1,)
        residuals = vectors @ (kept[:, None] * inner)  # (n, k)
        for e in places:
            own_rows = vectors[e]
            block = (own_rows * kept) @ own_rows.T  # (n_e, n_e)
            left_out[p] += (np.linalg.solve(block, residuals[e]) ** 2).sum(0)
    read = np.empty((len(cross), targets.shape[1]))
    chosen = []
    for group in groups:
        best = int(left_out[:, list(group)].sum(1).argmin())
        dual = vectors @ (inner[:, list(group)] / (values + absolute[best])[:, None])
        read[:, list(group)] = middle[list(group)] + cross @ dual
        chosen.append(float(penalties[best]))
    return Fit(read, tuple(chosen), left_out)

"""Ridge regression from frozen features: of whole frames, wider than there are frames, and of single tokens.

No episode helps to predict its own frames: penalties, relative to the mean eigenvalue of the standardised features, are
chosen on episodes that a fit left out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import scipy.linalg
import torch
from torch.nn import functional as F

FRAME_PENALTIES = 10.0 ** np.linspace(-8, 4, 37)
TOKEN_PENALTIES = 10.0 ** np.arange(-10, 3)
_BLOCK = 4096  # features standardised at once


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


def fit_frames(
    own: np.ndarray,
    cross: np.ndarray,
    targets: np.ndarray,
    episodes: np.ndarray,
    groups: Sequence[list[int]],
    penalties: np.ndarray = FRAME_PENALTIES,
) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Fit ridge regression from `kernels` to targets (n, k), of which each group has a penalty of its own.

    One training episode is left out at a time. The left-out errors need no refit: with R the matrix that maps targets to residuals, they are R_ee^-1 r_e for the rows e
    of an episode.

    Returns:
        Predictions (m, k), the penalty of each group, left-out squared errors by penalty (P, k).
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
    return predictions, chosen, left_out


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
    side = math.isqrt(old)
    maps = torch.from_numpy(tokens.astype(np.float64)).reshape(-1, side, side, dim).permute(0, 3, 1, 2)
    resized = F.interpolate(maps, (math.isqrt(count),) * 2, mode="area")
    return resized.permute(0, 2, 3, 1).reshape(*lead, count, dim).numpy()


def fit_tokens(
    source: np.ndarray,
    target: np.ndarray,
    frames: int,
    episodes: range,
    folds: int = 5,
    penalties: np.ndarray = TOKEN_PENALTIES,
) -> tuple[Callable[[np.ndarray], np.ndarray], float, np.ndarray]:
    """Fit one ridge map for the tokens of all places, with an unpenalised bias.

    Episode e belongs to fold e modulo `folds`, of which there are no more than episodes. A constant source channel
    counts as zero.

    Returns:
        The map (n, D) -> (n, K), its penalty, left-out squared errors by penalty (P, K).
    """
    folds = min(folds, len(episodes))
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
    chosen = float(penalties[left_out.sum(1).argmin()])
    w = solve(total, chosen)
    weight = scale[:, None] * w[1:]
    bias = w[0] + middle - mean @ weight
    return lambda x: x @ weight + bias, chosen, left_out

"""One linear map for all tokens: the token of a place in, what is true of that place out.

    sums = sum_up(source, target, frames=6, episodes=range(100), folds=5)   # (T, C, N, D), (T, C, M, K)
    fit = linear_map(sums, weights)          # ridge, its penalty chosen by leaving out folds of episodes
    fit(x).shape                             # (n, D) -> (n, K)

Only sums over tokens are kept, so memory does not grow with the frames. All in float64 and without chance.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from s2robot.common.errors import UserError

PENALTIES = 10.0 ** np.arange(-10, 3)  # times the mean eigenvalue of the sources' covariance
_ROWS = 8192  # tokens that are in memory as float64 at once
Blocks = Iterator[tuple[int, np.ndarray, np.ndarray]]  # episode, x (n, D), y (n, K)


def regrid(tokens: np.ndarray, count: int) -> np.ndarray:
    """Square maps on another square grid, each new cell the mean of the area that it covers.

    (..., N, D) -> float64 (..., count, D). Raises UserError where N or count is no square.
    """
    old, new = math.isqrt(tokens.shape[-2]), math.isqrt(count)
    if (old**2, new**2) != (tokens.shape[-2], count):
        raise UserError(f"token maps: found {tokens.shape[-2]} and {count} tokens, expected square grids")
    if old == new:
        return tokens.astype(np.float64)
    here, there = np.arange(new)[:, None] * old, np.arange(old) * new  # edges, in 1 / (old * new) of a side
    overlap = np.minimum(here + old, there + new) - np.maximum(here, there)
    weights = np.maximum(overlap, 0) / old  # (new, old)
    grid = tokens.reshape(*tokens.shape[:-2], old, old, -1).astype(np.float64)
    grid = np.einsum("ih,jw,...hwd->...ijd", weights, weights, grid, optimize=True)
    return grid.reshape(*tokens.shape[:-2], count, -1)


def token_pairs(source: np.ndarray, target: np.ndarray, frames: int, episodes: Sequence[int]) -> Blocks:
    """Tokens of the same place: (T, C, N, D) and (T, C, M, K), `frames` an episode -> (episode, (n, D), (n, K)).

    Blocks of whole frames, never of two episodes; the source is brought to the target's grid by area.
    """
    step = max(1, _ROWS // (target.shape[1] * target.shape[2]))
    for episode in episodes:
        end = (episode + 1) * frames
        for start in range(episode * frames, end, step):
            rows = slice(start, min(start + step, end))
            x = regrid(source[rows], target.shape[2])
            yield episode, x.reshape(-1, x.shape[-1]), target[rows].reshape(-1, target.shape[3]).astype(float)


@dataclass(frozen=True)
class Sums:
    """Products of [1, x, y] summed over the tokens of each fold: all that a linear map needs.

    x (D,) and y (K,) are taken from `origin`, the first token, so that a channel that never varies is 0.
    """

    folds: np.ndarray  # (F, 1 + D + K, 1 + D + K)
    origin: np.ndarray  # (1 + D + K,), its first number 0
    dim: int  # D

    def about(self, part: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the products `part`, around the mean of `other`: xx (D, D), xy (D, K), the diagonal of yy (K,)."""
        mean, x, y = mean_of(other), slice(1, 1 + self.dim), slice(1 + self.dim, None)
        moved = np.outer(part[0], mean)
        moved = part - moved - moved.T + part[0, 0] * np.outer(mean, mean)
        return moved[x, x], moved[x, y], moved[y, y].diagonal()


def mean_of(products: np.ndarray) -> np.ndarray:
    """The mean of [0, x, y]."""
    return np.append(0.0, products[0, 1:] / products[0, 0])


def sum_up(source: np.ndarray, target: np.ndarray, frames: int, episodes: range, folds: int) -> Sums:
    """Sums over the tokens of `token_pairs`. Episode e belongs to fold e modulo `folds`: none is in two."""
    _, x, y = next(token_pairs(source[:1], target[:1], 1, range(1)))
    origin = np.concatenate([[0.0], x[0], y[0]])
    sums = Sums(np.zeros((folds, len(origin), len(origin))), origin, x.shape[1])
    for episode, x, y in token_pairs(source, target, frames, episodes):
        rows = np.concatenate([np.ones((len(x), 1)), x, y], 1) - origin
        sums.folds[episode % folds] += rows.T @ rows
    return sums


@dataclass(frozen=True)
class LinearMap:
    """y = x @ weight + bias, the chosen penalty, and by penalty the squared errors of the left-out folds (P,)."""

    weight: np.ndarray  # (D, K)
    bias: np.ndarray  # (K,)
    penalty: float
    left_out: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weight + self.bias


def linear_map(sums: Sums, weights: np.ndarray, penalties: np.ndarray = PENALTIES) -> LinearMap:
    """Ridge regression with a free bias, its penalty the best on folds that the map was not fitted on.

    `weights` (K,) are of the channels' squared errors; `penalties` (P,) are relative to the mean eigenvalue of
    the standardised sources' covariance. A source channel that is constant counts as zero.
    """
    total = sums.folds.sum(0)
    spread = sums.about(total, total)[0].diagonal()
    varies = spread > 1e-12 * total.diagonal()[1 : 1 + sums.dim]  # above rounding
    scale = np.where(varies, np.sqrt(total[0, 0] / np.where(varies, spread, 1)), 0)[:, None]  # (D, 1)

    def axes_of(part: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Principal axes (D, D), the products with y along them (D, K), and what divides these (P, D, 1)."""
        xx, xy, _ = sums.about(part, part)
        values, vectors = np.linalg.eigh(scale * xx * scale.T)
        divide = np.maximum(values, 0) + penalties[:, None] * max(values.mean(), 1e-200)
        return scale * vectors, (scale * vectors).T @ xy, divide[:, :, None]

    left_out = np.zeros(len(penalties))
    for fold in sums.folds:
        axes, inner, divide = axes_of(total - fold)
        xx, xy, yy = sums.about(fold, total - fold)
        own, cross = axes.T @ xx @ axes, axes.T @ xy
        for p, by in enumerate(divide):
            found = inner / by  # (D, K)
            left_out[p] += weights @ (yy - 2 * (found * cross).sum(0) + (found * (own @ found)).sum(0))
    best = int(left_out.argmin())
    axes, inner, divide = axes_of(total)
    weight = axes @ (inner / divide[best])
    mean = (sums.origin + mean_of(total))[1:]
    return LinearMap(weight, mean[sums.dim :] - mean[: sums.dim] @ weight, float(penalties[best]), left_out)

"""A comparison that may be looked at after every position, and stopped.

    sequential(*tally(outcomes["base + S²"], outcomes["base"]))    # p, low, high: valid after every position
    success_sequence(outcomes["base"])                             # low, high, method: of one arm

Outcomes are bool (seeds, positions); differences are fractions, first arm minus second.
"""

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from s2robot.comparison.paired import Array


def tally(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the mean differences (n,) that occurred, and at how many positions; with one seed an arm -1, 0 and 1."""
    return np.unique((np.mean(a, 0) - np.mean(b, 0)).round(12), return_counts=True)


def sequential(d: Array, n: Array, alpha: float = 0.05) -> tuple[float, float, float]:
    """Return p, low and high, which may be looked at after every position, in the fixed order of evaluation.

    By chance p ever reaches alpha with probability <= alpha; low and high are a confidence sequence of the difference.

    `d`, `n`: see `tally`. A bet on each position grows by 1 + λ (d - m), λ spread evenly; if the difference is m, it ever
    reaches 1 / alpha with probability <= alpha (Ville 1939). At m = 0 McNemar's pairs give the mixture likelihood ratio
    2^(w+l) B(w+1, l+1) (Robbins 1970). Holds for `paired.POSITIONS`. After an early stop report this interval:
    `difference` assumes an N fixed beforehand. Source of the interval: Waudby-Smith & Ramdas 2024.
    """
    mean, limit = float((d * n).sum() / max(1, n.sum())), -math.log(alpha)
    low, high = (_crossing(d, n, mean, end, limit) for end in (-1.0, 1.0))
    return min(1.0, math.exp(-log_evidence(d, n, 0.0))), low, high


def _crossing(d: Array, n: Array, mean: float, end: float, limit: float) -> float:
    """Where the evidence, which is convex in m and at most 1 at the mean, reaches the limit on the way to an end."""
    almost = end * (1 - 1e-12)
    if log_evidence(d, n, almost) < limit:
        return end
    return float(brentq(lambda m: log_evidence(d, n, m) - limit, mean, almost))


def success_sequence(outcomes: Array, alpha: float = 0.05) -> tuple[float, float, str]:
    """Return an arm's interval of success that holds at every look together, and its method in words.

    For arms of a comparison that stopped early, whose number of positions depends on their outcomes: a position's mean
    over the training seeds, turned into -1..1, is bet on as a difference is.
    """
    _, low, high = sequential(*tally(2 * np.asarray(outcomes, float), np.ones((1, 1))), alpha)
    return (1 + low) / 2, (1 + high) / 2, "confidence sequence (sequential), for these trained policies"


def log_evidence(d: Array, n: Array, mean: float) -> float:
    """Return the log of the evidence against a true difference of `mean`."""
    if not -1 < mean < 1:
        return 0.0  # the bets' scale ends here: m = -1 or 1 is never excluded
    nodes, logs = _quadrature(min(1 << (int(n.sum()) // 2).bit_length(), 512))
    sides = [(1 + d) / (1 + mean), (1 - d) / (1 - mean)]  # bets on a difference above the mean, and below it
    grown = [np.log(1 - nodes + nodes * x[:, None]).T @ n for x in sides]  # (nodes,) each
    return float(logsumexp(np.concatenate([g + logs for g in grown])) - math.log(2))


@lru_cache(maxsize=64)
def _quadrature(count: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes on 0..1 and log weights; exact for polynomials, as bets are, up to 2 count - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, np.log(weights / 2)

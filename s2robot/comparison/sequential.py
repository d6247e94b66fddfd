"""A comparison that may be looked at after every position, and stopped.

sequential(tally(outcomes["base + S²"], outcomes["base"]))    # may we stop? valid after every position

Outcomes are bool (seeds, positions); differences are fractions, first arm minus second.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import logsumexp

from s2robot.comparison.paired import Array, checked, fraction
from s2robot.core.errors import UserError


@dataclass(frozen=True)
class Look:
    """One look at a running comparison; every field is valid at every look and at any stop."""

    e: float  # evidence against no difference; by chance it ever reaches 1 / alpha with probability <= alpha
    p: float  # anytime-valid p value, min(1, 1 / e)
    stop: bool  # e >= 1 / alpha: the arms differ
    low: float  # confidence sequence of the difference, level 1 - alpha
    high: float
    positions: int


def tally(a: Array, b: Array) -> dict[float, int]:
    """How many positions had each mean difference; the whole state of `sequential`.

    One seed an arm: {-1.0: losses, 0.0: ties, 1.0: wins}. A position belongs in once all seeds have run it.
    """
    a, b = checked(a, b)
    values, counts = np.unique((a.mean(0) - b.mean(0)).round(12), return_counts=True)
    return {float(v): int(n) for v, n in zip(values, counts, strict=True)}


def sequential(counts: Mapping[float, int], alpha: float = 0.05) -> Look:
    """Test and interval that may be looked at after every position, in the fixed order of evaluation.

    `counts`: positions by mean difference (`tally`). A bet on each position grows by 1 + λ (d - m), λ spread
    evenly; if the difference is m, it ever reaches 1 / alpha with probability <= alpha (Ville 1939). At m = 0
    McNemar's pairs give the mixture likelihood ratio 2^(w+l) B(w+1, l+1) (Robbins 1970). Holds for POSITIONS.
    After an early stop report this interval: `difference` assumes an N fixed beforehand. UserError for values
    outside -1..1 or counts below 0. Source of the interval: Waudby-Smith & Ramdas 2024.
    """
    fraction("alpha", alpha)
    for value, count in counts.items():
        if not -1 <= value <= 1 or count < 0:
            raise UserError(f"found {count} positions of difference {value}, expected >= 0 and -1..1")
    d, n = np.array(list(counts), dtype=float), np.array(list(counts.values()), dtype=float)
    mean, limit, ends = float((d * n).sum() / max(1.0, n.sum())), -math.log(alpha), []
    for end in (-1.0, 1.0):  # the evidence is convex in m and at most 1 at the mean: one crossing a side
        inside = mean
        for _ in range(50):
            middle = (inside + end) / 2
            inside, end = (middle, end) if _log_evidence(d, n, middle) < limit else (inside, middle)
        ends.append(end)
    log_e = _log_evidence(d, n, 0.0)
    e, p = math.exp(min(log_e, 700.0)), min(1.0, math.exp(-log_e))
    return Look(e, p, stop=log_e >= limit, low=ends[0], high=ends[1], positions=int(n.sum()))


def _log_evidence(d: np.ndarray, n: np.ndarray, mean: float) -> float:
    if not -1 < mean < 1:
        return 0.0  # the bets' scale ends here: m = -1 or 1 is never excluded
    nodes, logs = _quadrature(min(1 << (int(n.sum()) // 2).bit_length(), 512))
    sides = [(1 + d) / (1 + mean), (1 - d) / (1 - mean)]  # bets on a difference above the mean, and below it
    grown = [np.log(1 - nodes + nodes * x[:, None]).T @ n for x in sides]  # (nodes,) each
    return float(logsumexp(np.concatenate([g + logs for g in grown])) - math.log(2))


@lru_cache(maxsize=64)
def _quadrature(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on 0..1 and log weights; exact for polynomials, as bets are, up to 2 count - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, np.log(weights / 2)

"""How sure the success of one arm is, from several training seeds on the same positions.

success_interval(outcomes["base"])        # low, high, method: for new training seeds and new positions
success_sequence(outcomes["base"])        # low, high, method: holds at every look, for these policies

Outcomes are bool (seeds, positions). `python -m benchmarks.interval_coverage` prints how often these intervals hold.
"""

from typing import Any

import numpy as np
from scipy import stats

from s2robot.comparison.paired import Array, fraction, noise
from s2robot.comparison.sequential import sequential


def success_interval(outcomes: Array, confidence: float = 0.95) -> tuple[float, float, str]:
    """Interval of an arm's success for new training seeds and new positions, and its method in words.

    Wilson 1927; with two seeds or more as of so many independent episodes as would give the same variance
    (Kish 1965, design effect) and with Student's quantile, see `bounds`.
    """
    low, high, episodes = (float(v) for v in bounds(np.asarray(outcomes, dtype=float), confidence))
    if len(outcomes) == 1:
        return low, high, "Wilson"
    return low, high, f"Wilson, as of {episodes:.0f} independent episodes, with Student's quantile"


def bounds(x: Any, confidence: float = 0.95) -> tuple[Any, Any, Any]:
    """Low, high and effective episodes (...) of outcomes x (..., seeds, positions) in 0 and 1.

    Variance of the mean = that of the positions' means + what seeds add, as in `paired.estimate`; degrees of freedom by
    Satterthwaite 1946. Unlike `difference` no pseudo-counts: Wilson's form keeps its width at 0 and 1.
    """
    fraction("confidence", confidence)
    k, positions = x.shape[-2:]
    p, most = x.mean((-2, -1)), float(k * positions)
    episodes, quantile = np.full_like(p, most), np.full_like(p, stats.norm.ppf(0.5 + confidence / 2))
    if k > 1:
        between = x.mean(-1).var(-1, ddof=1) / k
        variance = x.mean(-2).var(-1, ddof=1 if positions > 1 else 0) / positions
        variance = np.maximum(variance + np.maximum(between - noise(x) / most, 0), 1e-12)
        chance = p * (1 - p)
        episodes = np.where(chance > 0, np.clip(chance / variance, 1e-9, most), most)
        df = np.maximum((k - 1) * (variance / np.maximum(between, 1e-12)) ** 2, k - 1)
        quantile = stats.t.ppf(0.5 + confidence / 2, df)
    z = quantile**2 / episodes
    centre = (p + z / 2) / (1 + z)
    half = quantile * np.sqrt(p * (1 - p) / episodes + z / (4 * episodes)) / (1 + z)
    return np.maximum(0, np.minimum(p, centre - half)), np.minimum(1, np.maximum(p, centre + half)), episodes


def success_sequence(outcomes: Array, alpha: float = 0.05) -> tuple[float, float, str]:
    """Interval of an arm's success that holds at every look together, and its method in words.

    A position's mean over the training seeds, turned into -1..1, is bet on as a difference is in `sequential`
    (Waudby-Smith & Ramdas 2024); of these trained policies. For arms of a comparison that stopped early, whose
    number of positions hangs on their outcomes.
    """
    values, counts = np.unique((2 * np.asarray(outcomes, float).mean(0) - 1).round(12), return_counts=True)
    look = sequential(dict(zip(values.tolist(), counts.tolist(), strict=True)), alpha)
    low, high = (1 + look.low) / 2, (1 + look.high) / 2
    return low, high, "confidence sequence (sequential), for these trained policies"

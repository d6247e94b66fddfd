"""Estimate how many trials distinguish two arms, by resampling recorded positions and running the sequential test.

A replay draws a training seed of each arm, and positions with replacement. The test is `paired.sequential` at 5 %, checked
after every pair. It is compared with McNemar's exact test at the fixed number of pairs that reaches the same power.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import betaln

from s2robot.comparison.statistics import LEVEL

MAX_PAIRS = 2000  # per replay


def plan_pairs(a: np.ndarray, b: np.ndarray, replays: int, power: float) -> dict[str, Any]:
    """Return the pairs that sequential and fixed tests need to distinguish arms (seeds, positions) with this power if the
    recorded difference is the true one, and the false positive rate. None: not within `MAX_PAIRS`."""
    rng = np.random.default_rng(0)
    d = np.subtract(*draw_outcomes(a, b, replays, rng))
    stopped = stopping_pairs(d)
    enough = int(np.quantile(stopped, power, method="higher"))
    mean = float(np.minimum(stopped, enough).mean())
    null = d * rng.choice(np.array([-1, 1], np.int8), d.shape)
    return {
        "replays": replays, "power": power, "median": int(np.median(stopped)), "mean": mean,
        "enough": enough if enough <= MAX_PAIRS else None, "known": fixed_pairs(d, power),
        "false": float((stopping_pairs(null) <= MAX_PAIRS).mean()),
    }  # fmt: skip


def draw_outcomes(a: np.ndarray, b: np.ndarray, replays: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return both arms' outcomes at drawn positions, with one training seed per arm and replay.  # int8 (replays, MAX_PAIRS) each"""
    at = rng.integers(0, a.shape[1], (replays, MAX_PAIRS))
    return [np.asarray(arm, np.int8)[rng.integers(0, len(arm), (replays, 1)), at] for arm in (a, b)]


def stopping_pairs(d: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Return the pairs (replays,) after which the sequential test of differences -1, 0, 1 (replays, pairs) stops.

    pairs + 1 means never. This uses the closed form of `log_evidence` at 0: 2^(w+l) B(w+1, l+1).
    """
    wins, losses = _counts(d)
    won, lost = np.ogrid[: wins.max() + 1, : losses.max() + 1]
    decided = (betaln(won + 1, lost + 1) + (won + lost) * np.log(2) >= -np.log(level))[wins, losses]
    return np.where(decided.any(1), decided.argmax(1) + 1, d.shape[1] + 1)


def fixed_pairs(d: np.ndarray, power: float) -> int | None:
    """Return the smallest number of pairs at which McNemar's exact test reaches ``power`` over the replays; None: never."""
    wins, losses = _counts(d)
    m = np.arange((wins + losses).max() + 1)
    limit = stats.binom.ppf(LEVEL / 2, m, 0.5)
    limit -= stats.binom.cdf(limit, m, 0.5) > LEVEL / 2  # largest loss count that still rejects; -1: none
    found = np.flatnonzero((np.minimum(wins, losses) <= limit[wins + losses]).mean(0) >= power)
    return int(found[0]) + 1 if len(found) else None


def _counts(d: np.ndarray) -> list[np.ndarray]:
    return [np.cumsum(d == sign, 1, dtype=np.int32) for sign in (1, -1)]


def plan_lines(found: dict[str, Any]) -> Iterator[str]:
    share, mean = f"{100 * found['power']:g} %", found["mean"]
    start = f"    replayed {found['replays']} times"
    if found["enough"] is None:
        yield f"{start}: {MAX_PAIRS} pairs do not distinguish the arms in {share} of the replays"
        return
    ends = f"{found['median']} pairs, {share} by {found['enough']}"
    yield f"{start}: half are decided by {ends}; false positive rate {100 * found['false']:.1f} %"
    if (pairs := found["known"]) is not None:
        yield f"    with {share} power: {mean:.0f} pairs on average; {pairs} by a test of a fixed number"

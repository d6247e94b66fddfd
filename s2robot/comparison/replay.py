"""How many trials would tell two arms apart: recorded positions, drawn again and again, through the sequential test.

A replay draws a training seed of each arm, and positions with replacement. The test is `paired.sequential` at 5 %, looked at
after every pair, beside McNemar's exact test at a number of pairs that is fixed beforehand: for the same power if the
difference is known, or planned for a gap.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import betaln

from s2robot.comparison.settings import Power
from s2robot.comparison.statistics import LEVEL, needed

MOST = 2000  # pairs of a replay


def planned(a: np.ndarray, b: np.ndarray, replays: int, gap: float, design: Power) -> dict[str, Any]:
    """Return the pairs that sequential and fixed tests need to tell arms (seeds, positions) apart with the power of ``design``,
    and how often replays without a difference are told apart. None: not within `MOST` pairs, or the gap does not fit."""
    rng = np.random.default_rng(0)
    d = draw(a, b, replays, rng)
    stopped = stops(d)
    enough = int(np.quantile(stopped, design.power, method="higher"))
    mean = float(np.minimum(stopped, enough).mean())
    null = d * rng.choice(np.array([-1, 1], np.int8), d.shape)
    return {
        "replays": replays, "power": design.power, "gap": gap, "median": int(np.median(stopped)),
        "enough": enough if enough <= MOST else None, "mean": mean, "known": fixed(d, design.power),
        "planned": needed(gap, design) if design.base + gap <= 1 else None,
        "false": float((stops(null) <= MOST).mean()),
    }  # fmt: skip


def draw(a: np.ndarray, b: np.ndarray, replays: int, rng: np.random.Generator) -> np.ndarray:
    """Return replays int8 (replays, MOST) of a's outcome minus b's at drawn positions, each of one training seed an arm."""
    at = rng.integers(0, a.shape[1], (replays, MOST))
    x, y = (np.asarray(arm, np.int8)[rng.integers(0, len(arm), (replays, 1)), at] for arm in (a, b))
    return x - y


def stops(d: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Return after how many pairs (replays,) the sequential test of differences -1, 0, 1 (replays, pairs) ends; pairs + 1: never.

    `log_evidence` at 0 is here in closed form, 2^(w+l) B(w+1, l+1).
    """
    wins, losses = _counts(d)
    won, lost = np.ogrid[: wins.max() + 1, : losses.max() + 1]
    over = (betaln(won + 1, lost + 1) + (won + lost) * np.log(2) >= -np.log(level))[wins, losses]
    return np.where(over.any(1), over.argmax(1) + 1, d.shape[1] + 1)


def fixed(d: np.ndarray, power: float) -> int | None:
    """Return the fewest pairs at which McNemar's exact test finds a difference in so many replays; None: more than there are."""
    wins, losses = _counts(d)
    m = np.arange((wins + losses).max() + 1)
    limit = stats.binom.ppf(LEVEL / 2, m, 0.5)
    limit -= stats.binom.cdf(limit, m, 0.5) > LEVEL / 2  # the most losses that still reject; -1: none
    found = np.flatnonzero((np.minimum(wins, losses) <= limit[wins + losses]).mean(0) >= power)
    return int(found[0]) + 1 if len(found) else None


def _counts(d: np.ndarray) -> list[np.ndarray]:
    return [np.cumsum(d == sign, 1, dtype=np.int32) for sign in (1, -1)]


def plan_lines(found: dict[str, Any]) -> Iterator[str]:
    share, mean = f"{100 * found['power']:g} %", found["mean"]
    start = f"    replayed {found['replays']} times"
    if found["enough"] is None:
        yield f"{start}: {MOST} pairs do not tell them apart in {share} of the replays"
        return
    ends = f"{found['median']} pairs, {share} by {found['enough']}"
    yield f"{start}: half are told apart by {ends}; without a difference, {100 * found['false']:.1f} % are"
    for key, what in (("known", "this difference"), ("planned", f"{100 * found['gap']:g} points")):
        if (pairs := found[key]) is not None:
            fewer = f"{abs(100 * (1 - mean / pairs)):.0f} % {'fewer' if mean <= pairs else 'more'}"
            yield f"    with {share} power: {mean:.0f} pairs on average, {fewer} than {pairs} planned for {what}"

"""How many trials would tell two arms apart: recorded positions, drawn again and again, through the sequential test.

    planned(a, b, Plan(replays=1000))     # outcomes bool (training seeds, positions) of two arms on the same positions

A replay draws a training seed of each arm, and positions with replacement, up to `MOST` of them. The sequential test is that
of `paired.sequential` at 5 %, looked at after every pair. It is compared with McNemar's exact test at a number of pairs that
is fixed beforehand: the one with the same power if the difference is known, and the one that is planned for a gap.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.special import betaln

from s2robot.comparison.settings import Power
from s2robot.comparison.statistics import LEVEL, needed

MOST = 2000  # pairs of a replay


class Plan(NamedTuple):
    replays: int
    gap: float = 0.10  # difference in success for which a fixed number is planned
    power: float = 0.8


def planned(a: np.ndarray, b: np.ndarray, plan: Plan) -> dict[str, Any]:
    """Return the pairs that sequential and fixed tests need to tell the arms apart, and how often replays without a difference
    are told apart. None: not within `MOST` pairs, or the gap does not fit above the worse arm's success."""
    rng = np.random.default_rng(0)
    d = draw(a, b, plan.replays, rng)
    stopped = stops(d)
    enough = int(np.quantile(stopped, plan.power, method="higher"))
    mean = float(np.minimum(stopped, enough).mean())
    x, y = a.mean(0), b.mean(0)
    (p, q), noise = (x.mean(), y.mean()), math.sqrt(x.mean() * (1 - x.mean()) * y.mean() * (1 - y.mean()))
    alike = float(np.cov(x, y)[0, 1] / noise) if noise else 0.0
    base, correlation = float(min(p, q)), min(max(alike, 0.0), 0.95)
    design = Power(base=base, gap=1e-9, correlation=correlation, power=plan.power, alpha=LEVEL)
    flips = rng.choice(np.array([-1, 1], np.int8), d.shape)
    found = {"median": int(np.median(stopped)), "enough": enough, "mean": mean}
    return {
        "replays": plan.replays, "power": plan.power, "gap": plan.gap,
        "sequential": found if enough <= MOST else None,
        "known": fixed(d, plan.power),
        "planned": needed(plan.gap, design) if base + plan.gap <= 1 else None,
        "false": float((stops(d * flips) <= MOST).mean()),
    }  # fmt: skip


def draw(a: np.ndarray, b: np.ndarray, replays: int, rng: np.random.Generator) -> np.ndarray:
    """Return replays int8 (replays, MOST) of a's outcome minus b's at drawn positions, each of one training seed an arm."""
    at = rng.integers(0, a.shape[1], (replays, MOST))
    x, y = (np.asarray(arm, np.int8)[rng.integers(0, len(arm), (replays, 1)), at] for arm in (a, b))
    return x - y


def stops(d: np.ndarray) -> np.ndarray:
    """Return after how many pairs (replays,) the sequential test of differences -1, 0, 1 (replays, pairs) ends; pairs + 1: never.

    `log_evidence` at 0 is here in closed form, 2^(w+l) B(w+1, l+1).
    """
    wins, losses = (np.cumsum(d == sign, 1, dtype=np.int32) for sign in (1, -1))
    most = int((wins + losses).max())
    won, lost = np.ogrid[: most + 1, : most + 1]
    over = (betaln(won + 1, lost + 1) + (won + lost) * np.log(2) >= -np.log(LEVEL))[wins, losses]
    return np.where(over.any(1), over.argmax(1) + 1, d.shape[1] + 1)


def fixed(d: np.ndarray, power: float) -> int | None:
    """Return the fewest pairs at which McNemar's exact test finds a difference in so many replays; None: more than there are."""
    wins, losses = (np.cumsum(d == sign, 1, dtype=np.int32) for sign in (1, -1))
    m = np.arange(int((wins + losses).max()) + 1)
    limit = stats.binom.ppf(LEVEL / 2, m, 0.5)
    limit -= stats.binom.cdf(limit, m, 0.5) > LEVEL / 2  # the most losses that still reject; -1: none
    share = (np.minimum(wins, losses) <= limit[wins + losses]).mean(0)
    found = np.flatnonzero(share >= power)
    return int(found[0]) + 1 if len(found) else None


def plan_lines(found: dict[str, Any]) -> Iterator[str]:
    known, gap = found["known"], found["planned"]
    share = f"{100 * found['power']:g} %"
    if found["sequential"] is None:
        yield f"    replayed {found['replays']} times: {MOST} pairs do not tell them apart in {share} of the replays"
        return
    median, enough, mean = (found["sequential"][key] for key in ("median", "enough", "mean"))
    wrong = f"without a difference, {100 * found['false']:.1f} % are"
    yield f"    replayed {found['replays']} times: half are told apart by {median} pairs, {share} by {enough}; {wrong}"
    for pairs, what in ((known, "for this difference"), (gap, f"for {100 * found['gap']:g} points")):
        if pairs is not None:
            fewer = f"{abs(100 * (1 - mean / pairs)):.0f} % {'fewer' if mean <= pairs else 'more'}"
            yield f"    with {share} power: {mean:.0f} pairs on average, {fewer} than the {pairs} of a test planned {what}"

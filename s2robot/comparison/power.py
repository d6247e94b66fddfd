"""How many positions a comparison needs, before it runs.

needed(0.10, Design(base=0.5, seeds=3, seed_sd=0.03))   # positions for 80 % power

Gaps are fractions: 0.1 is 10 points of success.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from s2robot.comparison.paired import POSITIONS, SEEDS_AND_POSITIONS, fraction
from s2robot.core.errors import UserError

_MOST_POSITIONS = 1_000_000  # beyond this an evaluation is out of reach, and the search for N ends


@dataclass(frozen=True)
class Design:
    """What a power analysis assumes."""

    base: float  # success of the weaker arm
    correlation: float = 0.3  # phi, between the successes of two policies on the same position
    seeds: int = 1  # training seeds an arm
    seed_sd: float = 0.0  # standard deviation of success over training seeds of an arm (0.03 = 3 points)
    alpha: float = 0.05  # two-sided error rate


def power_at(gap: float, positions: int, design: Design) -> float:
    """Return the chance to find the better arm better (p < alpha in `difference`) when it is `gap` above the base.

    One seed: exact power of McNemar's exact test, summed over the number of discordant positions. More seeds:
    chance that the estimate passes the limit of `difference`, averaged over the mean squares that few seeds
    may show. Sources: Miettinen 1968, Connor 1987 (paired table). Raises UserError for an impossible gap.
    """
    p, q = design.base, min(design.base + gap, 1.0)
    if not 0 < gap <= 1 - p + 1e-9 or positions < 2:
        raise UserError(
            f"expected a gap in 0..{1 - p:g} and 2 positions or more, got {gap:g} and {positions}"
        )
    v, w = p * (1 - p), max(q * (1 - q), 1e-9)
    least, most = max(0.0, p + q - 1) - p * q, min(p, q) - p * q  # all that a 2 × 2 table can hold
    covariance = min(max(design.correlation * math.sqrt(v * w), least), most)
    if design.seeds == 1:
        return _mcnemar_power(gap, p + q - 2 * (covariance + p * q), positions, design.alpha)
    k, n = design.seeds, positions + 2
    rho = covariance / math.sqrt(v * w)
    of_mean = max(0.0, (v + w) * (1 + (k - 1) * rho) / k - 2 * covariance)  # of a position's mean difference
    of_positions = (positions * (of_mean + 2 * gap**2 / n) + 1) / n**2
    quantiles = stats.chi2.ppf((np.arange(40) + 0.5) / 40, k - 1) / (k - 1)
    within = [x * (1 - rho) / (k * positions) for x in (v, w)]
    x, y = np.meshgrid(*((design.seed_sd**2 / k + part) * quantiles for part in within))
    error = np.sqrt(of_positions + np.maximum(x + y - sum(within), 0))  # what `estimate` would find
    df = np.maximum(error**4 * (k - 1) / (x**2 + y**2), k - 1)
    true_error = math.sqrt(positions * of_mean / n**2 + 2 * design.seed_sd**2 / k + 1e-12)
    limit = stats.t.ppf(1 - design.alpha / 2, df) * error
    return float(stats.norm.sf((limit - gap * positions / n) / true_error).mean())


def _mcnemar_power(gap: float, discordant: float, positions: int, alpha: float) -> float:
    mean, sd = positions * discordant, math.sqrt(positions * discordant * (1 - discordant))
    m = np.arange(max(0, int(mean - 9 * sd)), min(positions, int(mean + 9 * sd) + 1) + 1)  # discordant
    limit = stats.binom.ppf(alpha / 2, m, 0.5)
    limit -= stats.binom.cdf(limit, m, 0.5) > alpha / 2  # the most losses that still reject; -1: none
    losses = np.clip((1 - gap / discordant) / 2, 0, 1)
    return float((stats.binom.pmf(m, positions, discordant) * stats.binom.cdf(limit, m, losses)).sum())


def needed(gap: float, design: Design, power: float = 0.8) -> int | None:
    """Return the positions needed to see `gap` (fraction) with `power`: needed(0.1, Design(base=0.5)) -> 291.

    None if no number of positions is enough with so few training seeds.
    """
    fraction("power", power)
    if power_at(gap, _MOST_POSITIONS, design) < power:
        return None
    low, high = 1, 2  # power_at(low) < power <= power_at(high)
    while power_at(gap, high, design) < power:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(gap, middle, design) >= power else (middle, high)
    return high


def power_text(gap: float, design: Design, power: float = 0.8) -> str:
    """Return `needed` as a sentence: "To see a gap of 10 points with 80 % power you need 291 positions …"."""
    wanted = f"To see a gap of {100 * gap:g} points with {100 * power:g} % power you need "
    assumed = f"spread {100 * design.seed_sd:g} points, base {100 * design.base:g} %, alpha {100 * design.alpha:g} %"
    if (count := needed(gap, design, power)) is None:
        more = (replace(design, seeds=k) for k in range(2, 1000))
        enough = next((x.seeds for x in more if power_at(gap, _MOST_POSITIONS, x) >= power), "over 1000")
        return f"{wanted}{enough} training seeds an arm instead of {design.seeds} ({assumed})."
    scope = POSITIONS if design.seeds == 1 else SEEDS_AND_POSITIONS
    return (
        f"{wanted}{count} positions (training seeds an arm: {design.seeds}, {assumed}); it holds for {scope}."
    )

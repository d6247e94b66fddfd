"""Paired statistics of success: arms on the same positions, with several training seeds per arm.

    outcomes = outcomes_of({"base + S²": {0: records, 1: records, 2: records}, "base": {0: ..., 1: ..., 2: ...}})
    difference(outcomes["base + S²"], outcomes["base"])      # difference, low, high, p, scope
    success_interval(outcomes["base"])                       # low, high, method: for new seeds and new positions
    sequential(*tally(outcomes["base + S²"], outcomes["base"]))    # p, low, high: valid after every position

Outcomes are bool (seeds, positions); differences are fractions, first arm minus second.
`python -m benchmarks.interval_coverage` measures the coverage of the intervals.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq
from scipy.special import logsumexp

from s2robot.core.errors import UserError
from s2robot.evaluation.records import score_interval

Array = np.ndarray
SEEDS_AND_POSITIONS = "new training seeds and new positions"
POSITIONS = "new positions, for these trained policies only"


def outcomes_of(records: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]) -> dict[str, Array]:
    """Return the success of every arm, training seed and position: arm -> bool (seeds, positions), both axes sorted. UserError
    if two evaluations have different positions."""
    found: dict[str, list[list[bool]]] = {}
    first, expected = "", dict[int, bool]()
    for arm, by_seed in records.items():
        for seed in sorted(by_seed):
            run = {episode["seed"]: episode["success"] for episode in by_seed[seed]}
            first, expected = (first, expected) if first else (f"arm {arm!r} seed {seed}", run)
            if odd := expected.keys() ^ run.keys():
                state = "no" if min(odd) in expected else "another"
                why = f"expected the positions of {first}, got {state} position {min(odd)}"
                raise UserError(f"arm {arm!r} seed {seed}: {why}")
            found.setdefault(arm, []).append([run[position] for position in sorted(expected)])
    return {arm: np.array(rows) for arm, rows in found.items()}


class Difference(NamedTuple):
    """Success of the first arm minus success of the second (fractions), with its uncertainty."""

    difference: float
    low: float
    high: float
    p: float  # two-sided test of no difference
    scope: str  # population that low, high and p refer to: SEEDS_AND_POSITIONS or POSITIONS


def difference(a: Array, b: Array, confidence: float = 0.95, trials: int = 1) -> Difference:
    """Return the difference in success of arms a and b (seeds, positions), whose columns are the same positions.

    With two or more seeds per arm: t interval and test that treat seeds and positions as random (`estimate`), for
    SEEDS_AND_POSITIONS. With one seed in either arm the variance of training is unknown, so the results hold for
    POSITIONS: Agresti & Min 2005 (adjusted Wald, half an episode added to each cell of the paired table), and
    McNemar's exact test if both arms have one seed. Outcomes that are means over ``trials`` disturbances have Student's
    interval and test over positions, with half of one trial added.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    both = min(len(a), len(b)) > 1
    centre, error, df = (float(v) for v in estimate(a.mean(0) - b.mean(0), [a, b] if both else [], trials))
    df = min(df, a.shape[1] - 1.0) if trials > 1 else df
    half = float(stats.t.ppf(0.5 + confidence / 2, df)) * error
    p = float(2 * stats.t.sf(abs(centre) / error, df))
    if len(a) == len(b) == trials == 1:
        p = mcnemar(int((a > b).sum()), int((a < b).sum()))
    scope = SEEDS_AND_POSITIONS if both else POSITIONS
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Difference(float(a.mean() - b.mean()), low, high, p, scope)


def estimate(d: Any, arms: Sequence[Any], trials: int = 1) -> tuple[Any, Any, Any]:
    """Return centre, standard error and degrees of freedom (...) of differences d (..., positions).

    `arms`: outcomes (..., seeds, positions) whose seeds are random; if empty, the seeds are fixed.
    Variance = variance of d, kept above zero by Agresti & Min's two added trials of ``trials`` at a position (half a win,
    half a loss, one tie), plus the contribution of seeds: mean square between seeds minus the part already in d, at least zero.
    Degrees of freedom: Satterthwaite 1946. Components: Searle, Casella & McCulloch 1992, two-way crossed.
    """
    n = d.shape[-1] + 2 / trials
    centre = d.sum(-1) / n
    variance = ((d**2).sum(-1) + 1 / trials - n * centre**2) / n**2
    excess, spread = np.zeros_like(centre), np.full_like(centre, 1e-300)
    for x in arms:
        k, positions = x.shape[-2:]
        between = x.mean(-1).var(-1, ddof=1) / k
        within = noise(x) / (k * positions)
        excess = excess + between - within
        spread = spread + between**2 / (k - 1) + within**2 / ((k - 1) * max(1, positions - 1))
    variance = variance + np.maximum(excess, 0)
    fewest = min((x.shape[-2] for x in arms), default=2)
    return centre, np.sqrt(variance), np.maximum(variance**2 / spread, fewest - 1)


def noise(x: Any) -> Any:
    """Return the residual mean square (...) of x (..., seeds, positions), which neither seed nor position explains."""
    residual = x - x.mean(-1, keepdims=True) - x.mean(-2, keepdims=True) + x.mean((-2, -1), keepdims=True)
    return (residual**2).sum((-2, -1)) / ((x.shape[-2] - 1) * max(1, x.shape[-1] - 1))


def success_interval(outcomes: Array, confidence: float = 0.95) -> tuple[float, float, str]:
    """Return low and high of an arm's success for new training seeds and new positions, and the name of the method: Wilson
    1927; with two or more seeds, for the effective number of independent episodes (Kish 1965), see `bounds`."""
    low, high, episodes = (float(v) for v in bounds(np.asarray(outcomes, float), confidence))
    if len(outcomes) == 1:
        return low, high, "Wilson"
    return low, high, f"Wilson, as of {episodes:.0f} independent episodes, with Student's quantile"


def bounds(x: Any, confidence: float = 0.95) -> tuple[Any, Any, Any]:
    """Return low, high and effective episodes (...) of outcomes x (..., seeds, positions), each 0 or 1.

    Variance of the mean = variance of the positions' means + the contribution of seeds, as in `estimate`; degrees of
    freedom by Satterthwaite 1946. Unlike `difference`, no pseudo-counts: Wilson's form keeps its width at 0 and 1.
    """
    k, positions = x.shape[-2:]
    p, total = x.mean((-2, -1)), float(k * positions)
    episodes, quantile = np.full_like(p, total), np.full_like(p, stats.norm.ppf(0.5 + confidence / 2))
    if k > 1:
        between = x.mean(-1).var(-1, ddof=1) / k
        variance = x.mean(-2).var(-1, ddof=1 if positions > 1 else 0) / positions
        variance = np.maximum(variance + np.maximum(between - noise(x) / total, 0), 1e-12)
        binomial = p * (1 - p)
        episodes = np.where(binomial > 0, np.clip(binomial / variance, 1e-9, total), total)
        df = np.maximum((k - 1) * (variance / np.maximum(between, 1e-12)) ** 2, k - 1)
        quantile = stats.t.ppf(0.5 + confidence / 2, df)
    return *score_interval(p, episodes, quantile), episodes


def predicted(arm: Array, simulated: Array, extra: Array) -> tuple[float, float, float, float]:
    """Return success, low, high (95 %) and effective trials of an arm, from n real trials and simulation at these and other
    positions.

    Args:
        arm: outcomes (n,) of real trials. simulated: means (n,) in 0..1 of the simulated trials at the same positions.
        extra: means (N,) at positions that were only simulated, drawn from the same distribution.

    Prediction-powered mean (Angelopoulos et al. 2023, Science 382:669) with the power-tuned weight of PPI++ (arXiv
    2311.01453): a simulation that predicts nothing has no weight. To hold for few trials, the variance comes from a table with
    half a trial added to each of its four cells (as in `estimate`), and Wilson's interval replaces the normal one.
    """
    n, n_extra = len(arm), len(extra)
    pseudo = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    table = np.append(np.stack([arm, simulated]).astype(float), pseudo, 1)  # (2, n + 4)
    weights = np.append(np.ones(n), np.full(4, 0.5))
    (_, both), (_, of_simulated) = covariance = np.cov(table, aweights=weights, ddof=0)
    weight = float(both / of_simulated * n_extra / (n_extra + n))
    shift = weight * float(np.mean(extra))
    success = float(np.mean(arm) - weight * np.mean(simulated)) + shift
    residual = covariance[0, 0] - 2 * weight * both + weight**2 * of_simulated  # of arm - weight * simulated
    variance = residual / n + weight**2 * float(np.var(extra)) / n_extra
    chance = float(np.average(table[0] - weight * table[1], weights=weights)) + shift
    chance = min(max(chance, 1 / (2 * n + 4)), 1 - 1 / (2 * n + 4))
    trials = min(max(chance * (1 - chance) / variance, n / 2), n + n_extra)
    success, quantile = min(max(success, 0.0), 1.0), float(stats.t.ppf(0.975, n - 2))
    low, high = score_interval(success, trials, quantile)
    return success, float(low), float(high), trials


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p of McNemar's test: b positions won only by one arm, c only by the other."""
    return float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Return the adjusted p values of a family of tests: holm([0.01, 0.04, 0.03]) -> [0.03, 0.06, 0.06]. Holm 1979: valid under
    any dependence, and at every look if the p values are."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.asarray(p, float)[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[np.argsort(order)].tolist()


def tally(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the distinct mean differences (n,) and their numbers of positions (n,); with one seed per arm -1, 0 and 1."""
    return np.unique((np.mean(a, 0) - np.mean(b, 0)).round(12), return_counts=True)


def sequential(d: Array, n: Array, alpha: float = 0.05) -> tuple[float, float, float]:
    """Return p, low and high, which stay valid if inspected after every position, in the fixed order of evaluation.

    Without a difference, p ever reaches alpha with probability <= alpha; low and high are a confidence sequence.

    `d`, `n`: see `tally`. A bet on each position grows by 1 + λ (d - m), λ spread evenly; if the difference is m, it ever
    reaches 1 / alpha with probability <= alpha (Ville 1939). At m = 0 McNemar's pairs give the mixture likelihood ratio
    2^(w+l) B(w+1, l+1) (Robbins 1970). Holds for POSITIONS. Report this interval after an early stop, because
    `difference` assumes that N was fixed in advance. Source of the interval: Waudby-Smith & Ramdas 2024.
    """
    mean, limit = float((d * n).sum() / max(1, n.sum())), -math.log(alpha)
    low, high = (_crossing(d, n, mean, end, limit) for end in (-1.0, 1.0))
    return min(1.0, math.exp(-log_evidence(d, n, 0.0))), low, high


def _crossing(d: Array, n: Array, mean: float, end: float, limit: float) -> float:
    """Return where the evidence reaches the limit between the mean and an end; it is convex in m and <= 1 at the mean."""
    almost = end * (1 - 1e-12)
    if log_evidence(d, n, almost) < limit:
        return end
    return float(brentq(lambda m: log_evidence(d, n, m) - limit, mean, almost))


def success_sequence(outcomes: Array, alpha: float = 0.05) -> tuple[float, float, str]:
    """Return low and high of an arm's success that hold at all looks, and the name of the method, for a comparison with early
    stopping: `sequential` on each position's mean over training seeds, rescaled to -1..1."""
    _, low, high = sequential(*tally(2 * np.asarray(outcomes, float), np.ones((1, 1))), alpha)
    return (1 + low) / 2, (1 + high) / 2, "confidence sequence (sequential), for these trained policies"


def log_evidence(d: Array, n: Array, mean: float) -> float:
    """Return the log of the evidence against a true difference of `mean`."""
    if not -1 < mean < 1:
        return 0.0  # the bets are undefined here: m = -1 or 1 is never excluded
    nodes, logs = _quadrature(min(1 << (int(n.sum()) // 2).bit_length(), 512))
    sides = [(1 + d) / (1 + mean), (1 - d) / (1 - mean)]  # bets on a difference above the mean, and below it
    grown = [np.log(1 - nodes + nodes * x[:, None]).T @ n for x in sides]  # (nodes,) each
    return float(logsumexp(np.concatenate([g + logs for g in grown])) - math.log(2))


@lru_cache(maxsize=64)
def _quadrature(count: int) -> tuple[Array, Array]:
    """Return Gauss-Legendre nodes on 0..1 and log weights, exact for polynomials (such as bets) up to degree 2 count - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, np.log(weights / 2)

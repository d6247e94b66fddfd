"""Figures of a comparison: the positions needed, before it runs, and the contents of compare.json and episodes.csv.

needed(0.10, Power(base=0.5), seeds=3)                            # positions for 80 % power
runs = {"base": {0: records, 1: records}, "base-s2": {0: records, 1: records}}   # arm -> training seed
all_pairs(outcomes_of(runs), [10000, 10001], [("base-s2", "base")])   # difference, low, high, p, mcnemar ...
"""

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from s2robot.comparison import paired
from s2robot.comparison.paired import POSITIONS, SEEDS_AND_POSITIONS, sequential, tally
from s2robot.comparison.settings import Power
from s2robot.core.errors import UserError
from s2robot.evaluation.records import task_fields

Runs = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]  # arm -> training seed -> episode records
Outcomes = Mapping[str, np.ndarray]  # arm -> bool (seeds, positions)
Pair = Mapping[str, Any]  # one of compare.json's pairs

MINUS, LEVEL = "\N{MINUS SIGN}", 0.05  # significance level of p and of the intervals (95 %)
VERDICTS = {True: "differ", False: "not told apart", None: "borderline"}
GAPS = (0.03, 0.05, 0.08, 0.10, 0.15, 0.20, 0.30)  # rows of the power table
COLUMNS = ("arm", "training_seed", "axis", "value", "position", "layout", "success", "stage", "steps", "time_to_success_s")  # fmt: skip
_MAX_POSITIONS = 1_000_000  # where the search for N ends; no evaluation is this large


def power_at(gap: float, positions: int, design: Power, seeds: int = 1) -> float:
    """Return the probability of a significant result (p < alpha in `difference`) if one arm is `gap` above the base.

    One seed: exact power of McNemar's exact test, summed over the number of discordant positions. More seeds:
    probability that the estimate exceeds the limit of `difference`, averaged over the distribution of the mean
    squares of a few seeds. Sources: Miettinen 1968, Connor 1987 (paired table).
    """
    p, q = design.base, min(design.base + gap, 1.0)
    v, w = (max(x * (1 - x), 1e-9) for x in (p, q))
    lowest, highest = max(0.0, p + q - 1) - p * q, min(p, q) - p * q  # limits of a 2 × 2 table
    covariance = min(max(design.correlation * math.sqrt(v * w), lowest), highest)
    if seeds == 1:
        return _mcnemar_power(gap, p + q - 2 * (covariance + p * q), positions, design.alpha)
    k, n = seeds, positions + 2
    rho = covariance / math.sqrt(v * w)
    of_mean = max(0.0, (v + w) * (1 + (k - 1) * rho) / k - 2 * covariance)  # variance of a mean difference
    of_positions = (positions * (of_mean + 2 * gap**2 / n) + 1) / n**2
    quantiles = stats.chi2.ppf((np.arange(40) + 0.5) / 40, k - 1) / (k - 1)
    within = [x * (1 - rho) / (k * positions) for x in (v, w)]
    x, y = np.meshgrid(*((design.seed_sd**2 / k + part) * quantiles for part in within))
    error = np.sqrt(of_positions + np.maximum(x + y - sum(within), 0))  # standard error of `estimate`
    df = np.maximum(error**4 * (k - 1) / (x**2 + y**2), k - 1)
    true_error = math.sqrt(positions * of_mean / n**2 + 2 * design.seed_sd**2 / k + 1e-12)
    limit = stats.t.ppf(1 - design.alpha / 2, df) * error
    return float(stats.norm.sf((limit - gap * positions / n) / true_error).mean())


def _mcnemar_power(gap: float, discordant: float, positions: int, alpha: float) -> float:
    mean, sd = positions * discordant, math.sqrt(positions * discordant * (1 - discordant))
    m = np.arange(max(0, int(mean - 9 * sd)), min(positions, int(mean + 9 * sd) + 1) + 1)  # discordant
    limit = stats.binom.ppf(alpha / 2, m, 0.5)
    limit -= stats.binom.cdf(limit, m, 0.5) > alpha / 2  # largest loss count that still rejects; -1: none
    losses = np.clip((1 - gap / discordant) / 2, 0, 1)
    return float((stats.binom.pmf(m, positions, discordant) * stats.binom.cdf(limit, m, losses)).sum())


def needed(gap: float, design: Power, seeds: int = 1) -> int | None:
    """Return the positions needed to detect `gap` (fraction); None if no number suffices with these training seeds."""
    counts = range(_MAX_POSITIONS + 1)
    found = bisect_left(counts, design.power, 1, key=lambda count: power_at(gap, count, design, seeds))
    return found if found in counts else None


def power_figures(design: Power, seeds: int, planned: int) -> tuple[dict[str, Any], list[str]]:
    """Return the power of the planned positions, for compare.json and as lines to print. UserError if ``design.strict`` is set
    and there are too few positions."""
    table = [{"gap": gap, "needed": needed(gap, design, seeds)} for gap in GAPS if gap + design.base <= 1]
    enough = needed(design.gap, design, seeds)
    goal = f"to detect a gap of {100 * design.gap:g} points with {100 * design.power:g} % power"
    required = f"more than {seeds} training seeds per arm" if enough is None else f"{enough} positions"
    spread = f"spread {100 * design.seed_sd:g} points, " if seeds > 1 else ""
    lines = [
        f"You need {required} {goal} (training seeds per arm: {seeds}, {spread}base {100 * design.base:g} %, alpha "
        f"{100 * design.alpha:g} %); the result holds for {SEEDS_AND_POSITIONS if seeds > 1 else POSITIONS}."
    ]
    if enough is None or planned < enough:
        key, got = ("experiment.seeds", seeds) if enough is None else ("evaluate.episodes", planned)
        few = f"{key}: expected {required if enough is None else f'>= {enough}'} {goal}, got {got}"
        if design.strict:
            raise UserError(f"{few}; experiment.power.strict=false runs anyway")
        lines.append(f"warning: {few}")
    about = {"gap": design.gap, "power": design.power, "needed": enough, "planned": planned, "table": table}
    return about, lines


def arm_interval(outcomes: np.ndarray, seq_alpha: float | None = None) -> dict[str, Any]:
    """Return an arm's success and its interval; ``seq_alpha``: alpha of a confidence sequence, else None."""
    found = paired.success_interval(outcomes)
    if seq_alpha is not None:
        found = paired.success_sequence(outcomes, seq_alpha)
    return {"success": float(outcomes.mean()), "low": found[0], "high": found[1], "interval": found[2]}


def arm_figures(
    outcomes: np.ndarray, seeds: Sequence[int], runs: Sequence[str], seq_alpha: float | None = None
) -> dict[str, Any]:
    """Return successes by training seed and :func:`arm_interval`; ``runs``: the seeds' folders."""
    rows = [
        {"seed": int(seed), "episodes": int(row.size), "successes": int(row.sum()), "run": run}
        for seed, row, run in zip(seeds, outcomes, runs, strict=True)
    ]
    return {"seeds": rows, **arm_interval(outcomes, seq_alpha)}


def mean_progress(runs: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the mean of the records' best progress with its 95 % interval over positions and, if there are several, training
    seeds; {} if it was not measured."""
    values = np.array([[record.get("progress") for record in run] for run in runs.values()], float)
    if np.isnan(values).any():
        return {}
    half, n = 0.0, values.shape[1]
    if n > 1:
        _, error, df = paired.estimate(values.mean(0), [values] if len(values) > 1 else [], 10**9)
        half = stats.t.ppf(0.975, min(df, n - 1)) * error * math.sqrt(n / (n - 1))
    return {"progress": [float(values.mean() + side * half) for side in (0, -1, 1)]}


def pair_figures(
    outcomes: Outcomes, positions: Sequence[int], a: str, b: str, seq_alpha: float | None = None, trials: int = 1
) -> dict[str, Any]:  # fmt: skip
    """Return success of arm a minus success of arm b; ``only_a``: positions solved by most training seeds of a but not of b."""
    x, y = outcomes[a], outcomes[b]
    found = paired.difference(x, y, trials=trials)
    low, high, p, scope = found.low, found.high, found.p, found.scope
    test = "McNemar's exact test" if len(x) == len(y) == 1 else "t test"
    method = "t interval over positions" if trials > 1 else f"adjusted Wald interval, {test}"
    if seq_alpha is not None:
        p, low, high = sequential(*tally(x, y), seq_alpha)
        scope, method = POSITIONS, "confidence sequence (sequential)"
    elif scope == SEEDS_AND_POSITIONS:
        method = "t interval, training seeds and positions random"
    solved_a, solved_b = x.mean(0) > 0.5, y.mean(0) > 0.5
    only_a, only_b = np.flatnonzero(solved_a & ~solved_b), np.flatnonzero(solved_b & ~solved_a)
    return {
        "a": a, "b": b, "difference": found.difference, "low": low, "high": high, "p": p,
        "episodes": int(x.size + y.size), "positions": int(x.shape[1]), "scope": scope, "method": method,
        "mcnemar": {"wins": len(only_a), "losses": len(only_b), "p": paired.mcnemar(len(only_a), len(only_b))},
        "only_a": [int(positions[i]) for i in only_a],
        "only_b": [int(positions[i]) for i in only_b],
    }  # fmt: skip


def all_pairs(
    outcomes: Outcomes,
    positions: Sequence[int],
    pairs: Sequence[tuple[str, str]],
    seq_alpha: float | None = None,
) -> list[dict[str, Any]]:
    """Return `pair_figures` of each pair with `p_holm`, which decides it; ``seq_alpha``: the common alpha of all pairs."""
    share = None if seq_alpha is None else seq_alpha / len(pairs)  # so that all intervals hold simultaneously
    rows = [pair_figures(outcomes, positions, a, b, share) for a, b in pairs]
    more = [{"p_holm": p, "alpha": seq_alpha or LEVEL} for p in paired.holm([row["p"] for row in rows])]
    return [row | figures for row, figures in zip(rows, more, strict=True)]


def interim(outcomes: Outcomes, pairs: Sequence[tuple[str, str]], alpha: float) -> dict[str, Any]:
    """Return one interim analysis of a sequential comparison. ``stop``: every pair is decided by Holm's rule. The intervals
    hold simultaneously, each at alpha / number of pairs."""
    positions, keys = next(iter(outcomes.values())).shape[1], ("a", "b", "p", "p_holm", "low", "high")
    found = all_pairs(outcomes, range(positions), pairs, alpha)
    rows = [{key: row[key] for key in keys} | {"stop": row["p_holm"] <= alpha} for row in found]
    return {"positions": int(positions), "pairs": rows, "stop": all(row["stop"] for row in rows)}


def csv_rows(runs: Runs, axis: str = "", value: Any = "") -> list[list[Any]]:
    return [
        [arm, seed, axis, value, e["seed"], json.dumps(task_fields(e)), int(e["success"]), e["stage"], e["steps"], e["time_to_success_s"]]
        for arm, by_seed in runs.items()
        for seed, episodes in by_seed.items()
        for e in sorted(episodes, key=lambda e: e["seed"])
    ]  # fmt: skip


def verdict(pair: Pair) -> bool | None:
    """Return whether the arms differ: True if both interval and test say so, False if neither does, else None."""
    outside = pair["low"] > 0 or pair["high"] < 0
    return outside if outside == (pair["p_holm"] < pair.get("alpha", LEVEL)) else None


def headline(pair: Pair, labels: Mapping[str, str]) -> str:
    """Return "Base + S²: +9.4 points [2.1, 16.6] against Base, p = 0.012, N = 128 positions"."""
    sign = "+" if pair["difference"] >= 0 else MINUS
    points = [f"{100 * pair[k]:.1f}".replace("-", MINUS) for k in ("low", "high")]
    words = {True: "", False: "No clear difference: ", None: "Borderline: "}[verdict(pair)]
    return (
        f"{words}{labels[pair['a']]}: {sign}{100 * abs(pair['difference']):.1f} points [{', '.join(points)}] against "
        f"{labels[pair['b']]}, {p_text(pair['p_holm'])}, N = {pair['positions']} positions"
    )


def p_text(p: float) -> str:
    """0.00004 -> "p < 0.001", 0.0412 -> "p = 0.041"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

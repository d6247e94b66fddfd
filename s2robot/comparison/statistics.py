"""From the episodes of all arms to the figures of compare.json, summary.json and episodes.csv.

runs = {"base": {0: records, 1: records}, "base-s2": {0: records, 1: records}}   # arm -> training seed
pair_figures(outcomes_of(runs), positions_of(runs), "base-s2", "base")  # difference, low, high, p, mcnemar ...
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from s2robot.comparison.intervals import success_interval, success_sequence
from s2robot.comparison.paired import POSITIONS, difference, holm, mcnemar
from s2robot.comparison.power import Design, needed, power_text
from s2robot.comparison.sequential import sequential, tally
from s2robot.comparison.settings import Power
from s2robot.core.errors import UserError
from s2robot.evaluation.records import where_of

Runs = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]  # arm -> training seed -> episode records

MINUS, LEVEL = "\N{MINUS SIGN}", 0.05  # of p and of the intervals (95 %)
GAPS = (0.03, 0.05, 0.08, 0.10, 0.15, 0.20, 0.30)  # of the power table
COLUMNS = ("arm", "training_seed", "axis", "value", "position", "layout", "success", "stage", "steps", "time_to_success_s")  # fmt: skip


def arm_figures(
    outcomes: np.ndarray, seeds: Sequence[int], runs: Sequence[str], looked: float | None = None
) -> dict[str, Any]:
    """Successes by training seed, pooled success and its interval; ``runs`` are the folders.

    ``looked``: the alpha of a comparison that was stopped early, for an interval that holds then.
    """
    low, high, method = arm_interval(outcomes, looked)
    rows = [
        {"seed": int(seed), "episodes": int(row.size), "successes": int(row.sum()), "run": run}
        for seed, row, run in zip(seeds, outcomes, runs, strict=True)
    ]
    return {"seeds": rows, "success": float(outcomes.mean()), "low": low, "high": high, "interval": method}


def arm_interval(outcomes: np.ndarray, looked: float | None = None) -> tuple[float, float, str]:
    """Low, high and method of an arm's success: for a fixed number of positions, or one that looks decided."""
    return success_interval(outcomes) if looked is None else success_sequence(outcomes, looked)


def pair_figures(
    outcomes: Mapping[str, np.ndarray], positions: Sequence[int], a: str, b: str, looked: float | None = None
) -> dict[str, Any]:
    """Success of arm a minus that of arm b, (seeds, positions) each.

    ``looked``: the alpha with which the comparison was stopped early, for the interval and the p value that hold
    then. ``only_a`` and McNemar's wins: positions that more than half of a's training seeds, and not of b's, did.
    """
    x, y = outcomes[a], outcomes[b]
    found = difference(x, y)
    method = "t interval, training seeds and positions random" if min(len(x), len(y)) > 1 else (
        "adjusted Wald interval, exact sign-flip test over positions"
    )  # fmt: skip
    low, high, p, scope = found.low, found.high, found.p, found.scope
    if looked is not None:
        look = sequential(tally(x, y), looked)
        low, high, p = look.low, look.high, look.p
        scope, method = POSITIONS, "confidence sequence (sequential)"
    did_a, did_b = x.mean(0) > 0.5, y.mean(0) > 0.5
    only_a, only_b = np.flatnonzero(did_a & ~did_b), np.flatnonzero(did_b & ~did_a)
    return {
        "a": a, "b": b, "difference": found.difference, "low": low, "high": high, "p": p,
        "p_positions": found.p_positions, "episodes": int(x.size + y.size), "positions": int(x.shape[1]),
        "scope": scope, "method": method,
        "mcnemar": {"wins": len(only_a), "losses": len(only_b), "p": mcnemar(len(only_a), len(only_b))},
        "only_a": [int(positions[i]) for i in only_a],
        "only_b": [int(positions[i]) for i in only_b],
    }  # fmt: skip


def all_pairs(
    outcomes: Mapping[str, np.ndarray],
    positions: Sequence[int],
    pairs: Sequence[tuple[str, str]],
    looked: float | None = None,
) -> list[dict[str, Any]]:
    """`pair_figures` of a family of pairs, each with `p_holm`, by which it is decided; ``looked`` is their common alpha."""
    share = None if looked is None else looked / len(pairs)  # of intervals that hold together
    rows = [pair_figures(outcomes, positions, a, b, share) for a, b in pairs]
    return [row | {"p_holm": p} for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]


def positions_of(runs: Runs) -> list[int]:
    """Seeds of the positions, rising, as the columns of `outcomes_of`."""
    episodes = next(iter(next(iter(runs.values())).values()))
    return sorted(int(e["seed"]) for e in episodes)


def power_figures(settings: Power, seeds: int, planned: int) -> tuple[dict[str, Any], list[str]]:
    """Return what the planned positions can see: for compare.json, and as lines to print before the run.

    Raises:
        UserError: too few positions, if ``settings.strict`` is set.
    """
    gap, power = settings.gap, settings.power
    spread = settings.seed_sd if seeds > 1 else 0.0
    design = Design(settings.base, settings.correlation, seeds, spread, settings.alpha)
    table = [{"gap": g, "needed": needed(g, design, power)} for g in GAPS if g <= 1 - design.base]
    enough, lines = needed(gap, design, power), [power_text(gap, design, power)]
    if enough is None or planned < enough:
        few = (
            f"evaluate.episodes: expected {'more training seeds' if enough is None else f'>= {enough}'} to see a gap of "
            f"{100 * gap:g} points with {100 * power:g} % power, got {planned}"
        )
        if settings.strict:
            raise UserError(f"{few}; experiment.power.strict=false runs anyway")
        lines.append(f"warning: {few}")
    return {"gap": gap, "power": power, "needed": enough, "planned": planned, "table": table}, lines


def look_at(
    outcomes: Mapping[str, np.ndarray], pairs: Iterable[tuple[str, str]], alpha: float
) -> dict[str, Any]:
    """One look of a sequential comparison; ``stop`` if every pair is decided, by Holm's rule on p values that hold at
    every look. The intervals hold together, each at alpha / number of pairs."""
    pairs = list(pairs)
    looks = [sequential(tally(outcomes[a], outcomes[b]), alpha / len(pairs)) for a, b in pairs]
    rows = [
        {"a": a, "b": b, "p": look.p, "p_holm": p, "low": look.low, "high": look.high, "stop": p <= alpha}
        for (a, b), look, p in zip(pairs, looks, holm([look.p for look in looks]), strict=True)
    ]
    positions = next(iter(outcomes.values())).shape[1]
    return {"positions": int(positions), "pairs": rows, "stop": all(row["stop"] for row in rows)}


def csv_rows(runs: Runs, axis: str = "", value: Any = "") -> list[list[Any]]:
    """Rows of episodes.csv; ``axis`` and ``value`` stay empty for the main comparison."""
    return [
        [arm, seed, axis, value, e["seed"], json.dumps(where_of(e)), int(e["success"]), e["stage"], e["steps"], e["time_to_success_s"]]
        for arm, by_seed in runs.items()
        for seed, episodes in by_seed.items()
        for e in sorted(episodes, key=lambda e: e["seed"])
    ]  # fmt: skip


def verdict(pair: Mapping[str, Any]) -> bool | None:
    """Return whether the arms differ: True if interval and test agree on it, False if neither does, None otherwise."""
    outside = pair["low"] > 0 or pair["high"] < 0
    return outside if outside == (pair["p_holm"] < LEVEL) else None


def headline(pair: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """ "Base + S²: +9.4 points [2.1, 16.6] against Base, p = 0.012, N = 128 positions." """
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

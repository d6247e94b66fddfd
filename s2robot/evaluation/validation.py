"""What an open-loop validation says: figures with their intervals, one line for a verdict.

    summary = summarise(policy, measured)
    summary["verdict"]      # "joints: mean error 0.012 rad, 0.41 times that of repeating the last action and ...: better than both"

Intervals are for new episodes: jackknife over those that were measured, with Student's quantile (for a mean that is the
t interval; a ratio is taken by its logarithm). One episode has none.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.files import write_text
from s2robot.evaluation.open_loop import METHODS, OVERALL, Measured
from s2robot.policies import ChunkPolicy, Part

WORDS = {"policy": "policy", "repeat": "repeating the last action", "mean": "the mean action"}


def summarise(policy: ChunkPolicy, measured: Measured) -> dict[str, Any]:
    """Figures by part, JSON types: the verdict, whether the policy is below both baselines, and what stands behind it."""
    usual = policy.spec.action_parts is None
    parts = [_part(part, measured, usual) for part in policy.spec.action.parts]
    overall = _figures(measured, OVERALL) if OVERALL in measured.measures else None
    judged = [part for part in parts if part["measure"] == "error"] or parts
    worse = {
        method: [part["part"] for part in judged if not part["better_than"][method]] for method in METHODS[1:]
    }
    better = not any(worse.values())
    return {
        "verdict": "; ".join(map(_words, parts)) + ": " + _judged(worse, len(judged)),
        "better": better,
        "parts": parts,
        "overall": overall,
        "episodes": measured.episodes,
        "steps": int(measured.counts[:, 0].sum()),
        "execute": measured.execute,
    }


def _part(part: Part, measured: Measured, usual: bool) -> dict[str, Any]:
    binary = part.kind == "binary"
    kind = "accuracy" if binary else "error"
    name = f"{part.label}_{kind}"
    figures = _figures(measured, name)
    value = figures["policy"]["value"]
    found = {
        "part": part.name,
        "measure": kind,
        "unit": "rad" if part.kind == "rotation" or (usual and part.name == "joints") else "",
        **figures,
        "by_step": {method: _plain(measured.by_step(method, name)) for method in METHODS},
    }
    if not binary:
        found["normalised"] = _figures(measured, f"{part.label}_normalised")
    sign = -1 if binary else 1
    found["better_than"] = {m: bool(sign * value < sign * figures[m]["value"]) for m in METHODS[1:]}
    return found


def _figures(measured: Measured, name: str) -> dict[str, Any]:
    """Of each method with its interval; of errors the policy's share of each baseline's, too."""
    values = {method: measured.values(method, name) for method in METHODS}  # (E,) each
    share = name.endswith("_accuracy")
    most = 1.0 if share else math.inf
    found: dict[str, Any] = {method: interval(each, most=most) for method, each in values.items()}
    if not share:
        found |= {f"of_{m}": interval(values["policy"], values[m]) for m in METHODS[1:]}
    return found


def interval(
    values: np.ndarray, of: np.ndarray | None = None, confidence: float = 0.95, most: float = math.inf
) -> dict[str, Any]:
    """The mean of values (E,), or its ratio to the mean of others, as value, low and high; null where there is none.

    most: above which there is nothing, 1 of a share.
    """
    from scipy.stats import t  # half a second, which those that read settings alone need not wait

    def figure(x: np.ndarray, y: np.ndarray | None) -> float:
        if y is None:
            return float(x.mean())
        return math.log(x.mean() / y.mean()) if x.mean() > 0 and y.mean() > 0 else math.nan

    count, whole = len(values), figure(values, of)
    back = float if of is None else math.exp
    if of is not None and not math.isfinite(whole):  # nothing is wrong at all, or the baseline is right
        return {"value": 0.0 if of.mean() > 0 else None, "low": None, "high": None}
    if count < 2:
        return {"value": back(whole), "low": None, "high": None}
    without = ~np.eye(count, dtype=bool)
    each = np.array([figure(values[w], None if of is None else of[w]) for w in without])
    sd = math.sqrt((count - 1) / count * ((each - each.mean()) ** 2).sum())
    half = float(t.ppf(0.5 + confidence / 2, count - 1)) * sd
    if not math.isfinite(half):
        return {"value": back(whole), "low": None, "high": None}
    low, high = back(whole - half), back(whole + half)
    return {"value": back(whole), "low": max(0.0, low), "high": min(most, high)}


def _words(part: Mapping[str, Any]) -> str:
    if part["measure"] == "accuracy":
        shares = [100 * part[method]["value"] for method in METHODS]
        return "{} right in {:.1f} % (repeating {:.1f} %, mean {:.1f} %)".format(part["part"], *shares)
    unit = part["unit"] or "in the data's unit"
    ratios = [f"{share_words(part[f'of_{m}'])} times that of {WORDS[m]}" for m in METHODS[1:]]
    return f"{part['part']}: mean error {part['policy']['value']:.3g} {unit}, {' and '.join(ratios)}"


def share_words(figure: Mapping[str, Any]) -> str:
    return "–" if figure["value"] is None else f"{figure['value']:.2f}"


def _judged(worse: Mapping[str, Sequence[str]], parts: int) -> str:
    if not any(worse.values()):
        return "better than both"
    told = []
    for method, names in worse.items():
        if names:
            which = "" if len(names) == parts else f" in {', '.join(names)}"
            told.append(f"NOT better than {WORDS[method]}{which}")
    return " and ".join(told)


def _plain(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]


def write_csv(path: Path, measured: Measured) -> None:
    """validation.csv: a row for each episode, measure and step of the chunk."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("episode", "measure", "chunk_step", "steps", *METHODS))
    for row, episode in enumerate(measured.episodes):
        for name in measured.measures:
            for step, count in enumerate(measured.counts[row]):
                if count:
                    values = [measured.errors[method][name][row, step] for method in METHODS]
                    writer.writerow((episode, name, step + 1, int(count), *(f"{v:.6g}" for v in values)))
    write_text(path, text.getvalue())

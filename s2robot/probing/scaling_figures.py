"""Figures of `s2robot scaling` from the tallies of its heads: scores, intervals, differences between arms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from scipy import stats

from s2robot.probing.heads import Task
from s2robot.probing.ridge import resample
from s2robot.probing.scaling_settings import Arm, Result, ScalingSettings


def judge(
    results: Mapping[Arm, Sequence[Result]],
    tasks: Mapping[str, Task],
    models: Mapping[str, Any],
    settings: ScalingSettings,
) -> dict[str, Any]:
    """ "arms": every metric with its interval and by seed; "differences" of arms that the paper compares."""
    drawn: dict[Arm, dict[str, np.ndarray]] = {}
    rows = []
    for arm, found in results.items():
        drawn[arm], by_seed = samples(found, tasks[arm.task], settings)
        cost = models[arm.model]["costs"][settings.scales.index(arm.scales)]
        rows.append(
            {
                "arm": arm.label,
                **asdict(arm),
                "scales": list(arm.scales),
                **cost,
                "parameters": models[arm.model]["parameters"],
                **{metric: seeds_interval(values) for metric, values in drawn[arm].items()},
                "by_seed": by_seed,
                "train_loss": float(np.mean([result.train_loss for result in found])),
                "steps": [result.step for result in found],
            }
        )
    differences = []
    for arm, less in pairs(list(results), settings):
        apart = {m: seeds_interval(drawn[arm][m] - drawn[less][m]) for m in drawn[arm]}
        facts = dict(zip(("task", "head", "resize"), arm.panel, strict=True))
        differences.append({"arm": arm.label, "minus": less.label, **facts, **apart})
    return {"arms": rows, "differences": differences}


def samples(
    found: Sequence[Result], task: Task, settings: ScalingSettings
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Every metric of every seed, drawn anew over pictures, the first as it is, (1 + B, S); and by seed."""
    pictures = np.unique(np.concatenate([result.rows for result in found]))
    times = resample(len(pictures), settings.resamples, 0)  # (1 + B, n)
    scores = []
    for result in found:
        weights = times[:, np.searchsorted(pictures, result.rows)]
        with np.errstate(invalid="ignore", divide="ignore"):
            scores.append(task.scores(weights @ result.tallies.astype(np.float64), weights.sum(1)))
    by_metric = {m: np.stack([score[m] for score in scores], 1) for m in task.metrics}  # (1 + B, S)
    return by_metric, {m: values[0].tolist() for m, values in by_metric.items()}


def seeds_interval(drawn: np.ndarray) -> dict[str, float | None]:
    """The mean over seeds and its 95 % t interval, for new seeds and new pictures; None where undefined.

    Variance: that of the mean over the pictures drawn anew + what seeds add, their mean square less what pictures bring
    into it. Degrees of freedom: Satterthwaite 1946. One seed: the interval holds for that seed.

    Args:
        drawn: a score of every seed (1 + B, S) on the pictures as they are, then on B bootstrap samples of them.
    """
    own, others = drawn[0], drawn[1:][np.isfinite(drawn[1:]).all(1)]
    if not np.isfinite(own).all() or len(others) < 2:
        return {"value": None, "low": None, "high": None}
    seeds, variance, df = len(own), max(others.mean(1).var(ddof=1), 1e-300), np.inf
    if seeds > 1:
        between, within = own.var(ddof=1) / seeds, (others - own).var(1, ddof=1).mean() / seeds
        variance += max(0.0, between - within)
        df = max(seeds - 1, (seeds - 1) * (variance / max(between, 1e-9 * variance)) ** 2)
    value, half = float(own.mean()), float(stats.t.ppf(0.975, df) * variance**0.5)
    return {"value": value, "low": value - half, "high": value + half}


def pairs(arms: Sequence[Arm], settings: ScalingSettings) -> list[tuple[Arm, Arm]]:
    """What is compared, first minus second: S2 and its own model at one scale, a larger model and a smaller one at one
    scale, S2 from a smaller model and a larger model at one scale."""
    found = []
    families = [*settings.families, *((a,) for a in dict.fromkeys(arm.model for arm in arms))]
    for family in families:
        for arm in arms:
            if arm.model not in family or (
                len(family) == 1 and any(arm.model in f for f in settings.families)
            ):
                continue
            for other in family[family.index(arm.model) :]:
                single = replace(arm, model=other, scales=min(settings.scales, key=len))
                if single.model == arm.model and len(arm.scales) > len(single.scales):
                    found.append((arm, single))
                elif single.model != arm.model and len(arm.scales) > len(single.scales):
                    found.append((arm, single))
                elif single.model != arm.model:
                    found.append((single, arm))
    return found

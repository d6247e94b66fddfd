"""Figures of `s2robot scaling` from the tallies of its heads: scores, intervals, differences between arms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from s2robot.probing.heads import Task
from s2robot.probing.ridge import interval, resample
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
                **{metric: interval(values) for metric, values in drawn[arm].items()},
                "by_seed": by_seed,
                "train_loss": float(np.mean([result.train_loss for result in found])),
                "steps": [result.step for result in found],
            }
        )
    differences = []
    for arm, less in pairs(list(results), settings):
        apart = {m: interval(drawn[arm][m] - drawn[less][m]) for m in drawn[arm]}
        facts = dict(zip(("task", "head", "resize"), arm.panel, strict=True))
        differences.append({"arm": arm.label, "minus": less.label, **facts, **apart})
    return {"arms": rows, "differences": differences}


def samples(
    found: Sequence[Result], task: Task, settings: ScalingSettings
) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Every metric, drawn anew over pictures and seeds, the first as it is, (1 + B,); and by seed."""
    pictures = np.unique(np.concatenate([result.rows for result in found]))
    times = resample(len(pictures), settings.resamples, 0)  # (1 + B, n)
    turns = resample(len(found), settings.resamples, 1) / len(found)  # (1 + B, S)
    scores = []
    for result in found:
        weights = times[:, np.searchsorted(pictures, result.rows)]
        with np.errstate(invalid="ignore", divide="ignore"):
            scores.append(task.scores(weights @ result.tallies.astype(np.float64), weights.sum(1)))
    by_metric = {m: np.stack([score[m] for score in scores], 1) for m in task.metrics}  # (1 + B, S)
    return (
        {m: (turns * values).sum(1) for m, values in by_metric.items()},
        {m: values[0].tolist() for m, values in by_metric.items()},
    )


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

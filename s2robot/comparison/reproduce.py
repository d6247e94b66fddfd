"""`s2robot reproduce`: check whether an evaluation from another machine holds on this one.

    s2robot reproduce run=theirs/run checkpoint=theirs/run/checkpoint     # exit code 0, 3 or 4: VERDICTS

First, compare the starts of the episodes: those whose settled state or first frames differ here, regardless of the policy.
Then compare success at the same positions: "reproduced" if the 90 % interval of the paired difference lies within the margin
(two one-sided tests at 5 %), "differs" if its 95 % interval excludes zero, else "cannot tell". The margin is fixed in advance.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from scipy import stats

from s2robot.comparison.paired import difference
from s2robot.config import chosen_world
from s2robot.core.errors import UserError
from s2robot.core.files import read_json, write_json
from s2robot.core.provenance import versions
from s2robot.core.settings import Settings, from_yaml, read_some
from s2robot.envs.tasks import settings_of
from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
from s2robot.evaluation.records import read_records, read_summary

VERDICTS = {"reproduced": 0, "differs": 3, "cannot tell": 4}
_PARTS = {"state": "physics", "frames": "images"}  # parts of a start's fingerprint


class ReproduceSettings(Settings, file="reproduce"):
    run: Path = from_yaml()
    checkpoint: Path | None = from_yaml()
    episodes: int | None = from_yaml(ge=2)
    margin: float = from_yaml(gt=0, lt=1)
    workers: int | None = from_yaml(ge=1)
    task_vectors: str | None = from_yaml()


def reproduce(cfg: DictConfig) -> int:
    """Evaluate the first ``episodes`` of a run again, print the differences and the verdict; return its exit code."""
    settings, out = read_some(ReproduceSettings, cfg), Path(cfg.run_dir)
    summary = read_summary(settings.run / "summary.json")
    if "world" in summary or out.resolve() == settings.run.resolve():
        raise UserError(f"run: expected a simulated run in another folder, got {settings.run}")
    records = read_records(settings.run / "episodes.jsonl", settings.episodes)
    identity = read_json(settings.run / "episodes.settings.json")
    checkpoint = settings.checkpoint or settings.run / "checkpoint"
    if not checkpoint.exists():
        raise UserError(f"{checkpoint}: no such folder; checkpoint=<folder> names the run's policy")
    evaluate = EvaluateSettings(
        episodes=1 + max(record["episode"] for record in records),  # after a kill, some before it may be missing
        seed=identity["evaluate.seed"], control=identity.get("evaluate.control"), videos=0, workers=settings.workers,
        instruction=identity.get("evaluate.instruction"), task_vectors=settings.task_vectors,
    )  # fmt: skip
    chosen_world(cfg)  # registers a user's own task
    world = settings_of(identity["env"], f"{settings.run}: env")
    evaluate_checkpoint(checkpoint, out, evaluate, world, cfg.encoder.checkpoint, repeats=identity)
    rerun = read_records(out / "episodes.jsonl")
    both = {"there": summary.get("versions") or {}, "here": versions()}
    result = compare_runs(records, rerun, settings.margin) | {"versions": both}
    write_json(out / "reproduce.json", result)
    print("\n".join(lines(result, str(world.task))))
    return VERDICTS[result["verdict"]]


def compare_runs(
    original: Sequence[Mapping[str, Any]], rerun: Sequence[Mapping[str, Any]], margin: float
) -> dict[str, Any]:
    """Return the starts that differ, the paired difference (rerun minus original) with its intervals, and the verdict."""
    here = {record["seed"]: record for record in rerun}
    pairs = [(record, here[record["seed"]]) for record in original]
    known = [(a["seed"], a["start"], b["start"]) for a, b in pairs if a.get("start") and b.get("start")]
    others = {part: [seed for seed, a, b in known if a[part] != b[part]] for part in _PARTS}
    success = np.array([[[a["success"] for a, _ in pairs]], [[b["success"] for _, b in pairs]]], float)
    wide, (won, lost) = difference(success[1], success[0]), (success[::-1] > success).sum((1, 2))
    low, high = score_limits(int(won), int(lost), len(pairs))
    verdict = "differs" if wide.low > 0 or wide.high < 0 else "cannot tell"
    if -margin < low and high < margin:
        verdict = "reproduced"
    return {
        "verdict": verdict, "margin": margin, "positions": len(pairs),
        "known_starts": sum(bool(a.get("start")) for a, _ in pairs), "other_starts": others,
        "there": int(success[0].sum()), "here": int(success[1].sum()), "difference": wide.difference,
        "low90": low, "high90": high, "low95": wide.low, "high95": wide.high,
        "changed": [a["seed"] for a, b in pairs if a["success"] != b["success"]],
    }  # fmt: skip


def score_limits(wins: int, losses: int, positions: int) -> tuple[float, float]:
    """Return the ends of the 90 % interval of a paired difference by the score test (Tango 1998), to 0.01 points. Unlike
    `difference`, each end keeps its 5 % if only one side wins positions, as when a perfect policy is evaluated again."""
    d = np.linspace(-1, 1, 20_001)
    b = (2 * positions - wins + losses) * d - wins - losses
    lost = (np.sqrt(np.maximum(b**2 + 8 * positions * losses * d * (1 - d), 0)) - b) / (4 * positions)
    error = np.sqrt(np.maximum(positions * (2 * lost + d * (1 - d)), 1e-9))
    inside = d[np.abs(wins - losses - positions * d) <= stats.norm.ppf(0.95) * error]
    return float(inside[0]), float(inside[-1])


def lines(result: Mapping[str, Any], task: str) -> list[str]:
    count, there, here = result["positions"], result["versions"]["there"], result["versions"]["here"]
    found = []
    for part, name in _PARTS.items():
        if others := result["other_starts"][part]:
            some = f"{len(others)} of {count} episodes (first: seed {others[0]})"
            found.append(f"{task}: different initial {name} in {some}")
    if not found:
        known = result["known_starts"]
        found.append(f"{task}: {known} of {count} episodes start identically, in physics and images" if known else
                     f"{task}: the run has no fingerprints of its starts")  # fmt: skip
    if changes := [f"{name} {there.get(name)} -> {v}" for name, v in here.items() if there.get(name) != v]:
        found.append("versions: " + ", ".join(changes))
    points = [100 * result[key] for key in ("difference", "low90", "high90")]
    found.append(f"success: {result['there']} of {count} there, {result['here']} here; {points[0]:+.1f} points "
                 f"[{points[1]:+.1f}, {points[2]:+.1f}] at 90 %, margin {100 * result['margin']:g} points")  # fmt: skip
    return [*found, result["verdict"]]

"""Figures of an evaluation: success with its Wilson interval, stages reached, time to success.

records = read_records(run / "episodes.jsonl")
summarise(records)  # {"success": 0.921875, "low": 0.862..., "high": 0.957..., "episodes": 128, ...}
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from s2robot.core.errors import UserError
from s2robot.core.files import read_json, read_text
from s2robot.core.settings import Stored, read
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import DEFAULT, settings_class_or_base

Record = Mapping[str, Any]  # one line of episodes.jsonl
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Record(Stored):
    """What every record holds; the task adds where the episode began and how far it came."""

    episode: int
    seed: int
    success: bool
    stage: str
    steps: int
    time_to_success_s: float | None
    video: str | None
    disagreement: float | None = None


class _Summary(Stored):
    """What every summary holds."""

    success: Fraction
    low: Fraction
    high: Fraction
    episodes: Annotated[int, Field(ge=1)]
    successes: Annotated[int, Field(ge=0)]
    by_stage: dict[str, int]


_COMMON = {*_Record.model_fields, "progress", "fault"}


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success probability, without continuity correction.

    wilson(118, 128) -> (0.8622..., 0.9570...). Source: Wilson 1927, as computed by scipy.stats.binomtest.

    Raises:
        UserError: impossible counts.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise UserError(f"expected 0 <= successes <= episodes and an episode, got {successes} of {episodes}")
    from scipy.stats import binomtest  # takes half a second to import

    interval = binomtest(int(successes), int(episodes)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Known:
    """The task of an evaluation's records."""

    settings: type[TaskSettings]
    stages: tuple[str, ...]  # in the order in which an episode can reach them
    success_text: str
    failures: Mapping[str, str]

    def failure(self, stage: str) -> str:
        """Describe an episode that failed with this stage as its furthest."""
        return self.failures.get(stage, f"came as far as {stage}")


def known_of(summary: Mapping[str, Any]) -> Known:
    """Return the task of a summary; the first task of this package if the summary names none."""
    about = summary.get("task") or {}
    cls = settings_class_or_base(about.get("name", DEFAULT))
    found = {key: about.get(key) or getattr(cls, key) for key in ("stages", "success_text", "failures")}
    return Known(cls, tuple(found.pop("stages")), **found)


def summarise(records: Sequence[Record], stages: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the part of summary.json that follows from the episode records.

    low and high are Wilson's at 95 %, by_stage counts episodes by their furthest stage. UserError for no records or an
    unknown stage.
    """
    if not records:
        raise UserError("no episodes to summarise: an evaluation needs at least 1 episode")
    by_stage = dict.fromkeys(known_of({}).stages if stages is None else stages, 0)
    for record in records:
        if record["stage"] not in by_stage:
            raise UserError(
                f"episode {record['episode']}: expected a stage of {', '.join(by_stage)}, got {record['stage']!r}"
            )
        by_stage[record["stage"]] += 1
    successes = sum(bool(record["success"]) for record in records)
    low, high = wilson(successes, len(records))
    times = [r["time_to_success_s"] for r in records if r["success"] and r["time_to_success_s"] is not None]
    return {
        "success": successes / len(records),
        "low": low,
        "high": high,
        "episodes": len(records),
        "successes": successes,
        "by_stage": by_stage,
        "median_time_to_success_s": statistics.median(times) if times else None,
    }


def disagreement_auc(records: Sequence[Record]) -> tuple[float, float, float] | None:
    """Return how well the members' disagreement predicts failure, with its 95 % interval.

    The share of pairs of a failure and a success in which the failure has more of it, ties as half (the area under the
    ROC curve). None unless there are records of both outcomes. Interval: Hanley and McNeil, 1982.
    """
    failed, good = (
        [r["disagreement"] for r in records if r.get("disagreement") is not None and r["success"] == outcome]
        for outcome in (False, True)
    )
    if not failed or not good:
        return None
    n, m = len(failed), len(good)
    area = sum((f > g) + 0.5 * (f == g) for f in failed for g in good) / (n * m)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)
    margin = 1.96 * math.sqrt(max(0.0, variance) / (n * m))
    return area, max(0.0, area - margin), min(1.0, area + margin)


def where_of(record: Record) -> dict[str, Any]:
    """Return where an episode began, in its task's own words: the keys that not all records have."""
    return {key: value for key, value in record.items() if key not in _COMMON}


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result as a sentence.

    "The policy stacked the objects in 118 of 128 episodes: 92.2 % (95 % interval 86.2–95.7 %)"
    """
    noun = "episode" if summary["episodes"] == 1 else "episodes"
    return (
        f"The policy {known_of(summary).success_text} in {summary['successes']} of {summary['episodes']} {noun}: "
        f"{100 * summary['success']:.1f} % "
        f"(95 % interval {100 * summary['low']:.1f}–{100 * summary['high']:.1f} %)"
    )


def read_summary(path: Path) -> dict[str, Any]:
    """Return summary.json of an evaluation; UserError if it is missing, broken or incomplete."""
    summary = read_json(path)
    read(_Summary, summary, f"{path}: ")
    return summary


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the episodes of an evaluation (one JSON object a line).

    Raises:
        UserError: names file and line for a missing file, a broken line, a wrong key or an episode that is there twice.
    """
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}: "
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}broken JSON: {error.msg} at column {error.colno}") from None
        found = read(_Record, record, where)
        if found.episode in records:
            raise UserError(f"{where}expected every episode once, got episode {found.episode} again")
        records[found.episode] = record
    return list(records.values())

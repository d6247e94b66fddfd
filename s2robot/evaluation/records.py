"""Figures of an evaluation: success with its Wilson interval, stages reached, time to success.

records = read_records(run / "episodes.jsonl")
summarise(records)  # {"success": 0.921875, "low": 0.862..., "high": 0.957..., "episodes": 128, ...}
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError
from s2robot.common.files import read_json, read_text
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import DEFAULT, settings_class_or_base

Record = Mapping[str, Any]  # one line of episodes.jsonl


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success probability, without continuity correction.

    wilson(118, 128) -> (0.8622..., 0.9570...). Unlike the normal approximation it stays inside 0..1 and is
    not of width zero at 0 or all successes. Raises UserError unless 0 <= successes <= episodes, episodes > 0
    and 0 < confidence < 1. Source: Wilson 1927, as computed by scipy.stats.binomtest.
    """
    if episodes < 1:
        raise UserError(f"an interval needs at least 1 episode, found {episodes}")
    if not 0 <= successes <= episodes:
        raise UserError(f"successes must lie in 0..{episodes} (the episodes), found {successes}")
    if not 0.0 < confidence < 1.0:
        raise UserError(f"confidence must lie between 0 and 1, found {confidence}")
    from scipy.stats import binomtest  # half a second, which those that read records alone need not wait

    interval = binomtest(int(successes), int(episodes)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Known:
    """What is known of the task that records are of."""

    name: str
    settings: type[TaskSettings]
    stages: tuple[str, ...]  # in the order in which an episode can reach them
    success_text: str
    failures: Mapping[str, str]

    def failure(self, stage: str) -> str:
        """What it means that an episode failed with this stage as its furthest."""
        return self.failures.get(stage, f"came as far as {stage}")


def known_of(summary: Mapping[str, Any]) -> Known:
    """The task of a summary; one that names none is of the first task of this package."""
    about = summary.get("task")
    name = about["name"] if about else DEFAULT
    cls = settings_class_or_base(name)
    if not about:
        return Known(name, cls, cls.stages, cls.success_text, cls.failures)
    return Known(name, cls, tuple(about["stages"]), about["success_text"], about["failures"])


def summarise(records: Sequence[Record], stages: Sequence[str] | None = None) -> dict[str, Any]:
    """The part of summary.json that follows from the episode records.

    Returns success, low, high (fractions; Wilson 95 %), episodes, successes, by_stage (how many episodes had
    each stage as the furthest that they reached; sums to episodes) and median_time_to_success_s (seconds over
    the successful episodes; None without any). Raises UserError for no records or an unknown stage.
    """
    if not records:
        raise UserError("no episodes to summarise: an evaluation needs at least 1 episode")
    stages = known_of({}).stages if stages is None else stages
    by_stage = dict.fromkeys(stages, 0)
    for record in records:
        if record["stage"] not in by_stage:
            raise UserError(
                f"episode {record['episode']}: unknown stage {record['stage']!r}, "
                f"expected one of {', '.join(stages)}"
            )
        by_stage[record["stage"]] += 1
    successes = sum(bool(record["success"]) for record in records)
    low, high = wilson(successes, len(records))
    times = success_times(records)
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
    """How well the members' disagreement tells failures from successes, and its 95 % interval.

    The share of pairs of a failure and a success in which the failure has more of it, ties as half (the area under the
    ROC curve): 0.5 says nothing, 1 all. None without records of it of both outcomes. Interval: Hanley and McNeil, 1982.
    """
    known = [r for r in records if is_number(r.get("disagreement"))]
    failed = [r["disagreement"] for r in known if not r["success"]]
    good = [r["disagreement"] for r in known if r["success"]]
    if not failed or not good:
        return None
    n, m = len(failed), len(good)
    area = sum((f > g) + 0.5 * (f == g) for f in failed for g in good) / (n * m)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)
    margin = 1.96 * math.sqrt(max(0.0, variance) / (n * m))
    return area, max(0.0, area - margin), min(1.0, area + margin)


def where_of(record: Record) -> dict[str, Any]:
    """What a record says beside what all say: where its episode began, in its task's own words."""
    return {key: value for key, value in record.items() if key not in _COMMON}


def success_times(records: Iterable[Record]) -> list[float]:
    """Seconds to success of the successful episodes, in the order of the records."""
    return [
        float(record["time_to_success_s"])
        for record in records
        if record["success"] and record["time_to_success_s"] is not None
    ]


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one plain sentence.

    "The policy stacked the objects in 118 of 128 episodes: 92.2 % (95 % interval 86.2–95.7 %)"
    """
    noun = "episode" if summary["episodes"] == 1 else "episodes"
    return (
        f"The policy {known_of(summary).success_text} in {summary['successes']} of {summary['episodes']} {noun}: "
        f"{100 * summary['success']:.1f} % "
        f"(95 % interval {100 * summary['low']:.1f}–{100 * summary['high']:.1f} %)"
    )


def read_summary(path: Path) -> dict[str, Any]:
    """summary.json of an evaluation, its result keys checked; UserError if missing, broken or incomplete."""
    summary = read_json(path)
    if not isinstance(summary, dict):
        raise UserError(f"{path}: found {type(summary).__name__}, expected an object")
    for key, valid, expected in _SUMMARY_KEYS:
        check(summary, key, valid, expected, str(path))
    if "task" in summary:
        check(summary, "task", _is_about, "name, stages, success_text and failures", str(path))
    stages = known_of(summary).stages
    counts = lambda v: isinstance(v, dict) and all(k in stages and is_int(v[k]) for k in v)  # noqa: E731
    check(summary, "by_stage", counts, f"counts keyed by {', '.join(stages)}", str(path))
    if not 0 <= summary["successes"] <= summary["episodes"]:
        raise UserError(f"{path}: 'successes' is {summary['successes']} of {summary['episodes']} 'episodes'")
    return summary


def read_records(path: Path, known: Known | None = None) -> list[dict[str, Any]]:
    """The episodes of an evaluation (one JSON object a line), every key checked; with ``known`` those of its task, too.

    Raises UserError with file and line number for a missing file, a broken or cut-off line, a missing key, a
    value of the wrong kind or an episode that stands there twice.
    """
    lines = read_text(path).splitlines()
    records: list[dict[str, Any]] = []
    seen: dict[int, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: broken JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(record, dict):
            raise UserError(f"{where}: found {type(record).__name__}, expected an object")
        for key, valid, expected in (*_RECORD_KEYS, *(_task_keys(known) if known else ())):
            check(record, key, valid, expected, where)
        if record["episode"] in seen:
            raise UserError(
                f"{where}: episode {record['episode']} is already in line {seen[record['episode']]}"
            )
        seen[record["episode"]] = number
        records.append(record)
    return records


def check(found: Mapping[str, Any], key: str, valid: Any, expected: str, where: str) -> None:
    """UserError that starts with `where` unless `found` has the key and `valid` holds for its value."""
    if key not in found:
        raise UserError(f"{where}: key {key!r} is missing, expected {expected}")
    if not valid(found[key]):
        raise UserError(f"{where}: {key!r} is {found[key]!r}, expected {expected}")


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_fraction(value: Any) -> bool:
    return is_number(value) and 0.0 <= value <= 1.0


def _task_keys(known: Known) -> Iterator[tuple[str, Any, str]]:
    yield from known.settings.record_keys
    yield "stage", known.stages.__contains__, f"one of {', '.join(known.stages)}"


def _is_about(value: Any) -> bool:
    return isinstance(value, dict) and {"name", "stages", "success_text", "failures"} <= set(value)


_SUMMARY_KEYS = (
    ("success", is_fraction, "a fraction in 0..1"),
    ("low", is_fraction, "a fraction in 0..1"),
    ("high", is_fraction, "a fraction in 0..1"),
    ("episodes", lambda v: is_int(v) and v > 0, "an integer above 0"),
    ("successes", is_int, "an integer"),
)
_COMMON = {"disagreement", "progress", "fault"}  # and what follows
_RECORD_KEYS = (
    ("episode", is_int, "an integer"),
    ("seed", is_int, "an integer"),
    ("success", lambda v: isinstance(v, bool), "true or false"),
    ("stage", lambda v: isinstance(v, str), "a stage"),
    ("steps", is_int, "an integer"),
    ("time_to_success_s", lambda v: v is None or is_number(v), "seconds or null"),
    ("video", lambda v: v is None or isinstance(v, str), "a path relative to the run folder or null"),
)
_COMMON |= {key for key, *_ in _RECORD_KEYS}

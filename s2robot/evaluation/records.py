"""Episode records of an evaluation: their files and figures.

    journal = Journal(run / "episodes.jsonl", settings={"seed": 10000, "policy": sha256})
    journal.records, journal.actions   # episodes finished by an earlier process
    journal.append(record, actions)    # on disk when it returns

    records = read_records(run / "episodes.jsonl")
    summarise(records)  # {"success": 0.921875, "low": 0.862..., "high": 0.957..., "episodes": 128, ...}

The folder also holds `episodes.settings.json` (everything that determines an episode except its number) and
`actions/episode_0000.npy` (float32 (steps, A), for filming it later).
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from s2robot.core.errors import UserError, check_same
from s2robot.core.files import claim, parse_json, read_json, read_text, replacing, write_text
from s2robot.core.settings import Stored, read
from s2robot.envs.task_settings import Record, TaskSettings
from s2robot.envs.tasks import DEFAULT, settings_class_or_base

Fraction = Annotated[float, Field(ge=0, le=1)]
_REMEDY = "choose another run directory, or restart with evaluate.resume=false"


class _Record(Stored):
    """Fields of every record; the task adds its own, such as the start of the episode and its progress."""

    episode: int
    seed: int
    success: bool
    stage: str
    steps: int
    time_to_success_s: float | None
    video: str | None
    disagreement: float | None = None
    task: str | None = None  # instruction of a multi-task policy
    start: dict[str, str] | None = None  # fingerprints of the settled state and the first frames


class _Summary(Stored):
    success: Fraction
    low: Fraction
    high: Fraction
    episodes: Annotated[int, Field(ge=1)]
    successes: Annotated[int, Field(ge=0)]
    by_stage: dict[str, int]


_COMMON = {*_Record.model_fields, "progress", "fault"}


class Journal:
    """Finished episodes on disk, in `episodes.jsonl`. Opening it drops an episode left unfinished by a kill.

    ``settings``: JSON types, everything that determines an episode. Without them, or without ``resume``, existing files are
    overwritten. UserError if the folder holds episodes with other settings, or a line before the last is broken.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None, resume: bool = True):
        self.path = path
        self.records: dict[int, dict[str, Any]] = {}
        self.actions: dict[int, np.ndarray] = {}  # episode -> float32 (steps, A)
        (path.parent / "actions").mkdir(parents=True, exist_ok=True)
        stored = path.with_suffix(".settings.json")
        has_episodes = path.exists() and path.stat().st_size > 0
        if resume and settings and has_episodes and not stored.exists():  # do not overwrite hours of work
            raise UserError(f"{path}: expected {stored.name} in the same folder, got none; {_REMEDY}")
        if not (resume and settings and has_episodes):
            write_records([], path)  # before the settings: a kill leaves no episodes of unknown origin
            stored.unlink(missing_ok=True)
        if settings is not None:
            claim(stored, settings, _REMEDY)
            self._read()
        write_records(list(self.records.values()), path)

    def append(self, record: Record, actions: np.ndarray) -> None:
        """Store a finished episode. Its actions are written first, so every line of the journal has them."""
        with replacing(_actions_file(self.path.parent, record["episode"])) as part:
            np.save(part, actions, allow_pickle=False)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        self.records[record["episode"]], self.actions[record["episode"]] = dict(record), actions

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        write_text(self.path, text[: text.rfind("\n") + 1])  # drop an incomplete last line
        for record in read_records(self.path):
            try:
                actions = read_actions(self.path.parent, record["episode"])
            except (OSError, ValueError, EOFError):
                continue
            if len(actions) == record["steps"]:
                self.records[record["episode"]] = {**record, "video": None}
                self.actions[record["episode"]] = actions


def write_records(records: Sequence[Record], path: Path) -> None:
    write_text(path, "".join(json.dumps(r) + "\n" for r in records))


def read_records(
    path: Path, first: int | None = None, counts: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return the episodes of `episodes.jsonl` in order, only the ``first`` ones if given. UserError for a missing file, a broken
    line, a wrong key, or if `episodes` and `successes` differ from ``counts``."""
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"{path} line {number}"
        record = parse_json(where, line)
        records[read(_Record, record, f"{where}: ").episode] = record
    chosen = [records[episode] for episode in sorted(records) if first is None or episode < first]
    found = {"episodes": len(chosen), "successes": sum(record["success"] for record in chosen)}
    if counts:
        check_same(path, {key: counts[key] for key in found}, found, " as in the stored summary")
    return chosen


def read_summary(path: Path) -> dict[str, Any]:
    summary = read_json(path)
    read(_Summary, summary, f"{path}: ")
    return summary


def read_actions(run_dir: Path, episode: int) -> np.ndarray:
    return np.load(_actions_file(run_dir, episode), allow_pickle=False)


def _actions_file(run_dir: Path, episode: int) -> Path:
    return run_dir / "actions" / f"episode_{episode:04d}.npy"


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success probability: wilson(118, 128) -> (0.8622..., 0.9570...)."""
    quantile = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    low, high = score_interval(successes / episodes, episodes, quantile)
    return float(low), float(high)


def score_interval(p: Any, episodes: Any, quantile: Any) -> tuple[Any, Any]:
    """Return Wilson's low and high (...) for a proportion p of episodes; the number of episodes may be fractional."""
    z = quantile**2 / episodes
    centre = (p + z / 2) / (1 + z)
    half = quantile * np.sqrt(p * (1 - p) / episodes + z / (4 * episodes)) / (1 + z)
    return np.maximum(0, np.minimum(p, centre - half)), np.minimum(1, np.maximum(p, centre + half))


def mean_interval(means: np.ndarray, trials: int) -> tuple[float, float]:
    """Return the 95 % interval, for new positions, of the mean of positions' success rates (N,): Wilson's for as many independent
    episodes as have the variance of that mean, N to ``trials``, with Student's quantile. Two positions whose trials all agree are
    added to the variance, since a few failures say little about how positions differ."""
    from scipy import stats  # slow to import

    count, share = len(means), means.mean()
    variance = (count * means.var(ddof=1) + 2 * share * (1 - share)) / (count + 2)
    effective = np.clip(count * share * (1 - share) / max(variance, 1e-12), count, trials)
    low, high = score_interval(share, effective, stats.t.ppf(0.975, count - 1))
    return float(low), float(high)


class Task(NamedTuple):
    settings: type[TaskSettings]
    success_text: str
    failures: Mapping[str, str]

    def failure(self, stage: str) -> str:
        return self.failures.get(stage, f"reached {stage}")


def task_of(summary: Mapping[str, Any]) -> Task:
    """Return the facts about a summary's task; the default task if the summary names none."""
    about = summary.get("task") or {}
    cls = settings_class_or_base(about.get("name", DEFAULT))
    return Task(cls, *(about.get(key) or getattr(cls, key) for key in ("success_text", "failures")))


def summarise(records: Sequence[Record], stages: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the figures of summary.json that follow from the records, with Wilson's 95 % interval, overall and by task."""
    by_stage = dict.fromkeys(settings_class_or_base(DEFAULT).stages if stages is None else stages, 0)
    by_task: dict[str, list[bool]] = {}
    for record in records:
        stage = record["stage"]  # a user's task may not list it in `stages`
        by_stage[stage] = by_stage.get(stage, 0) + 1
        by_task.setdefault(record.get("task") or "", []).append(record["success"])
    best = [record["progress"] for record in records if record.get("progress") is not None]
    times = [r["time_to_success_s"] for r in records if r["success"] and r["time_to_success_s"] is not None]
    return {
        **rate([record["success"] for record in records]),
        **({"by_task": {task: rate(by_task[task]) for task in sorted(by_task)}} if any(by_task) else {}),
        "by_stage": by_stage,
        "median_time_to_success_s": statistics.median(times) if times else None,
        **({"mean_best_progress": statistics.fmean(best)} if best else {}),
    }


def rate(outcomes: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    successes, episodes = int(sum(outcomes)), len(outcomes)
    low, high = wilson(successes, episodes)
    return dict(success=successes / episodes, low=low, high=high, episodes=episodes, successes=successes)


def task_fields(record: Record) -> dict[str, Any]:
    """Return the task-specific fields of a record, which describe the start of the episode."""
    return {key: value for key, value in record.items() if key not in _COMMON}


def headline(summary: Mapping[str, Any]) -> str:
    """Return "The policy stacked the objects in 118 of 128 episodes: 92.2 % (95 % interval 86.2–95.7 %)"."""
    noun = "episode" if summary["episodes"] == 1 else "episodes"
    share, low, high = (f"{100 * summary[key]:.1f}" for key in ("success", "low", "high"))
    count = f"{summary['successes']} of {summary['episodes']} {noun}"
    return f"The policy {task_of(summary).success_text} in {count}: {share} % (95 % interval {low}–{high} %)"

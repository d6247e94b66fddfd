"""Write an evaluation as one HTML file: result, layouts, failures, videos, training and settings.

    write_report(Path("runs/evaluate"))   # -> runs/evaluate/report.html

Reads summary.json and episodes.jsonl in the run directory, and if present, metrics.json or train/metrics.json, stages.json
and the videos named in the records.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from s2robot.core.files import read_json
from s2robot.envs.task_settings import Group
from s2robot.evaluation.records import Record, Task, headline, read_records, read_summary, task_of, wilson
from s2robot.reporting import page, plots
from s2robot.reporting.page import Block, Section
from s2robot.reporting.style import BLUE, GREEN, INK, ORANGE, PURPLE, VERMILLION

_FAILURES = (("X", VERMILLION), ("^", ORANGE), ("s", PURPLE), ("D", INK), ("v", GREEN))  # by stage
_SETTINGS = ("policy", "encoder", "robot", "cameras", "seed", "versions")  # shown first
_ELSEWHERE = {"task", "command", "success", "low", "high", "episodes", "successes", "by_stage", "by_task", "median_time_to_success_s"}  # fmt: skip
_TRAINING = (
    "Solid: means since the last point, with the current weights and dropout. Dashed: held-out demos, with the averaged "
    "weights used for acting. Success of a rollout: with its 95 % interval (Wilson)."
)


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into an evaluation's run directory, with videos, failures first, up to about `page.VIDEO_BYTES`.
    UserError if a file is missing or broken, or contradicts another; an earlier report is kept."""
    summary = read_summary(run_dir / "summary.json")
    task, records = task_of(summary), read_records(run_dir / "episodes.jsonl", summary["episodes"], summary)
    films, shown = page.videos(run_dir, _films(records, task))
    stages = read_json(file) if (file := run_dir / "stages.json").exists() else []
    bars = [(row["stage"], row["seconds"]) for row in stages]
    total = sum(row["seconds"] for row in stages)
    command = [("text", "Command"), ("code", summary["command"])] if summary.get("command") else []
    sections = [
        Section("", list(_outcomes(records, task, summary)), "pictures"),
        _failures(records, task, shown),
        Section("Videos", [films]),
        Section("Time", [("bars", "From start to report", bars, total, True) if bars else None]),
        Section("Training", _training(run_dir, summary), "wide"),
        Section("Settings and versions", [*command, ("settings", "All settings", _settings(summary, task))]),
    ]
    title = f"{summary['successes']} of {summary['episodes']} {task.success_text}"
    return page.write_report_page(run_dir / "report.html", title, _head(summary), sections)


def _head(summary: Mapping[str, Any]) -> list[Block]:
    facts = {key: summary.get(key) for key in ("world", "robot", "cameras", "seed")}
    if bridge := summary.get("bridge"):  # on an arm
        facts |= {"share of the demos' speed": bridge.get("speed"), "faults": summary.get("faults")}
    facts["fitted on"] = _fitted(summary)
    if (median := summary.get("median_time_to_success_s")) is not None:
        facts["median time to success"] = f"{median:.1f} s"
    if (wall := (summary.get("timing") or {}).get("wall_s")) is not None:
        facts["evaluation time"] = page.duration(wall)
    words, figures = headline(summary).replace(" %", "\N{NO-BREAK SPACE}%").rsplit(": ", 1)
    return [
        ("headline", f"{words}:", figures),
        ("scale", *(100 * summary[key] for key in ("low", "success", "high"))),
        ("facts", [(name, value) for name, value in facts.items() if value is not None]),
    ]


def _fitted(summary: Mapping[str, Any]) -> str | None:
    training = summary.get("training") or {}
    if "demos" not in training:
        return None
    return f"{training['demos']} demos, {training.get('held_out') or 'none'} held out"


def _outcomes(records: Sequence[Record], task: Task, summary: Mapping[str, Any]) -> Iterator[Block]:
    size, good, rows = plots.mark_size(len(records)), [record for record in records if record["success"]], []
    groups = [Group(good, f"success: {len(good)}", "o", BLUE, size, 3, tick_alpha=0.6)] if good else []
    stages = list(summary["by_stage"])  # in the order in which an episode reaches them
    for i, stage in enumerate(stages):
        lost = [record for record in records if not record["success"] and record["stage"] == stage]
        marker, colour = _FAILURES[i % len(_FAILURES)]
        label = f"failure, {task.failure(stage)}: {len(lost)}"
        groups += [Group(lost, label, marker, colour, 2 * size, 4)] if lost else []
        later = [r for r in records if r["success"] or stages.index(r["stage"]) >= i]
        rows.append([stage, str(len(later)), str(len(lost))])
    layouts = plots.layouts([("", groups)], task.settings, summary)
    if layouts.axes[0].has_data():  # not every task has a layout
        yield page.figure(layouts, "table", "Outcomes by layout", "Where episodes succeeded and failed")
    yield "table", ("stage", "reached", "failed there"), rows, 1
    if rates := summary.get("by_task"):
        heads = ("task", "success", "95 % interval", "episodes")
        yield "table", heads, [by_task(*each) for each in rates.items()], 1


def by_task(task: str, rate: Mapping[str, Any]) -> list[str]:
    """Return a table row: task, success, interval, episodes."""
    share, low, high = (f"{100 * rate[key]:.1f}" for key in ("success", "low", "high"))
    return [task, f"{share} %", f"{low}–{high} %", f"{rate['successes']} of {rate['episodes']}"]


def _failures(records: Sequence[Record], task: Task, shown: Sequence[str]) -> Section:
    failed = [record for record in records if not record["success"]]
    if not failed:
        return Section("Failures", [("text", "None: every episode succeeded.")])
    cells = [task.settings.table(record) for record in failed]
    columns, rows = list(dict.fromkeys(name for row in cells for name in row)), []
    told = ["task"] * any(record.get("task") for record in failed)
    for record, row in zip(failed, cells, strict=True):
        name, number = f"video-{record['episode']}", str(record["episode"])
        link = Markup('<a href="#{}">{}</a>').format(name, number) if name in shown else number
        fault = [f"FAULT: {record['fault']}"] if record.get("fault") else []
        stage = [f"{record['stage']} ({task.failure(record['stage'])})", *fault]
        numbers = [row.get(column, "–").replace("-", "\N{MINUS SIGN}") for column in columns]
        texts = [record.get(key) or "" for key in told]
        rows.append([link, *texts, stage, str(record["seed"]), *numbers, str(record["steps"])])
    about = task.settings.columns_text
    table = ("table", ["episode", *told, "furthest stage", "seed", *columns, "steps"], rows, 2 + len(told))
    return Section(f"Failures ({len(rows)})", [("text", about) if about else None, table])


def _films(records: Sequence[Record], task: Task) -> Iterator[tuple[str, str, str]]:
    for record in sorted((r for r in records if r["video"] is not None), key=lambda r: r["success"]):
        outcome = "success" if record["success"] else f"failure, {task.failure(record['stage'])}"
        number, told = record["episode"], f" ({text})" if (text := record.get("task")) else ""
        yield f"video-{number}", record["video"], f"episode {number}{told}: {outcome}"


def _training(run_dir: Path, summary: Mapping[str, Any]) -> list[Block]:
    files = [path for path in (run_dir / "metrics.json", run_dir / "train/metrics.json") if path.exists()]
    rows, fitted = read_json(files[0]) if files else [], _fitted(summary)
    if not rows:
        return []
    figure = page.figure(plots.curves(training_panels(rows)), "training", "Metrics by gradient step")
    text: list[Block] = [("text", f"The policy was fitted on {fitted}.")] if fitted else []
    return [*text, figure, ("note", _TRAINING)]


def training_panels(rows: Sequence[Mapping[str, Any]]) -> list[plots.Panel]:
    """Return a panel for each quantity in metrics.json; `train_<name>` and `val_<name>` share a panel."""
    lines: dict[str, list[plots.Line]] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        name = column.removeprefix("train_").removeprefix("val_").removesuffix("_rad")
        points = [r for r in rows if isinstance(r.get(column), int | float) and np.isfinite(r[column])]
        if name in ("step", "tried", "seconds", "passes") or not points:
            continue
        tries = points if name == "success" else []
        ends = [wilson(round(row["success"] * row["tried"]), int(row["tried"])) for row in tries]
        low, high = [low for low, _ in ends], [high for _, high in ends]
        steps, values = ([row[key] for row in points] for key in ("step", column))
        label, colour, style = "trained on" if column.startswith("train_") else "", BLUE, dict[str, Any]()
        if column.startswith("val_"):
            label, colour, style = "held out", VERMILLION, {"ls": (0, (3, 2))}
        lines.setdefault(name, []).append(plots.Line(steps, values, label, colour, low, high, style))
    log = {name: "y" if name.endswith(("loss", "error", "grad_norm")) else "" for name in lines}
    panels = lines.items()
    return [plots.Panel(name.replace("_", " "), own, "gradient step", log=log[name]) for name, own in panels]


def _settings(summary: Mapping[str, Any], task: Task) -> list[tuple[str, Any]]:
    keys = [key for key in dict.fromkeys([*_SETTINGS, *summary]) if key in summary]
    hidden = {*_ELSEWHERE, *task.settings.placing_keys}
    return [row for key in keys if key not in hidden for row in page.flatten(key, summary[key])]

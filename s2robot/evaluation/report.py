"""One evaluation as one HTML file: result, layouts, failures, videos, training, settings.

    write_report(Path("runs/evaluate"))   # -> runs/evaluate/report.html

Reads summary.json and episodes.jsonl of the run folder, and if they exist metrics.json or train/metrics.json, stages.json
and the videos that the episodes name.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from s2robot.core.errors import UserError
from s2robot.core.files import read_json
from s2robot.envs.task import Group
from s2robot.evaluation.records import (
    Known,
    Record,
    disagreement_auc,
    headline,
    known_of,
    read_records,
    read_summary,
    wilson,
)
from s2robot.reporting import page, plots
from s2robot.reporting.page import Block, Film, Section
from s2robot.reporting.style import BLUE, GREEN, INK, ORANGE, PURPLE, VERMILLION

_FAILURES = (("X", VERMILLION), ("^", ORANGE), ("s", PURPLE), ("D", INK), ("v", GREEN))  # by stage
_SETTINGS = ("policy", "encoder", "robot", "cameras", "seed", "versions")  # shown first
_ELSEWHERE = {"task", "command", "success", "low", "high", "episodes", "successes", "by_stage"}


def write_report(run_dir: Path, video_bytes: int = page.VIDEO_BYTES) -> Path:
    """Write `report.html` into an evaluation's run folder and return its path.

    Videos are embedded, failures first, up to about `video_bytes` of text; the page names the others.

    Raises:
        UserError: summary.json or episodes.jsonl is missing, broken or contradicts the other, or an optional file is
            broken; an earlier report stays.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / "summary.json")
    known, records = known_of(summary), read_records(run_dir / "episodes.jsonl")
    counted = (len(records), sum(record["success"] for record in records))
    if counted != (summary["episodes"], summary["successes"]):
        raise UserError(
            f"{run_dir / 'episodes.jsonl'}: expected {summary['episodes']} episodes with {summary['successes']} "
            f"successes as in summary.json, got {counted[0]} with {counted[1]}"
        )
    films = page.embed(run_dir, _films(records, known), video_bytes)
    title = f"{summary['successes']} of {summary['episodes']} {known.success_text}"
    sections = [
        Section("", list(_outcome_plots(records, known, summary)), "pictures"),
        _failures(records, known, films),
        Section("Videos", [("videos", films) if films else None]),
        _durations(_rows(run_dir / "stages.json", "stage", "seconds")),
        _training(run_dir, summary),
        Section(
            "Settings and versions", [*_command(summary), ("settings", "All settings", _settings(summary))]
        ),
    ]
    return page.write_report_page(run_dir / "report.html", title, _head(summary), sections)


def _head(summary: Mapping[str, Any]) -> list[Block]:
    facts = {key: summary.get(key) for key in ("world", "robot", "cameras", "seed")}
    if bridge := summary.get("bridge"):  # on an arm
        facts |= {"share of the demos' speed": bridge.get("speed"), "faults": summary.get("faults")}
    facts["fitted on"] = _fitted(summary)
    if (median := summary.get("median_time_to_success_s")) is not None:
        facts["median time to success"] = f"{median:.1f} s"
    if (wall := (summary.get("timing") or {}).get("wall_s")) is not None:
        facts["evaluation took"] = page.duration(wall)
    words, figures = headline(summary).replace(" %", "\N{NO-BREAK SPACE}%").split(": ")
    return [
        ("headline", f"{words}:", figures),
        ("scale", *(100 * summary[key] for key in ("low", "success", "high"))),
        ("facts", [(name, value) for name, value in facts.items() if value is not None]),
    ]


def _fitted(summary: Mapping[str, Any]) -> str | None:
    """On how many demos the policy was fitted, if its checkpoint stores that."""
    training = summary.get("training") or {}
    if "demos" not in training:
        return None
    return f"{training['demos']} demos, {training.get('held_out') or 'none'} held out"


def _outcome_plots(records: Sequence[Record], known: Known, summary: Mapping[str, Any]) -> Iterator[Block]:
    size = plots.mark_size(len(records))
    good = [record for record in records if record["success"]]
    groups = [Group(good, f"success: {len(good)}", "o", BLUE, size, 3, tick_alpha=0.6)] if good else []
    for i, stage in enumerate(known.stages):
        failed = [record for record in records if not record["success"] and record["stage"] == stage]
        marker, colour = _FAILURES[i % len(_FAILURES)]
        label = f"failure, {known.failure(stage)}: {len(failed)}"
        groups += [Group(failed, label, marker, colour, 2 * size, 4)] if failed else []
    places = plots.layouts([("", groups)], known.settings, summary)
    yield page.figure(places, "table", "Outcomes by layout", "Where episodes succeeded and failed")
    rows = []
    for i, stage in enumerate(known.stages):
        later = [r for r in records if r["success"] or known.stages.index(r["stage"]) >= i]
        lost = sum(not r["success"] and r["stage"] == stage for r in records)
        rows.append([stage, str(len(later)), str(lost)])
    yield "table", ("stage", "reached", "failed there"), rows, 1


def _failures(records: Sequence[Record], known: Known, films: page.Films) -> Section:
    failed = [record for record in records if not record["success"]]
    cells = [known.settings.table(record) for record in failed]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    rows = []
    for record, row in zip(failed, cells, strict=True):
        name = f"video-{record['episode']}"
        link = Markup('<a href="#{}">{}</a>').format(name, record["episode"])
        stage = [f"{record['stage']} ({known.failure(record['stage'])})"]
        if record.get("fault"):
            stage.append(f"FAULT: {record['fault']}")
        numbers = [row.get(column, "–").replace("-", "\N{MINUS SIGN}") for column in columns]
        number = link if name in films.names else str(record["episode"])
        rows.append([number, stage, str(record["seed"]), *numbers, str(record["steps"])])
    if not rows:
        return Section("Failures", [("text", "None: every episode succeeded.")])
    about = known.settings.columns_text
    table = ("table", ["episode", "furthest stage", "seed", *columns, "steps"], rows, 2)
    return Section(
        f"Failures ({len(rows)})", [("text", about) if about else None, table, _disagreement(records)]
    )


def _disagreement(records: Sequence[Record]) -> Block | None:
    if (area := disagreement_auc(records)) is None:
        return None
    words = f"AUC {area[0]:.2f} (95 % interval {area[1]:.2f}–{area[2]:.2f}); 0.5 is chance."
    return "text", f"Disagreement of the policy's members, as a predictor of failure: {words}"


def _films(records: Sequence[Record], known: Known) -> Iterator[Film]:
    """The videos to embed, failures first."""
    for record in sorted((r for r in records if r["video"] is not None), key=lambda r: r["success"]):
        outcome = "success" if record["success"] else f"failure, {known.failure(record['stage'])}"
        number = record["episode"]
        yield Film(f"video-{number}", record["video"], f"episode {number}: {outcome}")


def _durations(stages: Sequence[Mapping[str, Any]]) -> Section:
    rows = [(row["stage"], row["seconds"], _cores(row)) for row in stages]
    bars = ("bars", "From start to report", rows, sum(row["seconds"] for row in stages), True)
    return Section("Time", [bars if rows else None])


def _cores(row: Mapping[str, Any]) -> str:
    if "processor_s" not in row:
        return ""
    return f"{row['processor_s']:.0f} s of processor time, {row['unused_s']:.0f} s unused"


def _training(run_dir: Path, summary: Mapping[str, Any]) -> Section:
    files = [path for path in (run_dir / "metrics.json", run_dir / "train/metrics.json") if path.exists()]
    rows = _rows(files[0], "step") if files else []
    if not rows:
        return Section("", [])
    about = (
        "Solid: means since the last point, of the current weights, with dropout. Dashed: held-out demos, with the "
        "averaged weights that act. Success of a try: with its 95 % interval (Wilson)."
    )
    fitted = _fitted(summary)
    blocks = [
        ("text", f"The policy was fitted on {fitted}.") if fitted else None,
        page.figure(plots.curves(training_panels(rows)), "training", "Metrics by gradient step"),
        ("note", about),
    ]
    return Section("Training", blocks, "wide")


def training_panels(rows: Sequence[Mapping[str, Any]]) -> list[plots.Panel]:
    """Return a panel for each quantity of metrics.json: `train_<name>` and `val_<name>`, or a column of its own."""
    lines: dict[str, list[plots.Line]] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        name = column.removeprefix("train_").removeprefix("val_").removesuffix("_rad")
        points = [
            row for row in rows if isinstance(row.get(column), int | float) and np.isfinite(row[column])
        ]
        if name in ("step", "tried", "seconds", "passes") or not points:
            continue
        tries = points if name == "success" else []
        ends = [wilson(round(row["success"] * row["tried"]), int(row["tried"])) for row in tries]
        held_out = column.startswith("val_")
        line = plots.Line(
            [row["step"] for row in points],
            [row[column] for row in points],
            "held out" if held_out else "trained on" if column.startswith("train_") else "",
            VERMILLION if held_out else BLUE,
            [low for low, _ in ends],
            [high for _, high in ends],
            {"ls": (0, (3, 2))} if held_out else {},
        )
        lines.setdefault(name, []).append(line)
    logarithmic = ("loss", "error", "grad_norm")
    return [
        plots.Panel(
            name.replace("_", " "), found, "gradient step", log="y" if name.endswith(logarithmic) else ""
        )
        for name, found in lines.items()
    ]


def _command(summary: Mapping[str, Any]) -> list[Block]:
    return [("text", "Made by"), ("code", summary["command"])] if summary.get("command") else []


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    hidden = {*_ELSEWHERE, "median_time_to_success_s", *known_of(summary).settings.placing_keys}
    keys = [*_SETTINGS, *(key for key in summary if key not in _SETTINGS)]
    return [
        row for key in keys if key in summary and key not in hidden for row in page.flatten(key, summary[key])
    ]


def _rows(path: Path, *keys: str) -> list[dict[str, Any]]:
    """The rows of an optional file: a list of objects with the given keys."""
    rows = read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {*keys} <= {*row} for row in rows):
        raise UserError(f"{path}: expected a list of objects with {' and '.join(keys)}")
    return rows

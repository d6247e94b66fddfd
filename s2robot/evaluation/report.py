"""One evaluation as one HTML file that needs nothing else: result, layouts, failures, videos, settings.

    from s2robot.evaluation.report import write_report
    write_report(Path("runs/evaluate"))   # -> runs/evaluate/report.html

Reads from the run folder summary.json and episodes.jsonl (needed), metrics.json or train/metrics.json
([{"step", "train_loss", ...}, ...]), stages.json ([{"stage", "seconds"}, ...]) and the videos that
the episodes name (each if there).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError
from s2robot.common.files import read_json
from s2robot.evaluation.plots import disagreement_plot, layout_plot, stage_plot, time_plot
from s2robot.evaluation.records import (
    Known,
    Record,
    disagreement_auc,
    headline,
    is_number,
    known_of,
    read_records,
    read_summary,
    success_times,
)
from s2robot.evaluation.training_plot import training_plot
from s2robot.reporting.page import VIDEO_BYTES, Film, drawing, duration, embed, flatten, write_page


def write_report(run_dir: Path, video_bytes: int = VIDEO_BYTES) -> Path:
    """Write `report.html` into an evaluation's run folder and return its path.

    Videos are embedded, failures first, up to about `video_bytes` of text; those left out are named in the
    page. Raises UserError, and leaves an earlier report as it is, if summary.json or episodes.jsonl is
    missing, broken or at odds with the other, or if an optional file is broken.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / "summary.json")
    known = known_of(summary)
    records = read_records(run_dir / "episodes.jsonl", known)
    counted = (len(records), sum(record["success"] for record in records))
    claimed = (summary["episodes"], summary["successes"])
    if counted != claimed:
        raise UserError(
            f"{run_dir}: episodes.jsonl holds {counted[0]} episodes with {counted[1]} successes, "
            f"summary.json says {claimed[0]} with {claimed[1]}"
        )
    metrics = _read_metrics(run_dir)
    stages = _read_rows([run_dir / "stages.json"], "stage", "seconds")
    return write_page(
        run_dir / "report.html",
        "evaluation.html.j2",
        title=f"{summary['successes']} of {summary['episodes']} {known.success_text}",
        **_failures(records, known),
        films=embed(run_dir, _films(records, known), video_bytes, str(run_dir / "episodes.jsonl")),
        stages=[(str(row["stage"]), row["seconds"], _cores(row)) for row in stages],
        training_svg=drawing(training_plot(metrics), "training") if metrics else None,
        fitted=_fitted(summary),
        **_disagreement(records),
        command=summary.get("command"),
        settings=_settings(summary),
        **_head(summary),
        **_pictures(summary, records, known),
        **_durations(summary),
    )


def _cores(row: Mapping[str, Any]) -> str:
    """What a step did with the cores; nothing of runs that did not count it."""
    used, unused = row.get("processor_s"), row.get("unused_s")
    if not (is_number(used) and is_number(unused)):
        return ""
    return f"{used:.0f} s of processor time, {unused:.0f} s unused"


def _read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of the training in this folder or below; those of version 0.1 count epochs."""
    for path in (run_dir / "metrics.json", run_dir / "train" / "metrics.json"):
        if path.exists():
            rows = read_json(path)
            old = isinstance(rows, list) and rows and isinstance(rows[0], dict) and "epoch" in rows[0]
            time = "epoch" if old else "step"
            return _read_rows([path], time, time)
    return []


def _fitted(summary: Mapping[str, Any]) -> str | None:
    """On how many demos the policy was fitted, where its checkpoint says so."""
    training = summary.get("training")
    if not isinstance(training, Mapping) or not is_number(training.get("demos")):
        return None
    held_out = training.get("held_out") or 0
    return f"{training['demos']} demos, " + (f"{held_out} more held out" if held_out else "none held out")


def _head(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The sentence, the scale below it, and the facts that are known."""
    facts = [(key, summary.get(key)) for key in ("world", "robot", "cameras", "seed")]
    if isinstance(bridge := summary.get("bridge"), Mapping):  # on an arm
        facts += [("share of the demos' speed", bridge.get("speed")), ("faults", summary.get("faults"))]
    facts.append(("fitted on", _fitted(summary)))
    median = summary.get("median_time_to_success_s")
    facts.append(("median time to success", f"{median:.1f} s" if is_number(median) else None))
    wall = _timing(summary).get("wall_s")
    facts.append(("evaluation took", None if wall is None else duration(wall)))
    # the figures are kept together on one line where the window is wide enough
    words, figures = headline(summary).replace(" %", "\N{NO-BREAK SPACE}%").split(": ")
    return {
        "headline": words,
        "figures": figures,
        "facts": [(name, value) for name, value in facts if value is not None],
        **{key: 100 * summary[key] for key in ("low", "success", "high")},
    }


def _pictures(summary: Mapping[str, Any], records: Sequence[Record], known: Known) -> dict[str, Any]:
    return {
        "successes": summary["successes"],
        "failed": len(records) - summary["successes"],
        "table_svg": drawing(layout_plot(records, known, summary), "table"),
        "stage_svg": drawing(stage_plot(records, known.stages), "stage"),
        "time_svg": drawing(time_plot(records), "time") if success_times(records) else None,
    }


def _disagreement(records: Sequence[Record]) -> dict[str, Any]:
    """Of an ensemble's members, against success; nothing where no record tells it."""
    known = [record for record in records if is_number(record.get("disagreement"))]
    area = disagreement_auc(known)
    words = None
    if area is not None:
        words = f"AUC {area[0]:.2f} (95 % interval {area[1]:.2f}–{area[2]:.2f})"
    return {
        "disagreement_svg": drawing(disagreement_plot(known), "disagreement") if known else None,
        "disagreement_auc": words,
    }


def _failures(records: Sequence[Record], known: Known) -> dict[str, Any]:
    """The table of failures: its heads and rows."""
    rows, columns = [], dict[str, None]()
    for record in (r for r in records if not r["success"]):
        cells = {
            name: text.replace("-", "\N{MINUS SIGN}") for name, text in known.settings.table(record).items()
        }
        columns |= dict.fromkeys(cells)
        rows.append(
            {
                "episode": record["episode"],
                "film": f"video-{record['episode']}",
                "seed": str(record["seed"]),
                "where": cells,
                "steps": str(record["steps"]),
                "stage": record["stage"],
                "meaning": known.failure(record["stage"]),
                "fault": record.get("fault"),
            }
        )
    for row in rows:
        row["cells"] = [row["seed"], *(row["where"].get(name, "–") for name in columns), row["steps"]]
    return {
        "failures": rows,
        "heads": ["episode", "seed", *columns, "steps"],
        "columns": known.settings.columns_text,
    }


def _films(records: Sequence[Record], known: Known) -> Iterator[Film]:
    """The videos to embed, failures first."""
    for record in sorted((r for r in records if r["video"] is not None), key=lambda r: r["success"]):
        outcome = "success" if record["success"] else f"failure, {known.failure(record['stage'])}"
        number = record["episode"]
        yield Film(f"video-{number}", record["video"], f"episode {number}: {outcome}")


def _durations(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds inside the evaluation, and those of its wall clock."""
    timing = _timing(summary)
    return {
        "timing": [(key.removesuffix("_s"), value) for key, value in timing.items() if key != "wall_s"],
        "wall": timing.get("wall_s"),
        "simulated": "simulate_s" in timing,
    }


def _timing(summary: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of summary.json's optional `timing`, whatever else may stand there left out."""
    timing = summary.get("timing")
    return {k: v for k, v in timing.items() if is_number(v)} if isinstance(timing, Mapping) else {}


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows = []
    for key in ("policy", "encoder", "robot", "cameras", "seed", "versions"):
        rows += flatten(key, summary[key]) if summary.get(key) is not None else []
    placing = known_of(summary).settings.placing_keys
    shown = {
        "task",
        "command",
        "timing",
        "success",
        "low",
        "high",
        "episodes",
        "successes",
        "by_stage",
        *placing,
    }
    shown |= {"policy", "encoder", "robot", "cameras", "seed", "versions", "median_time_to_success_s"}
    for key in summary:  # whatever else an evaluation noted
        rows += flatten(key, summary[key]) if key not in shown else []
    return rows


def _read_rows(paths: Sequence[Path], label: str, number: str | None = None) -> list[dict[str, Any]]:
    """Rows of the first of the optional files that exists: a list of objects with the given keys."""
    for path in paths:
        if not path.exists():
            continue
        rows = read_json(path)
        if not isinstance(rows, list):
            raise UserError(f"{path}: found {type(rows).__name__}, expected a list of objects")
        for index, row in enumerate(rows):
            if not isinstance(row, dict) or label not in row:
                raise UserError(f"{path}: entry {index} has no key {label!r}")
            if number is not None and not is_number(row.get(number)):
                raise UserError(
                    f"{path}: entry {index}: {number!r} is {row.get(number)!r}, expected a number"
                )
        return rows
    return []

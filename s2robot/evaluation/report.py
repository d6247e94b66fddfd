"""One evaluation as one HTML file that needs nothing else: result, table top, failures, videos, settings.

    from s2robot.evaluation.report import write_report
    write_report(Path("runs/evaluate"))   # -> runs/evaluate/report.html

Reads from the run folder summary.json and episodes.jsonl (needed), metrics.json or train/metrics.json
([{"epoch", "train_loss", "val_loss"}, ...]), stages.json ([{"stage", "seconds"}, ...]) and the videos that
the episodes name (each if there).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import degrees
from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError
from s2robot.evaluation.plots import (
    FAILURE_TEXT,
    stage_plot,
    table_plot,
    time_plot,
    training_plot,
)
from s2robot.evaluation.records import (
    Record,
    headline,
    is_number,
    read_json,
    read_records,
    read_summary,
    success_times,
)
from s2robot.reporting.page import (
    VIDEO_BYTES,
    Film,
    as_text,
    duration,
    figure,
    films_html,
    flatten,
    write_page,
)
from s2robot.reporting.style import figure_svg


def write_report(run_dir: Path, video_bytes: int = VIDEO_BYTES) -> Path:
    """Write `report.html` into an evaluation's run folder and return its path.

    Videos are embedded, failures first, up to about `video_bytes` of text; those left out are named in the
    page. Raises UserError, and leaves an earlier report as it is, if summary.json or episodes.jsonl is
    missing, broken or at odds with the other, or if an optional file is broken.
    """
    run_dir = Path(run_dir)
    summary = read_summary(run_dir / "summary.json")
    records = read_records(run_dir / "episodes.jsonl")
    counted = (len(records), sum(record["success"] for record in records))
    claimed = (summary["episodes"], summary["successes"])
    if counted != claimed:
        raise UserError(
            f"{run_dir}: episodes.jsonl holds {counted[0]} episodes with {counted[1]} successes, "
            f"summary.json says {claimed[0]} with {claimed[1]}"
        )
    metrics = _read_rows([run_dir / "metrics.json", run_dir / "train" / "metrics.json"], "epoch", "epoch")
    stages = _read_rows([run_dir / "stages.json"], "stage", "seconds")
    films, shown = films_html(run_dir, _films(records), video_bytes, str(run_dir / "episodes.jsonl"))
    return write_page(
        run_dir / "report.html",
        f"{summary['successes']} of {summary['episodes']} cubes picked",
        (
            _head(summary),
            _pictures(summary, records),
            _failures(records, shown),
            f"<section><h2>Videos</h2>{films}</section>" if films else "",
            _durations(summary, stages),
            _training(metrics),
            _settings(summary),
        ),
    )


def _head(summary: Mapping[str, Any]) -> str:
    low, mid, high = (100 * summary[key] for key in ("low", "success", "high"))
    facts = [(key, summary.get(key)) for key in ("world", "robot", "cameras", "seed")]
    if isinstance(bridge := summary.get("bridge"), Mapping):  # on an arm
        facts += [("share of the demos' speed", bridge.get("speed")), ("faults", summary.get("faults"))]
    median = summary.get("median_time_to_success_s")
    facts.append(("median time to success", f"{median:.1f} s" if is_number(median) else None))
    wall = _timing(summary).get("wall_s")
    facts.append(("evaluation took", None if wall is None else duration(wall)))
    if isinstance(selective := summary.get("selective"), Mapping):
        facts.append(("tiles computed per frame", selective.get("computed_per_frame")))
    line = " · ".join(f"{name} <b>{escape(as_text(value))}</b>" for name, value in facts if value is not None)
    return f"""<header>
<h1>{_headline(summary)}</h1>
<div class="scale" role="img" aria-label="success {mid:.1f} %, 95 % interval {low:.1f} to {high:.1f} %">
<i class="range" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>
<i class="point" style="left:{mid:.2f}%"></i>
</div>
<div class="ends"><span>0 %</span><span>mark: measured success · band: 95 % interval (Wilson)</span>
<span>100 %</span></div>
<p class="facts">{line}</p>
</header>"""


def _pictures(summary: Mapping[str, Any], records: Sequence[Record]) -> str:
    failed = len(records) - summary["successes"]
    table = figure_svg(table_plot(records, _cube_box(summary)), "table")
    about = f"The table from above: {summary['successes']} successes, {failed} failures by the cube's place"
    reached = figure_svg(stage_plot(records), "stage")
    parts = [figure(reached, "How far the episodes came", "Episodes that reached each stage")]
    if success_times(records):
        times = figure_svg(time_plot(records), "time")
        parts.append(figure(times, "How long a success took", "Histogram of the time to success"))
    else:
        parts.append("<p>No episode succeeded, so there is no time to success to show.</p>")
    table = figure(table, "Where it worked and where it did not", about)
    return f'<section class="pictures">{table}<div class="stack">{"".join(parts)}</div></section>'


def _cube_box(summary: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    box = summary.get("cube_box")  # [[x_low, x_high], [y_low, y_high]] in m; evaluations may leave it out
    if box is None:
        return None
    try:
        (x0, x1), (y0, y1) = box
        return (float(x0), float(x1)), (float(y0), float(y1))
    except (TypeError, ValueError):
        raise UserError(f"summary.json: 'cube_box' is {box!r}, expected [[x, x], [y, y]] in metres") from None


def _failures(records: Sequence[Record], shown: set[str]) -> str:
    rows = []
    for record in records:
        if record["success"]:
            continue
        episode = record["episode"]
        name = f'<a href="#video-{episode}">{episode}</a>' if f"video-{episode}" in shown else str(episode)
        x, y = (100 * v for v in record["cube_xy"])
        signed = [f"{x:+z.1f}", f"{y:+z.1f}", f"{degrees(record['cube_yaw']):+z.0f}"]
        cells = [name, str(record["seed"]), *(text.replace("-", "\N{MINUS SIGN}") for text in signed)]
        closest = record["closest_m"]
        cells += ["–" if closest is None else f"{100 * closest:.1f}", str(record["steps"])]
        stage = f"{record['stage']} <small>({FAILURE_TEXT[record['stage']]})</small>"
        if fault := record.get("fault"):
            stage += f"<br><small>FAULT: {escape(str(fault))}</small>"
        rows.append(
            f"<tr>{''.join(f'<td class=n>{cell}</td>' for cell in cells)}<td class=stage>{stage}</td></tr>"
        )
    if not rows:
        return "<section><h2>Failures</h2><p>None: every episode succeeded.</p></section>"
    heads = ("episode", "seed", "cube x (cm)", "cube y (cm)", "yaw (°)", "closest (cm)", "steps")
    head = "".join(f"<th class=n>{text}</th>" for text in heads) + "<th>furthest stage</th>"
    return f"""<section><h2>Failures ({len(rows)})</h2>
<p>x points away from the robot, y to its left, from the centre of the table. "Closest" is the least distance
between the gripper and the cube's centre.</p>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
</section>"""


def _films(records: Sequence[Record]) -> Iterator[Film]:
    """The videos to embed, failures first."""
    for record in sorted((r for r in records if r["video"] is not None), key=lambda r: r["success"]):
        outcome = "success" if record["success"] else f"failure, {FAILURE_TEXT[record['stage']]}"
        number = record["episode"]
        yield Film(f"video-{number}", record["video"], f"episode {number}: {outcome}")


def _durations(summary: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    if stages:
        total = sum(row["seconds"] for row in stages)
        rows = [(str(row["stage"]), row["seconds"]) for row in stages]
        parts.append(_bars("From start to report", rows, total, True))
    timing = _timing(summary)
    rows = [(key.removesuffix("_s"), value) for key, value in timing.items() if key != "wall_s"]
    wall = timing.get("wall_s")
    if rows:
        whole = max(value for _, value in rows)
        if wall is not None:
            whole = max(whole, wall)
        parts.append(_bars("Inside the evaluation", rows, whole, False))
        if wall is not None:
            more = " Worker processes simulate side by side, so their seconds can add up to more."
            more = more if "simulate_s" in timing else ""
            parts[-1] += f"<p><small>Shares of {duration(wall)} of wall time.{more}</small></p>"
    return f"<section><h2>Where the time went</h2>{''.join(parts)}</section>" if parts else ""


def _timing(summary: Mapping[str, Any]) -> dict[str, float]:
    """The seconds of summary.json's optional `timing`, whatever else may stand there left out."""
    timing = summary.get("timing")
    return {k: v for k, v in timing.items() if is_number(v)} if isinstance(timing, Mapping) else {}


def _bars(title: str, rows: Iterable[tuple[str, float]], whole: float, total: bool) -> str:
    body = "".join(
        f"<tr><td>{escape(name)}</td><td class=n>{duration(seconds)}</td>"
        f'<td class="bar"><i style="width:{100 * seconds / whole if whole > 0 else 0:.1f}%"></i></td></tr>'
        for name, seconds in rows
    )
    if total:
        body += f"<tr><th>together</th><th class=n>{duration(whole)}</th><th></th></tr>"
    return f"<h3>{escape(title)}</h3><table class=bars>{body}</table>"


def _training(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return ""
    svg = figure_svg(training_plot(metrics), "training")
    return f"<section><h2>Training</h2>{figure(svg, '', 'Training and validation loss by epoch')}</section>"


def _settings(summary: Mapping[str, Any]) -> str:
    command = summary.get("command")
    parts = [f"<p>Made by</p><pre>{escape(str(command))}</pre>"] if command else []
    rows = []
    for key in ("policy", "encoder", "robot", "cameras", "seed", "versions"):
        rows += flatten(key, summary[key]) if summary.get(key) is not None else []
    shown = {"command", "timing", "success", "low", "high", "episodes", "successes", "by_stage", "cube_box"}
    shown |= {"policy", "encoder", "robot", "cameras", "seed", "versions", "median_time_to_success_s"}
    for key in summary:  # whatever else an evaluation noted
        rows += flatten(key, summary[key]) if key not in shown else []
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(as_text(value))}</td></tr>" for name, value in rows
    )
    if body:
        parts.append(f'<div class="scroll"><table class="settings">{body}</table></div>')
    return f"<section><h2>Settings and versions</h2>{''.join(parts)}</section>" if parts else ""


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


def _headline(summary: Mapping[str, Any]) -> str:
    """The sentence, with the figures kept together on one line where the window is wide enough."""
    words, figures = escape(headline(summary)).replace(" %", "\N{NO-BREAK SPACE}%").split(": ")
    return f"{words}: <span>{figures}</span>"

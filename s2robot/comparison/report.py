"""A comparison as one HTML page: which arm wins and how surely, where, at what cost.

    write_compare_report(Path("runs/compare"))   # -> runs/compare/report.html

Reads compare.json, the arms' episodes.jsonl and the videos that compare.json names.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from s2robot.common.errors import UserError
from s2robot.common.files import read_json
from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.statistics import MINUS, headline, p_text, verdict
from s2robot.envs.task import Group
from s2robot.evaluation.records import known_of, read_records
from s2robot.probing.report import READOUT_COLUMNS, is_joined, plot, readout_points, tables_of
from s2robot.reporting.page import (
    VIDEO_BYTES,
    Block,
    Film,
    Section,
    as_text,
    drawing,
    embed,
    flatten,
    write_report_page,
)
from s2robot.reporting.plots import (
    COLOURS,
    DASHES,
    MARKERS,
    Line,
    Panel,
    Row,
    curves,
    intervals,
    layouts,
    mark_size,
)
from s2robot.reporting.style import BLUE, INK, ORANGE, VERMILLION, page_colours

_COSTS = {"gflops_per_frame": "GFLOPs per frame", "ms_per_action": "ms per action"}
_VERDICTS = {True: "differ", False: "not told apart", None: "borderline"}
_SPAN = 8  # largest over smallest value from which an axis is logarithmic
_Facts = Mapping[str, Any]


def write_compare_report(run_dir: Path, video_bytes: int = VIDEO_BYTES) -> Path:
    """Write `report.html` into a comparison's run folder and return its path.

    Videos are embedded in the order of compare.json up to about `video_bytes` of text; the page names the others.

    Raises:
        UserError: compare.json is missing or broken, or the episodes are not those that it counts; an earlier report
            stays.
    """
    run_dir = Path(run_dir)
    path = run_dir / "compare.json"
    facts = read_json(path)
    try:
        return _write(run_dir, facts, video_bytes)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: expected what `s2robot compare` writes, got {type(error).__name__}: {error}"
        ) from error


def _write(run_dir: Path, facts: _Facts, video_bytes: int) -> Path:
    labels = {arm["name"]: arm["label"] for arm in facts["arms"]}
    pairs = facts["pairs"]
    films = embed(run_dir, _films(facts.get("videos", ()), labels), video_bytes)
    if pairs:
        lines = [headline(pair, labels) for pair in pairs]
    else:
        lines = [
            ", ".join(f"{arm['label']} {_percent(arm['success'])} [{_span(arm)}]" for arm in facts["arms"])
        ]
    counts = {
        "arms": len(labels),
        "training seeds an arm": sorted({len(arm["seeds"]) for arm in facts["arms"]}),
        "positions": facts["positions"]["episodes"],
        "first position": facts["positions"]["seed"],
    }
    head: list[Block] = [
        ("text", facts["title"]),
        ("headline", lines[0]),
        ("bullets", lines[1:]),
        ("text", f"Question: {facts['question']}"),
        ("facts", counts.items()),
    ]
    runs = [[arm["label"], str(run["seed"]), run["run"]] for arm in facts["arms"] for run in arm["seeds"]]
    reproduce = Section(
        "Commands and versions",
        [
            ("code", facts["command"]),
            ("commands", "Its stages, each as a command of its own", facts.get("commands", ())),
            ("table", ("arm", "training seed", "folder"), runs, 9),
            ("settings", "Versions", flatten("versions", facts["versions"])),
        ],
    )
    sections = [
        Section("Success of each arm", _arms(facts["arms"])),
        Section("Arm against arm", _pairs(pairs, labels) if pairs else []),
        Section("Success against cost", _cost(facts["arms"]), "wide"),
        Section("Where each arm succeeds", _places(run_dir, facts, labels), "wide"),
        *(_axis(axis, labels, number) for number, axis in enumerate(facts.get("axes", ()))),
        Section("Information in the features", _information(facts.get("information"))),
        Section("Position and yaw read from the features", _readout(facts.get("readout")), "wide"),
        Section("Power", [*_power(facts.get("power")), *_stopping(facts.get("stopping"))]),
        Section("Where the arms disagree", [("videos", films) if films else None], "pairs"),
        reproduce,
    ]
    return write_report_page(run_dir / "report.html", facts["title"], head, sections)


def _arms(arms: Sequence[_Facts]) -> list[Block]:
    rows, plotted, marks = [], [], []
    for i, arm in enumerate(arms):
        seeds = [f"{run['successes']}/{run['episodes']}" for run in arm["seeds"]]
        parameters = None if arm["parameters"] is None else arm["parameters"] / 1e6
        costs = (arm["gflops_per_frame"], parameters, arm["ms_per_action"])
        texts = [arm["label"], *(as_text(arm[key]) for key in ("encoder", "scales", "policy"))]
        rows.append([*texts, _percent(arm["success"]), _span(arm), " · ".join(seeds), *map(_cell, costs)])
        (marker, glyph), colour = MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]
        parts = [100 * run["successes"] / run["episodes"] for run in arm["seeds"] if run["episodes"]]
        ends = [100 * arm[key] for key in ("success", "low", "high")]
        plotted.append(Row(arm["label"], *ends, colour, marker, parts=parts))
        marks.append((page_colours(colour), glyph))
    heads = ("arm", "encoder", "scales", "policy", "success", "95 % interval", "by training seed")
    methods = sorted({arm["interval"] for arm in arms if arm.get("interval")})
    figure = drawing(intervals(plotted, "success (%); open marks: one training seed each"), "success")
    return [
        ("table", (*heads, "GFLOPs per frame", "parameters (M)", "ms per action"), rows, 4, marks),
        ("note", f"Interval: {'; '.join(methods)}.") if methods else (),
        ("figure", figure, "", "Success of each arm with its interval, and of each training seed"),
    ]


def _pairs(pairs: Sequence[_Facts], labels: Mapping[str, str]) -> list[Block]:
    rows, plotted = [], []
    for pair in pairs:
        test, name = pair["mcnemar"], f"{labels[pair['a']]} {MINUS} {labels[pair['b']]}"
        points = [100 * pair[key] for key in ("difference", "low", "high")]
        texts = [f"{value:+.1f}".replace("-", MINUS) for value in points]
        results = [_VERDICTS[verdict(pair)], texts[0], f"{texts[1]} to {texts[2]}", p_text(pair["p_holm"])]
        counts = [str(pair["episodes"]), f"{test['wins']} / {test['losses']}", p_text(test["p"])]
        rows.append([name, *results, *counts])
        clear = pair["low"] > 0 or pair["high"] < 0
        plotted.append(Row(name, *points, BLUE if clear else INK, filled=clear))
    heads = ("first arm − second", "verdict", "points", "95 % interval", "test", "episodes")
    about = dict.fromkeys(f"They hold for {pair['scope']}. Method: {pair['method']}." for pair in pairs)
    note = (
        f"Interval and test: {' '.join(about)} McNemar's test counts the cases that only one arm solved. The p values of "
        f"the test are adjusted for {len(pairs)} pairs (Holm); intervals and McNemar's are not. Filled: the interval "
        "excludes 0."
    )
    figure = drawing(intervals(plotted, "difference in success (points)", 0.0), "difference")
    return [
        ("table", (*heads, "McNemar: wins / losses", "McNemar: test"), rows, 2),
        ("note", note),
        ("figure", figure, "", "Difference in success of each pair of arms with its interval"),
    ]


def _line(arm: int, x: Sequence[Any], points: Sequence[_Facts], label: str, **style: Any) -> Line:
    """Success of an arm, in percent, in the arm's own colour, marker and dashes."""
    low, success, high = ([100 * point[key] for point in points] for key in ("low", "success", "high"))
    look = {"marker": MARKERS[arm % len(MARKERS)][0], "ms": 7, "ls": DASHES[arm % len(DASHES)], **style}
    return Line(x, success, label, COLOURS[arm % len(COLOURS)], low, high, look)


def _cost(arms: Sequence[_Facts]) -> list[Block]:
    panels = []
    for key, title in _COSTS.items():
        lines = [
            _line(i, [arm[key]], [arm], arm["label"], ls="none")
            for i, arm in enumerate(arms)
            if arm[key] is not None
        ]
        groups: dict[str, list[_Facts]] = {}
        for arm in sorted((arm for arm in arms if arm[key] is not None), key=lambda arm: arm[key]):
            groups.setdefault(as_text([arm["encoder"], arm["policy"]]), []).append(arm)
        for group in groups.values():  # what further scales cost and gain
            x, y = [arm[key] for arm in group], [100 * arm["success"] for arm in group]
            lines.append(Line(x, y, "", INK, style={"lw": 1, "ls": (0, (2, 2)), "marker": None}))
        log = _log([arm[key] for arm in arms if arm[key] is not None])
        panels += [Panel("", lines, title, "success (%)", log)] if lines else []
    if not panels:
        return []
    figure = drawing(curves(panels, 2, (5.2, 3.8)), "cost")
    return [
        ("figure", figure, "", "Success of each arm against its cost"),
        ("note", "Dotted: same encoder and policy."),
    ]


def _log(values: Sequence[Any]) -> str:
    numbers = bool(values) and all(isinstance(value, int | float) for value in values)
    return "x" if numbers and min(values) > 0 and max(values) / min(values) >= _SPAN else ""


def _places(run_dir: Path, facts: _Facts, labels: Mapping[str, str]) -> list[Block]:
    """Where episodes began, by the outcomes of each arm and by the winner of each pair."""
    records, about = _episodes(run_dir, facts)
    solved = outcomes_of(records)
    first = sorted(next(iter(next(iter(records.values())).values())), key=lambda record: record["seed"])
    positions, task = np.array([record["seed"] for record in first]), known_of(about).settings
    size = mark_size(len(first), 2)

    def group(chosen: np.ndarray, marker: str, colour: str, scale: float = 1.0) -> Group:
        return Group([first[i] for i in np.flatnonzero(chosen)], "", marker, colour, scale * size)

    panels = []
    for arm, outcomes in solved.items():
        share = outcomes.mean(0)
        groups = [group(share == 1, "o", BLUE), group((share > 0) & (share < 1), "D", ORANGE)]
        groups.append(group(share == 0, "X", VERMILLION, 1.4))
        panels.append((f"{labels[arm]}: {100 * share.mean():.1f} %", groups))
    legend = [("all training seeds", "o", BLUE), ("some", "D", ORANGE), ("none", "X", VERMILLION)]
    outcome_plot = drawing(layouts(panels, task, about, legend), "places")
    blocks: list[Block] = [("figure", outcome_plot, "", "Each arm's successes by where episodes began")]
    panels = []
    for pair in facts["pairs"]:
        won, lost = (np.isin(positions, pair[key]) for key in ("only_a", "only_b"))
        neither = replace(group(~won & ~lost, "o", INK, 0.25), front=1, alpha=0.35)
        groups = [neither, group(won, "^", BLUE, 1.5), group(lost, "v", VERMILLION, 1.5)]
        panels.append((f"▲ {labels[pair['a']]}: {won.sum()}\n▼ {labels[pair['b']]}: {lost.sum()}", groups))
    if panels:
        legend = [("first arm only", "^", BLUE), ("second arm only", "v", VERMILLION), ("neither", "o", INK)]
        blocks.append(
            ("figure", drawing(layouts(panels, task, about, legend), "wins"), "", "Paired wins and losses")
        )
    return blocks


def _episodes(
    run_dir: Path, facts: _Facts
) -> tuple[dict[str, dict[int, list[dict[str, Any]]]], dict[str, Any]]:
    """The records that compare.json counts, by arm and training seed, and the summary of one evaluation."""
    records: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for arm in facts["arms"]:
        for run in arm["seeds"]:
            file = run_dir / run["run"] / "episodes.jsonl"
            # an axis may have tried more positions
            found = [r for r in read_records(file) if r["episode"] < facts["positions"]["episodes"]]
            counted = (len(found), sum(record["success"] for record in found))
            if counted != (run["episodes"], run["successes"]):
                raise UserError(
                    f"{file}: expected {run['episodes']} episodes with {run['successes']} successes as in "
                    f"compare.json, got {counted[0]} with {counted[1]}"
                )
            records.setdefault(arm["name"], {})[run["seed"]] = found
    summary = run_dir / facts["arms"][0]["seeds"][0]["run"] / "summary.json"
    return records, read_json(summary) if summary.exists() else {}


def _axis(axis: _Facts, labels: Mapping[str, str], number: int) -> Section:
    values, arms = axis["values"], axis["arms"]
    numeric = all(isinstance(value, int | float) for value in values)
    place = {value: value if numeric else i for i, value in enumerate(values)}
    order, lines = list(labels), []
    by_value = {arm: {point["value"]: point for point in points} for arm, points in arms.items()}
    for arm, found in by_value.items():
        x = [value for value in sorted(values, key=lambda v: place[v]) if value in found]
        lines.append(_line(order.index(arm), [place[v] for v in x], [found[v] for v in x], labels[arm]))
    if (default := axis["default"]) in place:
        ends = [min(y for line in lines for y in line.low), max(y for line in lines for y in line.high)]
        style = {"lw": 1, "ls": (0, (1, 2)), "marker": None}
        lines.append(Line([place[default]] * 2, ends, "default", INK, style=style))
    rows = []
    for value in values:
        points = [found.get(value) for found in by_value.values()]
        rows.append([as_text(value), *("–" if point is None else _result(point) for point in points)])
    name = axis["label"] + (f" ({axis['unit']})" if axis["unit"] else "")
    ticks = {place[value]: as_text(value) for value in values}
    figure = drawing(
        curves([Panel("", lines, name, "success (%)", _log(values), ticks=ticks)], 1, (6, 4)), f"axis{number}"
    )
    table = ("table", (name, *(labels[arm] for arm in arms)), rows, 1)
    return Section(
        f"Axis: {axis['label']}",
        [("figure", figure, "", f"Success of each arm along {axis['label']}"), table],
    )


def _result(point: _Facts) -> str:
    return f"{_percent(point['success'])} [{_span(point)}], {point['successes']}/{point['episodes']}"


def _information(information: _Facts | None) -> list[Block]:
    if information is None:
        return []
    rows = [[_cell(cell) for cell in row] for row in information["rows"]]
    return [("table", information["columns"], rows, 1)]


def _readout(report: _Facts | None) -> list[Block]:
    """The plot of a readout, and its tables with all cameras joined."""
    if report is None:
        return []
    parts = [report, report.get("cells") or {"results": [], "differences": []}]
    rows = [row for part in parts for name in ("results", "differences") for row in part[name]]
    figure: Markup = drawing(plot(readout_points(report), READOUT_COLUMNS), "readout")
    tables = tables_of([row for row in rows if is_joined(row)])
    return [("figure", figure, "", "Error of position and yaw"), *(("table", t[0], t[1:], 1) for t in tables)]


def _power(power: _Facts | None) -> list[Block]:
    if power is None:
        return []
    rows = [[f"{100 * row['gap']:g}", _cell(row["needed"])] for row in power["table"]]
    enough = power["needed"] is not None and power["planned"] >= power["needed"]
    text = (
        f"A gap of {100 * power['gap']:g} points is seen with {100 * power['power']:g} % power on "
        f"{_cell(power['needed'])} positions; planned: {power['planned']}, {'enough' if enough else 'too few'}."
    )
    return [("text", text), ("table", ("gap (points)", "positions needed"), rows, 0)]


def _stopping(stopping: _Facts | None) -> list[Block]:
    if stopping is None:
        return []
    at = stopping["stopped_at"]
    end = "It ran to its planned end" if at is None else f"It stopped after {at} positions"
    text = f"Sequential analysis ({stopping['method']}), looks: {len(stopping['looks'])}. {end}: {stopping['reason']}."
    return [("text", text)]


def _films(videos: Iterable[_Facts], labels: Mapping[str, str]) -> Iterable[Film]:
    for i, video in enumerate(videos):
        sides = f"Left: {labels[video['a']]}, right: {labels[video['b']]}, position {video['position']}"
        yield Film(f"video-{i}", video["path"], f"{video['title']}. {sides}")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def _span(row: _Facts) -> str:
    return f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"


def _cell(value: Any) -> str:
    """A table's cell: text, a number with three figures, or a measured value as "value [low, high]"."""
    if isinstance(value, Mapping):
        ends = [_cell(value.get(key)) for key in ("value", "low", "high")]
        return ends[0] if "–" in ends[1:] else f"{ends[0]} [{ends[1]}, {ends[2]}]"
    if value is None or isinstance(value, str):
        return "–" if value is None else value
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", MINUS)

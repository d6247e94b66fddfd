"""Write a comparison as one HTML page: which arm wins, with what confidence, at which positions and at what cost.

    write_compare_report(Path("runs/compare"))   # -> runs/compare/report.html

Reads compare.json, the arms' episodes.jsonl and the videos that compare.json names.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.comparison.paired import outcomes_of
from s2robot.comparison.statistics import LEVEL, MINUS, VERDICTS, headline, p_text, verdict
from s2robot.core.files import read_json
from s2robot.envs.task import Group
from s2robot.evaluation.records import read_records, task_of
from s2robot.reporting import page, plots
from s2robot.reporting.page import Block, Section, as_text
from s2robot.reporting.style import BLUE, INK, ORANGE, VERMILLION, page_colours

_COSTS = {"gflops_per_frame": "GFLOPs per frame", "ms_per_action": "ms per action"}
_LOG_RATIO = 8  # an axis is logarithmic if its largest value is at least this many times its smallest
_MARKS = (("all training seeds", "o", BLUE, 1.0), ("some", "D", ORANGE, 1.0), ("none", "X", VERMILLION, 1.4))
_Facts = Mapping[str, Any]


def write_compare_report(run_dir: Path) -> Path:
    """Write `report.html` into a comparison's run directory, with videos up to about `page.VIDEO_BYTES`. UserError if a
    file is missing or broken, or the episodes do not match compare.json; an earlier report is kept."""
    facts = read_json(run_dir / "compare.json")
    arms, pairs, labels = facts["arms"], facts["pairs"], {arm["name"]: arm["label"] for arm in facts["arms"]}
    titles = (f"position {video['position']}: {labels[video['arm']]}" for video in facts["videos"])
    films = [(f"video-{i}", facts["videos"][i]["path"], title) for i, title in enumerate(titles)]
    successes = [f"{arm['label']}: {_percent(arm['success'])} [{_span(arm)}]" for arm in arms]
    lines = [headline(pair, labels) for pair in pairs] or successes
    counts = {
        "training seeds per arm": sorted({len(arm["seeds"]) for arm in arms}),
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
    runs = [[arm["label"], str(run["seed"]), run["run"]] for arm in arms for run in arm["seeds"]]
    reproduce = [
        ("code", facts["command"]),
        ("commands", "The stages as separate commands", facts["commands"]),
        ("table", ("arm", "training seed", "folder"), runs, 9),
        ("settings", "Versions", page.flatten("versions", facts["versions"])),
    ]
    others = [[each["name"], each["result"], each["conditions"]] for each in facts.get("published") or ()]
    published = [("table", ("published result", "result", "conditions"), others, 3)] if others else []
    sections = [
        Section("Success of each arm", [*_arms(arms, facts.get("measure")), *published]),
        *([Section("Arm against arm", _pairs(pairs, labels))] if pairs else []),
        Section("Success against cost", [_cost(arms)], "wide"),
        Section("Where each arm succeeds", [_position_maps(run_dir, facts, labels)], "wide"),
        *(_axis(axis, labels, number) for number, axis in enumerate(facts["axes"])),
        Section("Power", _power(facts["power"], facts["stopping"])),
        Section("Where the arms disagree", [page.videos(run_dir, films)[0]]),
        Section("Commands and versions", reproduce),
    ]
    return page.write_report_page(run_dir / "report.html", facts["title"], head, sections)


def _arms(arms: Sequence[_Facts], measure: str | None) -> list[Block]:
    rows, plotted, marks = [], [], []
    for i, arm in enumerate(arms):
        seeds = ", ".join(str(run["successes"]) for run in arm["seeds"])
        costs = (arm["gflops_per_frame"], arm["parameters"] / 1e6, arm["ms_per_action"])
        texts = [as_text(arm[key]) for key in ("label", "encoder", "scales", "policy")]
        values = arm.get("progress")
        progress = ["{:.3f} [{:.3f}–{:.3f}]".format(*values) if values else "–"] if measure else []
        rows.append([*texts, _percent(arm["success"]), _span(arm), seeds, *progress, *map(_cell, costs)])
        colour, marker, glyph, _ = plots.series_style(i)
        parts = [100 * run["successes"] / run["episodes"] for run in arm["seeds"]]
        value, low, high = (100 * arm[key] for key in ("success", "low", "high"))
        plotted.append(plots.Row(arm["label"], value, low, high, colour, marker, parts=parts))
        marks.append((page_colours(colour), glyph))
    heads = ["arm", "encoder", "scales", "policy", "success", "95 % interval", "successes by training seed"]
    heads += [f"{measure}, mean [95 % interval]"] if measure else []
    figure = plots.intervals(plotted, "success (%); open marks: one training seed each")
    return [
        ("table", (*heads, "GFLOPs per frame", "parameters (M)", "ms per action"), rows, 4, marks),
        ("note", f"Interval: {'; '.join(sorted({arm['interval'] for arm in arms}))}."),
        page.figure(figure, "success", "Success of each arm with its interval, and of each training seed"),
    ]


def _pairs(pairs: Sequence[_Facts], labels: Mapping[str, str]) -> list[Block]:
    rows, plotted = [], []
    for pair in pairs:
        test, name = pair["mcnemar"], f"{labels[pair['a']]} {MINUS} {labels[pair['b']]}"
        points = [100 * pair[key] for key in ("difference", "low", "high")]
        texts = [f"{value:+.1f}".replace("-", MINUS) for value in points]
        results = [VERDICTS[verdict(pair)], texts[0], f"{texts[1]} to {texts[2]}", p_text(pair["p_holm"])]
        counts = [str(pair["episodes"]), f"{test['wins']} / {test['losses']}", p_text(test["p"])]
        rows.append([name, *results, *counts])
        clear = pair["low"] > 0 or pair["high"] < 0
        value, low, high = points
        plotted.append(plots.Row(name, value, low, high, BLUE if clear else INK, filled=clear))
    level, joint = 100 * (1 - pairs[0].get("alpha", LEVEL)), "sequence" in pairs[0]["method"]
    heads = ("first arm − second", "verdict", "points", f"{level:g} % interval", "test", "episodes")
    about = dict.fromkeys(f"They hold for {pair['scope']}. Method: {pair['method']}." for pair in pairs)
    others = "the intervals hold simultaneously; McNemar's" if joint else "the intervals and McNemar's"
    note = (
        f"Interval and test: {' '.join(about)} McNemar's test counts the positions that only one arm solved. The p values "
        f"of the test are adjusted for {len(pairs)} pairs (Holm); {others} p values are not."
    )
    figure = plots.intervals(plotted, "difference in success (points); filled: the interval excludes 0", 0.0)
    return [
        ("table", (*heads, "McNemar: wins / losses", "McNemar: test"), rows, 2),
        ("note", note),
        page.figure(figure, "difference", "Difference in success of each pair of arms with its interval"),
    ]


def _line(arm: int, x: Sequence[Any], points: Sequence[_Facts], label: str, **style: Any) -> plots.Line:
    low, success, high = ([100 * point[key] for point in points] for key in ("low", "success", "high"))
    colour, marker, _, dashes = plots.series_style(arm)
    look = {"marker": marker, "ms": 7, "ls": dashes, **style}
    return plots.Line(x, success, label, colour, low, high, look)


def _cost(arms: Sequence[_Facts]) -> Block:
    panels = []
    for key, title in _COSTS.items():
        lines = [_line(i, [arm[key]], [arm], arm["label"], ls="none") for i, arm in enumerate(arms)]
        panels.append(plots.Panel("", lines, title, "success (%)", _log([arm[key] for arm in arms])))
    return page.figure(plots.curves(panels, 2, (5.2, 3.8)), "cost", "Success against cost")


def _log(values: Sequence[Any]) -> str:
    numbers = all(isinstance(value, int | float) for value in values)
    return "x" if numbers and min(values) > 0 and max(values) / min(values) >= _LOG_RATIO else ""


def _position_maps(run_dir: Path, facts: _Facts, labels: Mapping[str, str]) -> Block:
    records: dict[str, dict[int, list[dict[str, Any]]]] = {arm: {} for arm in labels}
    for arm in facts["arms"]:
        for run in arm["seeds"]:
            file = run_dir / run["run"] / "episodes.jsonl"
            episodes = read_records(file, facts["positions"]["episodes"], run)  # an axis may have added more
            records[arm["name"]][run["seed"]] = episodes
    summary = file.with_name("summary.json")
    about = read_json(summary) if summary.exists() else {}
    first, panels = sorted(episodes, key=lambda record: record["seed"]), []
    size = plots.mark_size(len(first), 2)
    for name, outcomes in outcomes_of(records).items():
        share = outcomes.mean(0)
        parts = zip((share == 1, share % 1 > 0, share == 0), _MARKS, strict=True)
        groups = [
            Group([first[i] for i in np.flatnonzero(chosen)], "", marker, colour, scale * size)
            for chosen, (_, marker, colour, scale) in parts
        ]
        panels.append((f"{labels[name]}: {_percent(share.mean())}", groups))
    figure = plots.layouts(panels, task_of(about).settings, about, [row[:3] for row in _MARKS])
    return page.figure(figure, "places", "Each arm's successes by starting position")


def _axis(axis: _Facts, labels: Mapping[str, str], number: int) -> Section:
    values, arms, lines = axis["values"], axis["arms"], []
    numeric = all(isinstance(value, int | float) for value in values)
    key = lambda value: json.dumps(value) if isinstance(value, list | dict) else value  # noqa: E731
    place = {key(value): value if numeric else i for i, value in enumerate(values)}
    for i, (name, label) in enumerate(labels.items()):
        points = sorted(arms[name], key=lambda point: place[key(point["value"])])
        lines.append(_line(i, [place[key(point["value"])] for point in points], points, label))
    if (default := key(axis["default"])) in place:
        ends = [min(y for line in lines for y in line.low), max(y for line in lines for y in line.high)]
        style = {"lw": 1, "ls": (0, (1, 2)), "marker": None}
        lines.append(plots.Line([place[default]] * 2, ends, "default", INK, style=style))
    results = {(name, key(point["value"])): _result(point) for name in labels for point in arms[name]}
    rows = [[as_text(value), *(results[name, key(value)] for name in labels)] for value in values]
    name = axis["label"] + (f" ({axis['unit']})" if axis["unit"] else "")
    ticks = {place[key(value)]: as_text(value) for value in values}
    panel = plots.Panel("", lines, name, "success (%)", _log(values), ticks)
    figure = page.figure(plots.curves([panel], 1, (6, 4)), f"axis{number}", f"Success by {axis['label']}")
    return Section(f"Axis: {axis['label']}", [figure, ("table", (name, *labels.values()), rows, 1)])


def _power(power: _Facts, stopping: _Facts | None) -> list[Block]:
    rows = [[f"{100 * row['gap']:g}", _cell(row["needed"])] for row in power["table"]]
    enough = power["needed"] is not None and power["planned"] >= power["needed"]
    text = (
        f"Detecting a gap of {100 * power['gap']:g} points with {100 * power['power']:g} % power needs "
        f"{_cell(power['needed'])} positions, for a single pair without early stopping; planned: {power['planned']}, "
        f"{'enough' if enough else 'too few'}."
    )
    blocks: list[Block] = [("text", text), ("table", ("gap (points)", "positions needed"), rows, 0)]
    if stopping is not None:
        at, looks = stopping["stopped_at"], len(stopping["looks"])
        end = "It ran to its planned end" if at is None else f"It stopped after {at} positions"
        words = f"Sequential analysis ({stopping['method']}), interim analyses: {looks}. {end}: {stopping['reason']}."
        blocks.append(("text", words))
    return blocks


def _result(row: _Facts) -> str:
    return f"{_percent(row['success'])} [{_span(row)}], {row['successes']}/{row['episodes']}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\N{NO-BREAK SPACE}%"


def _span(row: _Facts) -> str:
    return f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", MINUS)

"""A comparison as one HTML page that needs nothing else: who wins and how surely, where, at what cost.

    from s2robot.comparison.report import write_compare_report
    write_compare_report(Path("runs/compare"))   # -> runs/compare/report.html

Reads compare.json, the arms' episodes.jsonl and the videos that compare.json names.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError
from s2robot.comparison.folder import Axis, Comparison, Information, Power, Stopping, read_comparison
from s2robot.comparison.plots import (
    COSTS,
    arm_styles,
    axis_plot,
    cost_plot,
    difference_plot,
    success_plot,
    tables_plot,
    wins_plot,
)
from s2robot.comparison.wording import (
    MINUS,
    NBSP,
    explanation,
    measured,
    named,
    p_text,
    percent,
    points,
    rounded,
    sentence,
    span,
    verdict,
)
from s2robot.probing.report import READOUT_COLUMNS, is_joined, plot, readout_points, tables_of
from s2robot.reporting.page import VIDEO_BYTES, Film, as_text, drawing, embed, flatten, write_page
from s2robot.reporting.style import page_colours

_SEEDS = 3  # of training seeds in a line of a table: more would push its last columns off the page


def write_compare_report(run_dir: Path, video_bytes: int = VIDEO_BYTES) -> Path:
    """Write `report.html` into a comparison's run folder and return its path.

    Videos are embedded in the order of compare.json up to about `video_bytes` of text; those left out are named.
    Raises UserError, and leaves an earlier report as it is, for what `read_comparison` refuses and for a
    `readout` that `s2robot probe` did not write.
    """
    run_dir = Path(run_dir)
    comparison = read_comparison(run_dir)
    facts = comparison.facts
    return write_page(
        run_dir / "report.html",
        "comparison.html.j2",
        **_head(comparison),
        arms=_arms(comparison),
        pairs=_pairs(comparison) if facts.pairs else None,
        cost_svg=_cost(comparison),
        places_svg=drawing(tables_plot(comparison), "places"),
        wins_svg=drawing(wins_plot(comparison), "wins") if facts.pairs else None,
        axes=[_axis(comparison, axis, number) for number, axis in enumerate(facts.axes)],
        information=_information(facts.information),
        readout=_readout(facts.readout, run_dir / "compare.json"),
        power=_power(facts.power),
        stopping=_stopping(facts.stopping),
        films=embed(run_dir, _films(comparison), video_bytes, str(run_dir / "compare.json")),
        command=facts.command,
        commands=facts.commands,
        runs=[[arm.label, str(run.seed), run.run] for arm in facts.arms for run in arm.seeds],
        versions=[row for key, value in facts.versions.items() for row in flatten(str(key), value)],
    )


def _head(comparison: Comparison) -> dict[str, Any]:
    facts, pairs = comparison.facts, comparison.facts.pairs
    if pairs:
        headline, about = sentence(comparison, pairs[0]), explanation(comparison, pairs[0])
    else:
        arms = [f"{arm.label} {percent(arm.success)} [{span(arm)}]" for arm in facts.arms]
        headline, about = ", ".join(arms), "No two arms were compared."
    counts = sorted({len(arm.seeds) for arm in facts.arms})
    return {
        "title": facts.title,
        "question": facts.question,
        "headline": headline,
        "about": about,
        "others": [sentence(comparison, pair) for pair in pairs[1:]],
        "seeds": str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
        "positions": len(comparison.positions),
        "first_position": facts.positions.seed,
        "episodes": sum(values.size for values in comparison.solved.values()),
    }


def _arms(comparison: Comparison) -> dict[str, Any]:
    rows, arms = [], comparison.facts.arms
    for arm in arms:
        runs = [f"{run.successes}/{run.episodes}" for run in arm.seeds]
        seeds = [" · ".join(runs[i : i + _SEEDS]) for i in range(0, len(runs), _SEEDS)]
        parameters = None if arm.parameters is None else arm.parameters / 1e6
        texts = [arm.label, named(arm.encoder), as_text(arm.scales), named(arm.policy)]
        costs = [rounded(value) for value in (arm.gflops_per_frame, parameters, arm.ms_per_action)]
        rows.append([*texts, percent(arm.success), span(arm), seeds, *costs])
    styles = arm_styles(comparison)
    return {
        "heads": (
            *("arm", "encoder", "scales", "policy", "success", "95 % interval", "by training seed"),
            *("GFLOPs per frame", "parameters (M)", "ms per action"),
        ),
        "rows": rows,
        "marks": [(page_colours(style.colour), style.glyph) for style in (styles[arm.name] for arm in arms)],
        "intervals": sorted({arm.interval for arm in arms if isinstance(arm.interval, str)}),
        "svg": drawing(success_plot(comparison), "success"),
    }


def _pairs(comparison: Comparison) -> dict[str, Any]:
    pairs = comparison.facts.pairs
    rows = []
    for pair in pairs:
        test = pair.mcnemar
        rows.append(
            [
                f"{comparison.label(pair.a)} {MINUS} {comparison.label(pair.b)}",
                {True: "differ", False: "not told apart", None: "borderline"}[verdict(pair)],
                points(pair.difference),
                f"{points(pair.low)} to {points(pair.high)}",
                p_text(pair.p_holm),
                str(pair.episodes),
                f"{test.wins} / {test.losses}",
                p_text(test.p),
            ]
        )
    about = dict.fromkeys(f"They hold for {pair.scope}. Method: {pair.method}." for pair in pairs)
    notes = [
        f"Interval and test: {' '.join(about)}",
        "McNemar's test counts the cases that only one arm solved.",
    ]
    if len(pairs) > 1:
        notes.append(
            f"The p values of the test are adjusted for {len(pairs)} pairs (Holm); intervals and McNemar's are not."
        )
    return {
        "heads": (
            *("first arm − second", "verdict", "points", "95 % interval", "test", "episodes"),
            *("McNemar: wins / losses", "McNemar: test"),
        ),
        "rows": rows,
        "notes": notes,
        "svg": drawing(difference_plot(comparison), "difference"),
    }


def _cost(comparison: Comparison) -> str | None:
    if all(getattr(arm, key) is None for arm in comparison.facts.arms for key in COSTS):
        return None
    return drawing(cost_plot(comparison), "cost")


def _axis(comparison: Comparison, axis: Axis, number: int) -> dict[str, Any]:
    arms = list(axis.arms)
    rows = []
    for value in axis.values:
        cells = [as_text(value)]
        for arm in arms:
            found = [point for point in axis.arms[arm] if point.value == value]
            cells += [f"{percent(p.success)} [{span(p)}], {p.successes}/{p.episodes}" for p in found[:1]]
            cells += ["–"] * (not found)
        rows.append(cells)
    unit = f" ({axis.unit})" if axis.unit else ""
    return {
        "label": axis.label,
        "heads": (axis.label + unit, *(comparison.label(arm) for arm in arms)),
        "rows": rows,
        "svg": drawing(axis_plot(comparison, axis), f"axis{number}"),
    }


def _information(information: Information | None) -> dict[str, Any] | None:
    if information is None:
        return None
    rows = [[measured(cell) for cell in row] for row in information.rows]
    return {"columns": information.columns, "rows": rows}


def _readout(report: Mapping[str, Any] | None, path: Path) -> dict[str, Any] | None:
    """Return the plot of a readout, and its tables with all cameras joined."""
    if report is None:
        return None
    try:
        svg = drawing(plot(readout_points(report), READOUT_COLUMNS), "readout")
        parts = [report, report.get("cells") or {"results": [], "differences": []}]
        rows = [row for part in parts for name in ("results", "differences") for row in part[name]]
        tables = tables_of([row for row in rows if is_joined(row)])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: readout: expected what `s2robot probe` writes, got {type(error).__name__}: {error}"
        ) from error
    return {"svg": svg, "tables": tables}


def _power(power: Power | None) -> dict[str, Any] | None:
    if power is None:
        return None
    needed, planned = power.needed, power.planned
    gap, chance = f"{100 * power.gap:g} points", f"{100 * power.power:g}{NBSP}%"
    wanted = "no number of positions is enough" if needed is None else f"{needed} positions needed"
    enough = needed is not None and planned >= needed
    outcome = "enough" if enough else "fewer than that: a gap of this size may well have been missed"
    return {
        "text": f"To see a gap of {gap} with {chance} power: {wanted}. Planned: {planned}, {outcome}.",
        "heads": ("gap (points)", f"positions needed for {chance} power"),
        "rows": [
            [f"{100 * row.gap:g}", "no number is enough" if row.needed is None else str(row.needed)]
            for row in power.table
        ],
    }


def _stopping(stopping: Stopping | None) -> str | None:
    if stopping is None:
        return None
    looks = stopping.looks if isinstance(stopping.looks, int) else len(stopping.looks)
    at = stopping.stopped_at
    end = "It ran to its planned end" if at is None else f"It stopped after {at} positions"
    reason = f": {stopping.reason}" if stopping.reason else ""
    return f"Sequential analysis ({stopping.method}), looks: {looks}. {end}{reason}."


def _films(comparison: Comparison) -> Iterable[Film]:
    for i, video in enumerate(comparison.facts.videos):
        a, b = comparison.label(video.a), comparison.label(video.b)
        caption = f"{video.title}. Left: {a}, right: {b}, position {video.position}"
        yield Film(f"video-{i}", video.path, caption)

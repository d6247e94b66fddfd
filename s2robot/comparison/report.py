"""A comparison as one HTML page that needs nothing else: who wins and how surely, where, at what cost.

    from s2robot.comparison.report import write_compare_report
    write_compare_report(Path("runs/compare"))   # -> runs/compare/report.html

Reads compare.json, the arms' episodes.jsonl and the videos that compare.json names.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError
from s2robot.comparison.folder import Comparison, read_comparison
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
from s2robot.reporting.page import VIDEO_BYTES, Film, as_text, figure, films_html, flatten, write_page
from s2robot.reporting.style import figure_svg, page_colours

MINUS, NBSP = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
_SEEDS = 3  # of training seeds in a line of a table: more would push its last columns off the page
LEVEL = 0.05  # of p and of the intervals (95 %)


def write_compare_report(run_dir: Path, video_bytes: int = VIDEO_BYTES) -> Path:
    """Write `report.html` into a comparison's run folder and return its path.

    Videos are embedded in the order of compare.json up to about `video_bytes` of text; those left out are named.
    Raises UserError, and leaves an earlier report as it is, for what `read_comparison` refuses and for a
    `readout` that `s2robot readout` did not write.
    """
    run_dir = Path(run_dir)
    comparison = read_comparison(run_dir)
    facts = comparison.facts
    return write_page(
        run_dir / "report.html",
        facts["title"],
        (
            _head(comparison),
            _arms(comparison),
            _pairs(comparison),
            _cost(comparison),
            _places(comparison),
            *(_axis(comparison, axis, i) for i, axis in enumerate(facts["axes"])),
            _information(facts["information"]),
            _readout(facts["readout"], run_dir / "compare.json"),
            _power(facts["power"], facts["stopping"]),
            _videos(comparison, run_dir, video_bytes),
            _origin(facts),
        ),
    )


def sentence(comparison: Comparison, pair: Mapping[str, Any]) -> str:
    """A pair's result as text: "Base + S² +12.3 points against Base [+4.1, +20.5], p = 0.0040, N = 384"."""
    a, b = comparison.label(pair["a"]), comparison.label(pair["b"])
    text = (
        f"{a} {points(pair['difference'])}{NBSP}points against {b} [{points(pair['low'])}, "
        f"{points(pair['high'])}], {p_text(pair['p'])}, N{NBSP}={NBSP}{pair['episodes']}"
    )
    return {True: "", False: "No clear difference: ", None: "Borderline: "}[verdict(pair)] + text


def verdict(pair: Mapping[str, Any]) -> bool | None:
    """Whether the arms differ: True if interval and test both say so, False if neither does, None otherwise."""
    outside, rejected = pair["low"] > 0 or pair["high"] < 0, pair["p"] < LEVEL
    return outside if outside == rejected else None


def explanation(comparison: Comparison, pair: Mapping[str, Any]) -> str:
    """What the figures of a pair mean, as plain text."""
    a, b = comparison.label(pair["a"]), comparison.label(pair["b"])
    low, high = (_worse_or_better(pair[key]) for key in ("low", "high"))
    if verdict(pair) is None:
        return (
            f"Interval and test disagree, so the result stands on the edge: the interval reaches from {low} to {high}, "
            f"and {p_text(pair['p'])}."
        )
    if not verdict(pair):
        return (
            f"The interval holds 0, so this run does not tell {a} from {b}. It fits {a} being anything from "
            f"{low} to {high}."
        )
    more, less = (a, b) if pair["difference"] > 0 else (b, a)
    least, most = sorted((abs(100 * pair["low"]), abs(100 * pair["high"])))
    return (
        f"{more} lifted the cube more often than {less}. The data fit {more} being {least:.1f} to {most:.1f} points "
        "better."
    )


def _worse_or_better(difference: float) -> str:
    return f"{abs(100 * difference):.1f} points {'worse' if difference < 0 else 'better'}"


def points(difference: float) -> str:
    """0.123 -> "+12.3", with a true minus sign."""
    return f"{100 * difference:+.1f}".replace("-", MINUS)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}{NBSP}%"


def p_text(p: float) -> str:
    """0.00004 -> "p < 0.001", 0.0412 -> "p = 0.041"."""
    return f"p{NBSP}<{NBSP}0.001" if p < 0.001 else f"p{NBSP}={NBSP}{p:.2g}"


def _range(row: Mapping[str, Any]) -> str:
    return f"{100 * row['low']:.1f}–{100 * row['high']:.1f}"


def _head(comparison: Comparison) -> str:
    facts = comparison.facts
    pairs = facts["pairs"]
    if pairs:
        headline, about = sentence(comparison, pairs[0]), explanation(comparison, pairs[0])
    else:
        arms = [f"{arm['label']} {percent(arm['success'])} [{_range(arm)}]" for arm in facts["arms"]]
        headline, about = ", ".join(arms), "No two arms were compared."
    others = "".join(f"<li>{escape(sentence(comparison, pair))}</li>" for pair in pairs[1:])
    counts = sorted({len(arm["seeds"]) for arm in facts["arms"]})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    line = (
        f"arms <b>{len(facts['arms'])}</b> · training seeds an arm <b>{seeds}</b> · cube positions "
        f"<b>{len(comparison.positions)}</b> (seeds from {facts['positions']['seed']}) · episodes "
        f"<b>{sum(values.size for values in comparison.solved.values())}</b>"
    )
    return f"""<header><p class="facts">{escape(facts["title"])}</p>
<h1>{escape(headline)}</h1>
<p>{escape(about)}</p>{f"<ul>{others}</ul>" if others else ""}
<p><b>Question.</b> {escape(facts["question"])}</p>
<p class="facts">{line}</p></header>"""


def _arms(comparison: Comparison) -> str:
    rows = []
    for arm in comparison.facts["arms"]:
        runs = [f"{run['successes']}/{run['episodes']}" for run in arm["seeds"]]
        seeds = "<br>".join(" · ".join(runs[i : i + _SEEDS]) for i in range(0, len(runs), _SEEDS))
        name = f"{_glyph(comparison, arm['name'])} {escape(arm['label'])}"
        parameters = None if arm["parameters"] is None else arm["parameters"] / 1e6
        costs = [_rounded(value) for value in (arm["gflops_per_frame"], parameters, arm["ms_per_action"])]
        texts = [_named(arm["encoder"]), as_text(arm["scales"]), _named(arm["policy"])]
        cells = [percent(arm["success"]), _range(arm)]
        rows.append([name, *map(escape, (*texts, *cells)), seeds, *map(escape, costs)])
    heads = ["arm", "encoder", "scales", "policy", "success", "95 % interval", "by training seed"]
    heads += ("GFLOPs per frame", "parameters (M)", "ms per action")
    methods = sorted(
        {arm["interval"] for arm in comparison.facts["arms"] if isinstance(arm.get("interval"), str)}
    )
    note = f"<p><small>Interval: {escape('; '.join(methods))}.</small></p>" if methods else ""
    svg = figure_svg(success_plot(comparison), "success")
    picture = figure(svg, "", "Success of each arm with its interval, and of each training seed")
    return f"<section><h2>Success of each arm</h2>{_table(heads, rows, 4)}{note}{picture}</section>"


def _pairs(comparison: Comparison) -> str:
    pairs = comparison.facts["pairs"]
    if not pairs:
        return ""
    rows = []
    for pair in pairs:
        test = pair["mcnemar"]
        cells = [
            f"{comparison.label(pair['a'])} {MINUS} {comparison.label(pair['b'])}",
            {True: "differ", False: "not told apart", None: "borderline"}[verdict(pair)],
            points(pair["difference"]),
            f"{points(pair['low'])} to {points(pair['high'])}",
            p_text(pair["p"]),
            str(pair["episodes"]),
            f"{test['wins']} / {test['losses']}",
            p_text(test["p"]),
        ]
        rows.append([escape(cell) for cell in cells])
    heads = ["first arm − second", "verdict", "points", "95 % interval", "test", "episodes"]
    heads += ("McNemar: wins / losses", "McNemar: test")
    about = dict.fromkeys(f"They hold for {pair['scope']}. Method: {pair['method']}." for pair in pairs)
    notes = [
        f"Interval and test: {' '.join(about)}",
        "McNemar's test counts the cases that only one arm solved.",
    ]
    if len(pairs) > 1:
        notes.append(f"The p values are not corrected for there being {len(pairs)} pairs.")
    svg = figure_svg(difference_plot(comparison), "difference")
    picture = figure(svg, "", "Difference in success of each pair of arms with its interval")
    small = "".join(f"<p><small>{escape(note)}</small></p>" for note in notes)
    return f"<section><h2>Arm against arm</h2>{_table(heads, rows, 2)}{small}{picture}</section>"


def _cost(comparison: Comparison) -> str:
    if all(arm[key] is None for arm in comparison.facts["arms"] for key in COSTS):
        return ""
    drawn = cost_plot(comparison)
    picture = figure(
        figure_svg(drawn, "cost"), "Success against cost", "Success of each arm against what it costs"
    )
    return f'<section class="wide">{picture}</section>'


def _places(comparison: Comparison) -> str:
    svg = figure_svg(tables_plot(comparison), "places")
    parts = [
        figure(
            svg, "Where each arm succeeds", "The table from above, each arm's successes by the cube's place"
        )
    ]
    if comparison.facts["pairs"]:
        svg = figure_svg(wins_plot(comparison), "wins")
        about = "The table from above, for each pair the positions that count for one arm only"
        parts.append(figure(svg, "Paired wins and losses by the cube's place", about))
    return f'<section class="wide stack">{"".join(parts)}</section>'


def _axis(comparison: Comparison, axis: Mapping[str, Any], number: int) -> str:
    arms = list(axis["arms"])
    rows = []
    for value in axis["values"]:
        cells = [as_text(value)]
        for arm in arms:
            found = [point for point in axis["arms"][arm] if point["value"] == value]
            cells += [
                f"{percent(p['success'])} [{_range(p)}], {p['successes']}/{p['episodes']}" for p in found[:1]
            ]
            cells += ["–"] * (not found)
        rows.append([escape(cell) for cell in cells])
    unit = f" ({axis['unit']})" if axis["unit"] else ""
    heads = (axis["label"] + unit, *(comparison.label(arm) for arm in arms))
    svg = figure_svg(axis_plot(comparison, axis), f"axis{number}")
    picture = figure(svg, "", f"Success of each arm along: {axis['label']}")
    return (
        f"<section><h2>Where it pays: {escape(axis['label'])}</h2>{picture}{_table(heads, rows, 1)}</section>"
    )


def _information(information: Mapping[str, Any] | None) -> str:
    if information is None:
        return ""
    rows = [[escape(_measured(cell)) for cell in row] for row in information["rows"]]
    return f"<section><h2>What the features hold</h2>{_table(information['columns'], rows, 1)}</section>"


def _readout(report: Mapping[str, Any] | None, path: Path) -> str:
    """The read-out's own picture, and its figures with all cameras joined."""
    if report is None:
        return ""
    # brings torch, which no other part needs
    from s2robot.probing.readout import CELLS_SHOWN, JOINED, NO_POOL, SHOWN, readout_plot

    shown = {"position_mean_cm": "position (cm)", "position_r2": "position R²", "yaw_mean_deg": "yaw (°)"}
    try:
        svg = figure_svg(readout_plot(report), "readout")
        rows = [
            [
                _compared(row),
                escape("" if row["pool"] == NO_POOL else row["pool"]),
                escape(SHOWN[row["subset"]]),
                *(escape(_measured(row[metric])) for metric in shown),
            ]
            for row in [*report["results"], *report["differences"]]
            if row["cameras"] in (JOINED, NO_POOL) and row["subset"] in SHOWN
        ]
        cells = report.get("cells") or {"results": [], "differences": []}  # an older read-out has none
        dense = [
            [_compared(row), *(escape(_measured(row[metric])) for metric in CELLS_SHOWN)]
            for row in [*cells["results"], *cells["differences"]]
            if row["cameras"] == JOINED
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path}: 'readout' is broken ({type(error).__name__}: {error}), expected what `s2robot readout` writes"
        ) from error
    picture = figure(svg, "", "Error of position and yaw read linearly from each encoder's features")
    table = _table(("encoder", "pool", "frames", *shown.values()), rows, 3)
    if dense:
        table += "<h3>Depth and segments, read from each token</h3>"
        table += _table(("encoder", *CELLS_SHOWN.values()), dense, 1)
    return f'<section class="wide"><h2>Position and yaw read from the features</h2>{picture}{table}</section>'


def _compared(row: Mapping[str, Any]) -> str:
    """The encoder of a read-out's row, or the two that it compares, as HTML."""
    return escape(row["encoder"] + (f" {MINUS} {row['minus']}" if "minus" in row else ""))


def _power(power: Mapping[str, Any] | None, stopping: Mapping[str, Any] | None) -> str:
    parts = []
    if power is not None:
        gap, chance = f"{100 * power['gap']:g} points", f"{100 * power['power']:g}{NBSP}%"
        wanted = (
            "no number of positions is enough"
            if power["needed"] is None
            else f"{power['needed']} positions needed"
        )
        enough = power["needed"] is not None and power["planned"] >= power["needed"]
        outcome = "enough" if enough else "fewer than that: a gap of this size may well have been missed"
        parts.append(
            f"<p>To see a gap of {gap} with {chance} power: {wanted}. "
            f"Planned: {power['planned']}, {outcome}.</p>"
        )
        rows = [
            [f"{100 * row['gap']:g}", "no number is enough" if row["needed"] is None else str(row["needed"])]
            for row in power["table"]
        ]
        parts.append(
            _table(("gap (points)", f"positions needed for {chance} power"), rows, 0) if rows else ""
        )
    if stopping is not None:
        looks = stopping["looks"] if isinstance(stopping["looks"], int) else len(stopping["looks"])
        at = stopping["stopped_at"]
        end = "It ran to its planned end" if at is None else f"It stopped after {at} positions"
        reason = f": {stopping['reason']}" if stopping["reason"] else ""
        text = f"Sequential analysis ({stopping['method']}), looks: {looks}. {end}{reason}."
        parts.append(f"<p>{escape(text)}</p>")
    return f"<section><h2>How many episodes it takes</h2>{''.join(parts)}</section>" if parts else ""


def _videos(comparison: Comparison, run_dir: Path, limit: int) -> str:
    videos = comparison.facts["videos"]
    films = [
        Film(
            f"video-{i}",
            video["path"],
            f"{video['title']}. Left: {comparison.label(video['a'])}, right: {comparison.label(video['b'])}, "
            f"position {video['position']}",
        )
        for i, video in enumerate(videos)
    ]
    html, _ = films_html(run_dir, films, limit, str(run_dir / "compare.json"))
    return f'<section class="pairs"><h2>Where the arms disagree</h2>{html}</section>' if html else ""


def _origin(facts: Mapping[str, Any]) -> str:
    stages = "\n".join(facts["commands"])
    parts = [f"<p>Made by</p><pre>{escape(facts['command'])}</pre>"]
    if stages:
        parts.append(f"<p>Its stages, each as a command of its own</p><pre>{escape(stages)}</pre>")
    rows = [
        [escape(arm["label"]), str(run["seed"]), escape(run["run"])]
        for arm in facts["arms"]
        for run in arm["seeds"]
    ]
    parts.append(f"<h3>Run folders</h3>{_table(('arm', 'training seed', 'folder'), rows, 9)}")
    flat = [row for key, value in facts["versions"].items() for row in flatten(str(key), value)]
    body = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(as_text(value))}</td></tr>" for name, value in flat
    )
    if body:
        parts.append(f'<h3>Versions</h3><div class="scroll"><table class="settings">{body}</table></div>')
    return f"<section><h2>Commands and versions</h2>{''.join(parts)}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """Cells are HTML; from column `numbers` on they are set as numbers."""
    kinds = [" class=n" if i >= numbers else "" for i in range(len(heads))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _glyph(comparison: Comparison, arm: str) -> str:
    style = arm_styles(comparison)[arm]
    return page_colours(f'<span style="color:{style.colour}" aria-hidden="true">{style.glyph}</span>')


def _named(value: Any) -> str:
    """A setting as short text: its name if it is an object that has one."""
    if isinstance(value, Mapping):
        return (
            as_text(value["name"])
            if "name" in value
            else as_text([f"{k} {as_text(v)}" for k, v in value.items()])
        )
    return as_text(value)


def _measured(cell: Any) -> str:
    """A table's cell: text, a number, or a measured value as "value [low, high]"."""
    if isinstance(cell, Mapping):
        value, low, high = (cell.get(key) for key in ("value", "low", "high"))
        return (
            _rounded(value)
            if low is None or high is None
            else f"{_rounded(value)} [{_rounded(low)}, {_rounded(high)}]"
        )
    return _rounded(cell) if cell is None or isinstance(cell, float) else as_text(cell)


def _rounded(value: float | None) -> str:
    """Three figures, never as a power of ten: 17.482 -> "17.5", 2811904 -> "2811904"; None -> "–"."""
    if value is None:
        return "–"
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", MINUS)

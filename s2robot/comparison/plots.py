"""Pictures of a comparison: success of each arm, differences, cost, where each succeeds, and curves along an axis.

    svg = figure_svg(success_plot(comparison), "success")

An arm keeps its colour (Okabe and Ito's), marker and line style in every picture; nothing is told by colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

from s2robot.comparison.folder import Arm, Axis, Comparison
from s2robot.envs.layout_plot import draw_layout
from s2robot.envs.task import Group
from s2robot.reporting.page import as_text
from s2robot.reporting.style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, VERMILLION, styled

COSTS = {"gflops_per_frame": "GFLOPs per frame", "ms_per_action": "ms per action"}
_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, INK)
_SHAPES = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
_LINES: Sequence[Any] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
_WIDE = 8  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Style:
    """How an arm is drawn; `glyph` is its marker as a letter, for tables."""

    colour: str
    marker: str
    glyph: str
    line: Any


def arm_styles(comparison: Comparison) -> dict[str, Style]:
    """Arm -> its style, by the order of the arms; the first 84 differ."""
    styles = {}
    for i, arm in enumerate(comparison.facts.arms):
        marker, glyph = _SHAPES[i % len(_SHAPES)]
        styles[arm.name] = Style(_COLOURS[i % len(_COLOURS)], marker, glyph, _LINES[i % len(_LINES)])
    return styles


@styled
def success_plot(comparison: Comparison) -> Figure:
    """Success of each arm with its interval; below it, open marks, each training seed."""
    arms, styles = comparison.facts.arms, arm_styles(comparison)
    figure = Figure(figsize=(6.4, 0.72 * len(arms) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    ends: list[float] = []
    for y, arm in enumerate(arms):
        style = styles[arm.name]
        low, success, high = (100 * getattr(arm, key) for key in ("low", "success", "high"))
        seeds = [100 * run.successes / run.episodes for run in arm.seeds if run.episodes]
        axes.plot([low, high], [y, y], color=style.colour, lw=3, alpha=0.55, solid_capstyle="butt")
        axes.plot(success, y, style.marker, color=style.colour, ms=9)
        axes.text(success, y - 0.2, f"{success:.1f} %", ha="center", va="bottom", fontsize=9)
        axes.plot(
            seeds, [y + 0.25] * len(seeds), style.marker, color=style.colour, mfc="none", ms=5, ls="none"
        )
        ends += [low, high, *seeds]
    axes.set_yticks(range(len(arms)), [fill(arm.label, 26) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.6)
    # whole tens around the data: neither squeezed between 0 and 100 nor blown up to fill the picture
    axes.set_xlim(
        max(0, 10 * math.floor(min(ends) / 10 - 0.3)), min(100.5, 10 * math.ceil(max(ends) / 10 + 0.3))
    )
    axes.grid(axis="x", **GRID)
    axes.set_xlabel("success (%)")
    handles = [
        Line2D([], [], color=INK, marker="o", ms=8, lw=3, label="pooled, with interval"),
        Line2D([], [], color=INK, marker="o", ms=5, mfc="none", ls="none", label="one training seed"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


@styled
def difference_plot(comparison: Comparison) -> Figure:
    """First arm minus second, in points, with its interval; filled where the interval leaves out 0."""
    pairs = comparison.facts.pairs
    figure = Figure(figsize=(6.4, 0.72 * len(pairs) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for y, pair in enumerate(pairs):
        low, middle, high = (100 * getattr(pair, key) for key in ("low", "difference", "high"))
        clear = pair.low > 0 or pair.high < 0
        axes.plot([low, high], [y, y], color=BLUE if clear else INK, lw=2.4)
        axes.plot(middle, y, "o", color=BLUE if clear else INK, mfc=BLUE if clear else "none", ms=9, mew=1.8)
        text = f"{middle:+.1f}".replace("-", "\N{MINUS SIGN}")
        axes.text(middle, y - 0.18, text, ha="center", va="bottom", fontsize=9)
    axes.axvline(0, color=INK, lw=1, ls=(0, (5, 4)))
    names = [fill(f"{comparison.label(p.a)} − {comparison.label(p.b)}", 28) for p in pairs]
    axes.set_yticks(range(len(pairs)), names)
    axes.set_ylim(len(pairs) - 0.5, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis="x", **GRID)
    axes.set_xlabel("difference in success (points)")
    handles = [
        Line2D([], [], color=BLUE, marker="o", ms=8, lw=2.4, label="interval leaves out 0"),
        Line2D([], [], color=INK, marker="o", ms=8, mfc="none", lw=2.4, label="interval holds 0"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
    return figure


@styled
def cost_plot(comparison: Comparison) -> Figure:
    """Success against GFLOPs of a frame (the paper's plot) and ms of an action, at least one of which is known.

    A thin line joins the arms of one encoder and policy: what further scales cost and bring.
    """
    arms, styles = comparison.facts.arms, arm_styles(comparison)
    titles = {key: text for key, text in COSTS.items() if any(getattr(arm, key) is not None for arm in arms)}
    figure = Figure(figsize=(5.2 * len(titles), 4.2), layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False, sharey=True)[0]
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        drawn = sorted(
            (arm for arm in arms if getattr(arm, key) is not None), key=lambda arm: getattr(arm, key)
        )
        groups: dict[str, list[Arm]] = {}
        for arm in drawn:
            groups.setdefault(as_text([arm.encoder, arm.policy]), []).append(arm)
            style, success = styles[arm.name], 100 * arm.success
            axes.plot(
                [getattr(arm, key)] * 2, [100 * arm.low, 100 * arm.high], color=style.colour, lw=2, alpha=0.6
            )
            axes.plot(getattr(arm, key), success, style.marker, color=style.colour, ms=9)
        for group in groups.values():
            xs, ys = [getattr(arm, key) for arm in group], [100 * arm.success for arm in group]
            axes.plot(xs, ys, color=INK, lw=1, ls=(0, (2, 2)), alpha=0.7, zorder=1)
        _scale_x(axes, [getattr(arm, key) for arm in drawn])
        axes.margins(x=0.12)
        axes.grid(**GRID)
        axes.set_xlabel(title)
    panels[0].set_ylabel("success (%)")
    handles = _arm_handles(comparison, lines=False)
    if any(len(group) > 1 for group in groups.values()):
        handles.append(Line2D([], [], color=INK, lw=1, ls=(0, (2, 2)), label="same encoder, other scales"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=9)
    return figure


@styled
def tables_plot(comparison: Comparison) -> Figure:
    """Where episodes began, once an arm: at which positions all, some or none of its training seeds succeeded."""
    arms = comparison.facts.arms
    figure, panels = _tables(len(arms))
    kinds = (
        ("all training seeds", "o", BLUE, 1.0),
        ("some of them", "D", ORANGE, 1.0),
        ("none", "X", VERMILLION, 1.4),
    )
    several = any(len(arm.seeds) > 1 for arm in arms)
    for axes, arm in zip(panels, arms, strict=True):
        share = comparison.solved[arm.name].mean(0)  # (N,)
        chosen = share == 1, (share > 0) & (share < 1), share == 0
        groups = [
            _group(comparison, which, marker, colour, size * _area(len(share)))
            for (_, marker, colour, size), which in zip(kinds, chosen, strict=True)
        ]
        draw_layout(axes, groups, comparison.known.settings, comparison.about, small=True)
        axes.set_title(f"{fill(arm.label, 34)}: {100 * share.mean():.1f} %", fontsize=10)
    names = [name for name, *_ in kinds] if several else ["success", "", "failure"]
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="none", ms=7, label=name)
        for name, (_, marker, colour, _) in zip(names, kinds, strict=True)
        if name
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


@styled
def wins_plot(comparison: Comparison) -> Figure:
    """Where episodes began, once a pair: the positions that count for one arm and those that count for the other."""
    pairs = comparison.facts.pairs
    figure, panels = _tables(len(pairs))
    for axes, pair in zip(panels, pairs, strict=True):
        won, lost = (
            np.isin(comparison.positions, getattr(pair, key)) for key in ("only_a", "only_b")
        )  # (N,)
        area = _area(len(won))
        groups = [
            replace(_group(comparison, ~won & ~lost, "o", INK, 0.25 * area), front=1, alpha=0.35),
            _group(comparison, won, "^", BLUE, 1.5 * area),
            _group(comparison, lost, "v", VERMILLION, 1.5 * area),
        ]
        draw_layout(axes, groups, comparison.known.settings, comparison.about, small=True)
        names = [fill(comparison.label(getattr(pair, key)), 34) for key in ("a", "b")]
        title = f"▲ {names[0]}: {won.sum()}\n▼ {names[1]}: {lost.sum()}\nneither: {(~won & ~lost).sum()}"
        axes.set_title(title, fontsize=9.5, fontweight="normal")
    handles = [
        Line2D([], [], color=BLUE, marker="^", ls="none", ms=7, label="counts for the first arm"),
        Line2D([], [], color=VERMILLION, marker="v", ls="none", ms=7, label="for the second"),
        Line2D([], [], color=INK, alpha=0.5, marker="o", ls="none", ms=3, label="for neither"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return figure


@styled
def axis_plot(comparison: Comparison, axis: Axis) -> Figure:
    """Success of each arm along an axis, with its interval as a band."""
    styles, values = arm_styles(comparison), axis.values
    numeric = all(isinstance(v, (int, float)) for v in values)
    place = {v: v if numeric else i for i, v in enumerate(values)}
    figure = Figure(figsize=(6.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for arm, found in axis.arms.items():
        style = styles[arm]
        points = sorted(found, key=lambda point: place[point.value])
        x = [place[point.value] for point in points]
        low, success, high = (
            [100 * getattr(point, key) for point in points] for key in ("low", "success", "high")
        )
        axes.fill_between(x, low, high, color=style.colour, alpha=0.14, lw=0)
        for edge in (low, high):  # where bands overlap, their edges tell them apart
            axes.plot(x, edge, color=style.colour, lw=0.7, ls=style.line, alpha=0.55)
        axes.plot(x, success, color=style.colour, ls=style.line, lw=2, marker=style.marker, ms=7)
    if numeric:
        _scale_x(axes, values)
        axes.xaxis.set_major_locator(FixedLocator(sorted(values)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xticks(range(len(values)), [fill(as_text(v), 14) for v in values])
    if axis.default in place:
        at = place[axis.default]
        axes.axvline(at, color=INK, lw=1, ls=(0, (1, 2)), zorder=0)
        axes.text(at, 1.01, "default", transform=axes.get_xaxis_transform(), ha="center", fontsize=8.5)
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(-2, bottom), min(102, top))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(**GRID)
    axes.set_xlabel(axis.label + (f" ({axis.unit})" if axis.unit else ""))
    axes.set_ylabel("success (%)")
    handles = [h for h, arm in zip(_arm_handles(comparison), styles, strict=True) if arm in axis.arms]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, max(1, len(handles))), fontsize=9)
    return figure


def _arm_handles(comparison: Comparison, lines: bool = True) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=s.colour,
            marker=s.marker,
            ms=7,
            ls=s.line if lines else "none",
            label=comparison.label(arm),
        )
        for arm, s in arm_styles(comparison).items()
    ]


def _scale_x(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic where the values span much; ticks as plain numbers."""
    if min(values) > 0 and max(values) / min(values) >= _WIDE:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())


def _tables(count: int) -> tuple[Figure, list[Axes]]:
    """`count` views of where episodes began, three a row."""
    columns = min(3, max(2, count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.5 * columns, 3.4 * rows + 0.5), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for spare in panels[count:]:
        spare.set_axis_off()
    for axes in panels[:count]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, panels[:count]


def _group(comparison: Comparison, chosen: np.ndarray, marker: str, colour: str, size: float) -> Group:
    """The positions (N,) that are chosen."""
    records = [record for record, which in zip(comparison.records, chosen, strict=True) if which]
    return Group(records, "", marker, colour, size)


def _area(count: int) -> float:
    """Of a mark, in square points: smaller where there are more."""
    return float(np.clip(4500 / max(count, 1), 14, 50))

"""The plots of all reports: intervals, curves and layouts. Each function returns a figure.

intervals([Row("base", 52.0, 44.1, 60.3)], "success (%)")
curves([Panel("Loss", [Line(steps, losses, "trained on")], log="y")])
"""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from s2robot.envs.task import Group, TaskSettings
from s2robot.reporting.style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, VERMILLION, styled

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, INK)
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
_DASHES: Sequence[Any] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))
Values = Sequence[float] | np.ndarray


def series_style(number: int) -> tuple[str, str, str, Any]:
    """Return colour, marker, the marker as a character for tables, and dashes of the series with this number."""
    colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    return colour, *_MARKERS[number % len(_MARKERS)], dashes


class Row(NamedTuple):
    """A value with its interval. `parts` are drawn as open marks, such as one per training seed."""

    label: str
    value: float
    low: float
    high: float
    colour: str = BLUE
    marker: str = "o"
    filled: bool = True
    parts: Sequence[float] = ()


class Line(NamedTuple):
    """Points of a curve, optionally with an interval at each (`low`, `high`). `style`: more keywords for `Axes.plot`."""

    x: Values
    y: Values
    label: str = ""
    colour: str = BLUE
    low: Values = ()
    high: Values = ()
    style: Mapping[str, Any] = {}


class Panel(NamedTuple):
    """Curves in one pair of axes. `log`: names of the logarithmic axes; `ticks`: labels by position along x."""

    title: str
    lines: Sequence[Line]
    xlabel: str = ""
    ylabel: str = ""
    log: str = ""
    ticks: Mapping[float, str] = {}
    shaded: tuple[float, float] | None = None
    ylim: tuple[float, float] | None = None


@styled
def intervals(rows: Sequence[Row], xlabel: str, centre: float | None = None) -> Figure:
    """Draw one value with its interval per row; a vertical line marks `centre`."""
    figure = Figure(figsize=(6.4, 0.72 * len(rows) + 0.9), layout="constrained")
    axes, sign = figure.add_subplot(), "" if centre is None else "+"
    for y, row in enumerate(rows):
        style: dict[str, Any] = {"color": row.colour, "marker": row.marker, "ls": "none"}
        axes.plot([row.low, row.high], [y, y], color=row.colour, lw=3, alpha=0.55, solid_capstyle="butt")
        axes.plot(row.value, y, mfc=row.colour if row.filled else "none", ms=9, mew=1.8, **style)
        text = f"{row.value:{sign}.1f}".replace("-", "\N{MINUS SIGN}")
        axes.text(row.value, y - 0.2, text, ha="center", va="bottom", fontsize=9)
        axes.plot(row.parts, [y + 0.25] * len(row.parts), mfc="none", ms=5, **style)
    if centre is not None:
        axes.axvline(centre, color=INK, lw=1, ls=(0, (5, 4)))
    axes.set_yticks(range(len(rows)), [fill(row.label, 28) for row in rows])
    axes.set(ylim=(len(rows) - 0.5, -0.6), xlabel=xlabel)
    axes.margins(x=0.08)
    axes.grid(axis="x", **GRID)
    return figure


@styled
def curves(panels: Sequence[Panel], columns: int = 3, size: tuple[float, float] = (3.45, 2.3)) -> Figure:
    """Draw panels side by side, with one legend for all of their labels."""
    figure, grid = _grid(len(panels), columns, size)
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=True):
        for line in panel.lines:
            _draw(axes, line)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
        _format(axes, panel)
    if handles:
        style: dict[str, Any] = {"loc": "outside lower center", "ncols": min(4, len(handles)), "fontsize": 9}
        figure.legend(handles.values(), handles.keys(), **style)
    return figure


def _draw(axes: Axes, line: Line) -> None:
    if len(line.low) and line.style.get("ls") == "none":
        axes.vlines(line.x, line.low, line.high, color=line.colour, lw=3, alpha=0.4)
    elif len(line.low):
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.14, lw=0)
    style: dict[str, Any] = {"lw": 1.6, **({"marker": "o", "ms": 4} if len(line.x) < 3 else {}), **line.style}
    axes.plot(line.x, line.y, color=line.colour, label=line.label or None, **style)


def _format(axes: Axes, panel: Panel) -> None:
    if panel.shaded:
        axes.axvspan(*panel.shaded, color=INK, alpha=0.06, lw=0)
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        low, high = axes.dataLim.intervalx if name == "x" else axes.dataLim.intervaly
        if name in panel.log and 0 < low <= high < math.inf:
            axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_formatter(NullFormatter())
        else:
            axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter("{x:g}")
    if panel.ticks:
        axes.set_xticks(list(panel.ticks), [fill(text, 14) for text in panel.ticks.values()])
    axes.tick_params(labelsize=8.5)
    axes.grid(**GRID)
    axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
    if panel.ylim:
        axes.set_ylim(*panel.ylim)
    axes.set_title(panel.title, fontsize=9.5)


@styled
def layouts(
    panels: Sequence[tuple[str, Sequence[Group]]],
    task: type[TaskSettings],
    about: Mapping[str, Any],
    legend: Sequence[tuple[str, str, str]] = (),
) -> Figure:
    """Draw the starts of episodes in panels of (title, groups); `legend`: (label, marker, colour) shared by all panels."""
    small = len(panels) > 1
    figure, grid = _grid(len(panels), 3, (3.5, 3.4) if small else (6.4, 6.2))
    for axes, (title, groups) in zip(grid, panels, strict=True):
        task.draw_layout(axes, groups, about, small)
        axes.set_title(title, fontsize=9.5, fontweight="normal")
    style: dict[str, Any] = {"ls": "none", "ms": 7}
    shared = [Line2D([], [], color=c, marker=marker, label=label, **style) for label, marker, c in legend]
    handles: list[Any] = shared or grid[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if small else 2, fontsize=9)
    return figure


def mark_size(count: int, panels: int = 1) -> float:
    return float(np.clip(9000 / panels / max(count, 1), 14, 70))


def _grid(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    columns = min(columns, max(1, count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows + 0.5), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in grid[count:]:
        spare.set_axis_off()
    return figure, grid[:count]

"""Pictures of a run, as matplotlib figures: table top, stages, time to success, training and pre-training curves.

    figure = table_plot(records)
    save_figure(figure, run / "table.png")   # for a README
    html = figure_svg(figure, "table")       # inline, follows the page's light or dark colours

Colours are Okabe and Ito's (safe for colour-blind readers), and nothing is told by colour alone. No display
is needed: figures are made without pyplot and drawn by Agg or as SVG.
"""

import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from s2robot.common.errors import UserError
from s2robot.evaluation.records import STAGES, Record, success_times

BLUE, VERMILLION, ORANGE, PURPLE, GREEN = "#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#009e73"
_VARIABLES = {"blue": BLUE, "vermillion": VERMILLION, "orange": ORANGE, "purple": PURPLE, "green": GREEN}
INK = "#010203"  # almost black; figure_svg turns it into the page's own text colour

CUBE_BOX = ((-0.12, 0.12), (-0.16, 0.16))  # (x, y) ranges in m: the default 24 × 32 cm
CUBE_SIZE_M = 0.04

# What it means that an episode failed with this stage as its furthest, and how it is drawn.
FAILURE_TEXT = {
    "approach": "not grasped",
    "grasp": "grasped, not lifted",
    "lift": "lifted, not held",
    "held": "held, not counted as success",
}
_FAILURE_STYLE = {
    "approach": ("X", VERMILLION),
    "grasp": ("^", ORANGE),
    "lift": ("s", PURPLE),
    "held": ("D", INK),
}
_DASHED: dict[str, Any] = {"ls": (0, (5, 4)), "lw": 1, "alpha": 0.6}

_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same picture
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "path",  # letters as outlines: the layout holds with any installed fonts
    **dict.fromkeys(_INKED, INK),
}


def _styled(make: Callable[..., Any]) -> Callable[..., Any]:
    """Make a figure in this file's style and leave the caller's matplotlib settings alone."""

    @wraps(make)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return make(*args, **kwargs)

    return styled


@_styled
def table_plot(
    records: Sequence[Record],
    box: tuple[tuple[float, float], tuple[float, float]] | None = None,
    cube_size: float = CUBE_SIZE_M,
) -> Figure:
    """The table from above: where the cube lay, and whether it was lifted from there.

    The robot stands at the lower edge; x (m, away from the robot) points up and y (to the robot's left)
    points left, as seen from behind the robot. The line in each mark is half a cube long and shows the cube's
    yaw. `box` holds the x and y ranges (m) in which cubes were placed; without it the default box is drawn if
    every cube lies inside.
    """
    x = np.array([record["cube_xy"][0] for record in records], dtype=float) * 100  # cm (N,)
    y = np.array([record["cube_xy"][1] for record in records], dtype=float) * 100  # (N,)
    yaw = np.array([record["cube_yaw"] for record in records], dtype=float)  # (N,)
    success = np.array([record["success"] for record in records], dtype=bool)  # (N,)
    stage = np.array([record["stage"] for record in records], dtype=str)  # (N,)

    (x0, x1), (y0, y1) = np.asarray(box if box is not None else CUBE_BOX, dtype=float) * 100
    outside = (x < x0 - 0.1) | (x > x1 + 0.1) | (y < y0 - 0.1) | (y > y1 + 0.1)
    draw_box = box is not None or not outside.any()

    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    axes = figure.add_subplot()
    if draw_box:
        axes.add_patch(Rectangle((y0, x0), y1 - y0, x1 - x0, fill=False, ec=INK, **_DASHED))
    # Marks shrink as they grow in number; drawn at the cube's size, they would hide their neighbours.
    area = float(np.clip(9000 / max(len(records), 1), 22, 70))
    tick = 50 * cube_size
    for kind, marker, colour, label in _kinds():
        chosen = success if kind == "success" else ~success & (stage == kind)
        if not chosen.any():
            continue
        cx, cy, cyaw = x[chosen], y[chosen], yaw[chosen]
        axes.plot(
            np.stack([cy, cy + tick * np.sin(cyaw)]),
            np.stack([cx, cx + tick * np.cos(cyaw)]),
            color=colour,
            lw=1.1,
            alpha=0.6 if kind == "success" else 1,
            solid_capstyle="round",
            zorder=2,
        )
        size = area if kind == "success" else 2.0 * area
        axes.scatter(
            cy,
            cx,
            s=size,
            marker=marker,
            color=colour,
            edgecolors="white",
            linewidths=0.5,
            label=f"{label}: {chosen.sum()}",
            zorder=3 if kind == "success" else 4,
        )
    low_x, high_x = min(x0, *x) if len(x) else x0, max(x1, *x) if len(x) else x1
    low_y, high_y = min(y0, *y) if len(y) else y0, max(y1, *y) if len(y) else y1
    axes.set_xlim(high_y + 2.5, low_y - 2.5)  # reversed: the robot's left is the picture's left
    axes.set_ylim(low_x - 5.5, high_x + 2.5)
    axes.set_aspect("equal")
    axes.add_patch(Rectangle((-3, low_x - 5.5), 6, 2.2, fc=INK, alpha=0.25, lw=0))
    axes.annotate(
        "robot", (0, low_x - 4.4), ha="center", va="center", fontsize=9, fontweight="bold", color=INK
    )
    axes.grid(alpha=0.12, color=INK, lw=0.8)
    axes.set_xlabel("← robot's left      y (cm)      robot's right →")
    axes.set_ylabel("x (cm)  away from the robot →")
    handles, labels = axes.get_legend_handles_labels()
    if draw_box:
        handles.append(Line2D([], [], color=INK, **_DASHED))
        labels.append(f"cubes are placed in {x1 - x0:.0f} × {y1 - y0:.0f} cm")
    handles.append(Line2D([], [], color=INK, lw=1.1))
    labels.append("line: the cube's yaw")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _kinds() -> list[tuple[str, str, str, str]]:
    failures = [(stage, *_FAILURE_STYLE[stage], f"failure, {FAILURE_TEXT[stage]}") for stage in STAGES]
    return [("success", "o", BLUE, "success"), *failures]


@_styled
def stage_plot(records: Sequence[Record]) -> Figure:
    """How many episodes reached each stage, and how many failed there (hatched)."""
    total = len(records)
    furthest = [STAGES.index(record["stage"]) for record in records]
    figure = Figure(figsize=(6.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for row in range(len(STAGES)):
        failed = sum(f == row and not r["success"] for f, r in zip(furthest, records, strict=True))
        reached = sum(f >= row or r["success"] for f, r in zip(furthest, records, strict=True))
        passed = reached - failed
        axes.barh(row, passed, color=BLUE, height=0.62)
        axes.barh(row, failed, left=passed, color=VERMILLION, hatch="////", ec="white", lw=0, height=0.62)
        share = f"{reached}  ({100 * reached / total:.0f} %)" if total else "0"
        lost = f",  {failed} failed here" if failed else ""
        axes.text(reached + 0.015 * max(total, 1), row, share + lost, va="center", fontsize=9)
    axes.set_yticks(range(len(STAGES)), [STAGES[0], *(f"reached {stage}" for stage in STAGES[1:])])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.36 * max(total, 1))  # room for the words behind the longest bar
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xticks([t for t in axes.get_xticks() if t <= total])
    axes.set_xlabel("episodes")
    return figure


@_styled
def time_plot(records: Sequence[Record]) -> Figure:
    """Histogram of the seconds that successful episodes took, with the median."""
    times = success_times(records)
    figure = Figure(figsize=(6.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("time to success (s)")
    axes.set_ylabel("episodes")
    if not times:
        axes.text(0.5, 0.5, "no successful episode", ha="center", va="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
        return figure
    width = max(0.2, math.ceil((max(times) - min(times)) / 20 * 10) / 10)  # whole tenths: the control period
    first = math.floor(min(times) / width) * width
    edges = first + width * np.arange(int((max(times) - first) / width + 1e-9) + 2)
    # the tiny shift puts 2.4 into the bin 2.4–2.6, whichever way its binary value errs
    axes.hist([time + 1e-9 for time in times], bins=list(edges), color=BLUE, ec="white", lw=0.5)
    median = float(np.median(times))
    axes.axvline(median, color=INK, ls="--", lw=1.2)
    above = axes.get_xaxis_transform()
    axes.text(median, 1.0, f"median {median:.1f} s", transform=above, va="bottom", ha="center", fontsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


@_styled
def training_plot(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Losses over the epochs. `rows`: one mapping an epoch with `epoch` and any keys that end in "loss".

    The scale is logarithmic where all losses are positive. Raises UserError if there is nothing to draw.
    """
    names = list(dict.fromkeys(key for row in rows for key in row if key.endswith("loss")))
    if not names:
        raise UserError("training metrics: no key ends in 'loss', expected e.g. 'train_loss', 'val_loss'")
    figure = Figure(figsize=(6.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    styles = [(BLUE, "-"), (VERMILLION, "--"), (GREEN, "-."), (PURPLE, ":")]
    lowest = math.inf
    for number, name in enumerate(names):
        points = [(row["epoch"], row[name]) for row in rows if _drawable(row.get(name))]
        if not points:  # as validation losses are without held-out demos
            continue
        epochs, losses = zip(*points, strict=True)
        colour, dash = styles[number % len(styles)]
        label = name.removesuffix("loss").strip("_/ ").replace("_", " ") or "loss"
        label = "validation" if label == "val" else label
        if name.startswith("val"):
            best = int(np.argmin(losses))
            label += f" (best {losses[best]:.3g}, epoch {epochs[best]})"
            axes.plot(epochs[best], losses[best], "o", color=colour, ms=6)
        marker = "o" if len(points) < 3 else None
        axes.plot(epochs, losses, color=colour, ls=dash, lw=1.8, marker=marker, label=label)
        lowest = min(lowest, *losses)
    if 0 < lowest < math.inf:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(alpha=0.12, color=INK, lw=0.8)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    if axes.lines:
        axes.legend()
    return figure


@_styled
def pretraining_plot(history: Sequence[Sequence[float]]) -> Figure:
    """Loss and learning rate of a pre-training; `history` has one (step, loss, learning rate) a row."""
    steps, losses, rates = zip(*history, strict=True)
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot(steps, losses, color=BLUE, lw=1.8, marker="o" if len(steps) < 3 else None)
    above.set_ylabel("loss")
    above.set_title(f"masked autoencoding: loss {losses[-1]:.3f} at step {steps[-1]:,.0f}")
    below.plot(steps, rates, color=VERMILLION, lw=1.4, ls="--")
    below.set_ylabel("rate")
    below.set_xlabel("step")
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.grid(alpha=0.12, color=INK, lw=0.8)
    above.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _drawable(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def figure_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for an HTML page; `name` keeps its ids apart from other figures'.

    Text and axes take the page's text colour; the data colours are CSS variables (--blue, --vermillion, ...)
    with Okabe and Ito's values as the default. The same figure gives the same text.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return page_colours(svg)


def page_colours(html: str) -> str:
    """Our colours in a piece of a page, as the page's own: lighter where the page is dark."""
    html = html.replace(INK, "currentColor")
    for variable, colour in _VARIABLES.items():
        html = html.replace(colour, f"var(--{variable}, {colour})")
    return html


def save_figure(figure: Figure, path: Path) -> Path:
    """Write the figure as an image (the format of the suffix, 150 dpi, white ground), whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with matplotlib.rc_context(_STYLE):
            figure.savefig(temporary, dpi=150, facecolor="white")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path

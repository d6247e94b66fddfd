"""Pictures of an evaluation, as matplotlib figures: table top, stages, time to success, disagreement.

save_figure(table_plot(records), run / "table.png")   # for a README
figure_svg(table_plot(records), "table")              # for a page
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from s2robot.evaluation.records import STAGES, Record, is_number, success_times, wilson
from s2robot.reporting.style import BLUE, DASHED, GRID, INK, ORANGE, PURPLE, VERMILLION, styled

Box = tuple[tuple[float, float], tuple[float, float]]  # (x, y) ranges
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


@styled
def table_plot(records: Sequence[Record], box: Box | None = None, cube_size: float = CUBE_SIZE_M) -> Figure:
    """The table from above: where the cube lay, and whether it was lifted from there.

    The robot stands at the lower edge; x (m, away from the robot) points up and y (to the robot's left)
    points left, as seen from behind the robot. The line in each mark is half a cube long and shows the cube's
    yaw. `box` holds the x and y ranges (m) in which cubes were placed; without it the default box is drawn if
    every cube lies inside.
    """
    x = np.array([record["cube_xy"][0] for record in records], dtype=float) * 100  # cm (N,)
    y = np.array([record["cube_xy"][1] for record in records], dtype=float) * 100  # (N,)
    (x0, x1), (y0, y1) = np.asarray(box if box is not None else CUBE_BOX, dtype=float) * 100
    outside = (x < x0 - 0.1) | (x > x1 + 0.1) | (y < y0 - 0.1) | (y > y1 + 0.1)

    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    axes = figure.add_subplot()
    _draw_cubes(axes, records, x, y, 50 * cube_size)
    low_x, high_x = min([x0, *x]), max([x1, *x])
    low_y, high_y = min([y0, *y]), max([y1, *y])
    axes.set_xlim(high_y + 2.5, low_y - 2.5)  # reversed: the robot's left is the picture's left
    axes.set_ylim(low_x - 5.5, high_x + 2.5)
    axes.set_aspect("equal")
    axes.add_patch(Rectangle((-3, low_x - 5.5), 6, 2.2, fc=INK, alpha=0.25, lw=0))
    axes.annotate(
        "robot", (0, low_x - 4.4), ha="center", va="center", fontsize=9, fontweight="bold", color=INK
    )
    axes.grid(**GRID)
    axes.set_xlabel("← robot's left      y (cm)      robot's right →")
    axes.set_ylabel("x (cm)  away from the robot →")
    handles, labels = axes.get_legend_handles_labels()
    if box is not None or not outside.any():
        axes.add_patch(Rectangle((y0, x0), y1 - y0, x1 - x0, fill=False, ec=INK, **DASHED))
        handles.append(Line2D([], [], color=INK, **DASHED))
        labels.append(f"cubes are placed in {x1 - x0:.0f} × {y1 - y0:.0f} cm")
    handles.append(Line2D([], [], color=INK, lw=1.1))
    labels.append("line: the cube's yaw")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _draw_cubes(axes: Axes, records: Sequence[Record], x: np.ndarray, y: np.ndarray, tick: float) -> None:
    """A mark a cube at x, y (N,) in cm by its outcome, and a line of `tick` cm along its yaw."""
    yaw = np.array([record["cube_yaw"] for record in records], dtype=float)  # (N,)
    success = np.array([record["success"] for record in records], dtype=bool)  # (N,)
    stage = np.array([record["stage"] for record in records], dtype=str)  # (N,)
    # Marks shrink as they grow in number; drawn at the cube's size, they would hide their neighbours.
    area = float(np.clip(9000 / max(len(records), 1), 22, 70))
    for kind, marker, colour, label in _kinds():
        good = kind == "success"
        chosen = success if good else ~success & (stage == kind)
        if not chosen.any():
            continue
        cx, cy, cyaw = x[chosen], y[chosen], yaw[chosen]
        axes.plot(
            np.stack([cy, cy + tick * np.sin(cyaw)]),
            np.stack([cx, cx + tick * np.cos(cyaw)]),
            color=colour,
            lw=1.1,
            alpha=0.6 if good else 1,
            solid_capstyle="round",
            zorder=2,
        )
        axes.scatter(
            cy,
            cx,
            s=area if good else 2 * area,
            marker=marker,
            color=colour,
            edgecolors="white",
            linewidths=0.5,
            label=f"{label}: {chosen.sum()}",
            zorder=3 if good else 4,
        )


def _kinds() -> list[tuple[str, str, str, str]]:
    failures = [(stage, *_FAILURE_STYLE[stage], f"failure, {FAILURE_TEXT[stage]}") for stage in STAGES]
    return [("success", "o", BLUE, "success"), *failures]


@styled
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


@styled
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


@styled
def disagreement_plot(records: Sequence[Record]) -> Figure:
    """Success against the members' disagreement: shares of five equal parts of the episodes with their 95 % intervals.

    Above and below, a mark for each episode: successes on top, failures at the bottom.
    """
    known = sorted((r["disagreement"], r["success"]) for r in records if is_number(r.get("disagreement")))
    figure = Figure(figsize=(6.0, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for good, height, colour in ((True, 107, BLUE), (False, -7, VERMILLION)):
        marks = [1000 * value for value, success in known if success == good]
        axes.plot(marks, [height] * len(marks), "|", color=colour, ms=9, mew=1.2)
    parts = [part for part in np.array_split(np.array(known, dtype=float), min(5, len(known))) if len(part)]
    at = [1000 * np.median(part[:, 0]) for part in parts]
    shares = [100 * part[:, 1].mean() for part in parts]
    ends = np.array([wilson(int(part[:, 1].sum()), len(part)) for part in parts]) * 100  # (parts, 2)
    axes.vlines(at, ends[:, 0], ends[:, 1], color=INK, alpha=0.25, lw=5)
    axes.plot(at, shares, "o-", color=INK, lw=1.4, ms=5)
    axes.set_ylim(-14, 114)
    axes.set_yticks(range(0, 101, 25))
    axes.grid(**GRID)
    axes.set_xlabel("disagreement of the members, mean over an episode's plans (mrad)")
    axes.set_ylabel("success (%)")
    return figure

"""Pictures of an evaluation, as matplotlib figures: layout, stages, time to success, disagreement.

save_figure(layout_plot(records), run / "table.png")   # for a README
figure_svg(layout_plot(records), "table")              # for a page
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s2robot.envs.layout_plot import draw_layout
from s2robot.envs.task import Group
from s2robot.evaluation.records import Known, Record, is_number, known_of, success_times, wilson
from s2robot.reporting.style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, VERMILLION, styled

# how failures are drawn, by the order of their stages
_FAILURES = (("X", VERMILLION), ("^", ORANGE), ("s", PURPLE), ("D", INK), ("v", GREEN))


@styled
def layout_plot(
    records: Sequence[Record], known: Known | None = None, about: Mapping[str, Any] | None = None
) -> Figure:
    """Where episodes began, and how they ended: the task's own picture, or a line for each number of its layout.

    `known`: their task; `about`: the evaluation's summary.
    """
    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    axes = figure.add_subplot()
    known = known or known_of({})
    draw_layout(axes, outcome_groups(records, known), known.settings, about or {})
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
    return figure


def outcome_groups(records: Sequence[Record], known: Known) -> list[Group]:
    """Successes, and failures by the furthest stage."""
    # Marks shrink as they grow in number; drawn at a thing's size, they would hide their neighbours.
    area = float(np.clip(9000 / max(len(records), 1), 22, 70))
    good = [record for record in records if record["success"]]
    groups = [Group(good, f"success: {len(good)}", "o", BLUE, area, 3, tick_alpha=0.6)] if good else []
    for i, stage in enumerate(known.stages):
        failed = [record for record in records if not record["success"] and record["stage"] == stage]
        marker, colour = _FAILURES[i % len(_FAILURES)]
        label = f"failure, {known.failure(stage)}: {len(failed)}"
        groups += [Group(failed, label, marker, colour, 2 * area, 4)] if failed else []
    return groups


@styled
def stage_plot(records: Sequence[Record], stages: Sequence[str] | None = None) -> Figure:
    """How many episodes reached each stage of their task, and how many failed there (hatched)."""
    total, stages = len(records), known_of({}).stages if stages is None else stages
    furthest = [stages.index(record["stage"]) for record in records]
    figure = Figure(figsize=(6.0, 2.6), layout="constrained")
    axes = figure.add_subplot()
    for row in range(len(stages)):
        failed = sum(f == row and not r["success"] for f, r in zip(furthest, records, strict=True))
        reached = sum(f >= row or r["success"] for f, r in zip(furthest, records, strict=True))
        passed = reached - failed
        axes.barh(row, passed, color=BLUE, height=0.62)
        axes.barh(row, failed, left=passed, color=VERMILLION, hatch="////", ec="white", lw=0, height=0.62)
        share = f"{reached}  ({100 * reached / total:.0f} %)" if total else "0"
        lost = f",  {failed} failed here" if failed else ""
        axes.text(reached + 0.015 * max(total, 1), row, share + lost, va="center", fontsize=9)
    axes.set_yticks(range(len(stages)), [stages[0], *(f"reached {stage}" for stage in stages[1:])])
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

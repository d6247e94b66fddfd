"""The pages of an open-loop validation: report.html, and `episodes/<number>.html` with the curves of one episode each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from s2robot.evaluation.open_loop import METHODS, OVERALL, Measured
from s2robot.evaluation.validation import WORDS, share_words
from s2robot.policies.parts import Parts
from s2robot.reporting.page import drawing, flatten, write_page
from s2robot.reporting.style import BLUE, GREEN, GRID, INK, ORANGE, styled

_LOOK: dict[str, dict[str, Any]] = {
    "policy": {"color": BLUE, "lw": 1.8},
    "repeat": {"color": ORANGE, "lw": 1.4, "ls": (0, (4, 2))},
    "mean": {"color": GREEN, "lw": 1.4, "ls": (0, (1, 1.5))},
}
_COLUMNS, _ROWS = 3, 24  # of curves; a wide action has no more than so many of them in a page


@dataclass(frozen=True)
class Episode:
    """What was done in an episode, and what the policy would have done: (T, A), (T, K, A)."""

    number: int
    actions: np.ndarray
    plans: np.ndarray


def write_pages(
    out: Path,
    summary: Mapping[str, Any],
    measured: Measured,
    parts: Parts,
    rate_hz: float,
    episodes: Sequence[Episode],
) -> Path:
    """Write report.html and a page for each of the episodes; returns the report."""
    for episode in episodes:
        number = episode.number
        curves = [
            drawing(curve_plot(parts, episode, rate_hz, names), f"curves{i}")
            for i, names in enumerate(_groups(parts))
        ]
        write_page(
            out / "episodes" / f"{number}.html",
            "validation_episode.html.j2",
            title=f"episode {number}, open loop",
            number=number,
            seconds=f"{len(episode.actions) / rate_hz:.1f}",
            steps=len(episode.actions),
            error_svg=drawing(error_plot(measured, number, rate_hz), "error")
            if OVERALL in measured.measures
            else None,
            curves=curves,
            chunk=episode.plans.shape[1],
        )
    told = {episode.number for episode in episodes}
    return write_page(
        out / "report.html",
        "validation.html.j2",
        title="open loop: " + summary["verdict"],
        summary=summary,
        heads=["part", "", "policy", "[95 %]", "of repeating", "[95 %]", "of the mean", "[95 %]"],
        rows=_part_rows(summary),
        chunk_svg=drawing(chunk_plot(summary["parts"], summary["execute"]), "chunk"),
        episode_heads=["episode", "steps", *(f"{WORDS[m]}" for m in METHODS), "share of repeating"],
        episode_rows=_episode_rows(measured, told),
        settings=[row for key in ("policy", "dataset", "versions") for row in flatten(key, summary[key])],
    )


def _part_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for part in [
        *summary["parts"],
        *([{"part": "all", "measure": "", "unit": "", **summary["overall"]}] if summary["overall"] else []),
    ]:
        if part["measure"] == "accuracy":
            ours = {k: None if v is None else 100 * v for k, v in part["policy"].items()}
            others = [text for m in METHODS[1:] for text in (f"{100 * part[m]['value']:.1f} %", "")]
            rows.append([part["part"], "right", f"{ours['value']:.1f} %", _range(ours, ".1f"), *others])
            continue
        what = " ".join(filter(None, ["error", part["unit"]])) if part["measure"] else "normalised"
        ratios = [
            text
            for m in METHODS[1:]
            for text in (share_words(part[f"of_{m}"]), _range(part[f"of_{m}"], ".2f"))
        ]
        rows.append(
            [part["part"], what, f"{part['policy']['value']:.3g}", _range(part["policy"], ".3g"), *ratios]
        )
    return rows


def _range(figure: Mapping[str, Any], form: str) -> str:
    return "–" if figure["low"] is None else f"{figure['low']:{form}}–{figure['high']:{form}}"


def worst_first(measured: Measured) -> list[int]:
    """Episodes by their error, the largest first."""
    name = OVERALL if OVERALL in measured.measures else measured.measures[0]
    sign = 1 if name.endswith("_accuracy") else -1
    order = np.argsort(sign * measured.values("policy", name), kind="stable")
    return [measured.episodes[i] for i in order]


def _episode_rows(measured: Measured, told: set[int]) -> list[dict[str, Any]]:
    """A row an episode, those of the largest error first; `page` where one has curves."""
    name = OVERALL if OVERALL in measured.measures else measured.measures[0]
    values = {method: measured.values(method, name) for method in METHODS}
    rows = []
    for number in worst_first(measured):
        at = measured.episodes.index(number)
        ours, last = float(values["policy"][at]), float(values["repeat"][at])
        cells = [str(measured.counts[at, 0]), *(f"{values[m][at]:.3f}" for m in METHODS)]
        cells.append(f"{ours / last:.2f}" if last > 0 else "–")
        rows.append({"number": number, "page": number in told, "cells": cells})
    return rows


# ------------------------------------------------------------------------------------------------ plots


@styled
def chunk_plot(parts: Sequence[Mapping[str, Any]], execute: int) -> Figure:
    """Error of each part by the step of the chunk, beside the baselines; shaded: the actions that are executed."""
    count = math.ceil(len(parts) / _COLUMNS)
    columns = min(len(parts), _COLUMNS)
    figure = Figure(figsize=(max(6.4, 3.4 * columns), 2.5 * count + 0.4), layout="constrained")
    places = figure.subplots(count, columns, squeeze=False).flat
    for axes, part in zip(places, parts, strict=False):
        share = 100 if part["measure"] == "accuracy" else 1
        for method in METHODS:
            values = [np.nan if v is None else share * v for v in part["by_step"][method]]
            steps = range(1, len(values) + 1)
            dots = "o" if len(values) == 1 else None
            axes.plot(steps, values, marker=dots, ms=4, label=WORDS[method], **_LOOK[method])
        axes.axvspan(0.5, execute + 0.5, color=INK, alpha=0.06, lw=0)
        axes.set_xlim(0.5, len(values) + 0.5)
        unit = " (right, %)" if share == 100 else f" ({part['unit']})" if part["unit"] else ""
        axes.set_title(part["part"] + unit, fontsize=9.5)
        if share == 1:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step of the chunk")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(**GRID)
    for axes in list(places)[len(parts) :]:
        axes.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


@styled
def error_plot(measured: Measured, number: int, rate_hz: float) -> Figure:
    """The normalised error of the executed actions over an episode's time."""
    figure = Figure(figsize=(10.4, 2.2), layout="constrained")
    axes = figure.add_subplot()
    for method in METHODS:
        values = measured.over_time[method][number]
        axes.plot(np.arange(len(values)) / rate_hz, values, label=WORDS[method], **_LOOK[method])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time (s)")
    axes.set_ylabel("error, normalised")
    axes.legend(fontsize=8.5, ncols=3)
    axes.grid(**GRID)
    return figure


def _groups(parts: Parts) -> list[list[tuple[str, int]]]:
    """Title and place of each number of an action, in pictures of a few each."""
    named = []
    for part, at in parts.outside:
        for i, place in enumerate(range(at.start, at.stop)):
            inner = part.names[i] if part.names else str(i)
            named.append((part.name if part.size == 1 else f"{part.name} {inner}", place))
    return [named[i : i + _ROWS] for i in range(0, len(named), _ROWS)]


@styled
def curve_plot(parts: Parts, episode: Episode, rate_hz: float, numbers: Sequence[tuple[str, int]]) -> Figure:
    """Recorded and predicted over time, a picture for each number: the first action of every plan, and now and then all
    of a plan.
    """
    columns = min(_COLUMNS, len(numbers))
    count = math.ceil(len(numbers) / columns)
    figure = Figure(figsize=(10.4, 1.55 * count + 0.4), layout="constrained")
    places = list(figure.subplots(count, columns, squeeze=False, sharex=True).flat)
    steps, chunk = episode.plans.shape[:2]
    time = np.arange(steps) / rate_hz
    for axes, (title, place) in zip(places, numbers, strict=False):
        axes.plot(time, episode.actions[:, place], color=INK, lw=1.3, label="recorded")
        for t in range(0, steps if chunk > 1 else 0, chunk):
            part = slice(t, min(t + chunk, steps))
            axes.plot(time[part], episode.plans[t, : part.stop - t, place], color=ORANGE, lw=1)
        axes.plot(time, episode.plans[:, 0, place], color=BLUE, lw=1, label="predicted, first of the plan")
        axes.set_title(title, fontsize=8.5)
        axes.tick_params(labelsize=8)
        axes.grid(**GRID)
    if chunk > 1:
        places[0].plot([], [], color=ORANGE, lw=1, label="a whole plan")
    _finish(figure, places, len(numbers), columns)
    return figure


def _finish(figure: Figure, places: Sequence[Axes], used: int, columns: int) -> None:
    for axes in places[used:]:
        axes.set_axis_off()
    for axes in places[max(0, used - columns) : used]:
        axes.set_xlabel("time (s)", fontsize=8.5)
        axes.tick_params(labelbottom=True)
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9)

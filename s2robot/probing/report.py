"""Shared by all probes: comparing rows, and writing JSON, CSV, plot and page.

results, differences = compare(samples, ("encoder", "cameras"), earlier(samples))
write_outcome(Outcome("readout", {"settings": ..., "results": results, "differences": differences}, points), run_dir)
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from s2robot.core.files import write_json, write_text
from s2robot.core.provenance import command, versions
from s2robot.reporting.page import drawing, flatten, write_page
from s2robot.reporting.style import BLUE, GREEN, GRID, ORANGE, PURPLE, VERMILLION, save_figure, styled

_COLOURS, _MARKS, _LINES = (GREEN, BLUE, ORANGE, PURPLE, VERMILLION), "osD^v", ("-", "--", ":")
JOINED, NO_POOL, PLACE = "all", "-", "no image"  # of a readout: all cameras, no image, the mean of each place
READOUT_COLUMNS = 4  # panels side by side
Samples = Mapping[tuple, Mapping[str, np.ndarray]]  # (name, ...) -> metric -> the value, then resamples
Found = Mapping[str, float | None]  # {"value", "low", "high"}
Point = tuple[str, str, Any, Found]  # panel, series, x, result


def resample(count: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Return how often each item is drawn: first once each, then with replacement.  # (1 + resamples, count)"""
    rng = np.random.default_rng([seed, 17])
    drawn = rng.multinomial(count, np.full(count, 1 / count), resamples)
    return np.concatenate([np.ones((1, count)), drawn])


def interval(samples: np.ndarray) -> dict[str, float | None]:
    """Return the first sample as the value and 95 % of the others as the interval; None where undefined.

    Args:
        samples: a score on the data as they are, then on B resamples of them  # (1 + B,) or, by seed, (1 + B, S)
    """
    if samples.ndim == 2:
        return seeds_interval(samples)
    others = samples[1:][np.isfinite(samples[1:])]
    low, high = np.percentile(others, [2.5, 97.5]) if len(others) else (np.nan, np.nan)
    found = {"value": samples[0], "low": low, "high": high}
    return {name: float(x) if np.isfinite(x) else None for name, x in found.items()}


def seeds_interval(samples: np.ndarray) -> dict[str, float | None]:
    """Return the mean over seeds and its 95 % t interval, for new seeds and new images; None where undefined.

    Variance: that of the mean over resampled images, plus what seeds add (their mean square less what images bring
    into it). Degrees of freedom: Satterthwaite 1946. With one seed, the interval holds for that seed.
    """
    own, others = samples[0], samples[1:][np.isfinite(samples[1:]).all(1)]
    if not np.isfinite(own).all() or len(others) < 2:
        return {"value": None, "low": None, "high": None}
    seeds, variance, df = len(own), max(others.mean(1).var(ddof=1), 1e-300), np.inf
    if seeds > 1:
        between, within = own.var(ddof=1) / seeds, (others - own).var(1, ddof=1).mean() / seeds
        variance += max(0.0, between - within)
        df = max(seeds - 1, (seeds - 1) * (variance / max(between, 1e-9 * variance)) ** 2)
    value, half = float(own.mean()), float(stats.t.ppf(0.975, df) * variance**0.5)
    return {"value": value, "low": value - half, "high": value + half}


def compare(
    samples: Samples, keys: Sequence[str], pairs: Iterable[tuple[tuple, tuple]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each key of `samples`, and one with paired differences for each pair."""
    results, differences = [], []
    for key, found in samples.items():
        results.append(dict(zip(keys, key, strict=True)) | {m: interval(x) for m, x in found.items()})
    for one, other in pairs:
        apart = {m: interval(x - samples[other][m]) for m, x in samples[one].items()}
        facts = dict(zip(keys[1:], one[1:], strict=True))
        differences.append({keys[0]: one[0], "minus": other[0], **facts, **apart})
    return results, differences


def earlier(samples: Samples, without: Collection[str] = ()) -> list[tuple[tuple, tuple]]:
    """Return each key with every earlier one that differs in the name alone; names `without` are left out."""
    keys = [key for key in samples if key[0] not in without]
    return [(a, b) for i, a in enumerate(keys) for b in keys[:i] if a[1:] == b[1:]]


@dataclass(frozen=True)
class Outcome:
    """The result of a probe."""

    kind: str
    facts: dict[str, Any]  # "settings", rows of "results" and "differences", "cells" with the same, and more
    points: Sequence[Point]
    columns: int  # of the plot's panels
    shown: Callable[[Mapping[str, Any]], bool] = lambda row: True  # in tables; files hold all rows


def write_outcome(outcome: Outcome, seconds: float, out: Path) -> str:
    """Write <kind>.json, .csv, .png and .html into `out`; return the tables for a terminal."""
    kind, about = outcome.kind, {"seconds": round(seconds, 1), "versions": versions(), "command": command()}
    report = json.loads(json.dumps(outcome.facts | about))
    parts = [part for part in (report, report.get("cells")) if part]
    rows = [row for part in parts for name in ("results", "differences") for row in part[name]]
    tables = tables_of([row for row in rows if outcome.shown(row)])
    figure = plot(outcome.points, outcome.columns)
    write_json(out / f"{kind}.json", report)
    write_text(out / f"{kind}.csv", csv_of(rows))
    save_figure(figure, out / f"{kind}.png")
    shown = {
        "title": f"s2robot probe: {kind}",
        "svg": drawing(figure, kind),
        "tables": tables,
        "report": report,
    }
    write_page(out / f"{kind}.html", "probe.html.j2", **shown, settings=flatten("probe", report["settings"]))
    texts = []
    for heads, *lines in tables:
        widths = [max(map(len, column)) + 2 for column in zip(heads, *lines, strict=True)]
        texts += ["".join(map(str.ljust, line, widths)).rstrip() for line in (heads, *lines)]
    return "\n".join(texts)


def _split(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Found]]:
    """Return the facts of a row and its metrics."""
    facts = {k: v for k, v in row.items() if isinstance(v, str | int | float)}
    return facts, {k: v for k, v in row.items() if isinstance(v, Mapping) and "low" in v}


def tables_of(rows: Sequence[Mapping[str, Any]]) -> list[list[list[str]]]:
    """Return tables of text with a head line: one for all neighbouring rows with the same columns."""
    tables: list[list[list[str]]] = []
    for facts, metrics in map(_split, rows):
        if not tables or tables[-1][0] != [*facts, *metrics]:
            tables.append([[*facts, *metrics]])
        texts = [f"{x:.3g}" if isinstance(x, float) else str(x) for x in facts.values()]
        tables[-1].append(texts + [number(found) for found in metrics.values()])
    return tables


def number(found: Found) -> str:
    """Return `1.73 [1.53, 1.94]`; the value alone without an interval."""
    value, low, high = ("–" if x is None else f"{x:.3g}".replace("-", "−") for x in found.values())
    return value if found["low"] is None else f"{value} [{low}, {high}]"


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one line a number, after the facts of its row; `minus` names the other side of a difference."""
    names = [*dict.fromkeys(name for row in rows for name in _split(row)[0])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "metric", "value", "low", "high"])
    for facts, metrics in map(_split, rows):
        for metric, found in metrics.items():
            writer.writerow([*(facts.get(k, "") for k in names), metric, *found.values()])
    return text.getvalue()


@styled
def plot(points: Sequence[Point], columns: int) -> Figure:
    """Plot (panel, series, x, found) with intervals: x is a name, or a number on a logarithmic axis."""
    panels, series, places = (list(dict.fromkeys(point[i] for point in points)) for i in range(3))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.4 * lines + 0.6), layout="constrained")
    names = isinstance(places[0], str)
    for axes, panel in zip(figure.subplots(lines, columns, squeeze=False).flat, panels, strict=False):
        for i, name in enumerate(series):
            own = sorted(
                [p[2:] for p in points if p[:2] == (panel, name)],
                key=lambda p: places.index(p[0]) if names else p[0],
            )
            shift = 0.16 * (i - (len(series) - 1) / 2)
            x = [places.index(place) + shift if names else place for place, _ in own]
            value, low, high = np.array([[*found.values()] for _, found in own], float).reshape(-1, 3).T
            style = {"color": _COLOURS[i % 5], "label": name if panel == panels[0] else None}
            axes.vlines(x, low, high, color=style["color"], lw=1.4)
            axes.plot(x, value, _MARKS[i % 5], ls="" if names else _LINES[i // 5 % 3], ms=5, **style)
        if names:
            axes.set_xticks(range(len(places)), places, rotation=20, ha="right")
        else:
            axes.set_xscale("log")
        axes.set_title(panel, fontsize=9.5)
        axes.grid(**GRID)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def is_joined(row: Mapping[str, Any]) -> bool:
    """Return whether a row reads all cameras, or none."""
    return row["cameras"] in (JOINED, NO_POOL)


def readout_points(report: Mapping[str, Any]) -> list[Point]:
    """Return position and yaw error by encoder, for `plot`: a panel a pool and subset, a series a camera."""
    return [
        (f"{m}, {row['subset']}, {pool}", row["cameras"].replace("-", PLACE), row["encoder"], row[m])
        for pool in report["settings"]["pools"]
        for m in ("position_mean_cm", "yaw_mean_deg")
        for row in report["results"]
        if row["pool"] in (pool, NO_POOL)
    ]

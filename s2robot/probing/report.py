"""Resample, compare rows, and write JSON, CSV, plot and page, for all probes.

results, differences = compare(samples, ("encoder", "cameras"), earlier(samples))
write_outcome(Outcome("readout", {"settings": ..., "results": results, "differences": differences}, points, 2), run_dir)
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from s2robot.core.files import write_csv, write_json
from s2robot.core.provenance import command, versions
from s2robot.reporting import plots
from s2robot.reporting.page import flatten, write_page
from s2robot.reporting.style import figure_svg, save_figure

_NUMBERS = ("value", "low", "high", "p")  # of an estimate; p for differences by seed alone
JOINED, NO_IMAGE = "all", "-"  # values of a row's cameras: all, none
Samples = Mapping[tuple, Mapping[str, np.ndarray]]  # (name, ...) -> metric -> the value, then resamples
Estimate = Mapping[str, float | None]  # {"value", "low", "high"}
Point = tuple[str, str, Any, Estimate]  # panel, series, x, result


def resample(count: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Return how often each item is drawn: once each in row 0, then with replacement.  # (1 + resamples, count)"""
    rng = np.random.default_rng([seed, 17])
    drawn = rng.multinomial(count, np.full(count, 1 / count), resamples)
    return np.concatenate([np.ones((1, count)), drawn])


def resampled(
    results: Sequence[Mapping[str, np.ndarray]],
    scores: Callable[[np.ndarray], dict[str, np.ndarray]],
    resamples: int,
) -> dict[str, np.ndarray]:
    """Return the scores of every seed, resampled over the items except in the first row.  # (1 + B, S)

    Each seed's result has "rows", the indices of its items (n,), and their "tallies" (n, width); `scores` computes scores from
    weighted sums of tallies (1 + B, width).
    """
    items = np.unique(np.concatenate([result["rows"] for result in results]))
    times, each = resample(len(items), resamples), []  # (1 + B, n)
    for result in results:
        weights = times[:, np.searchsorted(items, result["rows"])]
        with np.errstate(invalid="ignore", divide="ignore"):
            each.append(scores(weights @ result["tallies"].astype(np.float64)))
    return {metric: np.stack([one[metric] for one in each], 1) for metric in each[0]}


def interval(samples: np.ndarray, tested: bool = False) -> dict[str, float | None]:
    """Return the first sample as the value and the central 95 % of the others as the interval; None where undefined.

    The samples are a score on the original data, then on B resamples.  # (1 + B,) or, by seed, (1 + B, S)
    """
    if samples.ndim == 2:
        return seeds_interval(samples, tested)
    others = samples[1:][np.isfinite(samples[1:])]
    low, high = np.percentile(others, [2.5, 97.5]) if len(others) else (np.nan, np.nan)
    bounds = {"value": samples[0], "low": low, "high": high}
    return {name: float(x) if np.isfinite(x) else None for name, x in bounds.items()}


def seeds_interval(samples: np.ndarray, tested: bool = False) -> dict[str, float | None]:
    """Return the mean over seeds and its 95 % t interval, for new seeds and new images; None where undefined.

    `tested` adds "p", two-sided, for a mean of 0. Variance: that of the mean over resampled images, plus the variance that seeds
    add (between seeds, less the part due to images). Degrees of freedom: Satterthwaite 1946. With one seed, the interval is for
    that seed only.
    """
    own, others = samples[0], samples[1:][np.isfinite(samples[1:]).all(1)]
    if not np.isfinite(own).all() or len(others) < 2:
        return dict.fromkeys(("value", "low", "high", *(["p"] if tested else [])))
    seeds, variance, df = len(own), max(others.mean(1).var(ddof=1), 1e-300), np.inf
    if seeds > 1:
        between, within = own.var(ddof=1) / seeds, (others - own).var(1, ddof=1).mean() / seeds
        variance += max(0.0, between - within)
        df = max(seeds - 1, (seeds - 1) * (variance / max(between, 1e-9 * variance)) ** 2)
    value, half = float(own.mean()), float(stats.t.ppf(0.975, df) * variance**0.5)
    tests = {"p": float(2 * stats.t.sf(abs(value) / variance**0.5, df))} if tested else {}
    return {"value": value, "low": value - half, "high": value + half, **tests}


def compare(
    samples: Samples, keys: Sequence[str], pairs: Iterable[tuple[tuple, tuple]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a row for each key of `samples`, and one with paired differences for each pair."""
    results, differences = [], []
    for key, metrics in samples.items():
        results.append(dict(zip(keys, key, strict=True)) | {m: interval(x) for m, x in metrics.items()})
    for one, other in pairs:
        gaps = {m: interval(x - samples[other][m], tested=True) for m, x in samples[one].items()}
        facts = dict(zip(keys[1:], one[1:], strict=True))
        differences.append({keys[0]: one[0], "minus": other[0], **facts, **gaps})
    return results, differences


def earlier(samples: Samples, without: Collection[str] = ()) -> list[tuple[tuple, tuple]]:
    """Pair each key with every earlier key that differs only in the name; names in `without` are left out."""
    keys = [key for key in samples if key[0] not in without]
    return [(a, b) for i, a in enumerate(keys) for b in keys[:i] if a[1:] == b[1:]]


class Outcome(NamedTuple):
    """The result of a probe."""

    kind: str
    facts: dict[str, Any]  # "settings", rows of "results" and "differences", and more
    points: Sequence[Point]
    columns: int  # of the plot's panels


def write_outcome(outcome: Outcome, seconds: float, out: Path) -> str:
    """Write <kind>.json, .csv, .png and .html into `out`; return the tables, without rows of single cameras, as text."""
    kind, about = outcome.kind, {"seconds": round(seconds, 1), "versions": versions(), "command": command()}
    report = json.loads(json.dumps(outcome.facts | about))
    rows = report["results"] + report["differences"]
    figure = plot(outcome.points, outcome.columns)
    write_json(out / f"{kind}.json", report)
    names = [*dict.fromkeys(name for row in rows for name in _split(row)[0])]
    numbers = [
        (*(facts.get(name, "") for name in names), metric, *map(estimate.get, _NUMBERS))
        for facts, metrics in map(_split, rows)
        for metric, estimate in metrics.items()
    ]
    write_csv(out / f"{kind}.csv", [*names, "metric", *_NUMBERS], numbers)
    save_figure(figure, out / f"{kind}.png")
    tables: list[list[list[str]]] = []  # one per run of rows with the same columns
    for facts, metrics in map(_split, rows):
        if facts.get("cameras", JOINED) in (JOINED, NO_IMAGE):
            if not tables or tables[-1][0] != [*facts, *metrics]:
                tables.append([[*facts, *metrics]])
            tables[-1].append([*map(_text, facts.values()), *map(_text, metrics.values())])
    title, svg = f"s2robot probe: {kind}", figure_svg(figure, kind)
    shown = {"title": title, "svg": svg, "tables": tables, "report": report}
    write_page(out / f"{kind}.html", "probe.html.j2", **shown, settings=flatten("probe", report["settings"]))
    texts = []
    for table in tables:
        widths = [max(map(len, column)) + 2 for column in zip(*table, strict=True)]
        texts += ["".join(map(str.ljust, line, widths)).rstrip() for line in table]
    return "\n".join(texts)


def _split(row: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """Return the facts of a row and its metrics."""
    facts = {k: v for k, v in row.items() if isinstance(v, str | int | float)}
    return facts, {k: v for k, v in row.items() if isinstance(v, Mapping) and "low" in v}


def _text(value: Any) -> str:
    """Return a fact, or a metric as `1.73 [1.53, 1.94]`; its value alone without an interval."""
    if not isinstance(value, Mapping):
        return f"{value:.3g}" if isinstance(value, float) else str(value)
    middle, low, high, p = (
        "–" if x is None else f"{x:.3g}".replace("-", "−") for x in map(value.get, _NUMBERS)
    )
    return middle if value["low"] is None else f"{middle} [{low}, {high}]" + f", p {p}" * ("p" in value)


def plot(points: Sequence[Point], columns: int) -> Figure:
    """Plot (panel, series, x, estimate) with intervals: x is a name, or a number on a logarithmic axis."""
    panels, series, x_values = (list[Any](dict.fromkeys(point[i] for point in points)) for i in range(3))
    named, drawn = isinstance(x_values[0], str), []
    order: Callable[[Any], Any] = x_values.index if named else float
    ticks: dict[float, str] = dict(enumerate(x_values)) if named else {}
    for panel in panels:
        lines = []
        for i, name in enumerate(series):
            own = [
                (order(x), *map(estimate.get, _NUMBERS[:3]))
                for *at, x, estimate in points
                if at == [panel, name]
            ]
            own.sort(key=lambda row: row[0])
            x, value, low, high = np.array(own, float).reshape(-1, 4).T
            shift = 0.16 * (i - (len(series) - 1) / 2) if named else 0
            colour, marker, _, dashes = plots.series_style(i)
            style = {"marker": marker, "ms": 5, "ls": "none" if named or len(own) < 2 else dashes}
            lines.append(plots.Line(x + shift, value, name, colour, low, high, style))
        drawn.append(plots.Panel(panel, lines, log="" if named else "x", ticks=ticks))
    return plots.curves(drawn, columns, (4.4, 3.4))

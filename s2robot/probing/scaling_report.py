"""What `s2robot scaling` found, as a table, a picture and a page; from what scaling.json holds alone."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from s2robot.common.files import write_text
from s2robot.reporting.page import drawing, flatten, write_page
from s2robot.reporting.style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, VERMILLION, save_figure, styled

# of a task: its figures, the first is plotted; (title, factor, unit, digits, whether more is better)
SHOWN: dict[str, dict[str, tuple[str, float, str, int, bool]]] = {
    "classify": {"accuracy": ("accuracy", 100, "%", 1, True), "loss": ("loss", 1, "", 3, False)},
    "segment": {"miou": ("mIoU", 100, "%", 1, True), "loss": ("loss", 1, "", 3, False)},
    "depth": {
        "rmse_m": ("RMSE", 1, "m", 3, False),
        "delta_1.25": ("δ < 1.25", 100, "%", 1, True),
        "loss": ("loss of log", 1, "", 4, False),
    },
}
_COLOURS = (GREEN, BLUE, ORANGE, PURPLE, VERMILLION)
_MARKS = "osD^v"
_STYLES = {"native": "-", "upsample": (0, (3, 2))}


def write_scaling(report: Mapping[str, Any], out: Path) -> None:
    """scaling.csv, scaling.png and scaling.html in `out`."""
    write_text(out / "scaling.csv", table_csv(report))
    save_figure(scaling_plot(report), out / "scaling.png")
    write_page(
        out / "scaling.html",
        "scaling.html.j2",
        title="Scaling on scales against scaling the model",
        headline=headlines(report)[0] if report["differences"] else "One arm a task: nothing is compared",
        sentences=headlines(report)[1:],
        pictures=report["pictures"],
        seeds=len(report["settings"]["seeds"]),
        svg=drawing(scaling_plot(report), "scaling"),
        models=_models(report),
        tables=[_arm_table(report, task) for task in report["settings"]["tasks"]],
        differences=[_difference_table(report, task) for task in report["settings"]["tasks"]],
        command=report["command"],
        seconds=report["seconds"]["all"],
        settings=[row for key, value in report["settings"].items() for row in flatten(key, value)],
        objects=[row for key, value in (report["objects"] or {}).items() for row in flatten(key, value)],
        versions=[row for key, value in report["versions"].items() for row in flatten(key, value)],
    )


def _number(found: Mapping[str, float | None], factor: float, digits: int, sign: bool = False) -> str:
    """The value with its interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    value, low, high = (
        "-" if x is None else format(factor * x, form).replace("-", "−") for x in found.values()
    )
    return f"{value} [{low}, {high}]"


def headlines(report: Mapping[str, Any]) -> list[str]:
    """A sentence for each task, head and resize: S2 whose cost is nearest to the larger model's, against that model."""
    arms = {(row["arm"], row["task"], row["head"], row["resize"]): row for row in report["arms"]}
    nearest: dict[tuple, tuple[float, str]] = {}
    for row in report["differences"]:
        place = row["task"], row["head"], row["resize"]
        arm, less = arms[row["arm"], *place], arms[row["minus"], *place]
        if arm["model"] == less["model"] or len(arm["scales"]) == 1:
            continue
        metric, (title, factor, unit, digits, _) = next(iter(SHOWN[row["task"]].items()))
        unit = "points" if unit == "%" else unit
        ratio = max(arm["gflops"], less["gflops"]) / min(arm["gflops"], less["gflops"])
        text = (
            f"{row['task']}, {row['head']} head, {row['resize']}: {arm['arm']} ({arm['gflops']:.2f} GFLOPs) minus "
            f"{less['arm']} ({less['gflops']:.2f}): {title} {_number(row[metric], factor, digits, True)} {unit}"
        )
        nearest[place] = min(nearest.get(place, (ratio, text)), (ratio, text))
    return [text for _, text in nearest.values()] or [
        "One model a family: S2 is compared with its own model alone"
    ]


def table_csv(report: Mapping[str, Any]) -> str:
    """One line a number: an arm's figure, or where `minus` names another arm, a difference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = ("arm", "minus", "task", "head", "resize", "gflops", "parameters")
    writer.writerow([*keys, "metric", "value", "low", "high"])
    for row in [*report["arms"], *report["differences"]]:
        for metric in SHOWN[row["task"]]:
            writer.writerow([*(row.get(key, "") for key in keys), metric, *row[metric].values()])
    return text.getvalue()


def _models(report: Mapping[str, Any]) -> dict[str, Any]:
    heads = ("model", "encoder", "block", "tile px", "parameters (M)", "scales: GFLOPs a picture")
    rows = []
    for name, facts in report["models"].items():
        costs = [
            f"{'+'.join(f'{s:g}' for s in scales)}: {cost['gflops']:.3g}"
            for scales, cost in zip(report["settings"]["scales"], facts["costs"], strict=True)
        ]
        block = "last" if facts["block"] is None else str(facts["block"])
        rows.append(
            [name, facts["name"], block, str(facts["tile"]), f"{facts['parameters'] / 1e6:.1f}", costs]
        )
    return {"heads": heads, "rows": rows}


def _arm_table(report: Mapping[str, Any], task: str) -> dict[str, Any]:
    shown = SHOWN[task]
    heads = ["arm", "head", "resize", "GFLOPs", *(f"{t} {u}".strip() for t, _, u, _, _ in shown.values())]
    rows = []
    for row in report["arms"]:
        if row["task"] == task:
            figures = [_number(row[m], factor, digits) for m, (_, factor, _, digits, _) in shown.items()]
            first, (_, factor, _, digits, _) = next(iter(shown.items()))
            seeds = " · ".join(f"{factor * x:.{digits}f}" for x in row["by_seed"][first])
            losses = f"{row['train_loss']:.3f}"
            rows.append(
                [row["arm"], row["head"], row["resize"], f"{row['gflops']:.3g}", *figures, losses, seeds]
            )
    return {"title": task, "heads": [*heads, "training loss", "by seed"], "rows": rows}


def _difference_table(report: Mapping[str, Any], task: str) -> dict[str, Any]:
    shown = SHOWN[task]
    heads = ["arm", "minus", "head", "resize", *(f"{t} {u}".strip() for t, _, u, _, _ in shown.values())]
    rows = []
    for row in report["differences"]:
        if row["task"] == task:
            figures = [
                _number(row[m], factor, digits, True) for m, (_, factor, _, digits, _) in shown.items()
            ]
            rows.append([row["arm"], row["minus"], row["head"], row["resize"], *figures])
    return {"title": task, "heads": heads, "rows": rows}


@styled
def scaling_plot(report: Mapping[str, Any]) -> Figure:
    """The first figure of each task against GFLOPs: a curve for S2 from each model, one for the size of the model."""
    tasks = report["settings"]["tasks"]
    kinds = [[k for k in dict.fromkeys(r["head"] for r in report["arms"] if r["task"] == t)] for t in tasks]
    lines = max(map(len, kinds))
    names = list(report["models"])
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    marks = {name: _MARKS[i % len(_MARKS)] for i, name in enumerate(names)}
    figure = Figure(figsize=(4.4 * len(tasks), 3.3 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        metric, (title, factor, unit, _, more) = next(iter(SHOWN[task].items()))
        for line in range(lines):
            axes = panels[line][column]
            if line >= len(kinds[column]):
                axes.set_axis_off()
                continue
            kind = kinds[column][line]
            rows = [r for r in report["arms"] if (r["task"], r["head"]) == (task, kind)]
            for name in names:
                for resize, style in _STYLES.items():
                    chosen = sorted(
                        (r for r in rows if (r["model"], r["resize"]) == (name, resize)),
                        key=lambda r: r["gflops"],
                    )
                    _curve(
                        axes, chosen, metric, factor, colours[name], marks[name], style, resize == "native"
                    )
            for family in report["settings"]["families"]:
                _size_curve(
                    axes, [r for r in rows if r["model"] in family and len(r["scales"]) == 1], metric, factor
                )
            axes.set_xscale("log")
            axes.set_title(f"{task}, {kind} head", fontsize=10)
            axes.set_ylabel(f"{title} ({unit})")
            axes.set_xlabel("GFLOPs a picture")
            axes.grid(**GRID)
            if not more:
                axes.invert_yaxis()
    handles = [Line2D([], [], color=colours[n], marker=marks[n], label=f"S² from {n}") for n in names]
    if any(len(family) > 1 for family in report["settings"]["families"]):
        handles.append(Line2D([], [], color=INK, lw=2.2, alpha=0.55, label="model size, one scale"))
    resizes = report["settings"]["resize"]
    handles += [Line2D([], [], color=INK, ls=style, label=r) for r, style in _STYLES.items() if r in resizes]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _curve(axes, rows: Sequence[Mapping], metric, factor, colour, mark, style, filled) -> None:
    """Scores of a model's sets of scales, with their band."""
    if not rows:
        return
    x = [row["gflops"] for row in rows]
    low, value, high = ([factor * row[metric][k] for row in rows] for k in ("low", "value", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.12 if filled else 0.06, lw=0)
    face = colour if filled else "none"
    axes.plot(x, value, ls=style, color=colour, marker=mark, ms=5, lw=1.5, markerfacecolor=face)


def _size_curve(axes, rows: Sequence[Mapping], metric, factor) -> None:
    """The models of a family at one scale, of the first resize that is there."""
    rows = sorted((r for r in rows if r["resize"] == rows[0]["resize"]), key=lambda r: r["gflops"])
    if len(rows) > 1:
        x, y = [r["gflops"] for r in rows], [factor * r[metric]["value"] for r in rows]
        axes.plot(x, y, color=INK, lw=2.2, alpha=0.55, zorder=1)


def summary_text(report: Mapping[str, Any]) -> str:
    """A line an arm, then the differences from the larger models."""
    lines = []
    for row in report["arms"]:
        shown = SHOWN[row["task"]]
        figures = [
            f"{title} {_number(row[m], factor, digits)}{unit}"
            for m, (title, factor, unit, digits, _) in shown.items()
        ]
        place = f"{row['task']}, {row['head']}, {row['resize']}"
        lines.append(f"{place:<28}{row['arm']:<18}{row['gflops']:>8.3g} GFLOPs  {'  '.join(figures[:-1])}")
    return "\n".join([*lines, *headlines(report)])

"""What a read-out found, as files, as a picture and as text for a terminal; from what readout.json holds alone."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from s2robot.common.files import write_json, write_text
from s2robot.probing.cell_maps import CELL_METRICS
from s2robot.probing.ridge import METRICS
from s2robot.reporting.style import BLUE, GREEN, INK, ORANGE, PURPLE, VERMILLION, save_figure, styled

CONTROLS = ("gripper pose", "mean")  # rows that see no image
JOINED, NO_POOL = "all", "-"
SHOWN = {"all": "all frames", "apart": "gripper far"}  # subsets in the picture and on the terminal
CELLS_SHOWN = {
    "depth_mean_mm": "depth mm", "depth_r2": "depth R2", "class_accuracy": "class accuracy", "class_miou": "mIoU",
    "cube_iou": "cube IoU",
}  # fmt: skip
_POOL_NAMES = {"tokens": "all tokens", "mean": "mean of tokens"}
_PLOTTED = {"position_mean_cm": "mean position error (cm)", "yaw_mean_deg": "mean yaw error (degrees)"}


def write_readout(report: Mapping[str, Any], out: Path) -> None:
    """readout.json, readout.csv and readout.png in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "readout.json", report)
    write_text(out / "readout.csv", _table(report))
    save_figure(readout_plot(report), out / "readout.png")


def _table(report: Mapping[str, Any]) -> str:
    """One line a number: a result, or where `minus` names another encoder, a difference; of cells without a pool."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = ("encoder", "minus", "pool", "cameras", "subset", "frames", "episodes")
    writer.writerow([*keys, "metric", "value", "low", "high"])
    parts = (report, METRICS), (report["cells"] or {"results": [], "differences": []}, CELL_METRICS)
    for part, metrics in parts:
        for row in [*part["results"], *part["differences"]]:
            for metric in metrics:
                writer.writerow([*(row.get(k, "") for k in keys), metric, *row[metric].values()])
    return text.getvalue()


@styled
def readout_plot(report: Mapping[str, Any]) -> Figure:
    """Position and yaw error, on all frames and with the gripper far: a line an encoder, a mark a camera.

    A row of panels is a pool, so that pools and subsets share their scales.
    """
    pools, names = report["settings"]["pools"], [*report["encoders"], *CONTROLS]
    cameras = [*report["settings"]["world"]["cameras"], JOINED]
    colours = (BLUE, ORANGE, PURPLE, VERMILLION)
    styles = {c: (colours[i % 4], "osD^"[i % 4]) for i, c in enumerate(cameras[:-1])}
    styles |= {JOINED: (INK, "P"), NO_POOL: (GREEN, "x")}
    offsets = {c: 0.16 * (i - (len(cameras) - 1) / 2) for i, c in enumerate(cameras)} | {NO_POOL: 0.0}
    seen = [row for row in report["results"] if row["subset"] in SHOWN]
    largest = {m: max(x for row in seen for x in row[m].values() if x is not None) for m in _PLOTTED}
    columns = [(metric, subset) for metric in _PLOTTED for subset in SHOWN]
    figure = Figure(figsize=(13, (0.55 * len(names) + 0.8) * len(pools) + 0.8), layout="constrained")
    panels = figure.subplots(len(pools), len(columns), squeeze=False, sharey=True)
    for pool, line in zip(pools, panels, strict=True):
        for axes, (metric, subset) in zip(line, columns, strict=True):
            for row in seen:
                if row["subset"] != subset or row["pool"] not in (pool, NO_POOL):
                    continue
                (colour, marker), found = styles[row["cameras"]], row[metric]
                y = names.index(row["encoder"]) + offsets[row["cameras"]]
                if None not in found.values():
                    axes.plot([found["low"], found["high"]], [y, y], color=colour, lw=1.6)
                    axes.plot(found["value"], y, marker, color=colour, ms=6, ls="none")
            axes.set_yticks(
                range(len(names)), [name if name not in CONTROLS else f"{name} *" for name in names]
            )
            axes.grid(axis="x", lw=0.4, alpha=0.5)
            axes.set_xlim(0, 1.04 * largest[metric])
            axes.set_title(f"{_POOL_NAMES[pool]}, {SHOWN[subset]}", fontsize=9.5)
            axes.set_xlabel(_PLOTTED[metric])
    panels[0][0].invert_yaxis()
    handles = [Line2D([], [], color=c, marker=m, ls="none") for c, m in styles.values()]
    labels = [*cameras[:-1], "all cameras joined", "* no image"]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def summary_text(report: Mapping[str, Any]) -> str:
    """All cameras joined, with their intervals, as tables for a terminal."""
    titles = {"position_mean_cm": "position cm", "position_r2": "R2", "yaw_mean_deg": "yaw degrees"}

    def text(found: Mapping[str, float | None]) -> str:
        value, low, high = ("-" if x is None else f"{x:.2f}" for x in found.values())
        return f"{value} [{low}, {high}]"

    def head(about: str, shown: Mapping[str, str]) -> str:
        return f"{about:<40}" + "".join(f"{title:<24}" for title in shown.values())

    def line(row: Mapping[str, Any], shown: Iterable[str]) -> str:
        name = row["encoder"] + (f" - {row['minus']}" if "minus" in row else "")
        pool = "" if row.get("pool", NO_POOL) == NO_POOL else f", {row['pool']}"
        return f"  {name + pool:<38}" + "".join(f"{text(row[metric]):<24}" for metric in shown)

    lines = []
    for subset, about in SHOWN.items():
        lines.append(head(about, titles))
        for row in [*report["results"], *report["differences"]]:
            if row["subset"] == subset and row["cameras"] in (JOINED, NO_POOL):
                lines.append(line(row, titles))
    if cells := report["cells"]:
        lines.append(head("each cell", CELLS_SHOWN))
        rows = [*cells["results"], *cells["differences"]]
        lines += [line(row, CELLS_SHOWN) for row in rows if row["cameras"] == JOINED]
    return "\n".join(lines)

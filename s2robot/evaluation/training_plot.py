"""Picture of a training from its rows of metrics: small multiples over the gradient steps.

save_figure(training_plot(json.loads((run / "metrics.json").read_text())), run / "training.png")
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from s2robot.common.errors import UserError
from s2robot.evaluation.records import is_number, wilson
from s2robot.reporting.style import BLUE, GREEN, GRID, INK, ORANGE, PURPLE, VERMILLION, styled

Row = Mapping[str, Any]
COLUMNS = 3
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION)
_HELD_OUT: dict[str, Any] = {"ls": (0, (3, 2)), "lw": 1.4}  # a line of held-out demos, whatever its colour


@dataclass(frozen=True)
class _Panel:
    """One of the pictures: lines of one quantity."""

    title: str
    lines: Mapping[str, str]  # label -> name of its column after `train_`, or the column's own
    scale: float = 1.0  # of the values
    log: bool = False
    zero: bool = False  # the axis begins at zero


@styled
def training_plot(rows: Sequence[Row]) -> Figure:
    """Losses, errors, success, gradient, rate, speed and memory, each where `rows` have it.

    rows: mappings with `step` (`epoch` in those of version 0.1) and the columns of metrics.json. Raises UserError
    where they hold no loss.
    """
    panels = [panel for panel in _panels(rows) if any(_points(rows, c) for c in _columns(panel))]
    if not any(key.endswith("loss") for row in rows for key in row):
        raise UserError("training metrics: no key ends in 'loss', expected e.g. 'train_loss', 'val_loss'")
    count = -(-max(1, len(panels)) // COLUMNS)
    figure = Figure(figsize=(10.4, 2.25 * count + 0.3), layout="constrained")
    places = figure.subplots(count, COLUMNS, squeeze=False, sharex=True).flat
    for panel in panels:
        _draw(next(places), panel, rows)
    for axes in places:  # the last row's, where there are fewer
        axes.set_axis_off()
    for axes in figure.axes[max(0, len(panels) - COLUMNS) : len(panels)]:
        axes.set_xlabel(_time_of(rows).replace("step", "gradient step"))
        axes.tick_params(labelbottom=True)
    return figure


def _panels(rows: Sequence[Row]) -> Iterator[_Panel]:
    """What there is to draw, in reading order."""
    names = list(dict.fromkeys(key[6:] for row in rows for key in row if key.startswith("train_")))
    parts = [name for name in names if name.endswith("_loss")]
    errors = [name for name in names if name.removesuffix("_rad").endswith("_error")]
    decided = [name for name in names if name.endswith("_accuracy")]
    known = {"loss", *parts, *errors, *decided}
    yield _Panel("Loss", {"": "loss"}, log=True)
    if parts:
        yield _Panel("Parts of the loss", {_words(name): name for name in parts}, log=True)
    for name in errors:  # of an arm's joints, or of other parts, each in its own unit
        words = "Error of " + _words(name.removesuffix("_error")).lower()
        joints = name == "joint_error_rad"
        yield _Panel(
            "Error of a joint's step (mrad)" if joints else words, {"": name}, 1000 if joints else 1, log=True
        )
    for name in decided:
        yield _Panel(f"{_words(name.removesuffix('_accuracy'))} decided wrongly (%)", {"": name}, 100)
    for name in names:  # a head's own
        if name not in known:
            yield _Panel(_words(name), {"": name})
    yield _Panel("Success of a try (%)", {"": "success"}, 100)
    yield _Panel("Gradient norm, before clipping", {"": "grad_norm"}, log=True)
    yield _Panel("Learning rate", {"": "lr"}, zero=True)
    yield _Panel("Steps a second", {"": "steps_per_s"}, zero=True)
    yield _Panel("Memory of the process at most (MB)", {"": "memory_mb"}, zero=True)


def _columns(panel: _Panel) -> list[str]:
    return [column for name in panel.lines.values() for column in (name, f"train_{name}", _held_out(name))]


def _held_out(name: str) -> str:
    return f"val_{name.removesuffix('_rad')}"


def _draw(axes: Axes, panel: _Panel, rows: Sequence[Row]) -> None:
    style: dict[str, Any]
    both, lowest = False, math.inf
    for number, (label, name) in enumerate(panel.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        own = _points(rows, f"train_{name}") or _points(rows, name)
        held_out = _points(rows, _held_out(name))
        if not label and held_out:
            label, both = "trained on", True
        solid = {"color": colour, "label": label or None, "lw": 1.7}
        dashed = (
            {"color": VERMILLION, "label": "held out", **_HELD_OUT}
            if both
            else {"color": colour, **_HELD_OUT}
        )
        for points, style in ((own, solid), (held_out, dashed)):
            if not points:
                continue
            values = [_value(panel, name, value) for _, value in points]
            dots = "o" if len(points) < 3 or name == "success" else None
            axes.plot([step for step, _ in points], values, marker=dots, ms=4, **style)
            lowest = min(lowest, *values)
    _intervals(axes, rows, panel)
    _axes(axes, panel, lowest)


def _value(panel: _Panel, name: str, value: float) -> float:
    return panel.scale * (1 - value if name.endswith("_accuracy") else value)


def _intervals(axes: Axes, rows: Sequence[Row], panel: _Panel) -> None:
    """95 % intervals of the tries."""
    if "success" not in panel.lines.values():
        return
    for row in rows:
        if is_number(row.get("success")) and is_number(row.get("tried")):
            low, high = wilson(round(row["success"] * row["tried"]), int(row["tried"]))
            axes.plot(
                [row[_time_of(rows)]] * 2,
                [100 * low, 100 * high],
                color=BLUE,
                lw=5,
                alpha=0.2,
                solid_capstyle="butt",
            )


def _axes(axes: Axes, panel: _Panel, lowest: float) -> None:
    axes.set_title(panel.title, fontsize=9.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(**GRID)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.log and 0 < lowest < math.inf:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter("{x:g}")
    if panel.zero and axes.dataLim.y1 > 0:
        axes.set_ylim(0, 1.08 * axes.dataLim.y1)
    if "success" in panel.lines.values():
        axes.set_ylim(0, 104)
        axes.set_yticks(range(0, 101, 25))
    handles, _ = axes.get_legend_handles_labels()
    if len(panel.lines) > 1 and len(axes.lines) > len(handles):
        handles.append(Line2D([], [], color=INK, label="held out", **_HELD_OUT))
    if handles:
        axes.legend(handles=handles, fontsize=8, handlelength=1.8, borderaxespad=0.1)


def _points(rows: Sequence[Row], column: str) -> list[tuple[float, float]]:
    return [(row[_time_of(rows)], row[column]) for row in rows if is_number(row.get(column))]


def _time_of(rows: Sequence[Row]) -> str:
    return "step" if rows and "step" in rows[0] else "epoch"


def _words(name: str) -> str:
    words = name.removesuffix("_loss").replace("_", " ")
    return words if name.endswith("_loss") else words.capitalize()

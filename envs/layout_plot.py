"""Plots of where episodes began: the task's own, or a line for each number of its layout."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from s2robot.envs.task_settings import Group, TaskSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_layout(
    axes: "Axes",
    groups: Sequence[Group],
    task: type[TaskSettings],
    about: Mapping[str, Any],
    small: bool = False,
) -> None:
    """Draw the groups; `about`: an evaluation's summary; `small`: a plot beside others."""
    if task.plot_layout:
        module, _, name = task.plot_layout.partition(":")
        getattr(importlib.import_module(module), name)(axes, groups, about, small)
        return
    layouts = [[task.layout_of(record) for record in group.records] for group in groups]
    names = sorted({name for group in layouts for layout in group for name in layout})
    for row, name in enumerate(names):
        values = [np.array([layout.get(name, np.nan) for layout in group]) for group in layouts]
        low, high = (f(np.concatenate(values)) for f in (np.nanmin, np.nanmax))
        for i, (group, found) in enumerate(zip(groups, values, strict=True)):
            if len(found):  # side by side, a little apart
                shift = 0.5 * (i + 0.5) / len(groups) - 0.25
                place = (found - low) / max(high - low, 1e-12)
                shown = group if row == 0 else replace(group, label="_")
                shown.scatter(axes, place, np.full(len(found), row + shift))
        axes.text(1.02, row, f"{low:.3g} to {high:.3g}", va="center", fontsize=8)
    if not names:
        axes.text(0.5, 0.5, "this task has no layout", ha="center", va="center", transform=axes.transAxes)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlim(-0.05, 1.3)
    axes.set_xticks([])
    axes.set_xlabel("least → most")

"""CubePick's table from above, for reports: where the cube lay, a mark for each episode."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.task import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TICK = 2.0  # cm, of the line that shows a cube's yaw: half a cube
_DASHED: dict[str, Any] = {"ls": (0, (5, 4)), "lw": 1, "alpha": 0.6}


def plot_cubes(axes: "Axes", groups: Sequence[Group], about: Mapping[str, Any], small: bool = False) -> None:
    """Draw the table and the groups' cubes.

    The robot stands at the lower edge; x (m, away from the robot) points up and y (to the robot's left) points left, as
    seen from behind the robot. The line in each mark is half a cube long and shows the cube's yaw. `about`, an
    evaluation's summary, may hold `cube_box`, the x and y ranges (m) in which cubes were placed; without it the default
    box is drawn if every cube lies inside. `small`: an image beside others, without box and yaw.
    """
    import matplotlib
    from matplotlib.patches import Rectangle

    ink = matplotlib.rcParams["text.color"]
    given, usual = _box(about), CubePickConfig()
    (x0, x1), (y0, y1) = 100 * np.asarray(given or (usual.box_x, usual.box_y), float)  # cm
    all_x, all_y = [x0, x1], [y0, y1]
    for group in groups:
        found = [CubePickConfig.layout_of(record) for record in group.records]
        x, y, yaw = (np.array([at[name] for at in found], float) for name in ("x", "y", "yaw"))  # (n,)
        x, y = 100 * x, 100 * y
        if len(x) and not small:
            axes.plot(
                np.stack([y, y + _TICK * np.sin(yaw)]), np.stack([x, x + _TICK * np.cos(yaw)]), color=group.colour,
                lw=1.1, alpha=group.tick_alpha, solid_capstyle="round", zorder=2,
            )  # fmt: skip
        if len(x):
            group.scatter(axes, y, x)
        all_x, all_y = [*all_x, *x], [*all_y, *y]
    outside = min(all_x) < x0 - 0.1 or max(all_x) > x1 + 0.1 or min(all_y) < y0 - 0.1 or max(all_y) > y1 + 0.1
    edge, below = (2.0, 4.0) if small else (2.5, 5.5)
    (right, left), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    shared = small and axes.xaxis_inverted()  # a panel beside this one has widened the view already
    wide = (left, right, bottom, top) if shared else (-np.inf, np.inf, np.inf, -np.inf)
    axes.set_xlim(
        max(wide[0], max(all_y) + edge), min(wide[1], min(all_y) - edge)
    )  # the robot's left is the picture's
    axes.set_ylim(min(wide[2], min(all_x) - below), max(wide[3], max(all_x) + edge))
    axes.set_aspect("equal")
    low = min(all_x)
    if not small:
        axes.add_patch(Rectangle((-3, low - 5.5), 6, 2.2, fc=ink, alpha=0.25, lw=0))
    words = {
        "ha": "center",
        "va": "center",
        "fontsize": 8 if small else 9,
        "fontweight": "bold",
        "color": ink,
    }
    axes.annotate("robot", (0, low - (2.7 if small else 4.4)), **words)
    axes.grid(alpha=0.12, color=ink, lw=0.8)
    axes.set_xlabel(
        "← left   y (cm)   right →" if small else "← robot's left      y (cm)      robot's right →"
    )
    axes.set_ylabel("x (cm)" if small else "x (cm)  away from the robot →")
    if small:
        return
    if given is not None or not outside:
        axes.add_patch(Rectangle((y0, x0), y1 - y0, x1 - x0, fill=False, ec=ink, **_DASHED))
        label = f"cubes are placed in {x1 - x0:.0f} × {y1 - y0:.0f} cm"
        axes.plot([], [], color=ink, label=label, **_DASHED)
    axes.plot([], [], color=ink, lw=1.1, label="line: the cube's yaw")


def _box(about: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    box = about.get("cube_box")  # [[x_low, x_high], [y_low, y_high]] in m; evaluations may leave it out
    if box is None:
        return None
    try:
        (x0, x1), (y0, y1) = box
        return (float(x0), float(x1)), (float(y0), float(y1))
    except (TypeError, ValueError):
        raise EnvError(f"summary.json: 'cube_box' is {box!r}, expected [[x, x], [y, y]] in metres") from None

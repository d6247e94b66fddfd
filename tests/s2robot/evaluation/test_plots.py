"""The pictures of a run: what is drawn where, at odd numbers of episodes, and as files and SVG."""

import xml.etree.ElementTree as ElementTree
from math import pi

import numpy as np
import pytest

from s2robot.envs.cube_config import STAGES, CubePickConfig
from s2robot.evaluation.plots import layout_plot, stage_plot, time_plot
from s2robot.reporting.style import figure_svg


def records_of(count: int, success_rate: float = 0.8, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        success = bool(rng.random() < success_rate)
        records.append(
            {
                "episode": number,
                "seed": 100 + number,
                "cube_xy": [float(rng.uniform(-0.12, 0.12)), float(rng.uniform(-0.16, 0.16))],
                "cube_yaw": float(rng.uniform(-pi, pi)),
                "success": success,
                "stage": "held" if success else STAGES[number % 3],
                "steps": 30,
                "time_to_success_s": float(rng.uniform(2, 4)) if success else None,
                "closest_m": 0.01,
                "video": None,
            }
        )
    return records


def points(figure) -> dict[str, np.ndarray]:
    """Legend label -> where its marks lie, (N, 2)."""
    return {str(c.get_label()): np.asarray(c.get_offsets()) for c in figure.axes[0].collections}


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_table_is_seen_from_behind_the_robot():
    near_left = {**records_of(1, 1.0)[0], "cube_xy": [-0.10, 0.15], "cube_yaw": 0.0}
    figure = layout_plot([near_left])
    axes = figure.axes[0]
    assert points(figure)["success: 1"] == pytest.approx(np.array([[15.0, -10.0]]))  # cm: y across, x up
    x, y = axes.transAxes.inverted().transform(axes.transData.transform((15.0, -10.0)))
    assert x < 0.3 and y < 0.4  # the robot's left is left, near is low
    line = axes.lines[0]  # yaw 0: the cube's own x axis points away from the robot, which is up
    assert list(line.get_xdata()) == pytest.approx([15, 15]) and list(line.get_ydata()) == pytest.approx(
        [-10, -8]
    )


def test_every_failure_stage_has_its_own_mark():
    records = [{**r, "success": False, "stage": s} for r, s in zip(records_of(4), STAGES, strict=True)]
    figure = layout_plot(records)
    shapes = {c.get_paths()[0].vertices.tobytes() for c in figure.axes[0].collections}
    assert len(shapes) == 4
    assert {label.split(":")[0] for label in points(figure)} == {
        f"failure, {t}" for t in CubePickConfig.failures.values()
    }


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 128])
@pytest.mark.parametrize("success_rate", [0.0, 0.5, 1.0])
def test_any_number_of_episodes_is_drawn(count, success_rate):
    records = records_of(count, success_rate)
    figure = layout_plot(records)
    assert sum(len(p) for p in points(figure).values()) == count
    for made in (figure, stage_plot(records), time_plot(records)):
        ElementTree.fromstring(figure_svg(made, "any"))


def test_box_is_drawn_only_where_it_holds():
    inside, outside = records_of(3), [{**r, "cube_xy": [0.3, 0.0]} for r in records_of(1)]
    assert "cubes are placed in 24 × 32 cm" in legend(layout_plot(inside))
    assert not any("placed" in text for text in legend(layout_plot(outside)))
    assert "cubes are placed in 6 × 6 cm" in legend(
        layout_plot(inside, about={"cube_box": [[-0.03, 0.03], [-0.03, 0.03]]})
    )


def test_stage_bars_count_what_reached_and_what_failed_there():
    base = records_of(1, 1.0)[0]
    furthest = [("held", True)] * 5 + [("grasp", False)] * 2 + [("approach", False)]
    figure = stage_plot([{**base, "stage": s, "success": ok} for s, ok in furthest])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["8  (100 %),  1 failed here", "7  (88 %),  2 failed here", "5  (62 %)", "5  (62 %)"]


def test_time_histogram_holds_every_success():
    records = records_of(50, 0.7)
    heights = [bar.get_height() for bar in time_plot(records).axes[0].patches]
    assert sum(heights) == sum(r["success"] for r in records)
    same = [{**r, "time_to_success_s": 2.4} for r in records_of(3, 1.0)]
    assert max(bar.get_height() for bar in time_plot(same).axes[0].patches) == 3

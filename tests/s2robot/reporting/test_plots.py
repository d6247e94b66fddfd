"""Plots: marks match the numbers, SVG uses the page's colours, and matplotlib's settings stay unchanged."""

import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.task import Group
from s2robot.reporting.plots import Line, Panel, Row, curves, intervals, layouts, mark_size
from s2robot.reporting.style import BLUE, VERMILLION, figure_svg, save_figure

RECORD = {"cube_xy": [-0.10, 0.15], "cube_yaw": 0.0}


def test_curves_share_a_legend_and_zeros_use_a_linear_axis(tmp_path):
    before = dict(matplotlib.rcParams)
    lines = [Line([1, 2, 3], [4.0, 2.0, 1.0], "a"), Line([1], [3.0], "b", VERMILLION, low=[2.0], high=[4.0])]
    zero = Line([1, 2], [0.0, 1.0], "a", low=[0.0, 0.5], high=[0.5, 1.0])
    panels = [Panel("loss", lines, log="y"), Panel("zero", [zero], log="xy"), Panel("none", [])]
    figure = curves(panels, 2)
    first, second, *_ = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert (first.get_yscale(), second.get_yscale(), second.get_xscale()) == ("log", "linear", "log")
    assert first.lines[0].get_xydata().tolist() == [[1, 4], [2, 2], [3, 1]]
    assert not figure.axes[3].axison
    svgs = [figure_svg(curves(panels), name) for name in "aba"]
    assert svgs[0] == svgs[2] and "currentColor" in svgs[0] and "#010203" not in svgs[0]
    assert "var(--blue" in svgs[0] and "var(--vermillion" in svgs[0]
    ids = [{e.get("id") for e in ElementTree.fromstring(svg).iter()} for svg in svgs[:2]]
    assert ids[0] & ids[1] == {None}
    save_figure(figure, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 800
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"] and dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("count", [1, 4])
def test_layouts_show_each_record_once(count):
    good, bad = ("good", "o", BLUE, mark_size(3)), ("bad", "X", VERMILLION, 20.0)
    groups = [Group([RECORD] * 3, *good), Group([RECORD], *bad)]
    figure = layouts([("", groups)] * count, CubePickConfig, {}, [("good", "o", BLUE)] if count > 1 else ())
    drawn = [sum(len(np.asarray(c.get_offsets())) for c in axes.collections) for axes in figure.axes]
    assert drawn[:count] == [4] * count


def test_each_row_has_an_interval():
    rows = [Row("A", 50.0, 40.0, 60.0, parts=[45.0, 55.0]), Row("x_$ $B", -3.0, -9.0, 2.0, filled=False)]
    axes = intervals(rows, "points", 0.0).axes[0]
    figure_svg(axes.figure, "not a formula")
    assert [text.get_text() for text in axes.texts] == ["+50.0", "\N{MINUS SIGN}3.0"]
    assert axes.lines[0].get_xdata().tolist() == [40, 60] and axes.lines[2].get_xdata().tolist() == [45, 55]

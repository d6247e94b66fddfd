"""The look of all plots: files whole or not at all, SVG in the page's colours, the caller's settings untouched."""

import xml.etree.ElementTree as ElementTree

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from s2robot.reporting.style import BLUE, INK, VERMILLION, figure_svg, save_figure, styled


@styled
def drawn() -> Figure:
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=BLUE, label="one")
    axes.plot([0, 1], [1, 0], color=VERMILLION, marker="^", clip_on=True, label="two")
    axes.axhline(0.5, color=INK)
    axes.legend()
    return figure


def test_svg_follows_the_page_and_is_reproducible():
    svg = figure_svg(drawn(), "one")
    assert "currentColor" in svg and "var(--blue" in svg and "#010203" not in svg
    assert svg == figure_svg(drawn(), "one")
    ids = [{e.get("id") for e in ElementTree.fromstring(figure_svg(drawn(), n)).iter()} for n in "ab"]
    assert ids[0] & ids[1] == {None}


def test_saving_is_whole_or_not_at_all(tmp_path):
    path = save_figure(drawn(), tmp_path / "table.png")
    with Image.open(path) as image:
        assert image.width > 800
    assert [p.name for p in tmp_path.iterdir()] == ["table.png"]


def test_the_callers_matplotlib_is_left_alone():
    before = dict(matplotlib.rcParams)
    save = figure_svg(drawn(), "a")
    assert save and dict(matplotlib.rcParams) == before

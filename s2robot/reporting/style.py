"""The style of all plots: colours (Okabe and Ito's, safe for colour-blind readers), fonts, and output to files and pages.

@styled
def my_plot(values):
    figure = Figure(figsize=(6, 3), layout="constrained")  # without pyplot, so no display is needed
    ...

save_figure(my_plot(values), run / "mine.png")
svg = figure_svg(my_plot(values), "mine")        # for a page; adapts to its light or dark colours
"""

import io
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from s2robot.core.files import replacing

BLUE, VERMILLION, ORANGE, PURPLE, GREEN = "#0072b2", "#d55e00", "#e69f00", "#cc79a7", "#009e73"
_VARIABLES = {"blue": BLUE, "vermillion": VERMILLION, "orange": ORANGE, "purple": PURPLE, "green": GREEN}
INK = "#010203"  # almost black; figure_svg replaces it with the page's text colour
GRID: dict[str, Any] = {"alpha": 0.12, "color": INK, "lw": 0.8}

_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so every machine draws the same image
    "font.size": 10,
    **{"axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"legend.frameon": False, "text.parse_math": False},  # labels are text, not formulas
    "svg.fonttype": "path",  # text as outlines, so the layout does not depend on installed fonts
    **dict.fromkeys(_INKED, INK),
}
styled = matplotlib.rc_context(_STYLE)  # a decorator; the caller's settings do not change


def figure_svg(figure: Figure, name: str) -> str:
    """Return the figure as a reproducible <svg> element in the page's colours; `name` makes its element ids unique."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for size in ("width", "height"):
        svg = re.sub(rf'<svg ([^>]*?){size}="[^"]*"', r"<svg \1", svg, count=1)
    return page_colours(svg)


def page_colours(html: str) -> str:
    """Replace our colours with the page's CSS variables, which are lighter in dark mode."""
    html = html.replace(INK, "currentColor")
    for variable, colour in _VARIABLES.items():
        html = html.replace(colour, f"var(--{variable}, {colour})")
    return html


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as an image (format by suffix, 150 dpi, white background), atomically."""
    with replacing(path) as part, matplotlib.rc_context(_STYLE):
        figure.savefig(part, dpi=150, facecolor="white")

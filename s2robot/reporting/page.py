"""Write report.html from a template: one self-contained file, with styles for light, dark and print.

    write_report_page(run / "report.html", "16 of 16", [("headline", "16 of 16")], [Section("Time", [("bars", ...)])])

The templates and their stylesheet are in `templates/`. All text is escaped, except the SVG of our own plots
(`style.figure_svg`), stylesheets and scripts.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from s2robot.core.errors import UserError
from s2robot.core.files import write_text
from s2robot.reporting.style import figure_svg

TEMPLATES = Path(__file__).parent / "templates"
VIDEO_BYTES = 15_000_000  # limit of base64 in a page, so that it opens quickly and can be sent by email
Block = tuple[Any, ...]  # a macro in macros.html.j2 and its arguments


class Section(NamedTuple):
    """A section of a report. Empty blocks are dropped, and so are sections without blocks."""

    title: str
    blocks: Sequence[Block | None]
    look: str = ""  # CSS class in style.css


def write_report_page(path: Path, title: str, head: Sequence[Block], sections: Sequence[Section]) -> Path:
    filled = [s._replace(blocks=blocks) for s in sections if (blocks := [b for b in s.blocks if b])]
    return write_page(path, "report.html.j2", title=title, head=head, sections=filled)


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a template from `templates/` and write the page atomically."""
    write_text(path, _environment().get_template(template).render(values))
    return path


@cache
def _environment() -> Environment:
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, **options)
    environment.filters |= {"duration": duration, "text": as_text, "described": _described}
    environment.globals |= {"style": _unescaped("style.css"), "unescaped": _unescaped}
    return environment


def _unescaped(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8").strip())


def figure(plot: Figure, name: str, about: str, title: str = "") -> Block:
    """Return a plot as a block of a report; `about`: description for screen readers."""
    return "figure", figure_svg(plot, name), title, about


def _described(svg: str, about: str) -> Markup:
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(about)}" ', 1))


def videos(run_dir: Path, films: Iterable[tuple[str, str, str]]) -> tuple[Block | None, list[str]]:
    """Return the films (name, path, caption) as a block of up to about `VIDEO_BYTES` of text, and the names of those included.
    UserError for a path outside the run directory."""
    shown, omitted, used = [], [], 0
    for name, path, caption in films:
        file = run_dir / path
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise UserError(f"{run_dir}: {name}: expected a path inside the run directory, got {path!r}")
        if not file.is_file():
            omitted.append((path, "the file is missing"))
        elif used + file.stat().st_size * 4 / 3 > VIDEO_BYTES:
            omitted.append((path, "too large for this page"))
        else:
            content = base64.b64encode(file.read_bytes()).decode("ascii")
            used += len(content)
            shown.append((name, f"data:video/mp4;base64,{content}", caption))
    return ("videos", shown, omitted) if shown or omitted else None, [name for name, *_ in shown]


def duration(seconds: float) -> str:
    """3.24 -> "3.2 s", 200 -> "3 min 20 s", 7300 -> "2 h 1 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, remainder = divmod(round(seconds), 60)
    return f"{minutes} min {remainder} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def as_text(value: Any) -> str:
    """Return a setting as readable text: lists with commas, true as yes, null as none."""
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    """Flatten nested settings: the value {"a": {"b": 1}} with the name "x" -> [("x.a.b", 1)]."""
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in flatten(f"{name}.{key}", inner)]
    return [(name, value)]

"""The frame, the style sheet and the common parts of a report.html: light, dark and print, nothing from elsewhere.

write_page(run / "report.html", "16 of 16 cubes picked", [section, other_section])
"""

import base64
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from s2robot.common.errors import UserError

VIDEO_BYTES = 15_000_000  # of base64 in a page: opens at once and can be sent by mail

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
@page { margin: 14mm; }
:root { color-scheme: light dark;
  --ink: #1b1e23; --soft: #5a626d; --paper: #fff; --line: #d9dde3; --fill: #f4f6f8;
  --blue: #0072b2; --vermillion: #d55e00; --orange: #e69f00; --purple: #cc79a7;
  --green: #009e73; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e8eb; --soft: #a3abb6; --paper: #15181c; --line: #343a42; --fill: #1e2227;
  --blue: #56b4e9; --vermillion: #f0803c; --green: #2dbd94; } }
@media print { :root { color-scheme: light;
  --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --fill: #fff;
  --blue: #0072b2; --vermillion: #d55e00; --green: #009e73; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.6rem; line-height: 1.3; margin: 0 0 18px; }
h1 span { display: inline-block; }
h2 { font-size: 1.1rem; margin: 0 0 8px; }
h3 { font-size: 1rem; margin: 16px 0 4px; }
section { margin-top: 36px; }
p { margin: 6px 0; max-width: 75ch; }
small, .facts, figcaption, .ends { color: var(--soft); }
.facts { max-width: none; }
.facts b { color: var(--ink); font-weight: 600; }
.scale { position: relative; height: 14px; border-radius: 7px; background: var(--line); }
.scale i { position: absolute; top: 0; height: 14px; }
.range { background: var(--blue); opacity: .45; border-radius: 7px; min-width: 2px; }
.scale .point { width: 4px; margin-left: -2px; top: -4px; height: 22px; background: var(--ink);
  border-radius: 2px; }
.ends { display: flex; justify-content: space-between; gap: 12px; font-size: .85rem; margin: 6px 0 14px; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; max-width: 640px; }
.pictures { display: grid; grid-template-columns: 1.15fr 1fr; gap: 28px 32px; align-items: start; }
.stack { display: grid; gap: 28px; }
.wide svg { max-width: none; }
.data { margin: 6px 0 14px; }
.data th.n { white-space: normal; }
.data th { vertical-align: bottom; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.settings td { overflow-wrap: anywhere; }
.stage, .ends span:nth-child(odd) { white-space: nowrap; }
.scroll { overflow-x: auto; }
.settings th { font-weight: 500; color: var(--soft); white-space: nowrap; }
.bars td:first-child { width: 9em; }
.bars .n { width: 6em; }
.bar { width: 340px; min-width: 120px; vertical-align: middle; }
.bar i { display: block; height: 10px; border-radius: 3px; background: var(--blue); min-width: 1px; }
pre { background: var(--fill); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 18px; }
.film video { width: 100%; border-radius: 6px; display: block; background: #000; }
.pairs .films { grid-template-columns: 1fr; }
.film:target { outline: 3px solid var(--blue); outline-offset: 4px; border-radius: 4px; }
figcaption { font-size: .88rem; margin-top: 4px; }
ul { margin: 4px 0; padding-left: 1.4em; font-size: .92rem; }
a { color: var(--blue); }
@media (max-width: 760px) { .pictures { grid-template-columns: 1fr; } h1 { font-size: 1.3rem; } }
@media print { main { max-width: none; padding: 0; } body { font-size: 10.5pt; }
  figure, tr, pre { break-inside: avoid; } h2, h3, p { break-after: avoid; }
  .pictures { grid-template-columns: 1fr; } svg { max-width: 13.5cm; }
  .wide svg { max-width: none; } .data .n { white-space: normal; }
  table { font-size: 9pt; } .scroll { overflow: visible; } th, td { padding-right: 9px; }
  .films { grid-template-columns: 1fr 1fr; } }
"""


def write_page(path: Path, title: str, sections: Iterable[str]) -> Path:
    """Write the sections (HTML; empty ones left out) as one page, whole or not at all; UserError if it cannot be."""
    body = "\n".join(section for section in sections if section)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.html")
    try:
        temporary.write_text(PAGE.format(title=escape(title), style=STYLE, body=body), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def figure(svg: str, title: str, about: str) -> str:
    """An SVG as a figure with a heading (may be empty) and a description for those who cannot see it."""
    head = f"<h2>{escape(title)}</h2>" if title else ""
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(about)}" ', 1)
    return f"<figure>{head}{svg}</figure>"


@dataclass(frozen=True)
class Film:
    """A video that a page should show: its id in the page, its path in the run folder, its caption as text."""

    name: str
    path: str
    caption: str


def films_html(run_dir: Path, films: Iterable[Film], limit: int, where: str) -> tuple[str, set[str]]:
    """Players of the films with their videos inside, and the names of those that are shown.

    Takes them in order up to about `limit` bytes of text; those left out are named with the reason. The PNG
    beside a video is its poster. Raises UserError that starts with `where` and the film's name for a path that
    leads out of the run folder.
    """
    tiles: list[str] = []
    omitted: list[str] = []
    shown: set[str] = set()
    used = 0
    for film in films:
        name = PurePosixPath(film.path)
        if name.is_absolute() or ".." in name.parts:
            raise UserError(
                f"{where}: {film.name.replace('-', ' ', 1)}: {film.path!r} lies outside the run folder, "
                "expected a path relative to it"
            )
        path, why = run_dir / name, ""
        if not path.is_file():
            why = "the file is not there"
        elif used + path.stat().st_size * 4 / 3 > limit:
            why = "too large for this page"
        if why:
            link = escape(str(name))
            omitted.append(f'<li><a href="{link}">{link}</a>: {why}</li>')
            continue
        source, poster = _data_uri("video/mp4", path.read_bytes()), _still(path.with_suffix(".png"))
        used += len(source) + len(poster)
        shown.add(film.name)
        tiles.append(
            f'<figure class="film" id="{escape(film.name)}">'
            '<video controls loop muted playsinline preload="metadata" '
            f'aria-label="{escape(film.caption)}"{f" poster={poster!r}" if poster else ""} '
            f'src="{source}"></video><figcaption>{escape(film.caption)}</figcaption></figure>'
        )
    note = ""
    if omitted:
        noun = "video is" if len(omitted) == 1 else "videos are"
        note = f"<p>{len(omitted)} {noun} not in this page:</p><ul>{''.join(omitted)}</ul>"
    return (f'<div class="films">{"".join(tiles)}</div>{note}' if tiles or omitted else ""), shown


def _still(path: Path) -> str:
    """The still picture as JPEG, a tenth of the PNG; empty if there is none (the first frame shows)."""
    try:
        with Image.open(path) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=82)
    except OSError:
        return ""
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def duration(seconds: float) -> str:
    """3.24 -> "3.2 s", 200 -> "3 min 20 s", 7300 -> "2 h 2 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(as_text(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


def flatten(name: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [row for key, inner in value.items() for row in flatten(f"{name}.{key}", inner)]
    return [(name, value)]

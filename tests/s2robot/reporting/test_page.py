"""The base of all pages: all text is escaped, and the stylesheet is embedded."""

import pytest
from jinja2 import UndefinedError

from s2robot.reporting.page import TEMPLATES, Section, videos, write_report_page
from tests.errors import refuses
from tests.s2robot.html_page import Page

EVIL = "<script>alert('1')</script>"


def test_every_template_extends_the_base_template():
    """No template disables escaping with `|safe`; only page.py inserts our SVG, stylesheets and scripts unescaped."""
    pages = {path.name: path.read_text(encoding="utf-8") for path in TEMPLATES.glob("*.html.j2")}
    assert {"base.html.j2", "macros.html.j2", "report.html.j2"} <= set(pages)
    for name, text in pages.items():
        assert "safe" not in text and "autoescape" not in text, name
        assert name in ("base.html.j2", "macros.html.j2") or '{% extends "base.html.j2" %}' in text


def test_all_text_is_escaped_and_empty_sections_are_omitted(tmp_path):
    films, shown = videos(tmp_path, [("video-0", EVIL.replace("/", ""), EVIL)])
    assert not shown and films[2][0][1] == "the file is missing"
    blocks = [
        ("facts", [(EVIL, EVIL)]), ("text", EVIL), ("note", EVIL), ("bullets", [EVIL]), ("code", EVIL), ("commands", EVIL, [EVIL]),
        ("table", [EVIL], [[EVIL], [[EVIL, EVIL]]], 1), ("settings", EVIL, [(EVIL, [EVIL])]), ("bars", EVIL, [(EVIL, 1.0)], 1.0, True),
        films, ("scale", 1.0, 2.0, 3.0), None,
    ]  # fmt: skip
    sections = [Section(EVIL, blocks, "wide"), Section("empty", [None])]
    page = Page(write_report_page(tmp_path / "report.html", EVIL, [("headline", EVIL, EVIL)], sections))
    assert "script" not in page.tags and page.text.count(EVIL) == 21 and "empty" not in page.text
    assert "--vermillion: #d55e00" in page.source and "@media print" in page.source
    with pytest.raises(UndefinedError):  # a macro that does not exist
        write_report_page(tmp_path / "other.html", EVIL, [("poem", EVIL)], [])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    for path in ("/etc/passwd", "../other/videos/a.mp4"):
        refuses("film: expected a path inside", videos, tmp_path, [("film", path, "")])

"""A minimal parser of HTML reports."""

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """The text, tables, tags, ids and addresses of a page; elements must close in order."""

    VOID = {"meta", "br", "img", "link", "hr", "path", "use"}

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags = list[str](), list[str](), list[str](), list[str]()
        self.rows, self.text = list[list[str]](), ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        self.addresses += [value for key, value in attrs if key in ("src", "href", "poster", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, start: str) -> list[str]:
        """Return the first table row whose first cell is `start`."""
        return next(row for row in self.rows if row[0].strip() == start)

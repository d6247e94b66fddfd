"""Progress of the long steps: a bar on a terminal, now and then a line in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Update = Callable[..., None]  # done, total, note
_shown = False  # whether one is on the screen, which has room for one
_LINE_SECONDS = 10.0  # least time between two lines in a log file


@contextmanager
def bar(title: str) -> Iterator[Update]:
    """``with bar("encoding") as update: update(3, 10, "note")``; inside another bar it shows nothing."""
    global _shown
    if _shown:
        yield lambda *_: None
        return
    console = Console()
    columns = (
        TextColumn(f"{title:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    start = printed = time.monotonic()
    begun: tuple[int, float] | None = None  # done, and when, at the first update: a resumed step starts late
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            nonlocal printed, begun
            progress.update(task, completed=done, total=total, note=note)
            now = time.monotonic()
            begun = begun or (done, now)
            if not console.is_terminal and (done == total or now - printed > _LINE_SECONDS):
                printed = now
                rate = (now - begun[1]) / max(1, done - begun[0])  # s
                left = f", {rate * (total - done):.0f} s left" if rate and done < total else ""
                print(f"{title:<22} {done}/{total}  {now - start:.0f} s{left}  {note}", flush=True)

        _shown = True
        try:
            yield update
        finally:
            _shown = False

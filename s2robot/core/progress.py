"""Show the progress of long steps: a bar on a terminal, occasional lines in a log file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

Update = Callable[..., None]  # done, total, and a note instead of the bar's
_shown = False  # whether a bar is on the screen; only one is shown at a time
_LINE_SECONDS = 10.0  # minimum time between two lines in a log file


@contextmanager
def bar(title: str, note: str = "") -> Iterator[Update]:
    """Show a bar: ``with bar("encoding", note="steps") as update: update(3, 10)``. A nested bar shows nothing."""
    global _shown
    if _shown:
        yield lambda *_: None
        return
    console, start = Console(), time.monotonic()
    printed = start
    times = TimeElapsedColumn(), "left", TimeRemainingColumn()
    columns = f"{title:<22}", BarColumn(), MofNCompleteColumn(), *times, "{task.fields[note]}"
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, note="")

        def update(done: int, total: int, note: str = note) -> None:
            nonlocal printed
            progress.update(task, completed=done, total=total, note=note)
            now = time.monotonic()
            if not console.is_terminal and (done == total or now - printed > _LINE_SECONDS):
                printed, left = now, progress.tasks[0].time_remaining
                left_s = f", {left:.0f} s left" if left else ""
                print(f"{title:<22} {done}/{total}  {now - start:.0f} s{left_s}  {note}", flush=True)

        _shown = True
        try:
            yield update
        finally:
            _shown = False

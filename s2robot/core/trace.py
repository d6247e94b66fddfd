"""Time spans of all processes of a run, as one trace for https://ui.perfetto.dev.

    with tracing(Path("runs/mine/trace.json")):       # workers that start inside take part
        with span("encode", episode=3): ...

Without :func:`tracing` a span does nothing. The file is an array of Chrome's trace format, whose last bracket may be
missing: each process appends its spans, one a line.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FILE = "S2ROBOT_TRACE"


@contextmanager
def span(name: str, **about: Any) -> Iterator[None]:
    """Measure the time spent inside; ``about`` (JSON types) is shown beside it."""
    if not (file := os.environ.get(_FILE)):
        yield
        return
    start = time.time_ns()  # all processes of a machine read the same clock
    try:
        yield
    finally:
        row = {
            "name": name,
            "ph": "X",  # a complete span
            "ts": start / 1e3,  # µs
            "dur": (time.time_ns() - start) / 1e3,
            "pid": os.getpid(),
            "tid": threading.get_native_id(),
            "args": about,
        }
        with open(file, "a") as trace:  # one short write: lines of processes do not mix
            trace.write(f"{json.dumps(row)},\n")


@contextmanager
def tracing(file: Path) -> Iterator[None]:
    """Write the spans of this process, and of those that it starts inside, to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[\n")
    os.environ[_FILE] = str(file.resolve())
    try:
        yield
    finally:
        del os.environ[_FILE]

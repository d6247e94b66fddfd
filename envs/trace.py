"""Spans of time from all processes of a run, as one trace that https://ui.perfetto.dev opens.

    with tracing(Path("runs/mine/trace.json")):       # workers that start in here take part
        with span("encode", episode=3): ...

Nobody pays for it who does not ask: without :func:`tracing` a span does nothing.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FOLDER = "S2ROBOT_TRACE"  # where each process puts down its spans, a line each


@contextmanager
def span(name: str, **about: Any) -> Iterator[None]:
    """What happens in here took this long; ``about``: JSON types, shown beside it."""
    if not (folder := os.environ.get(_FOLDER)):
        yield
        return
    start = time.time_ns()  # all processes of a machine read the same clock
    try:
        yield
    finally:
        row = {
            "name": name,
            "ph": "X",  # a span that is whole
            "ts": start / 1e3,  # µs
            "dur": (time.time_ns() - start) / 1e3,
            "pid": os.getpid(),
            "tid": threading.get_native_id(),
            "args": about,
        }
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def tracing(file: Path) -> Iterator[None]:
    """Gather the spans of this process, and of those that it starts in here, into a file in Chrome's trace format."""
    folder = file.with_name(f".{file.name}.parts")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    os.environ[_FOLDER] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ[_FOLDER]
        ready = file.with_name(f".{file.name}.partial")
        ready.write_text(json.dumps({"traceEvents": _gathered(folder), "displayTimeUnit": "ms"}))
        ready.replace(file)
        shutil.rmtree(folder)


def _gathered(folder: Path) -> list[dict[str, Any]]:
    """All spans by their beginnings, counted from the first, and the names of the processes."""
    rows: list[dict[str, Any]] = []
    for part in sorted(folder.glob("*.jsonl")):
        for line in part.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # the last line of a process that was killed
                continue
    rows.sort(key=lambda row: (row["ts"], -row["dur"]))
    first = rows[0]["ts"] if rows else 0.0
    for row in rows:
        row["ts"] = round(row["ts"] - first, 3)
        row["dur"] = round(row["dur"], 3)
    return [
        {
            "name": "process_name",
            "ph": "M",
            "pid": pid,
            "tid": 0,
            "args": {"name": "main" if pid == os.getpid() else f"worker {pid}"},
        }
        for pid in sorted({row["pid"] for row in rows})
    ] + rows

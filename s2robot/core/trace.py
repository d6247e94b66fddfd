"""Time spans of all processes of a run, as one trace for https://ui.perfetto.dev.

    with tracing(Path("runs/mine/trace.json")):       # workers that start inside take part
        with span("encode", episode=3): ...

Without :func:`tracing` a span does nothing.
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

_FOLDER = "S2ROBOT_TRACE"  # folder where each process writes its spans, one a line


@contextmanager
def span(name: str, **about: Any) -> Iterator[None]:
    """Measure the time spent inside; ``about`` (JSON types) is shown beside it."""
    if not (folder := os.environ.get(_FOLDER)):
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
        with (Path(folder) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


@contextmanager
def tracing(file: Path) -> Iterator[None]:
    """Write the spans of this process, and of those that it starts inside, to a file in Chrome's trace format."""
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
    """Return all spans in the order of their starts, relative to the first, and the names of the processes."""
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

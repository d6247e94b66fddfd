"""Measure a run's time: a table of its steps, and a trace of all its processes for https://ui.perfetto.dev.

timed = Stages(out / "stages.json")
with timed("encode"): ...
timed.table()                     # from the start of the process until now

with tracing(Path("runs/mine/trace.json")):       # includes workers started inside; outside, a span does nothing
    with span("encode", episode=3): ...
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from s2robot.core.files import write_json
from s2robot.core.run_folder import is_first

_FILE = "S2ROBOT_TRACE"
_TICKS = os.sysconf("SC_CLK_TCK")  # per second


@contextmanager
def span(name: str, **about: Any) -> Iterator[None]:
    """Measure the time spent in this context; ``about`` (JSON types) is stored with it."""
    if not (file := os.environ.get(_FILE)):
        yield
        return
    start = time.time_ns()  # this clock is the same for all processes of a machine
    try:
        yield
    finally:
        row = {"name": name, "ph": "X", "pid": os.getpid(), "tid": threading.get_native_id(), "args": about}
        row |= {"ts": start / 1e3, "dur": (time.time_ns() - start) / 1e3}  # µs; X: a complete span
        with open(file, "a") as trace:  # one short write, so lines of different processes do not mix
            trace.write(f"{json.dumps(row)},\n")


@contextmanager
def tracing(file: Path) -> Iterator[None]:
    """Write the spans of this process, and of processes started in this context, to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[\n")  # Chrome's format without the closing bracket: processes append lines
    os.environ[_FILE] = str(file.resolve())
    try:
        yield
    finally:
        del os.environ[_FILE]


def processor_s() -> float:
    """Return the CPU seconds of this process and of all its descendants, running or ended."""
    found = sum(os.times()[:4])
    with suppress(OSError):  # a system without /proc
        for task in Path("/proc/self/task").iterdir():
            for pid in (task / "children").read_text().split():
                with suppress(OSError):  # the process has ended
                    # its time and that of its ended children, because workers end before the fork server
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    found += sum(map(int, fields[11:15])) / _TICKS
    return found


def cores() -> int:
    """Return the number of cores that this process may use; under Slurm or taskset, fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def age_s() -> float:
    """Return the seconds since this process started."""
    start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # in ticks since boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start / _TICKS


class Stages:
    """Times of a run's steps, stored in a file: wall seconds, CPU seconds of all processes, and unused CPU seconds."""

    def __init__(self, file: Path):
        self.file, self._cores = file, cores()
        self.rows = [self._row("start", age_s(), processor_s())]  # imports

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, used = age_s(), processor_s()
        with span(name, step=True):
            yield
        self.rows.append(self._row(name, age_s() - wall, processor_s() - used))
        if is_first():
            write_json(self.file, self.rows)

    def table(self) -> str:
        """Return a table that adds up to the age of the process; `other` is the time outside all steps."""
        total = self._row("total", age_s(), processor_s())
        covered = {key: sum(row[key] for row in self.rows) for key in ("seconds", "processor_s")}
        other = self._row("other", *(total[key] - covered[key] for key in covered))
        lines = [f"{'':<12}{'wall':>9}{'CPU':>12}{f'unused of {self._cores} cores':>20}"]
        for row in [*self.rows, other, total]:
            figures = f"{row['seconds']:>7.1f} s{row['processor_s']:>10.1f} s{row['unused_s']:>18.1f} s"
            lines.append(f"{row['stage']:<12}{figures}")
        return "\n".join(lines)

    def _row(self, name: str, seconds: float, processor: float) -> dict[str, Any]:
        unused = max(0.0, seconds * self._cores - processor)
        figures = {"seconds": seconds, "processor_s": processor, "unused_s": unused}
        return {"stage": name} | {key: round(x, 1) for key, x in figures.items()}

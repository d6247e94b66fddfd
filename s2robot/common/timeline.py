"""Where a run's time went: wall and processor seconds of each step, and the rest, so that it adds up.

timed = Stages(out / "stages.json")
with timed("encode"): ...
timed.told()                      # the lines of a table from the start of the process until now
"""

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from s2robot.common.files import write_json
from s2robot.common.run_folder import is_first
from s2robot.core.trace import span


def processor_s() -> float:
    """Processor seconds of this process, of those that it started and that have ended, and of theirs likewise."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + sum(map(_of_living, _children()))


def _children() -> list[str]:
    """The processes that this one has started; none where the system does not tell."""
    with suppress(OSError):
        return [
            pid
            for task in Path("/proc/self/task").iterdir()
            for pid in (task / "children").read_text().split()
        ]
    return []


def _of_living(pid: str) -> float:
    """Processor seconds of a process and of those that it started and that have ended: workers end long before the one
    that they are copies of (`s2robot.core.processes`)."""
    with suppress(OSError):  # it has ended by now
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return 0.0


def age_s() -> float:
    """Seconds since this process began; where the system does not tell, its processor seconds."""
    try:
        begun = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # in ticks since boot
        return time.clock_gettime(time.CLOCK_BOOTTIME) - begun / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.process_time()


class Stages:
    """What each step of a run takes, in a file that the first process writes.

    A row: ``stage``, ``seconds`` (wall), ``processor_s`` (of all processes that ended with the step), ``unused_s`` (of all
    cores, what this run left idle: wall times cores less processor seconds).
    """

    def __init__(self, file: Path):
        self.file, self.rows = file, list[dict[str, Any]]()
        self._cores = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self._row("start", *self._now())  # imports, before anything could be timed

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, used = self._now()
        with span(name, step=True):
            yield
        now = self._now()
        self._row(name, now[0] - wall, now[1] - used)
        if is_first():
            write_json(self.file, self.rows)

    def told(self) -> str:
        """A table that adds up to the seconds since the process began; what no step covers is the last row."""
        wall, used = self._now()
        rest = (wall - sum(r["seconds"] for r in self.rows), used - sum(r["processor_s"] for r in self.rows))
        rows = [(r["stage"], r["seconds"], r["processor_s"]) for r in self.rows] + [("rest", *rest)]
        lines = [f"{'':<12}{'wall':>9}{'processor':>12}{f'unused of {self._cores} cores':>20}"]
        for name, seconds, processor in [*rows, ("together", wall, used)]:
            unused = max(0.0, seconds * self._cores - processor)
            lines.append(f"{name:<12}{seconds:>7.1f} s{processor:>10.1f} s{unused:>18.1f} s")
        return "\n".join(lines)

    def _now(self) -> tuple[float, float]:
        return age_s(), processor_s()

    def _row(self, name: str, seconds: float, processor: float) -> None:
        unused = max(0.0, seconds * self._cores - processor)
        figures = {"seconds": seconds, "processor_s": processor, "unused_s": unused}
        self.rows.append({"stage": name} | {key: round(x, 1) for key, x in figures.items()})

"""Run commands in parallel, one process each, and skip those that are done.

    encode = Job("base: encode", "encode", ["s2=single"], folder / "encode")
    run_jobs([Job("base: train", "train", ["s2=single"], folder / "train", needs=[encode])], parallel=2, threads=1)

Each job is an ordinary `s2robot <verb> ...`. `<stamp>.json` stores its command, `<stamp>.log` its output, and `<stamp>.done`
exists once it is done. A job ends when this process ends, because its standard input is a pipe that this process holds open.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig

from s2robot.core.errors import UserError
from s2robot.core.files import claim
from s2robot.core.run_folder import held
from s2robot.core.workers import engine_in_use

REMEDY = "choose another folder with hydra.run.dir=<folder>"
_THREADS: dict[str, tuple[str, ...]] = {  # keys that get a job's share of the cores
    "encode": ("features.threads", "features.workers"),
    "train": ("train.threads",),
    "evaluate": ("evaluate.workers",),
}


class Job(NamedTuple):
    """One command of `s2robot`."""

    name: str  # for display, and unique: jobs of a comparison with equal names are the same job
    verb: str
    overrides: Sequence[str]
    stamp: Path  # common path of its files, without their suffixes
    needs: Sequence["Job"] = ()  # jobs to finish first; they are run too
    root: Path | None = None  # folder of all jobs, which may be moved between two runs
    lines: tuple[Path, int] | None = None  # file and line count when done; a shorter evaluation may follow

    @property
    def command(self) -> str:
        return shlex.join(["s2robot", self.verb, *_own_configs(), *self.overrides])

    def file(self, suffix: str) -> Path:
        return self.stamp.with_name(f"{self.stamp.name}.{suffix}")

    def claim(self) -> None:
        """Store the command, without threads, engine and root; UserError if the stamp belongs to another command."""
        inside = rf"=('?){re.escape(str(self.root))}(|/.*)\1$"
        portable = self._replace(overrides=[re.sub(inside, r"=<run>\2", word) for word in self.overrides])
        claim(self.file("json"), {"command": portable.command}, REMEDY)

    def is_done(self) -> bool:
        """Return whether the job is done; UserError if the stamp belongs to another job."""
        if self.file("json").exists():
            self.claim()
        if not self.file("done").exists() or self.lines is None:
            return self.file("done").exists()
        file, count = self.lines
        return file.exists() and file.read_bytes().count(b"\n") >= count


def with_needs(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs and their dependencies, each once and after its own dependencies."""
    found: dict[str, Job] = {}
    for job in jobs:
        found |= {other.name: other for other in with_needs(job.needs) if other.name not in found}
        found.setdefault(job.name, job)
    return list(found.values())


def run_jobs(jobs: Iterable[Job], parallel: int, threads: int) -> None:
    """Run the unfinished jobs, at most ``parallel`` at once and each after its dependencies. UserError if a job failed (the
    others are terminated and can be resumed), or if a folder holds a job with other settings."""
    every = with_needs(jobs)
    done = {job.name for job in every if job.is_done()}
    waiting = [job for job in every if job.name not in done]
    running: dict[subprocess.Popen, tuple[Job, float]] = {}
    total = len(waiting)
    try:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(need.name for need in job.needs)]
            for job in ready[: parallel - len(running)]:
                waiting.remove(job)
                running[_start(job, threads)] = job, time.monotonic()
            for process in [p for p in running if p.poll() is not None]:
                job, start = running.pop(process)
                if process.stdin is not None:
                    process.stdin.close()
                if process.returncode:
                    raise UserError(f"{job.name}: {_reason(job, process.returncode)}; see {job.file('log')}")
                job.file("done").touch()
                done.add(job.name)
                seconds = time.monotonic() - start
                print(f"{total - len(waiting) - len(running)}/{total}  {job.name}: {seconds:.0f} s")
            time.sleep(0.05)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _start(job: Job, threads: int) -> subprocess.Popen:
    job.claim()
    job.file("done").unlink(missing_ok=True)
    typed = {word.partition("=")[0] for word in job.overrides}
    shares = [f"{key}={threads}" for key in _THREADS.get(job.verb, ()) if key not in typed]
    overrides = [*job.overrides, *shares, *engine_in_use().overrides()]
    with job.file("log").open("a", encoding="utf-8") as log:
        print(f"$ {job.command}", file=log, flush=True)
        return subprocess.Popen(
            [sys.executable, "-m", "s2robot", job.verb, *_own_configs(), *overrides],
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, even if it is killed
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | held() | {"OMP_NUM_THREADS": str(threads), "S2ROBOT_JOB": "1"},
        )


def _own_configs() -> list[str]:
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]


def _reason(job: Job, code: int) -> str:
    """Return the signal that ended a job, else the error in its log, else the last line of the log."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    log, mark = job.file("log").read_text("utf-8", "replace"), f"s2robot {job.verb}: error: "
    lines = log.rpartition("\n$ s2robot")[2].split("\n")  # of the last attempt
    errors = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
    return (errors or [line for line in lines if line.strip()])[-1]

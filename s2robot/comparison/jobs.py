"""Commands side by side, a process each; what is done is not done again.

    run_jobs([Job("base: train", "train", ["s2=single"], folder / "train")], parallel=2, threads=1)

Each job is an ordinary `s2robot <verb> ...` with a log of its own. `<stamp>.json` says what was begun with which
settings, and whether it ended well. Whoever kills this process ends its jobs too: each watches its standard input,
which is a pipe that this process holds open.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.common.run_folder import held


@dataclass(frozen=True)
class Job:
    """One command.

    Args:
        name: for people, and what `needs` of other jobs hold.
        verb, overrides: of `s2robot`; two jobs with the same ones are the same job.
        stamp: `<stamp>.json` and `<stamp>.log` are written.
        needs: names of the jobs that have to be done before.
        threads: keys that get the number of threads; it is no part of the settings.
        inputs: fingerprints of what the job reads; other ones are another job.
        fresh: what an unfinished try left here is removed before the job begins.
    """

    name: str
    verb: str
    overrides: Sequence[str]
    stamp: Path
    needs: Sequence[str] = ()
    threads: Sequence[str] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    fresh: Path | None = None

    @property
    def command(self) -> str:
        """What a user would type."""
        return shlex.join(["s2robot", self.verb, *self.overrides])

    @property
    def log(self) -> Path:
        return self.stamp.with_name(self.stamp.name + ".log")

    @property
    def state_file(self) -> Path:
        return self.stamp.with_name(self.stamp.name + ".json")

    def is_done(self) -> bool:
        """Raises UserError where the same place holds a job of other settings."""
        if not self.state_file.exists():
            return False
        try:
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
        except ValueError:
            return False
        wanted: dict[str, Any] = {"command": self.command, "inputs": dict(self.inputs)}
        for key, value in wanted.items():
            if state.get(key) != value:
                raise UserError(
                    f"{self.state_file}: holds another job: {key} {state.get(key)}, expected {value}; choose "
                    "another folder with hydra.run.dir=<folder>"
                )
        return bool(state.get("done"))

    def note(self, done: bool, seconds: float | None = None) -> None:
        """Write the stamp."""
        state = {"command": self.command, "inputs": dict(self.inputs), "done": done, "seconds": seconds}
        write_json(self.state_file, state)


def run_jobs(
    jobs: Sequence[Job], parallel: int, threads: int, say: Callable[[str], None] = lambda text: print(text)
) -> None:
    """Run what is not done yet, at most ``parallel`` at once, each after those that it needs.

    Raises:
        UserError: a job failed (it is named with its log; the others are ended and can go on later), or a folder
            holds a job of other settings.
    """
    done = {job.name for job in jobs if job.is_done()}
    waiting = [job for job in jobs if job.name not in done]
    for job in waiting:
        if unknown := set(job.needs) - {j.name for j in jobs}:
            raise ValueError(f"{job.name}: needs {unknown}, which is no job")
    running: dict[subprocess.Popen, tuple[Job, float]] = {}
    total = len(waiting)
    try:
        while waiting or running:
            ready = [job for job in waiting if done.issuperset(job.needs)][: max(1, parallel) - len(running)]
            for job in ready:
                waiting.remove(job)
                running[_start(job, threads)] = job, time.monotonic()
            for process in [p for p in running if p.poll() is not None]:
                job, start = running.pop(process)
                if process.stdin is not None:
                    process.stdin.close()
                seconds = round(time.monotonic() - start, 1)
                if process.returncode:
                    raise UserError(
                        f"{job.name} failed: {_reason(job, process.returncode)}; its log is {job.log}"
                    )
                job.note(True, seconds)
                done.add(job.name)
                say(f"{total - len(waiting) - len(running)}/{total}  {job.name}: {seconds:.0f} s")
            time.sleep(0.05)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def _start(job: Job, threads: int) -> subprocess.Popen:
    job.stamp.parent.mkdir(parents=True, exist_ok=True)
    if job.fresh is not None and job.fresh.exists():
        shutil.rmtree(job.fresh)
    job.note(False)
    words = [job.verb, *job.overrides, *(f"{key}={threads}" for key in job.threads)]
    with job.log.open("a", encoding="utf-8") as log:
        print(f"$ {job.command}", file=log, flush=True)
        return subprocess.Popen(
            [sys.executable, "-m", "s2robot.job", *words],
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, however that may be
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | held() | {"OMP_NUM_THREADS": str(threads)},
        )


def _reason(job: Job, code: int) -> str:
    """The signal that ended a job, else the error in its log, else the last line there."""
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    lines = [line.strip() for line in job.log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line]
    mark = f"s2robot {job.verb}: error: "
    errors = [line.removeprefix(mark) for line in lines if line.startswith(mark)]
    return (errors or lines or ["no output"])[-1]

"""Kill a job at each of its writes, let it go on, and see what is left.

    for write, folder in kill_at_every_write(job, tmp_path).items():  # "1 open out/a.part" -> where it went on
        assert files(folder) == files(tmp_path / "whole"), write

A process of its own imports the test file, does the job once to import all that it needs, and forks for each run. The first run
is stopped in each of its writes below `folder` (Python's audit events), and `folder` is copied: what a SIGKILL leaves there, with
half a line more in a file that is opened to be written or appended to. The job then runs to its end on each copy. What C++ code
opens is not seen. Import what `job` needs at the top of the test file, and compute with one thread: a fork has no others.
"""

import contextlib
import gc
import importlib.util
import inspect
import io
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from tests import forks

ROOT = forks.ROOT
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
Job = Callable[[Path], None]


def kill_at_every_write(
    job: Job, folder: Path, every: int = 1, first: int = 0, seconds: float = 600, **environment: str
) -> dict[str, Path]:
    """Run `job`, a function at the top of a file, whole in ``folder/whole``, then killed and again in ``folder/<n>``.

    Args:
        every: kill at each how many-th write only, for jobs with many; from write `first` on.
        seconds: for all of it.
        environment: variables of the process.

    Returns:
        The writes, numbered, and the folder of the run that was killed there.
    """
    file, name = inspect.getsourcefile(job), job.__name__
    command = [sys.executable, __file__, str(file), name, str(folder), str(every), str(first)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    log = folder / "kills.log"
    with log.open("w") as stream:
        status = forks.run(command, env=env, stdout=stream, stderr=stream, timeout=seconds).returncode
    assert not status, log.read_text()[-4000:]
    writes = json.loads((folder / "writes.json").read_text())
    assert writes, "the job writes nothing"
    return {f"{n} {writes[n]}": folder / str(n) for n in range(first, len(writes), every)}


# ---------------------------------------------------------------- in the process of its own


def _watch(folder: Path, chosen: range, log: int) -> None:
    """List the writes below `folder` in the file `log`, with how half a line gets there; stop in the `chosen` ones."""
    count, last, busy = 0, "", False

    def hook(event: str, args: tuple) -> None:
        nonlocal count, last, busy
        if busy or not (event in _CHANGES or (event == "open" and _writes(args))):
            return
        path = args[1] if event in ("os.rename", "os.link", "os.symlink") else args[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        busy = True  # what is done below is none of the job's
        full = os.path.abspath(os.fsdecode(path))
        if full.startswith(f"{folder}{os.sep}"):
            write = f"{event.removeprefix('os.')} {os.path.relpath(full, folder)}"
            if write == last:  # a log file that is opened for every line
                busy = False
                return
            last = write
            torn = _torn(args) if event == "open" else ""
            os.write(log, f"{json.dumps([write, os.path.relpath(full, folder), torn])}\n".encode())
            if count in chosen:
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # of all threads
            count += 1
        busy = False

    sys.addaudithook(hook)


def _writes(args: tuple) -> bool:
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) and not flags & os.O_TMPFILE == os.O_TMPFILE


def _torn(args: tuple) -> str:
    """How half a line gets into a file opened so; nowhere if what is in it is written over in its place."""
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return "ab" if "a" in mode else "" if "r" in mode else "wb"
    return "ab" if flags & os.O_APPEND else "wb" if flags & (os.O_TRUNC | os.O_EXCL) else ""


def _run(job: Job, folder: Path, log: Path | None = None, chosen: range = range(0)) -> int:
    """The job in a fork that is the first of its own group; the exit status. With a `log`, it is watched and copied."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setpgid(0, 0)
            if log:
                _watch(folder, chosen, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
            job(folder)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    while True:
        status = os.waitpid(child, os.WUNTRACED)[1]
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        assert log is not None
        os.killpg(child, signal.SIGSTOP)  # what it has started, too
        _copy(folder, log.read_text().splitlines())
        os.killpg(child, signal.SIGCONT)


def _warm(job: Job, folder: Path) -> None:
    """The job once in this process, whatever it ends with: its forks find imported what it imports on its way."""
    folder.mkdir()
    with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stderr(io.StringIO()):
        job(folder)
    shutil.rmtree(folder)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy most of the memory


def _copy(folder: Path, writes: list[str]) -> None:
    """The folder as a kill in the last of these writes leaves it, beside it under the write's number."""
    _, file, torn = json.loads(writes[-1])
    copy = shutil.copytree(folder, folder.with_name(str(len(writes) - 1)), symlinks=True)
    if torn:
        with contextlib.suppress(OSError), open(copy / file, torn) as stream:
            stream.write(b'{"half a li')


def _main(file: str, name: str, folder: str, every: str, first: str) -> int:
    spec = importlib.util.spec_from_file_location("job_to_kill", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["job_to_kill"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    job, root = getattr(module, name), Path(folder).resolve()
    listed, place = root / "writes.log", root / "run"  # of all runs, which may write down where they are
    _warm(job, root / "warm")
    place.mkdir()
    if _run(job, place, listed, range(int(first), sys.maxsize, int(every))):
        return 1
    place.rename(root / "whole")
    writes = [json.loads(line)[0] for line in listed.read_text().splitlines()] if listed.exists() else []
    for n in range(int(first), len(writes), int(every)):
        print(f"--- killed at {n} {writes[n]}", flush=True)
        (root / str(n)).rename(place)
        if _run(job, place):
            return 1
        place.rename(root / str(n))
    (root / "writes.json").write_text(json.dumps(writes))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))

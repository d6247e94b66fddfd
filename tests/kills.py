"""Kill a job at each of its writes, resume it, and check the results.

    for write, folder in kill_at_every_write(job, tmp_path).items():  # "1 open out/a.part" -> folder of the resumed run
        assert files(folder) == files(tmp_path / "whole"), write

A separate process imports the test file, runs the job once to load all imports, and forks for each run. The first run is
stopped at each of its writes below `folder` (Python's audit events), and `folder` is copied as a SIGKILL would leave it, plus
half a line in a file opened for writing or appending. The job then runs to its end on each copy. Files opened by C++ code
are not detected. Import all that `job` needs at the top of the test file, and use one thread: a fork has only one.
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
    """Run `job`, a module-level function, uninterrupted in ``folder/whole``, then killed and resumed in ``folder/<n>``.

    Args:
        every: kill only at every n-th write, for jobs with many; starting at write `first`.
        seconds: time limit for all runs.
        environment: additional environment variables.

    Returns:
        The numbered writes, each with the folder of the run that was killed there.
    """
    file, name = inspect.getsourcefile(job), job.__name__
    command = [sys.executable, __file__, str(file), name, str(folder), str(every), str(first)]
    log = folder / "kills.log"
    with log.open("w") as stream:
        options = {"stdout": stream, "stderr": stream, "timeout": seconds}
        status = forks.run(command, env=os.environ | environment, **options).returncode
    assert not status, log.read_text()[-4000:]
    writes = json.loads((folder / "writes.json").read_text())
    assert writes, "the job writes nothing"
    return {f"{n} {writes[n]}": folder / str(n) for n in range(first, len(writes), every)}


def _watch(folder: Path, chosen: range, log: int) -> None:
    """Log the writes below `folder`, each with the mode that appends half a line; stop at the `chosen` ones."""
    count, last, busy = 0, "", False

    def hook(event: str, args: tuple) -> None:
        nonlocal count, last, busy
        if busy or not (event in _CHANGES or (event == "open" and _writes(args))):
            return
        path = args[1] if event in ("os.rename", "os.link", "os.symlink") else args[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        busy = True  # the calls below are not the job's
        full = os.path.abspath(os.fsdecode(path))
        if full.startswith(f"{folder}{os.sep}"):
            write = f"{event.removeprefix('os.')} {os.path.relpath(full, folder)}"
            if write == last:  # a log file that is opened for every line
                busy = False
                return
            last = write
            mode = _append_mode(args) if event == "open" else ""
            os.write(log, f"{json.dumps([write, os.path.relpath(full, folder), mode])}\n".encode())
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


def _append_mode(args: tuple) -> str:
    """Return the mode that adds half a line to a file opened with these flags; empty if it is overwritten in place."""
    mode, flags = args[1], args[2]
    if isinstance(mode, str):
        return "ab" if "a" in mode else "" if "r" in mode else "wb"
    return "ab" if flags & os.O_APPEND else "wb" if flags & (os.O_TRUNC | os.O_EXCL) else ""


def _run(job: Job, folder: Path, log: Path | None = None, chosen: range = range(0)) -> int:
    """Run the job in a fork with its own process group and return its exit status; with a `log`, watch and copy it."""
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
        os.killpg(child, signal.SIGSTOP)  # and its child processes
        _copy(folder, log.read_text().splitlines())
        os.killpg(child, signal.SIGCONT)


def _import_all(job: Job, folder: Path) -> None:
    """Run the job once in this process, ignoring errors, so that its forks need no further imports."""
    folder.mkdir()
    with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stderr(io.StringIO()):
        job(folder)
    shutil.rmtree(folder)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy most of the memory


def _copy(folder: Path, writes: list[str]) -> None:
    """Copy the folder in the state that a kill at the last write leaves, to a sibling named by the write's number."""
    _, file, mode = json.loads(writes[-1])
    copy = shutil.copytree(folder, folder.with_name(str(len(writes) - 1)), symlinks=True)
    if mode:
        with contextlib.suppress(OSError), open(copy / file, mode) as stream:
            stream.write(b'{"half a li')


def _main(file: str, name: str, folder: str, every: str, first: str) -> int:
    spec = importlib.util.spec_from_file_location("job_to_kill", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["job_to_kill"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    job, root = getattr(module, name), Path(folder).resolve()
    log, out = root / "writes.log", root / "run"  # the same for all runs, which may store their path
    _import_all(job, root / "warm")
    out.mkdir()
    if _run(job, out, log, range(int(first), sys.maxsize, int(every))):
        return 1
    out.rename(root / "whole")
    writes = [json.loads(line)[0] for line in log.read_text().splitlines()] if log.exists() else []
    for n in range(int(first), len(writes), int(every)):
        print(f"--- killed at {n} {writes[n]}", flush=True)
        (root / str(n)).rename(out)
        if _run(job, out):
            return 1
        out.rename(root / str(n))
    (root / "writes.json").write_text(json.dumps(writes))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))

"""Run commands as forks of one process with all slow imports done, for tests that do not test the start.

Importing torch, timm and others takes five CPU seconds, more than most commands in the tests. `run` and `Popen` behave like
those of `subprocess`, but a Python process is a copy of one that all workers of a session share (`warm.py`), with the
arguments, folder, environment, streams, signals and exit status of a new process. With ALL in its environment, its Python
child processes and its fork server are copies, too. Tests of the imports or the start of a process use `subprocess`.
"""

import json
import multiprocessing.util
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
SESSION = "S2ROBOT_TEST_SESSION"  # PID of the session's process; the copied process stops with it
ALL = "S2ROBOT_TEST_FORKS_ALL"
PATIENCE_S = 120.0


class Popen(subprocess.Popen):
    """`subprocess.Popen` that starts Python as a copy, without `preexec_fn`. With `start_new_session`, a terminal as
    its standard input becomes its controlling terminal."""

    _copy: socket.socket | None = None  # reports its exit status

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more):
        words = [] if isinstance(args, str | bytes | os.PathLike) else list(map(os.fspath, args))
        if words[:1] != [sys.executable] or (words[1][0] == "-" and words[1] not in ("-m", "-c", "-u")):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
        assert preexec_fn is None and not pass_fds, "not supported for a copy"
        pipes, session = more[3:9], more[-2]
        fds = {own: own if fd == -1 else fd for own, fd in enumerate((pipes[0], pipes[3], pipes[5]))}
        env = dict(os.environ if env is None else env)
        self._copy, self.pid = start_copy(words[1:], os.fspath(cwd or os.getcwd()), env, fds, session)
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags):
        if self._copy is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._copy], [], [], 0)[0]:
            return 0, 0
        with self._copy:
            return self.pid, int(line(self._copy) or signal.SIGKILL)

    def _internal_poll(self, *args, **more):
        if self._copy is None:
            return super()._internal_poll(*args, **more)
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            with suppress(OSError):
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            self._waitpid_lock.release()
        return self.returncode


def run(command, *, capture_output: bool = False, timeout: float | None = None, **options):
    """The parts of `subprocess.run` that the tests use."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start_copy(words: list[str], cwd: str, env: dict, fds: dict[int, int], session: bool = False) -> tuple:
    """Start a copy with these arguments of `python` and the file descriptors `fds`, keyed by their numbers in the copy.
    Return the connection that reports its status, and its PID."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    order = {"words": words, "cwd": cwd, "env": env, "fds": list(fds), "session": session, "mask": list(mask)}
    data = json.dumps(order).encode()
    connection = _connection()
    socket.send_fds(connection, [b"%16d" % len(data)], list(fds.values()))
    connection.sendall(data)
    return connection, int(line(connection))


def address() -> str:
    """Return the socket address of the copied process, in Linux's abstract namespace: its first user owns it."""
    return f"\0s2robot-tests-{os.environ.setdefault(SESSION, str(os.getpid()))}"


def _connection() -> socket.socket:
    """Connect to the copied process; the first request of a session starts it."""
    target, end, started = address(), time.monotonic() + PATIENCE_S, False
    while True:
        connection = socket.socket(socket.AF_UNIX)
        with suppress(ConnectionRefusedError):
            connection.settimeout(None)  # the vendor's SDK sets a default for all sockets of a process
            connection.connect(target)
            return connection
        connection.close()
        assert time.monotonic() < end, "the process to copy did not start"
        if not started:
            command = [sys.executable, "-c", "from tests import warm; warm.serve()"]
            _start(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            started = True
        time.sleep(0.02)


def line(connection: socket.socket) -> bytes:
    """Read a line, without its newline; empty if the connection is closed."""
    received = b""
    while (more := connection.recv(1)) not in (b"", b"\n"):
        received += more
    return received


_start, _spawn = subprocess.Popen, multiprocessing.util.spawnv_passfds


def copy_all() -> None:
    """From now on, start Python child processes of this process as copies."""
    subprocess.Popen = Popen  # type: ignore[misc]
    copy_fork_server()


def copy_fork_server() -> None:
    """From now on, start the fork server of this process, and thus its forks, as a copy."""
    multiprocessing.util.spawnv_passfds = _fork_server  # type: ignore[assignment]


def _fork_server(path, args, passfds) -> int:
    """Start it through a child process that exits with its status, because the caller waits for a child. That is no fork of
    this process: Python 3.12 would free what belonged to other threads, and PyAV's objects then wait for these forever."""
    if "multiprocessing.forkserver" not in args[-1]:
        return _spawn(path, args, passfds)
    fds = {fd: fd for fd in (0, 1, 2, *passfds)}
    with start_copy(["-c", args[-1]], os.getcwd(), dict(os.environ), fds)[0] as connection:
        status = f"int(os.read({connection.fileno()}, 16) or {signal.SIGKILL:d})"
        script = f"import os; status = {status}; os._exit(status >> 8 or status & 127)"
        return _spawn(path, [*args[:1], "-ISc", script], [connection.fileno()])

"""Commands as forks of one process that has imported what takes seconds: for tests whose subject is not the start.

torch, timm and the rest take five seconds of a processor, more than most commands here compute. `run` and `Popen` are those of
`subprocess`, but a Python of ours is a copy of a process that all workers of a session share (`warm.py`): with words, folder,
environment, input and output, signals and exit status as if it had been started. With ALL in its environment, the Pythons that it
starts and its fork server are copies, too. What a process imports, and how it starts, is tested with `subprocess`.
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
SESSION = "S2ROBOT_TEST_SESSION"  # the process of the session, with which the one that is copied ends
ALL = "S2ROBOT_TEST_FORKS_ALL"
PATIENCE_S = 120.0


class Popen(subprocess.Popen):
    """`subprocess.Popen`, but that a Python of ours is a copy. Nothing runs before it (`preexec_fn`); in a session of
    its own (`start_new_session`), the terminal that is its input is that of its Ctrl-C."""

    _copy: socket.socket | None = None  # on which its end is told

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more):
        words = [] if isinstance(args, str | bytes | os.PathLike) else list(map(os.fspath, args))
        if words[:1] != [sys.executable] or (words[1][0] == "-" and words[1] not in ("-m", "-c", "-u")):
            return super()._execute_child(args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *more)
        assert preexec_fn is None and not pass_fds, "no copy of a process begins like this"
        pipes, session = more[3:9], more[-2]
        given = {own: own if fd == -1 else fd for own, fd in enumerate((pipes[0], pipes[3], pipes[5]))}
        env = dict(os.environ if env is None else env)
        self._copy, self.pid = ask(words[1:], os.fspath(cwd or os.getcwd()), env, given, session)
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags):
        if self._copy is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._copy], [], [], 0)[0]:
            return 0, 0
        with self._copy:
            return self.pid, int(line(self._copy) or signal.SIGKILL)

    def _internal_poll(self, *given, **more):
        if self._copy is None:
            return super()._internal_poll(*given, **more)
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            with suppress(OSError):
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self._handle_exitstatus(status)
            self._waitpid_lock.release()
        return self.returncode


def run(command, *, capture_output: bool = False, timeout: float | None = None, **how):
    """`subprocess.run`, as far as it is needed here."""
    if capture_output:
        how |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **how) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def ask(words: list[str], cwd: str, env: dict, fds: dict[int, int], session: bool = False) -> tuple:
    """A copy with these words after `python`, and `fds` by the numbers that they have there: the connection on which
    its status is told, and its number."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    order = {"words": words, "cwd": cwd, "env": env, "fds": list(fds), "session": session, "mask": list(mask)}
    data = json.dumps(order).encode()
    connection = _connection()
    socket.send_fds(connection, [b"%16d" % len(data)], list(fds.values()))
    connection.sendall(data)
    return connection, int(line(connection))


def address() -> str:
    """Of the process that is copied: in Linux's abstract space, where the first to take a name has it while it lives."""
    return f"\0s2robot-tests-{os.environ.setdefault(SESSION, str(os.getpid()))}"


def _connection() -> socket.socket:
    """The first who asks in a session starts it."""
    there, end, started = address(), time.monotonic() + PATIENCE_S, False
    while True:
        connection = socket.socket(socket.AF_UNIX)
        with suppress(ConnectionRefusedError):
            connection.settimeout(None)  # the vendor's SDK sets a default for all sockets of a process
            connection.connect(there)
            return connection
        connection.close()
        assert time.monotonic() < end, "the process that is to be copied does not start"
        if not started:
            env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", "from tests import warm; warm.serve()"]
            _start(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            started = True
        time.sleep(0.02)


def line(connection: socket.socket) -> bytes:
    """Without its end; empty if nobody is there any more."""
    said = b""
    while (more := connection.recv(1)) not in (b"", b"\n"):
        said += more
    return said


# ---------------------------------------------------------------- copies that the product starts

_start, _spawn = subprocess.Popen, multiprocessing.util.spawnv_passfds


def copy_all() -> None:
    """From here on, what this process starts are copies."""
    subprocess.Popen = Popen  # type: ignore[misc]
    copy_fork_server()


def copy_fork_server() -> None:
    """From here on, the fork server of this process is a copy, and with it what it forks."""
    multiprocessing.util.spawnv_passfds = _fork_server  # type: ignore[assignment]


def _fork_server(path, args, passfds) -> int:
    """It has to be waited for as a child: a child of ours asks for it, and ends as it does."""
    if "multiprocessing.forkserver" not in args[-1]:
        return _spawn(path, args, passfds)
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        fds = {fd: fd for fd in (0, 1, 2, *passfds)}
        connection, _ = ask(["-c", args[-1]], os.getcwd(), dict(os.environ), fds)
        os.closerange(0, connection.fileno())
        os.closerange(connection.fileno() + 1, 1 << 16)
        status = os.waitstatus_to_exitcode(int(line(connection) or signal.SIGKILL))
    finally:
        os._exit(status & 255)

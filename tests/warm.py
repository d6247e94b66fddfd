"""The process that `forks.py` copies: it has done the slow imports, with one thread and no simulator.

A copy imports the remaining modules itself, including the simulator, which opens an OpenGL display at import.
"""

import atexit
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from s2robot.envs.gl import SIMULATOR
from tests import forks

IMPORTS = (
    "torch._dynamo", "timm", "zarr", "scipy.stats", "hydra.main", "lightning_fabric", "tensorboard", "matplotlib.figure",
    "s2robot.cli", "s2robot.verbs", "s2robot.pipeline", "s2robot.pretraining.pretrain", "s2robot.serving.server",
    "s2robot.deployment.deploy",
)  # fmt: skip


def serve() -> None:
    """Copy this process on each request, until the session ends."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(forks.address())
    except OSError:  # another process was started at the same time
        return
    server.listen(128)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _collect)
    path = sys.path[2:]  # the first two belong to this process
    for name in IMPORTS:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1
    assert not set(SIMULATOR) & set(sys.modules)
    gc.collect()
    gc.freeze()
    session = os.pidfd_open(int(os.environ[forks.SESSION]))
    while session not in select.select([server, session], [], [])[0]:
        connection = server.accept()[0]
        if not os.fork():
            server.close()
            os.close(session)
            _start_and_report(connection, path)
        connection.close()


def _collect(*_: object) -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _start_and_report(connection: socket.socket, path: list[str]) -> NoReturn:
    """Start a copy and report its PID and exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, fds, *_ = socket.recv_fds(connection, 16, 16)
    data = b""
    while len(data) < int(size):
        data += connection.recv(int(size) - len(data))
    child = os.fork()
    if not child:
        connection.close()
        _run_copy(json.loads(data), fds, path)
    for fd in fds:
        os.close(fd)
    with suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % child)
    status = os.waitpid(child, 0)[1]
    with suppress(BrokenPipeError):
        connection.sendall(b"%d\n" % status)
    os._exit(0)


def _run_copy(order: dict, fds: list[int], path: list[str]) -> NoReturn:
    """Run a command line like an interpreter: startup, execution and exit handlers, but no module teardown."""
    status = 1
    try:
        _prepare(order, fds, path)
        _execute(order["words"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            status = -signal.SIGINT
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    if status < 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 255)


def _prepare(order: dict, fds: list[int], path: list[str]) -> None:
    words, env = order["words"], order["env"]
    unbuffered = words.pop(0) if words[0] == "-u" else env.get("PYTHONUNBUFFERED")
    above = max(order["fds"]) + 1  # above all target numbers, so that none collides
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, above) for fd in fds]
    for fd, own in zip(moved, order["fds"], strict=True):
        os.dup2(fd, own)
        os.close(fd)
    for fd in set(fds) - set(order["fds"]):
        os.close(fd)
    if order["session"]:
        os.setsid()
        if os.isatty(0):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, order["mask"])
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=bool(unbuffered))
    if env.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    if env.get(forks.ALL):
        forks.copy_all()
    first = {"-m": os.getcwd(), "-c": ""}.get(words[0], str(Path(words[0]).resolve().parent))
    extra = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:] = [first, *extra, *path]


def _execute(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

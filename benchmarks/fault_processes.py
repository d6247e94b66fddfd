"""Faults of processes, for benchmarks/faults.py: signals to a process group, a terminal that closes, a cut connection."""

import fcntl
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Victim(subprocess.Popen):
    """The control loop (`fault_victim`) in a process group of its own, or with `terminal` on a terminal of its own."""

    def __init__(self, words: list[str], terminal: bool):
        self._terminal, theirs = pty.openpty()
        # a group that leads its session would not be suspended by SIGTSTP
        place: dict[str, Any] = {"process_group": 0}
        if terminal:
            lead = lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)  # noqa: E731
            place = {"start_new_session": True, "preexec_fn": lead}
        super().__init__(
            [sys.executable, "-m", "benchmarks.fault_victim", *words], cwd=ROOT, text=True, stdin=theirs,
            stdout=subprocess.PIPE, stderr=theirs, **place,
        )  # fmt: skip
        os.close(theirs)

    def hit(self, how: str) -> None:
        """`terminal closed`, a signal's name, or `group` and a signal's name."""
        if how == "terminal closed":
            os.close(self._terminal)
            self._terminal = -1
            return
        *group, name = how.split()
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signal.Signals[name])

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.communicate()
        if self._terminal >= 0:
            os.close(self._terminal)


def own_ports() -> list[int]:
    """Return the ports of this process's connections over loopback."""
    found = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family == socket.AF_INET and connection.getpeername()[0] == "127.0.0.1":
                    found.append(connection.getsockname()[1])
    return found

"""Faults of processes, for benchmarks/faults.py: signals to a process group, a terminal that closes, a cut connection.

    python -m benchmarks.fault_processes PORTS STORE PATIENCE    # the control loop, in a process of its own

Prints one line when the arm moves and, if the process survives, how the episode ended.
"""

import fcntl
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import termios
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Victim(subprocess.Popen):
    """The control loop in a process group of its own, or with `terminal` on a terminal of its own."""

    def __init__(self, words: list[str], terminal: bool):
        self._terminal, theirs = pty.openpty()
        # a group that leads its session would not be suspended by SIGTSTP
        place: dict[str, Any] = {"process_group": 0}
        if terminal:
            lead = lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)  # noqa: E731
            place = {"start_new_session": True, "preexec_fn": lead}
        super().__init__(
            [sys.executable, "-m", "benchmarks.fault_processes", *words], cwd=ROOT, text=True, stdin=theirs,
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


def main(ports: str, store: str, patience: str) -> None:
    # here, because the supervisor's process imports this file too
    from benchmarks.fault_bridge import Swing, assemble
    from s2robot.envs.errors import EnvError
    from s2robot.envs.real.arms.geometry import XArm7Points
    from s2robot.envs.real.emulator.side import Ports

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the vendor's SDK talks on stdout

    ripe = cache(lambda: print("moving", file=out))  # once
    with ExitStack() as stack:
        rig = Ports.from_json(ports), Path(store), Swing(), float(patience), XArm7Points(), False
        bridge = assemble(stack, *rig, ripe)
        stop = bridge.runtime.stop
        stack.enter_context(stop.on_signals())
        stop.moving = True
        try:
            result = bridge.runtime.run(10_000)
            state, reasons = result.state.name, result.reasons
        except EnvError as error:  # for one, no supervisor any more
            state, reasons = "STOPPED", (str(error),)
        print(json.dumps({"state": state, "reasons": reasons}), file=out)


if __name__ == "__main__":
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell ignores it for what it starts in the background
    main(*sys.argv[1:])

"""A process that stops the arm when the control loop no longer beats.

    with Supervisor(partial(XArmDriver, "192.168.1.200"), limit_s=0.3) as supervisor:
        loop = ControlLoop(..., beat=supervisor.beat)

It has a connection of its own, opened beforehand. A loop that hangs, or a process that was killed, stops beating;
the pipe tells of the latter at once. If that connection breaks it could not stop anything any more: it ends, and
the loop's next beat fails; the same if it hangs itself, which shows in beats without an answer. From the first beat
on, only `rest` and `close` end the watch without a stop; the next beat begins it again. It is software on the same
machine: no emergency stop.
"""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmDriver

ANSWER_S = 1.0  # s beyond the limit that it may take to answer a word
_READY, _BEAT, _REST, _BYE = b"ready", b"beat", b"rest", b"bye"


class Supervisor:
    """Starts the process and waits until it has reached the arm.

    Args:
        make_driver: makes an unconnected driver in that process; has to be picklable.
        limit_s: s without a beat until the arm is stopped.
        start_s: s that starting may take.

    Raises:
        EnvError: the process cannot reach the arm.
    """

    def __init__(self, make_driver: Callable[[], ArmDriver], limit_s: float = 0.3, start_s: float = 60.0):
        if not 0 < limit_s < 10:
            raise EnvError(f"supervisor: found a limit of {limit_s} s, expected more than 0 and less than 10")
        context = get_context("spawn")  # a fork would share the parent's sockets
        self._pipe, theirs = context.Pipe()
        self._patience = limit_s + ANSWER_S
        self._unanswered: float | None = None  # s, monotonic, the earliest word since the last answer
        self.process = context.Process(
            target=_supervise, args=(make_driver, theirs, limit_s, start_s), daemon=True, name="supervisor"
        )
        self.process.start()
        theirs.close()  # so that the end of this process closes the pipe
        message = b"no answer"
        with suppress(EOFError):
            if self._pipe.poll(start_s):
                message = self._pipe.recv_bytes()
        if message != _READY:
            self.close()
            raise EnvError(
                f"supervisor: found {message.decode()}, expected a process that has reached the arm"
            )

    def beat(self) -> None:
        """Say that the loop lives. Raises EnvError if the supervisor does not, or has stopped the arm."""
        self._say(_BEAT)

    def rest(self) -> None:
        """Say that the arm stands and that no beat follows for now; raises as `beat`."""
        self._say(_REST)

    def _say(self, word: bytes) -> None:
        now = time.monotonic()
        try:
            while self._pipe.poll():
                self._pipe.recv_bytes()
                self._unanswered = None
            if self._unanswered is not None and now - self._unanswered > self._patience:
                raise EnvError(
                    f"supervisor: found no answer for {self._patience:g} s, expected it to watch; no motion "
                    "without it"
                )
            self._pipe.send_bytes(word)
        except (OSError, EOFError):
            raise EnvError("supervisor: found it gone, expected it to watch; no motion without it") from None
        if self._unanswered is None:
            self._unanswered = now

    def close(self) -> None:
        """End the watch; the arm is left as it is. May be repeated."""
        with suppress(OSError):
            self._pipe.send_bytes(_BYE)
        self.process.join(5.0)
        if self.process.is_alive():
            self.process.terminate()
        self._pipe.close()

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _supervise(
    make_driver: Callable[[], ArmDriver], pipe: Connection, limit_s: float, start_s: float
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the loop's to handle
    driver = make_driver()
    try:
        driver.connect(start_s)
    except EnvError as error:
        pipe.send_bytes(str(error).encode())
        return
    try:
        pipe.send_bytes(_READY)
        reason = _watch(pipe, limit_s, lambda: driver.status().connected)
        if reason:
            driver.stop(reason)
    finally:
        driver.close()


def _watch(pipe: Connection, limit_s: float, connected: Callable[[], bool]) -> str:
    """Why to stop; empty if the loop said good-bye, or ended while no beat was due."""
    begun = False
    while True:
        try:
            if not pipe.poll(limit_s if begun else None):
                return f"no heartbeat for {limit_s:g} s"
            word = pipe.recv_bytes()
            if word == _BYE:
                return ""
            if not connected():
                return "the supervisor's connection to the arm broke"
            pipe.send_bytes(word)  # a bare echo: that the watch lives
        except (EOFError, OSError):
            return "the loop's process ended" if begun else ""
        begun = word == _BEAT

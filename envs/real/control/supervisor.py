"""A process that stops the arm when the control loop sends no more heartbeats.

The process has a session and a connection of its own, both opened beforehand: no signal to the loop's process group and
no closing terminal reaches it. It stops the arm when

- no beat comes for `limit_s`; from a beat on, only `rest` and `close` end that watch;
- the loop's process ends without `close`, at once, also while it rests: the arm may still be enabled;
- it is asked to (`stop`), because the arm did not acknowledge the loop's own stop.

It repeats a stop that is not acknowledged. If it hangs or its connection breaks, the loop's next beat fails. It is
software on the same machine: no emergency stop.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmDriver, DriverStatus
from s2robot.envs.real.control.clock import now

ANSWER_S = 1.0  # s beyond the limit that it may take to answer a word
REPEAT_S = 10.0  # s for which an unacknowledged stop is repeated
UNCONFIRMED = "The arm has NOT confirmed a stop and may still be enabled: press the hardware emergency stop."
_READY, _BEAT, _REST, _STOP, _STOPPED, _BYE = b"ready", b"beat", b"rest", b"stop", b"stopped", b"bye"
_PARENT_S = 0.5  # s between two checks that the loop's process lives, while no beat is due
# what a terminal or a service manager sends to everybody: the loop's to handle, or its end is noticed
_IGNORED = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGTSTP", "SIGTTIN", "SIGTTOU")


class Supervisor:
    """Starts the process and waits until it has reached the arm (EnvError). Methods may be called from any thread.

    Args:
        make_driver: makes an unconnected driver in that process, or is `EndsLoop`; picklable.
        limit_s, start_s: s without a beat until the arm is stopped; s that starting may take.
    """

    def __init__(
        self, make_driver: "Callable[[], ArmDriver | EndsLoop]", limit_s: float = 0.3, start_s: float = 60.0
    ):
        context = get_context("spawn")  # a fork would share the parent's sockets
        self._pipe, theirs = context.Pipe()
        self._patience = limit_s + ANSWER_S
        self._unanswered: float | None = None  # s, the earliest word since the last answer
        self._lock = threading.Lock()
        self.process = context.Process(
            target=_supervise, args=(make_driver, theirs, limit_s, start_s), daemon=True, name="supervisor"
        )
        self.process.start()
        theirs.close()  # so that the end of this process closes the pipe
        # at exit multiprocessing sends SIGTERM, which is ignored, and waits: the process ends with the pipe
        atexit.register(self._pipe.close)
        message = b"no answer"
        with suppress(EOFError):
            if self._pipe.poll(start_s):
                message = self._pipe.recv_bytes()
        if message != _READY:
            self.close()
            raise EnvError(f"supervisor: expected one that has reached the arm, got {message.decode()}")

    def beat(self) -> None:
        """Say that the loop lives. Raises EnvError if the supervisor does not, or has stopped the arm."""
        self._say(_BEAT)

    def rest(self) -> None:
        """Say that the arm stands and that no beat follows for now; raises as `beat`."""
        self._say(_REST)

    def stop(self) -> bool:
        """Stop the arm over the supervisor's connection; whether the arm acknowledged that in time. Never raises.

        After False the supervisor goes on trying for `REPEAT_S`, and ends if that is in vain.
        """
        with self._lock, suppress(OSError, EOFError):
            while self._pipe.poll():
                self._pipe.recv_bytes()
            self._pipe.send_bytes(_STOP)
            end = now() + ANSWER_S
            while (left := end - now()) > 0 and self._pipe.poll(left):
                if self._pipe.recv_bytes() == _STOPPED:
                    self._unanswered = None
                    return True
        return False

    def _say(self, word: bytes) -> None:
        with self._lock:
            said = now()
            try:
                while self._pipe.poll():
                    self._pipe.recv_bytes()
                    self._unanswered = None
                gone = self._unanswered is not None and said - self._unanswered > self._patience
                found = f"no answer for {self._patience:g} s"
                if not gone:
                    self._pipe.send_bytes(word)
            except (OSError, EOFError):
                gone, found = True, "it gone"
            if gone:
                raise EnvError(f"supervisor: expected it to watch, got {found}; no motion without it")
            if self._unanswered is None:
                self._unanswered = said

    def close(self, confirmed: bool = True) -> None:
        """End the watch; may be repeated. Unless the arm has `confirmed` a stop, or was never armed, it is stopped first."""
        if confirmed:
            with suppress(OSError):
                self._pipe.send_bytes(_BYE)
        else:
            self._pipe.close()
        self.process.join(REPEAT_S + 1)
        if self.process.is_alive():
            self.process.kill()
        atexit.unregister(self._pipe.close)
        self._pipe.close()

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WatchedArm:
    """A driver whose `stop` falls back to the supervisor's; `confirmed`: whether the last stop was acknowledged."""

    def __init__(self, driver: Any, supervisor: Callable[[], Supervisor | None]):
        self._driver, self._supervisor = driver, supervisor
        self.confirmed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def stop(self, reason: str) -> bool:
        """See `ArmDriver`; says on stderr what to do if nobody can stop the arm."""
        before, confirmed = self.confirmed, bool(self._driver.stop(reason))
        if not confirmed and (supervisor := self._supervisor()) is not None:
            confirmed = supervisor.stop()
        self.confirmed = confirmed
        if before and not confirmed:
            with suppress(OSError):  # the terminal may have gone
                print(UNCONFIRMED, file=sys.stderr, flush=True)
        return confirmed


class EndsLoop:
    """Stands for the driver of an arm that takes one client, in the supervisor: its `stop` kills the loop's process. Such an arm
    brakes by itself when its client is gone. True once the process has ended, which is all that can be known here.
    """

    def __init__(self) -> None:
        self._loop = os.getppid()

    def connect(self, timeout_s: float) -> None:
        """Nothing to connect to."""

    def close(self) -> None:
        """Nothing to close."""

    def status(self) -> DriverStatus:
        return DriverStatus(os.getppid() == self._loop, 0, 0, 0.0)

    def stop(self, reason: str) -> bool:
        end = now() + ANSWER_S
        if os.getppid() == self._loop:
            with suppress(OSError):  # the terminal may have gone
                text = f"{reason}: the program is ended, for the arm to brake. {UNCONFIRMED}"
                print(text, file=sys.stderr, flush=True)
            os.kill(self._loop, signal.SIGKILL)
        while os.getppid() == self._loop and now() < end:
            time.sleep(0.005)
        return os.getppid() != self._loop


def _supervise(
    make_driver: Callable[[], ArmDriver | EndsLoop], pipe: Connection, limit_s: float, start_s: float
) -> None:
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.setsid()
    driver = make_driver()
    try:
        driver.connect(start_s)
    except EnvError as error:
        pipe.send_bytes(str(error).encode())
        return
    try:
        pipe.send_bytes(_READY)
        reason = _watch(pipe, limit_s, driver)
        if reason:
            _stop(driver, reason)
    finally:
        driver.close()


def _stop(driver: ArmDriver | EndsLoop, reason: str) -> bool:
    """Stop until the arm acknowledges it, or cannot any more."""
    end = now() + REPEAT_S
    while not driver.stop(reason):
        if now() > end or not driver.status().connected:
            return False
        time.sleep(0.05)
    return True


def _watch(pipe: Connection, limit_s: float, driver: ArmDriver | EndsLoop) -> str:
    """Why to stop; empty if the loop said good-bye, or the arm cannot be stopped."""
    parent, due, heard = os.getppid(), False, now()
    while True:
        try:
            if not pipe.poll(limit_s if due else _PARENT_S):
                if due:
                    return f"no heartbeat for {limit_s:g} s"
                if os.getppid() != parent:
                    return "the loop's process ended"
                continue
            word = pipe.recv_bytes()
            if word == _BYE:
                return ""
            if due and now() - heard > limit_s + ANSWER_S:
                return f"no heartbeat for {now() - heard:.1f} s"  # the machine slept
            if word == _STOP:
                if not _stop(driver, "the arm has not acknowledged the loop's stop"):
                    return ""
            elif not driver.status().connected:
                return "the supervisor's connection to the arm broke"
            pipe.send_bytes(_STOPPED if word == _STOP else word)  # a bare echo: that the watch lives
        except (EOFError, OSError):
            return "the loop's process ended"
        due, heard = word == _BEAT, now()

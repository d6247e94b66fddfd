"""A process that stops the arm when the control loop sends no more heartbeats.

The process has a separate session and a separate connection, both opened in advance: neither signals to the loop's process
group nor a closing terminal affect it. It stops the arm when

- no beat arrives for `limit_s`; after a beat, only `rest` and `close` suspend this check;
- the loop's process ends without `close`, at once and also after `rest`: the arm may still be enabled;
- the loop requests it (`stop`), because the arm did not acknowledge the loop's own stop.

It repeats a stop that is not acknowledged. If it hangs or its connection breaks, the loop's next beat fails. It is
software on the same machine, not an emergency stop.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmDriver, DriverStatus
from s2robot.envs.real.control.clock import now

START_S = 60.0  # s allowed for starting
ANSWER_S = 1.0  # s beyond the limit that an answer to a message may take
REPEAT_S = 10.0  # s for which an unacknowledged stop is repeated
UNCONFIRMED = "The arm has NOT confirmed a stop and may still be enabled: press the hardware emergency stop."
_READY, _BEAT, _REST, _STOP, _STOPPED, _BYE = b"ready", b"beat", b"rest", b"stop", b"stopped", b"bye"
_PARENT_S = 0.5  # s between two checks that the loop's process is alive, while no beat is due
# signals that a terminal or service manager sends to all processes: the loop handles them, or its end is noticed
_IGNORED = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGTSTP", "SIGTTIN", "SIGTTOU")


class Supervisor(AbstractContextManager["Supervisor"]):
    """Starts the process and waits until it has connected to the arm (else EnvError). All methods are thread-safe.

    Args:
        make_driver: creates an unconnected driver in that process, or is `EndsLoop`; picklable.
        limit_s: s without a beat until the arm is stopped.
    """

    def __init__(self, make_driver: "Callable[[], ArmDriver | EndsLoop]", limit_s: float = 0.3):
        context = get_context("spawn")  # a fork would share the parent's sockets
        self._pipe, child_end = context.Pipe()
        self._patience = limit_s + ANSWER_S
        self._unanswered: float | None = None  # s, time of the first message since the last answer
        self._stopped = ""  # why it has stopped the arm by itself
        self._lock = threading.Lock()
        self.process = context.Process(
            target=_supervise, args=(make_driver, child_end, limit_s), daemon=True, name="supervisor"
        )
        # at exit, multiprocessing sends SIGTERM, which is ignored, and waits: closing the pipe ends the process
        atexit.register(self._pipe.close)
        message = b"no answer"
        # the process inherits blocked signals: a Ctrl-C before it ignores them would end it with a traceback
        resource_tracker.ensure_running()  # its start would unblock them
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _IGNORED])
        try:
            self.process.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            child_end.close()  # so that the pipe closes when this process ends
            with suppress(EOFError):
                if self._pipe.poll(START_S):
                    message = self._pipe.recv_bytes()
        except BaseException:  # Ctrl-C: nothing is armed yet, and the process may hang while it connects
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            if self.process.is_alive():
                self.process.kill()
            raise
        if message != _READY:
            self.close()
            raise EnvError(f"supervisor: expected a connection to the arm, got {message.decode()}")

    def beat(self) -> None:
        """Send a heartbeat. Raises EnvError if the supervisor has ended or hangs, or has stopped the arm."""
        self._send(_BEAT)

    def rest(self) -> None:
        """Announce that the arm is at rest and no beat follows for now. Raises as `beat`."""
        self._send(_REST)

    def stop(self) -> bool:
        """Stop the arm over the supervisor's connection; return whether the arm acknowledged it in time. Never raises.

        After False the supervisor keeps trying for `REPEAT_S`, then ends.
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

    def _send(self, message: bytes) -> None:
        with self._lock:
            sent = now()
            try:
                while self._pipe.poll():
                    if (answer := self._pipe.recv_bytes()) not in (_BEAT, _REST, _STOPPED):
                        self._stopped = f"it stopped the arm ({answer.decode()})"
                    self._unanswered = None
                late = self._unanswered is not None and sent - self._unanswered > self._patience
                lost = self._stopped or (f"no answer for {self._patience:g} s" if late else "")
                if not lost:
                    self._pipe.send_bytes(message)
            except (OSError, EOFError):
                lost = self._stopped or "connection closed"
            if lost:
                raise EnvError(f"supervisor: {lost}; no motion without it")
            if self._unanswered is None:
                self._unanswered = sent

    def close(self, confirmed: bool = True) -> None:
        """End the supervisor; may be called repeatedly. With `confirmed=False`, it stops the arm first."""
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

    def __exit__(self, *_: object) -> None:
        self.close()


class WatchedArm:
    """A driver whose `stop` falls back to the supervisor's; `confirmed`: whether the arm acknowledged the last stop."""

    def __init__(self, driver: Any, supervisor: Callable[[], Supervisor | None]):
        self._driver, self._supervisor = driver, supervisor
        self.confirmed = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def stop(self, reason: str) -> bool:
        """See `ArmDriver`; if no stop is acknowledged, print on stderr what to do."""
        before, confirmed = self.confirmed, _try_to_stop(self._driver, reason)
        if not confirmed and (supervisor := self._supervisor()) is not None:
            confirmed = supervisor.stop()
        self.confirmed = confirmed
        if before and not confirmed:
            _tell(UNCONFIRMED)
        return confirmed


def _tell(text: str) -> None:
    with suppress(OSError):  # the terminal may be closed
        print(text, file=sys.stderr, flush=True)


class EndsLoop:
    """Replaces, in the supervisor, the driver of an arm that accepts one client: its `stop` kills the loop's process, and the
    arm brakes by itself when it loses its client. `stop` returns True once the process has ended, which is all it can check.
    """

    def __init__(self) -> None:
        self._loop = parent_process().pid  # type: ignore[union-attr]  # getppid() may be the next parent already

    def connect(self, timeout_s: float) -> None: ...

    def close(self) -> None: ...

    def status(self) -> DriverStatus:
        return DriverStatus(os.getppid() == self._loop, 0, 0, 0.0)

    def stop(self, reason: str) -> bool:
        end = now() + ANSWER_S
        if os.getppid() == self._loop:
            _tell(f"{reason}: ending the program so that the arm brakes. {UNCONFIRMED}")
            os.kill(self._loop, signal.SIGKILL)
        while os.getppid() == self._loop and now() < end:
            time.sleep(0.005)
        return os.getppid() != self._loop


def _supervise(make_driver: Callable[[], ArmDriver | EndsLoop], pipe: Connection, limit_s: float) -> None:
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    os.setsid()
    driver = make_driver()
    try:
        driver.connect(START_S)
    except EnvError as error:
        with suppress(OSError):  # the loop may be gone
            pipe.send_bytes(str(error).encode())
        return
    try:
        with suppress(OSError):
            pipe.send_bytes(_READY)
        reason = _watch(pipe, limit_s, driver)
        if reason:
            with suppress(OSError):  # the loop may be gone
                pipe.send_bytes(reason.encode())
            if not _stop(driver, reason):  # the loop may be gone, and cannot say so
                _tell(UNCONFIRMED)
    finally:
        driver.close()


def _try_to_stop(driver: ArmDriver | EndsLoop, reason: str) -> bool:
    """Return whether the arm acknowledged a stop. A driver whose `stop` raises has not."""
    with suppress(Exception):
        return driver.stop(reason) is True  # an error code is no acknowledgement
    return False


def _stop(driver: ArmDriver | EndsLoop, reason: str) -> bool:
    """Repeat the stop until the arm acknowledges it; return False if time runs out or the connection is lost."""
    end = now() + REPEAT_S
    while not _try_to_stop(driver, reason):
        if now() > end or not driver.status().connected:
            return False
        time.sleep(0.05)
    return True


def _watch(pipe: Connection, limit_s: float, driver: ArmDriver | EndsLoop) -> str:
    """Wait for a reason to stop and return it; empty if the loop closed the supervisor, or the arm cannot be stopped."""
    parent, due, heard = os.getppid(), False, now()
    while True:
        try:
            if not pipe.poll(limit_s if due else _PARENT_S):
                if due:
                    return f"no heartbeat for {limit_s:g} s"
                if os.getppid() != parent:
                    return "the loop's process ended"
                continue
            message = pipe.recv_bytes()
            if message == _BYE:
                return ""
            if due and now() - heard > limit_s + ANSWER_S:
                return f"no heartbeat for {now() - heard:.1f} s"  # the machine slept
            if message == _STOP:
                if not _stop(driver, "the arm has not acknowledged the loop's stop"):
                    return ""
            elif not driver.status().connected:
                return "the supervisor's connection to the arm broke"
            pipe.send_bytes(_STOPPED if message == _STOP else message)  # the echo shows it is alive
        except (EOFError, OSError):
            return "the loop's process ended"
        due, heard = message == _BEAT, now()

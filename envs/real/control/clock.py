"""Time and waiting, as the control loop takes them: `REAL`, or in tests one that passes only when everybody waits.

Whoever reads a time, sleeps, waits for another thread or starts one does it through one clock, so a test can run an
hour of motion in a second, and the same every time.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Condition(AbstractContextManager, Protocol):
    """As `threading.Condition`: a lock, and waiting for what it guards."""

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> object:
        """Wait with the lock released; what `predicate` gave last."""

    def notify_all(self) -> None: ...


class Thread(Protocol):
    """One that was started."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""


class Clock(Protocol):
    """Time in s that never runs backwards and counts a machine's sleep, and all waiting."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None:
        """Wait so long; nothing for 0 and less."""

    def condition(self) -> Condition: ...

    def spawn(self, target: Callable[[], None], name: str) -> Thread:
        """Start a daemon thread."""


def now() -> float:
    """Return the host's clock, s: monotonic, and it counts the time for which the machine sleeps (Linux)."""
    return time.clock_gettime(_CLOCK)


def from_monotonic(seconds: float) -> float:
    """Return a time of `time.monotonic` on the clock of `now`; exact if the machine has not slept since then."""
    return now() - (time.monotonic() - seconds)


class RealClock:
    """The machine's."""

    def now(self) -> float:
        return now()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def condition(self) -> threading.Condition:
        return threading.Condition()

    def spawn(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, daemon=True, name=name)
        thread.start()
        return thread


REAL = RealClock()

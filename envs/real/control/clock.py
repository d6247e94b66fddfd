"""Time and waiting, as the control loop takes them: `REAL`, or in tests one that passes only when everybody waits.

Whoever reads a time, sleeps, waits for another thread or starts one does it through one clock, so a test can run an
hour of motion in a second, and the same every time.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


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
    """Monotonic time in s, and all waiting."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None:
        """Wait so long; nothing for 0 and less."""

    def condition(self) -> Condition: ...

    def spawn(self, target: Callable[[], None], name: str) -> Thread:
        """Start a daemon thread."""


class RealClock:
    """The machine's."""

    def now(self) -> float:
        """s, monotonic."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(max(0.0, seconds))

    def condition(self) -> threading.Condition:
        """See `Clock`."""
        return threading.Condition()

    def spawn(self, target: Callable[[], None], name: str) -> threading.Thread:
        """See `Clock`."""
        thread = threading.Thread(target=target, daemon=True, name=name)
        thread.start()
        return thread


REAL = RealClock()

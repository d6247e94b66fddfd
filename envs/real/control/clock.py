"""Time and waiting of the control loop: `REAL`, or in tests a clock that advances only when everybody waits.

Reading a time, sleeping, waiting for a thread and starting one all go through one clock, so a test can run an hour of
motion in a second, and the same every time.
"""

import threading
import time
from collections.abc import Callable

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return the host's clock, s: monotonic, and it counts the time for which the machine sleeps (Linux)."""
    return time.clock_gettime(_CLOCK)


def from_monotonic(seconds: float) -> float:
    """Return a time of `time.monotonic` on the clock of `now`; exact if the machine has not slept since then."""
    return now() - (time.monotonic() - seconds)


class Clock:
    """Time in s that never runs backwards and counts a machine's sleep, and all waiting."""

    def now(self) -> float:
        return now()

    def sleep(self, seconds: float) -> None:
        """Wait; returns at once for 0 and less."""
        time.sleep(max(0.0, seconds))

    def condition(self) -> threading.Condition:
        return threading.Condition()

    def spawn(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, daemon=True, name=name)
        thread.start()
        return thread


REAL = Clock()

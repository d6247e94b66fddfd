"""The control loop's clock: `REAL`, or in tests a clock that advances only while all threads wait.

All code reads the time, sleeps, waits for threads and starts them through one clock, so a test can run an hour of motion
in a second, and deterministically.
"""

import threading
import time
from collections.abc import Callable

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Return the host's monotonic clock, s; on Linux it includes time during which the machine sleeps."""
    return time.clock_gettime(_CLOCK)


def from_monotonic(seconds: float) -> float:
    """Convert a time of `time.monotonic` to the clock of `now`; exact if the machine has not slept since then."""
    return now() - (time.monotonic() - seconds)


class Clock:
    """Monotonic time, s, which includes a machine's sleep, and all waiting."""

    def now(self) -> float:
        return now()

    def sleep(self, seconds: float) -> None:
        """Wait; return at once for 0 or less."""
        time.sleep(max(0.0, seconds))

    def condition(self) -> threading.Condition:
        return threading.Condition()

    def spawn(self, target: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=target, daemon=True, name=name)
        thread.start()
        return thread


REAL = Clock()

"""What a control loop tells while it runs, and who hears it: recorder, trace, panel, supervisor.

class Counter(Silent):
    def on_step(self, step):
        self.steps += 1

loop = ControlLoop(..., subscriber=Several(recorder, trace, counter))
"""

from typing import Protocol

from s2robot.envs.real.control.safety import Safe
from s2robot.envs.real.control.watchdog import State


class Subscriber(Protocol):
    """Hears of one loop's episodes, in the loop's thread: it must not wait. What it raises stops the arm."""

    def on_begin(self) -> None:
        """The policy is warm, everything is fresh; motion begins next."""

    def on_beat(self) -> None:
        """A period of the stream begins."""

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """A period is over (s, monotonic): the watchdog's state, and what the filter let through. None: no more."""

    def on_step(self, step: dict) -> None:
        """An action has been executed: arrays by name, see `s2robot.envs.real.control.recorder`."""


class Silent:
    """A `Subscriber` that does nothing: override what is of interest."""

    def on_begin(self) -> None:
        """See `Subscriber`."""

    def on_beat(self) -> None:
        """See `Subscriber`."""

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """See `Subscriber`."""

    def on_step(self, step: dict) -> None:
        """See `Subscriber`."""


class Several:
    """Tells several, in their order."""

    def __init__(self, *subscribers: Subscriber):
        self._subscribers = subscribers

    def on_begin(self) -> None:
        """See `Subscriber`."""
        for one in self._subscribers:
            one.on_begin()

    def on_beat(self) -> None:
        """See `Subscriber`."""
        for one in self._subscribers:
            one.on_beat()

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """See `Subscriber`."""
        for one in self._subscribers:
            one.on_period(now, state, safe)

    def on_step(self, step: dict) -> None:
        """See `Subscriber`."""
        for one in self._subscribers:
            one.on_step(step)

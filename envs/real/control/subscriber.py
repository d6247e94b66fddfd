"""Events of a control loop, and who receives them: recorder, trace, panel, supervisor."""

from s2robot.envs.real.control.safety import Safe
from s2robot.envs.real.control.watchdog import State


class Subscriber:
    """Receives the events of a loop's episodes, in the loop's thread; does nothing by default.

    A method must not wait. An exception that it raises stops the arm.
    """

    def on_begin(self) -> None:
        """The policy is warm and everything is fresh; motion begins next."""

    def on_beat(self) -> None:
        """A period of the stream begins."""

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """A period is over (s, monotonic): the watchdog's state and the filter's answer. None: the last one."""

    def on_step(self, step: dict) -> None:
        """An action has been executed: arrays by name, see `s2robot.envs.real.control.recorder`."""


class Subscribers(Subscriber):
    """Forwards to several subscribers, in their order."""

    def __init__(self, *subscribers: Subscriber):
        self._subscribers = subscribers

    def on_begin(self) -> None:
        for one in self._subscribers:
            one.on_begin()

    def on_beat(self) -> None:
        for one in self._subscribers:
            one.on_beat()

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        for one in self._subscribers:
            one.on_period(now, state, safe)

    def on_step(self, step: dict) -> None:
        for one in self._subscribers:
            one.on_step(step)

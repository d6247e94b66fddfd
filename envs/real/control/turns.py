"""A control loop whose policy takes turns with it: whoever calls `step` answers each observation.

turns = Turns()
loop = ControlLoop(driver, cameras, turns.act, ..., subscriber=turns)     # in a thread of its own
observation = turns.wait(lambda: running)
turns.answer(action)
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.control.clock import REAL, Clock
from s2robot.envs.real.control.subscriber import Subscriber

_STAY = np.zeros(8)


class Turns(Subscriber):
    """One observation, one answer, in turn; an answer that comes late is a policy that is late."""

    def __init__(self, clock: Clock = REAL):
        self._news = clock.condition()  # guards the four below
        self._open = False  # whether the loop's questions are for whoever calls `wait`
        self._closed = True
        self._observation: dict | None = None  # not yet taken
        self._action: Any = None  # likewise

    # ---------------------------------------------------------------- the loop's side

    def act(self, observation: dict) -> Array:
        """The loop's policy."""
        with self._news:
            if not self._open:  # the answer that warms up is not executed
                return _STAY
            self._observation = observation
            self._news.notify_all()
            self._news.wait_for(lambda: self._action is not None or not self._open)
            action, self._action = self._action, None
            return _STAY if action is None else action

    def on_begin(self) -> None:
        """The loop has had its first answer and begins."""
        with self._news:
            if self._closed:
                raise EnvError("reset: interrupted")
            self._open = True

    # ---------------------------------------------------------------- the other side

    def begin(self) -> None:
        """For the next episode: nothing asked, nothing answered."""
        self._open = self._closed = False
        self._observation = self._action = None

    def answer(self, action: Any) -> None:
        """What is done upon the observation taken last; what is no action is the loop's to refuse."""
        with self._news:
            self._action = np.array(action)
            self._news.notify_all()

    def wait(self, goes_on: Callable[[], bool]) -> dict | None:
        """The next observation; None once `goes_on` is false, of which `over` tells."""
        with self._news:
            self._news.wait_for(lambda: self._observation is not None or not goes_on())
            observation, self._observation = self._observation, None
        return observation

    def over(self) -> None:
        """The loop has ended."""
        with self._news:
            self._open = False
            self._news.notify_all()

    def close(self) -> None:
        """No more answers: the loop's question, if there is one, is answered by staying."""
        with self._news:
            self._closed, self._open = True, False
            self._news.notify_all()

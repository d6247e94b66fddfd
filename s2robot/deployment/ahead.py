"""Plans that are made while the arm executes the plan before, as in real-time chunking (arXiv 2506.07339).

A plan starts from the observation before action `execute` of the current chunk. The arm executes `delay` more actions while it is
computed; the plan gets these actions, repeats them, and takes over after them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import REAL, Clock

_END_S = 5.0  # s that a plan of an episode that is over may still take


class PlanAhead:
    """Makes plans in a thread of its own and acts by them.

    Args:
        plan: observation, the actions (n, A) that are left of the chunk, how many of them are fixed -> chunk (K, A).
        execute: actions of a chunk before the next plan begins.
        delay: actions that are executed while a plan is made.
        stale_s: time without a call after which the arm has stood, and what was planned is dropped.

    Attribute: `remaining`, the actions (n, A) that follow the last one.
    """

    def __init__(
        self, plan: Callable[[Mapping, np.ndarray, int], np.ndarray], execute: int, delay: int,
        stale_s: float = np.inf, clock: Clock = REAL,
    ):  # fmt: skip
        self._plan, self._execute, self._delay, self._clock = plan, execute, delay, clock
        self._stale_s, self._acted = stale_s, clock.now()
        self._changed = clock.condition()
        self._busy = False
        self.replan()

    @property
    def remaining(self) -> np.ndarray:
        return self._chunk[self._next :]

    def replan(self) -> None:
        """Drop the chunk: the next action waits for a new one."""
        self._chunk: np.ndarray = np.zeros((0, 0))
        self._next, self._begun = 0, -1  # in the chunk: the next action; where the plan under way begins

    def reset(self) -> None:
        """Begin an episode. EnvError: the policy does not end a plan of the one before."""
        if not self._idle(_END_S):
            raise EnvError(f"policy: expected the last plan to end within {_END_S:g} s, got none")
        self.replan()

    def act(self, observation: Mapping) -> np.ndarray:
        """Return the next action (A,), at once unless the plan is later than the chunk lasts. Raises what a plan raises."""
        if self._clock.now() - self._acted > self._stale_s:
            self.replan()
        passed, over = self._next - self._begun, not len(self.remaining)
        if not len(self._chunk):
            self._idle()
            self._chunk = self._plan(observation, self._chunk, 0)
        elif self._begun >= 0 and (over or (passed >= self._delay and not self._busy)):
            self._idle()  # a plan that is late is waited for
            made = self._made
            self.replan()
            if isinstance(made, BaseException):
                raise made
            self._chunk, self._next = made, passed
        if self._begun < 0 and self._next >= self._execute:
            self._begun, self._busy = self._next, True
            left = self.remaining
            self._clock.spawn(partial(self._make, observation, left, min(self._delay, len(left))), "plan")
        action, self._next = self._chunk[self._next], self._next + 1
        self._acted = self._clock.now()
        return action

    def _make(self, observation: Mapping, left: np.ndarray, fixed: int) -> None:
        made: Any
        try:
            made = self._plan(observation, left, fixed)
        except BaseException as error:  # `act` raises it, where it stops the arm
            made = error
        with self._changed:
            self._made, self._busy = made, False
            self._changed.notify_all()

    def _idle(self, timeout_s: float | None = None) -> bool:
        """Wait until no plan is being made; whether that is so."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: not self._busy, timeout_s))

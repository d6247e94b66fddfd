"""Planning while the arm executes the previous plan, as in real-time chunking (arXiv 2506.07339).

A plan starts from the observation before action `execute` of the current chunk. The arm executes `delay` more actions during
planning; the planner receives these actions, the new plan repeats them, and the arm continues with it after them.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.clock import REAL, Clock

_END_S = 5.0  # s allowed for an unfinished plan of a finished episode


class PlanAhead:
    """Computes plans in a separate thread and executes them.

    Args:
        plan: observation, remaining actions (n, A) of the chunk, number of fixed ones among them -> chunk (K, A).
        execute: actions of a chunk before the next plan begins.
        delay: actions that are executed during planning.
        stale_s: time without a call after which the plan is dropped, since the arm has come to rest.

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
        self._next, self._begun = 0, -1  # indices: the next action; the start of the unfinished plan

    def reset(self) -> None:
        """Begin an episode. Raises EnvError if a plan of the previous episode does not finish in time."""
        if not self._idle(_END_S):
            raise EnvError(f"policy: the last plan did not end within {_END_S:g} s")
        self.replan()

    def act(self, observation: Mapping) -> np.ndarray:
        """Return the next action (A,), at once unless the chunk ends before the next plan. Re-raises a plan's exception."""
        if self._clock.now() - self._acted > self._stale_s:
            self.replan()
        passed, over = self._next - self._begun, not len(self.remaining)
        if not len(self._chunk):
            self._idle()
            self._chunk = self._plan(observation, self._chunk, 0)
        elif self._begun >= 0 and (over or (passed >= self._delay and not self._busy)):
            self._idle()  # wait for a late plan
            result = self._result
            self.replan()
            if isinstance(result, BaseException):
                raise result
            self._chunk, self._next = result, passed
        if self._begun < 0 and self._next >= self._execute:
            self._begun, self._busy = self._next, True
            rest = self.remaining
            self._clock.spawn(partial(self._make, observation, rest, min(self._delay, len(rest))), "plan")
        action, self._next = self._chunk[self._next], self._next + 1
        self._acted = self._clock.now()
        return action

    def _make(self, observation: Mapping, remaining: np.ndarray, fixed: int) -> None:
        result: Any
        try:
            result = self._plan(observation, remaining, fixed)
        except BaseException as error:  # raised again by `act`, where it stops the arm
            result = error
        with self._changed:
            self._result, self._busy = result, False
            self._changed.notify_all()

    def _idle(self, timeout_s: float | None = None) -> bool:
        """Wait until no plan is being computed; return False after a timeout."""
        with self._changed:
            return bool(self._changed.wait_for(lambda: not self._busy, timeout_s))

"""A policy in a thread of its own: the stream to the arm never waits for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2robot.envs.real.control.clock import REAL, Clock


@dataclass(frozen=True)
class Answer:
    """The policy's answer to one observation."""

    t_observed: float  # s, monotonic
    t_answered: float  # s
    action: np.ndarray | None  # float64 (8,), finite; None with an error
    error: str  # one line; empty with an action


class PolicyWorker:
    """Runs `act(observation) -> action (8,)` for one observation at a time.

    A policy that hangs keeps its thread (a daemon) and nothing else.
    """

    def __init__(self, act: Callable[[dict], Any], clock: Clock = REAL):
        self._act, self._clock = act, clock
        self._changed = clock.condition()
        self._request: tuple[float, dict] | None = None
        self._since: float | None = None  # of the request under way
        self._answer: Answer | None = None
        self._ended = False
        clock.spawn(self._run, "policy")

    def submit(self, t_observed: float, observation: dict) -> None:
        """Hand over an observation; ignored while `busy`."""
        with self._changed:
            if self._since is None and self._answer is None:
                self._request, self._since = (t_observed, observation), t_observed
                self._changed.notify_all()

    def take(self, timeout_s: float = 0.0) -> Answer | None:
        """Return the answer, once, after waiting for it; None if there is none."""
        with self._changed:
            if timeout_s:
                self._changed.wait_for(lambda: self._answer is not None, timeout_s)
            answer, self._answer = self._answer, None
            return answer

    def busy_for(self, now: float) -> float:
        """How long the observation under way has been with the policy, s; 0 if there is none."""
        since = self._since
        return 0.0 if since is None else max(0.0, now - since)

    @property
    def busy(self) -> bool:
        """Whether an observation is under way, or an answer waits to be taken."""
        with self._changed:
            return self._since is not None or self._answer is not None

    def close(self) -> None:
        """End the thread as soon as the policy returns."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._request is not None or self._ended)
                if self._ended:
                    return
                assert self._request is not None
                (t_observed, observation), self._request = self._request, None
            action, error = None, ""
            try:
                action, error = _checked(self._act(observation))
            except BaseException as failure:  # whatever a policy raises must stop the arm, not this thread
                error = (f"{type(failure).__name__}: {failure}".splitlines() or ["crashed"])[0]
            with self._changed:
                self._answer = Answer(t_observed, self._clock.now(), action, error)
                self._since = None
                self._changed.notify_all()


def _checked(action: Any) -> tuple[np.ndarray | None, str]:
    """The action, or why it is invalid."""
    array = np.asarray(action)
    if array.shape != (8,) or array.dtype.kind not in "fiu":
        return None, f"found an action {array.dtype} {array.shape}, expected 8 numbers"
    array = array.astype(float)
    return (
        (array, "")
        if np.isfinite(array).all()
        else (None, f"found action {array.tolist()}, expected finite numbers")
    )

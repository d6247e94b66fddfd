"""Work that the product gives to other processes, done in this one: for tests whose subject is not the process.

A process that simulates imports the simulator first, which costs more than what most tests let it do.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from gymnasium.vector import SyncVectorEnv


class InlinePool:
    """Stands in for `envs.workers.worker_pool`: a job is done when it is given, and its error is the future's."""

    def __init__(self, workers: int) -> None: ...

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *error: object) -> None: ...

    def submit(self, work: Callable, *given: Any, **named: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(work(*given, **named))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, cancel_futures: bool) -> None:
        """Nothing is under way."""


class InlineWorlds(SyncVectorEnv):
    """Stands in for `AsyncVectorEnv`."""

    def __init__(self, make: list[Callable], context: str, autoreset_mode: Any) -> None:
        super().__init__(make, autoreset_mode=autoreset_mode)

    def step(self, actions: np.ndarray) -> tuple:
        self._autoreset_envs[:] = False  # a place whose episode has ended may go on, as in AsyncVectorEnv
        return super().step(actions)

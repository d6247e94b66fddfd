"""Work that the product gives to other processes, done in this one: for tests whose subject is not the process.

A process that simulates imports the simulator first, which costs more than what most tests let it do.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from s2robot.core.workers import Local


class InlineWorker:
    """A task is done when it is given, and its error is the future's."""

    died = ()

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self.make, self.state = make, list[Any]()

    def start(self) -> Future:
        return self._done(lambda: None)

    def call(self, function: Callable, *given: Any) -> Future:
        if self.make is not None and not self.state:
            self.state.append(self.make())
        return self._done(function, *self.state, *given)

    def stop(self, kill: bool) -> None: ...

    def _done(self, function: Callable, *given: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*given))
        except Exception as error:
            future.set_exception(error)
        return future


def do_inline(patch: pytest.MonkeyPatch) -> None:
    """Whatever is given to processes of this machine, by any room."""

    def workers(self: Local, count: int, make: Callable[[], Any] | None, *kind: bool) -> list[InlineWorker]:
        return [InlineWorker(make) for _ in range(count)]

    patch.setattr(Local, "workers", workers)
    patch.setattr("s2robot.common.engine.prepare", lambda: None)

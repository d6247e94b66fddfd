"""Work that the product gives to other processes, done in this one: for tests whose subject is not the process.

A process that simulates imports the simulator first, which costs more than what most tests let it do.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from s2robot.core.workers import Local, Pool


class Inline(Pool):
    """A task is done when it is given, and its error is the future's."""

    def __init__(self, count: int, make: Callable[[], Any] | None) -> None:
        super().__init__([None] * count)  # type: ignore[list-item]
        self.make, self.state = make, list[Any]()

    def submit(self, function: Callable, *given: Any) -> Future:
        future: Future = Future()
        if self.make is not None and not self.state:
            self.state.append(self.make())
        try:
            future.set_result(function(*self.state, *given))
        except Exception as error:
            future.set_exception(error)
        return future


def do_inline(patch: pytest.MonkeyPatch) -> None:
    """Whatever is given to processes of this machine, by any package."""
    patch.setattr(Local, "pool", lambda self, count, make, *kind: Inline(count, make))
    patch.setattr("s2robot.cli.prepare", lambda: None)

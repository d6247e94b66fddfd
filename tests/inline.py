"""Run the work of worker processes in the current process, for tests that do not test the processes.

A worker imports the simulator first, which takes longer than the work itself in most tests.
"""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from s2robot.core.workers import Local, Pool


class Inline(Pool):
    """Run a task at submission; its future holds the result or the error."""

    def __init__(self, count: int, make: Callable[[], Any] | None) -> None:
        super().__init__([None] * count)  # type: ignore[list-item]
        self.make, self.state = make, list[Any]()

    def submit(self, function: Callable, *args: Any) -> Future:
        future: Future = Future()
        if self.make is not None and not self.state:
            self.state.append(self.make())
        try:
            future.set_result(function(*self.state, *args))
        except Exception as error:
            future.set_exception(error)
        return future


def do_inline(patch: pytest.MonkeyPatch) -> None:
    """Patch the local worker pool of all packages."""
    patch.setattr(Local, "pool", lambda self, count, make, *kind: Inline(count, make))
    patch.setattr("s2robot.cli.prepare", lambda: None)

"""The operator's wish to stop, from a key or a signal."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """Asked for once, it stays asked for."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.interrupted = False  # by a signal
        self.moving = False  # whether a stop is a matter of braking, not of ending at once
        self.stop: Callable[[], None] = lambda: None  # called when it is asked for

    def ask(self) -> None:
        """Brake and stop; from any thread."""
        self._asked.set()
        self.stop()

    def asked(self) -> bool:
        """Whether it was."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raise a signal's KeyboardInterrupt anew if it was lost: the vendor's SDK swallows what is raised in its calls."""
        lost = self.interrupted and not self.asked()
        if lost and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM, SIGHUP: the first brakes the arm, the second one, or one while it stands, ends at once.

        After SIGHUP nobody reads the terminal: what is printed to it is dropped, or printing would raise.
        """
        shown = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

        def handle(number: int, frame: object) -> None:
            if number == signal.SIGHUP:
                for descriptor in shown:
                    with open(os.devnull, "w") as nowhere:
                        os.dup2(nowhere.fileno(), descriptor)
            again = self.interrupted and number != signal.SIGHUP  # a terminal that closes may send two
            self.interrupted = True
            if again or not self.moving:
                raise KeyboardInterrupt
            self.ask()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

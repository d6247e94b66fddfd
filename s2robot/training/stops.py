"""Ctrl-C and SIGTERM in a training: they end it between two steps, so that what is saved is whole."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Stops:
    """While `inside` a step a signal only sets `asked`; elsewhere, and a second one, raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.inside = self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take both signals, in the main thread and where nobody else has taken or ignored them."""
        usual = (signal.default_int_handler, signal.SIG_DFL)
        main = threading.current_thread() is threading.main_thread()
        taken = [s for s in (signal.SIGINT, signal.SIGTERM) if main and signal.getsignal(s) in usual]
        before = {s: signal.signal(s, self._on_signal) for s in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, *_: object) -> None:
        if not self.inside or self.asked:
            raise KeyboardInterrupt
        self.asked = True

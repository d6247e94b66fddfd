"""What the operator sees and presses while the arm moves: a panel on a terminal, plain lines elsewhere.

board = Board(readers, live=True, episodes=5)
with board.shown(), keys(on_key):
    loop.run(80)                       # on_period=board.period
"""

import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from envs.real.camera import CameraReader
from envs.real.safety import Safe, Verdict
from envs.real.watchdog import State

_STYLES = {
    State.IDLE: "dim", State.READY: "cyan", State.RUNNING: "green", State.HOLD: "yellow", State.FAULT: "bold red",
}  # fmt: skip
_REFRESH_HZ = 4  # drawing takes the interpreter from the control loop
_LINE_S = 1.0  # s between plain lines


class Board:
    """The present state, written by the control loop and read by whoever draws."""

    def __init__(self, readers: Mapping[str, CameraReader], live: bool, episodes: int, rate_hz: float):
        self._readers, self._live, self._episodes, self._rate = readers, live, episodes, rate_hz
        self.episode, self.step, self.max_steps = 0, 0, 0
        self.successes, self.judged = 0, 0
        self.doing = ""  # what is going on outside an episode
        self._state = State.IDLE
        self._verdict = Verdict.PASS
        self._reasons: tuple[str, ...] = ()
        self._times: deque[float] = deque(maxlen=100)

    def period(self, now: float, state: State, safe: Safe | None) -> None:
        """As `ControlLoop.on_period` tells it."""
        self._state = state
        if safe is not None:
            self._verdict = safe.verdict
            if safe.reasons:
                self._reasons = safe.reasons

    def beat(self) -> None:
        """A period of the stream begins."""
        self._times.append(time.monotonic())

    def rate(self, now: float) -> float:
        """Commands a second over the last ones; 0 where none came for a second."""
        times = list(self._times)
        if len(times) < 2 or now - times[-1] > 1:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-9)

    @contextmanager
    def shown(self, console: Console | None = None) -> Iterator[None]:
        """Draw until the context ends."""
        console = console or Console()
        if console.is_terminal:
            with Live(
                get_renderable=self.panel, console=console, refresh_per_second=_REFRESH_HZ, transient=True
            ):
                yield
            return
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(_LINE_S):
                print(self.line(), flush=True)

        thread = threading.Thread(target=tell, daemon=True, name="board")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(2.0)

    def panel(self) -> Panel:
        """For a terminal."""
        now = time.monotonic()
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column()
        state = f"[{_STYLES[self._state]}]{self._state.value.upper()}[/] {self.doing}"
        ages = (f"{name} {1000 * r.age(now):.0f} ms" for name, r in self._readers.items())
        reasons = f" ({'; '.join(self._reasons)})" if self._reasons else ""
        for name, value in (
            ("state", state),
            ("episode", f"{self.episode} of {self._episodes}, step {self.step} of {self.max_steps}"),
            (
                "commands",
                f"{self.rate(now):.0f} of {self._rate:g} Hz{'' if self._live else ', none is sent'}",
            ),
            ("frames", ", ".join(ages)),
            ("last verdict", f"{self._verdict.name}{reasons}"),
            ("successes", f"{self.successes} of {self.judged}"),
        ):
            table.add_row(name, value)
        title = "LIVE: the arm moves" if self._live else "dry run: nothing moves"
        return Panel(
            table,
            title=title,
            subtitle="space, q or Ctrl-C: stop",
            border_style="red" if self._live else "blue",
        )

    def line(self) -> str:
        """For a log."""
        now = time.monotonic()
        oldest = max((r.age(now) for r in self._readers.values()), default=0.0)
        return (
            f"episode {self.episode}/{self._episodes} step {self.step}/{self.max_steps} {self._state.value}"
            f"{' ' + self.doing if self.doing else ''}, {self.rate(now):.0f} Hz, oldest frame {1000 * oldest:.0f} ms, "
            f"{self._verdict.name}, {self.successes} of {self.judged} succeeded"
        )


@contextmanager
def keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` from a thread with each key that is pressed; nothing where standard input is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            ready, _, _ = select.select([descriptor], [], [], 0.1)
            if ready and not ended.is_set():
                with suppress(OSError):
                    for key in os.read(descriptor, 16).decode(errors="ignore"):
                        on_key(key)

    thread = threading.Thread(target=read, daemon=True, name="keys")
    try:
        tty.setcbreak(descriptor)  # Ctrl-C still is a signal
        thread.start()
        yield
    finally:
        ended.set()
        thread.join(2.0)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

"""What the operator sees and presses while the arm moves: a panel on a terminal, plain lines elsewhere.

board = Board(readers, live=True, episodes=5)
with board.shown(), keys(on_key):
    loop.run(80)                       # ControlLoop(..., subscriber=board)
"""

import os
import re
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.clock import REAL
from s2robot.envs.real.control.safety import Safe, Verdict
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State

Keys = Callable[[Callable[[str], None]], AbstractContextManager[None]]  # reads keys while its context lasts

_STYLES = {
    State.IDLE: "dim", State.READY: "cyan", State.RUNNING: "green", State.HOLD: "yellow", State.FAULT: "bold red",
}  # fmt: skip
WAITING = "waiting for frames and the policy"  # until an episode's first command
_REFRESH_HZ = 4  # drawing takes the interpreter from the control loop
_LINE_S = 1.0  # s between plain lines
_RATE_S = 1.0  # s over which the loop's rate is taken
_PAUSE_S = 0.5  # s without a period: the loop does not run
_RECENT_S = 3.0  # s that a verdict other than PASS is still told


class Board(Subscriber):
    """The present state, written by the control loop and read by whoever draws."""

    def __init__(self, readers: Mapping[str, CameraReader], live: bool, episodes: int, rate_hz: float):
        self._readers, self._live, self._episodes, self._rate = readers, live, episodes, rate_hz
        self.episode, self.step, self.max_steps = 0, 0, 0
        self.successes, self.judged = 0, 0
        self.doing = ""  # what goes on while the policy does not act; stands in place of the state
        self._state = State.IDLE
        self._verdict: Verdict | None = None  # of this period
        self._changed: tuple[float, Verdict, tuple[str, ...]] | None = None  # s, the last other than PASS
        self._beats: deque[float] = deque(maxlen=round(rate_hz * _RATE_S) + 1)  # s, begins of periods

    def on_begin(self) -> None:
        """See `Subscriber`."""
        self.doing = ""

    def on_step(self, step: dict) -> None:
        """See `Subscriber`."""
        self.step += 1

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """See `Subscriber`."""
        self._state = state
        self._verdict = safe.verdict if safe is not None else None
        if safe is not None and safe.verdict != Verdict.PASS:
            self._changed = now, safe.verdict, safe.reasons

    def on_beat(self) -> None:
        """See `Subscriber`."""
        now = REAL.now()
        if self._beats and now - self._beats[-1] > _PAUSE_S:
            self._beats.clear()
        self._beats.append(now)

    def rate(self, now: float) -> float | None:
        """Periods a second over the last one; None where the loop does not run, or has just begun."""
        beats = [t for t in self._beats.copy() if now - t <= _RATE_S]
        if len(beats) < 10 or now - beats[-1] > _PAUSE_S:
            return None
        return (len(beats) - 1) / max(beats[-1] - beats[0], 1e-9)

    def verdict(self, now: float) -> str:
        """The filter's present verdict, and one of the last seconds that was no PASS, with reasons and age."""
        if self.doing or self._verdict is None:
            return "none"
        if self._changed is None or now - self._changed[0] > _RECENT_S:
            return self._verdict.name
        then, verdict, reasons = self._changed
        what = f"{verdict.name}: {'; '.join(reasons)}"
        return what if self._verdict != Verdict.PASS else f"PASS ({now - then:.1f} s ago {what})"

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
        now = REAL.now()
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column()
        state = self.doing or f"[{_STYLES[self._state]}]{self._state.value.upper()}[/]"
        rate = self.rate(now)
        rows = {
            "state": state,
            "episode": f"{self.episode} of {self._episodes}, step {self.step} of {self.max_steps}",
            "loop": "pauses" if rate is None else f"{rate:.0f} of {self._rate:g} Hz",
            "frames": ", ".join(f"{name} {_age(r.age(now))}" for name, r in self._readers.items()),
            "verdict": escape(self.verdict(now)),
        }
        if self._live:
            rows["successes"] = f"{self.successes} of {self.judged}"
        for name, value in rows.items():
            table.add_row(name, value)
        title = "LIVE: the arm may move" if self._live else "dry run: nothing is sent"
        return Panel(
            table,
            title=title,
            subtitle="space, q or Ctrl-C: stop",
            border_style="red" if self._live else "blue",
        )

    def line(self) -> str:
        """For a log."""
        now = REAL.now()
        rate = self.rate(now)
        oldest = max((r.age(now) for r in self._readers.values()), default=0.0)
        return ", ".join(
            [
                f"episode {self.episode}/{self._episodes}",
                self.doing or f"step {self.step}/{self.max_steps} {self._state.value}",
                "loop pauses" if rate is None else f"{rate:.0f} Hz",
                f"oldest frame {_age(oldest)}",
                *([] if self.doing else [self.verdict(now)]),
                *([f"{self.successes} of {self.judged} succeeded"] if self._live else []),
            ]
        )


def _age(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


# What a terminal sends for arrows and function keys: its letters were not typed, and A would move the arm. After a bare
# escape nothing is taken away: a space or q that follows it stops the arm.
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[@-~]|O[A-Za-z])?")
_BEGUN = re.compile(r"\x1b(\[[0-?]*|O)?$")


def typed(text: str) -> tuple[str, str]:
    """The keys with a letter or sign of their own in what a terminal has sent, and a sequence that only begins in it."""
    begun = _BEGUN.search(text)
    end = begun.start() if begun else len(text)
    return _SEQUENCE.sub("", text[:end]), text[end:]


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
        begun = ""
        while not ended.is_set():
            ready, _, _ = select.select([descriptor], [], [], 0.1)
            if not ready:
                begun = ""  # a terminal sends the rest at once: what comes later was typed
            if ready and not ended.is_set():
                sent = b""
                with suppress(OSError):
                    sent = os.read(descriptor, 4096)
                if not sent:
                    return  # the terminal has gone, which SIGHUP tells
                pressed, begun = typed(begun + sent.decode(errors="ignore"))
                for key in pressed:
                    on_key(key)

    thread = threading.Thread(target=read, daemon=True, name="keys")
    try:
        tty.setcbreak(descriptor)  # Ctrl-C still is a signal
        thread.start()
        yield
    finally:
        ended.set()
        thread.join(2.0)
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)  # a key too many answers no question

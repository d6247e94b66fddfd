"""The display while the arm moves: a panel on a terminal, plain lines elsewhere."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

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

_STYLES = {"ready": "cyan", "running": "green", "hold": "yellow", "fault": "bold red"}
WAITING = "waiting for frames and the policy"  # until an episode's first command
_REFRESH_HZ = 4  # low, because drawing blocks the control loop
_LINE_S = 1.0  # s between plain lines
_PAUSE_S = 0.5  # s without a period, after which the loop counts as paused
_RECENT_S = 3.0  # s for which a verdict other than PASS is shown


class Board(Subscriber):
    """The current state, written by the control loop and read by the display.

    Attributes: `episode`, `step`, `max_steps`, `successes`, `judged`; `doing`, shown instead of the loop's state while
    the policy does not act.
    """

    def __init__(self, readers: Mapping[str, CameraReader], live: bool, episodes: int, rate_hz: float):
        self._readers, self._live, self._episodes, self._rate = readers, live, episodes, rate_hz
        self.episode = self.step = self.max_steps = self.successes = self.judged = 0
        self.doing = ""
        self._state = State.IDLE
        self._verdict: Verdict | None = None  # of this period
        self._changed: tuple[float, str] | None = None  # s, last verdict but PASS, with reasons
        self._beats: deque[float] = deque(maxlen=round(rate_hz) + 1)  # s, starts of the last second's periods

    def on_begin(self) -> None:
        self.doing = ""

    def on_step(self, step: dict) -> None:
        self.step += 1

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        self._state, self._verdict = state, safe.verdict if safe is not None else None
        if safe is not None and safe.verdict != Verdict.PASS:
            self._changed = now, f"{safe.verdict.name}: {'; '.join(safe.reasons)}"

    def on_beat(self) -> None:
        now = REAL.now()
        if self._beats and now - self._beats[-1] > _PAUSE_S:
            self._beats.clear()
        self._beats.append(now)

    def rows(self) -> dict[str, str]:
        now = REAL.now()
        beats, rate = self._beats.copy(), "paused"
        if len(beats) >= 10 and now - beats[-1] <= _PAUSE_S:
            rate = f"{(len(beats) - 1) / max(beats[-1] - beats[0], 1e-9):.0f} of {self._rate:g} Hz"
        verdict, changed = self._verdict, self._changed
        text = "none" if self.doing or verdict is None else verdict.name
        if text != "none" and changed and (ago := now - changed[0]) <= _RECENT_S:
            text = f"PASS ({ago:.1f} s ago {changed[1]})" if verdict == Verdict.PASS else changed[1]
        rows = {
            "state": self.doing or self._state.value,
            "episode": f"{self.episode} of {self._episodes}, step {self.step} of {self.max_steps}",
            "loop": rate,
            "frames": ", ".join(f"{name} {1000 * r.age(now):.0f} ms" for name, r in self._readers.items()),
            "verdict": text,
        }
        return rows | ({"successes": f"{self.successes} of {self.judged}"} if self._live else {})

    @contextmanager
    def shown(self, console: Console | None = None) -> Iterator[None]:
        console = console or Console()
        if console.is_terminal:
            with Live(
                get_renderable=self.panel, console=console, refresh_per_second=_REFRESH_HZ, transient=True
            ):
                yield
            return
        ended = threading.Event()

        def print_lines() -> None:
            while not ended.wait(_LINE_S):
                print(", ".join(f"{name} {value}" for name, value in self.rows().items()), flush=True)

        thread = threading.Thread(target=print_lines, daemon=True, name="board")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(2.0)

    def panel(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        for name, value in self.rows().items():
            table.add_row(name, escape(value), style=_STYLES.get(value, "") if name == "state" else "")
        live = "LIVE: the arm may move", "red"
        title, colour = live if self._live else ("dry run: no command is sent", "blue")
        return Panel(table, title=title, subtitle="space, q or Ctrl-C: stop", border_style=colour)

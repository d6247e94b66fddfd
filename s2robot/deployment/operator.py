"""The operator beside a policy that acts: asked while the arm stands, with keys that count while it moves."""

import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

from s2robot.core.errors import UserError
from s2robot.deployment.settings import Bridge
from s2robot.envs.errors import EnvError
from s2robot.envs.real.operator.prompts import Operator, Placing, Stop, Void

Keys = Callable[[Callable[[str], None]], AbstractContextManager[None]]  # reads keys while its context lasts
KEYS_HELP = "y: success, n: failure (both end the episode); space, q or Ctrl-C: brake and end the session"


def check_operator(bridge: Bridge, asked: bool = False) -> None:
    """Reject a real arm, or with `asked` any, without a person at a terminal: a pipe gives no consent."""
    if not sys.stdin.isatty() and (asked or not bridge.emulated):
        hint = " (confirm=false skips this, for the emulator only)" if bridge.emulated else ""
        what = "a terminal, for the operator to be asked before the arm moves"
        raise UserError(f"standard input: expected {what}{hint}")


# What a terminal sends for arrows and function keys: its letters were not typed, and A would move the arm. After a bare
# escape nothing is taken away: a space or q that follows it stops the arm.
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[@-~]|O[A-Za-z])?")
_BEGUN = re.compile(r"\x1b(\[[0-?]*|O)?$")


def typed(text: str) -> tuple[str, str]:
    """Return the keys with a letter or sign of their own in a terminal's bytes, and a sequence that only begins there."""
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
                    return  # the terminal has gone, as SIGHUP reports
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


class WatchingOperator:
    """An operator who is asked while the arm stands, and whose keys count while it may move.

    Args:
        operator: who answers.
        stop: requested by space and q. Ctrl-C brakes while the arm may move, and ends the session at once otherwise.
        end: ends the episode under way; called by a key.
        take_key: takes each key of an episode in place of these.

    Attributes, of the episode under way: `acting` (keys count), `t_end` (s, monotonic, when its end was seen; None: not
    before its steps were over), `trouble` (of the attempt before, shown with the next question).
    """

    def __init__(
        self, operator: Operator, stop: Stop, end: Callable[[], None] = lambda: None, read_keys: Keys = keys,
        take_key: Callable[[str], None] | None = None,
    ):  # fmt: skip
        self._operator = operator
        self._stop, self._end, self._read_keys, self._take_key = stop, end, read_keys, take_key
        self._keys: ExitStack | None = None
        self.trouble = ""
        self.begin()

    def begin(self) -> None:
        self.acting = False
        self.t_end: float | None = None
        self._verdict = ""  # the key that judged it

    def rest(self) -> None:
        """The arm stands: the terminal is for questions."""
        self._stop.moving = self.acting = False
        if self._keys is not None:
            self._keys.close()
        self._keys = None

    def watch(self, brakes: bool = True) -> None:
        """The arm may move until `rest`: keys count. `brakes`: Ctrl-C does not end the session at once."""
        if self._keys is None:
            self._keys = ExitStack()
            self._keys.enter_context(self._read_keys(self.on_key))
        self._stop.moving = brakes

    def on_key(self, key: str) -> None:
        if self._take_key is not None:
            if self.acting:
                self._take_key(key)
        elif key in " q":
            self._stop.ask()
        elif key in ("ynv" if self.voids else "yn") and self.person and self.acting and not self._verdict:
            self._verdict, self.t_end = key, time.monotonic()
            self._end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    def free(self, fault: tuple[str, ...]) -> bool:
        return self._before_motion(lambda: self._operator.free(fault or (self.trouble,) * bool(self.trouble)))

    def place(self, placing: Placing) -> bool:
        return self._before_motion(lambda: self._operator.place(placing))

    def ended(self) -> bool:
        over = bool(self._verdict) or self._operator.ended()
        if over:
            self.t_end = self.t_end or time.monotonic()
        return over

    def success(self) -> bool:
        """See `Operator`; a key has answered already. A Ctrl-D is no answer."""
        self.rest()
        while not self._verdict:
            try:
                return self._operator.success()
            except EnvError:
                if not (self.person and sys.stdin.isatty()):
                    raise
        if self._verdict == "v":
            raise Void
        return self._verdict == "y"

    def _before_motion(self, ask: Callable[[], bool]) -> bool:
        self.rest()
        if (allowed := ask()) and self._take_key is None:
            self.watch()
        return allowed

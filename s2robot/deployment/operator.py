"""The operator during a policy's episodes: answers questions while the arm is at rest, and presses keys while it moves."""

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
from s2robot.envs.real.operator.prompts import Operator, Placing, Stop, Void

Keys = Callable[[Callable[[str], None]], AbstractContextManager[None]]  # reads keys while its context lasts
KEYS_HELP = "y: success, n: failure (both end the episode); space, q or Ctrl-C: brake and end the session"


def check_operator(bridge: Bridge, required: bool = False) -> None:
    """Reject a real arm (any arm if `required`) without a terminal: input from a pipe is not an operator's consent."""
    if not sys.stdin.isatty() and (required or not bridge.emulated):
        hint = " (confirm=false skips this, for the emulator only)" if bridge.emulated else ""
        what = "a terminal, on which to ask the operator before the arm moves"
        raise UserError(f"standard input: expected {what}{hint}, got none")


# The bytes of arrow and function keys contain letters that were not typed, such as A, which would move the arm. After a
# bare escape nothing is removed: a space or q that follows must stop the arm.
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[@-~]|O[A-Za-z])?")
_INCOMPLETE = re.compile(r"\x1b(\[[0-?]*|O)?$")


def typed(text: str) -> tuple[str, str]:
    """Return the character keys in a terminal's bytes, without escape sequences, and an incomplete sequence at the end."""
    incomplete = _INCOMPLETE.search(text)
    end = incomplete.start() if incomplete else len(text)
    return _SEQUENCE.sub("", text[:end]), text[end:]


@contextmanager
def keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` from a thread with each pressed key; do nothing if standard input is not a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    ended = threading.Event()

    def read() -> None:
        incomplete = ""
        while not ended.is_set():
            ready, _, _ = select.select([descriptor], [], [], 0.1)
            if not ready:
                incomplete = ""  # a terminal sends a sequence at once: later bytes were typed
            if ready and not ended.is_set():
                sent = b""
                with suppress(OSError):
                    sent = os.read(descriptor, 4096)
                if not sent:
                    return  # the terminal was closed; SIGHUP reports it
                pressed, incomplete = typed(incomplete + sent.decode(errors="ignore"))
                for key in pressed:
                    on_key(key.lower())  # with Caps Lock, too

    thread = threading.Thread(target=read, daemon=True, name="keys")
    try:
        tty.setcbreak(descriptor)  # Ctrl-C remains a signal
        thread.start()
        yield
    finally:
        ended.set()
        with suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)  # drop keys that might answer a question
        thread.join(2.0)  # last, because a Ctrl-C may interrupt it


class WatchingOperator:
    """An operator who answers questions while the arm is at rest, and whose keys have an effect while it may move.

    Args:
        operator: answers the questions.
        stop: requested by space and q. Ctrl-C brakes while the arm may move, and otherwise ends the session at once.
        end: ends the current episode; called on a key.
        take_key: handles each key of an episode instead.

    Attributes of the current episode: `acting` (keys have an effect), `t_end` (s, monotonic, when its end was noticed; None:
    not before its last step), `trouble` (fault of the previous attempt, shown with the next question).
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
        self.acting = self._homing = False  # `_homing`: on the way to the start, where keys stop the arm
        self.t_end: float | None = None
        self._verdict = ""  # the key that judged the episode

    def rest(self) -> None:
        """Use the terminal for questions: the arm is at rest."""
        self._stop.moving = self.acting = self._homing = False
        if self._keys is not None:
            self._keys.close()
        self._keys = None

    def watch(self, brakes: bool = True) -> None:
        """Read keys until `rest`: the arm may move. `brakes`: Ctrl-C brakes the arm instead of ending the session at once."""
        if self._keys is None:
            self._keys = ExitStack()
            self._keys.enter_context(self._read_keys(self.on_key))
        self._stop.moving = brakes

    def on_key(self, key: str) -> None:
        if self._take_key is not None and not self._homing:
            if self.acting:
                self._take_key(key)
        elif key in " q":
            self._stop.request()
        elif key in ("ynv" if self.voids else "yn") and self.person and self.acting and not self._verdict:
            self._verdict, self.t_end = key, time.monotonic()
            self._end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    def free(self, fault: tuple[str, ...]) -> bool:
        self.rest()
        self._homing = self._operator.free(fault or (self.trouble,) * bool(self.trouble))
        if self._homing:
            self.watch()
        return self._homing

    def place(self, placing: Placing) -> bool:
        self.rest()
        if (allowed := self._operator.place(placing)) and self._take_key is None:
            self.watch()
        return allowed

    def ended(self) -> bool:
        over = bool(self._verdict) or self._operator.ended()
        if over:
            self.t_end = self.t_end or time.monotonic()
        return over

    def success(self) -> bool:
        """See `Operator`; a key pressed during the episode is the answer."""
        self.rest()
        if not self._verdict:
            return self._operator.success()
        if self._verdict == "v":
            raise Void
        return self._verdict == "y"

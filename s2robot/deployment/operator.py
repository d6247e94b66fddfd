"""The operator beside a policy that acts: asked while the arm stands, with keys that count while it moves."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from s2robot.common.errors import UserError
from s2robot.deployment.panel import keys
from s2robot.deployment.rig import Stop
from s2robot.deployment.settings import Bridge
from s2robot.envs.real.people.operator import Judge, Placing

KEYS_HELP = "y: success, n: failure (both end the episode); space, q or Ctrl-C: brake and end the session"


def check_operator(bridge: Bridge) -> None:
    """Refuse a real arm without a person at a terminal."""
    if not bridge.stands_in and not sys.stdin.isatty():
        raise UserError(
            "standard input is no terminal, expected one: the operator is asked before each episode"
        )


Keys = Callable[[Callable[[str], None]], AbstractContextManager[None]]


class WatchingOperator:
    """An `s2robot.envs.real.people.operator.Operator` who may also judge, and stop the arm, in the middle of an episode.

    Args:
        operator: who answers.
        stop: asked for by keys; Ctrl-C is a matter of braking while the arm may move, and ends at once otherwise.
        read_keys: calls a function with each key while its context lasts.

    Attributes, of the episode under way: `refused` (the operator said no), `judged` (the episode came to its regular
    end), `t_end` (s, monotonic, when its end was seen; None: not before its steps were over), `trouble` (of the
    attempt before, told with the next question).
    """

    def __init__(self, operator: Judge, stop: Stop, read_keys: Keys = keys):
        self._operator, self._stop, self._read_keys = operator, stop, read_keys
        self._by_keys = operator.person
        self._keys = ExitStack()
        self.trouble = ""
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self.refused = self.judged = False
        self.t_end: float | None = None
        self._verdict: bool | None = None

    def rest(self) -> None:
        """The arm stands: the terminal is for questions."""
        self._stop.moving = False
        self._keys.close()

    @contextmanager
    def _before_motion(self) -> Iterator[None]:
        self.rest()
        yield
        if not self.refused:
            self._keys.enter_context(self._read_keys(self._on_key))
            self._stop.moving = True

    def _on_key(self, key: str) -> None:
        if key in " q":
            self._stop.ask()
        elif key in "yn" and self._by_keys and self._verdict is None:
            self._verdict = key == "y"

    # ---------------------------------------------------------------- Operator

    def free(self, fault: tuple[str, ...]) -> bool:
        """See `Operator`."""
        with self._before_motion():
            told = fault or ((self.trouble,) if self.trouble else ())
            self.refused = not self._operator.free(told)
        return not self.refused

    def place(self, placing: Placing) -> bool:
        """See `Operator`."""
        with self._before_motion():
            self.refused = not self._operator.place(placing)
            self._verdict = None  # a key on the way to the start is no judgement
        return not self.refused

    def ended(self) -> bool:
        """See `Operator`; by key, too."""
        over = self._verdict is not None or self._operator.ended()
        if over:
            self.t_end = time.monotonic()
        return over

    def success(self) -> bool:
        """See `Operator`; a key has answered already."""
        self.rest()
        self.judged = True
        if self._verdict is not None:
            return self._verdict
        return self._operator.success()

    def keep(self) -> bool:
        """See `Operator`."""
        return self._operator.keep()

    # ---------------------------------------------------------------- more

    def stage(self) -> str:
        """The furthest stage of a failed episode."""
        self.rest()
        return self._operator.stage()

    @property
    def closest(self) -> float | None:
        """m, least distance of grip and cube, where somebody measures it."""
        return self._operator.closest

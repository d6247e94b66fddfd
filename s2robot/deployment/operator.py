"""The operator beside a policy that acts: asked while the arm stands, with keys that count while it moves."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from s2robot.common.errors import UserError
from s2robot.deployment.panel import Keys, keys
from s2robot.deployment.settings import Bridge
from s2robot.envs.real.operator.prompts import Operator, OperatorProxy, Placing, TerminalOperator, ask
from s2robot.envs.real.operator.stop import Stop

KEYS_HELP = "y: success, n: failure (both end the episode); space, q or Ctrl-C: brake and end the session"


def check_operator(bridge: Bridge, asked: bool = False) -> None:
    """Refuse a real arm, or with `asked` any, without a person at a terminal: what a pipe says is nobody's consent."""
    if sys.stdin.isatty():
        return
    if not bridge.stands_in:
        raise UserError(
            "standard input is no terminal, expected one: the operator is asked before each episode"
        )
    if asked:
        raise UserError(
            "standard input is no terminal, expected one: the operator is asked before the arm moves (confirm=false "
            "skips that, for the emulator only)"
        )


class DeployOperator(TerminalOperator):
    """Asked for success until it is told, and for nothing else once the terminal has gone."""

    def success(self) -> bool:
        """See `Operator`."""
        while sys.stdin.isatty():
            answer = ask("Did it succeed? [y/n] ")
            if answer in ("y", "yes", "n", "no"):
                return answer[0] == "y"
        return False  # the terminal has gone, and nobody says yes


class WatchingOperator(OperatorProxy):
    """An `s2robot.envs.real.operator.prompts.Operator` who may also judge, and stop the arm, in the middle of an episode.

    Args:
        operator: who answers.
        stop: asked for by keys; Ctrl-C is a matter of braking while the arm may move, and ends at once otherwise.
        read_keys: calls a function with each key while its context lasts.
        on_verdict: called when a key has judged.

    Attributes, of the episode under way: `judging` (whether y and n count), `refused` (the operator said no), `t_end` (s, monotonic, when its end was seen; None: not before its steps
    were over), `trouble` (of the attempt before, told with the next question).
    """

    def __init__(
        self,
        operator: Operator,
        stop: Stop,
        read_keys: Keys = keys,
        on_verdict: Callable[[], None] = lambda: None,
    ):
        super().__init__(operator)
        self._stop, self._read_keys, self._on_verdict = stop, read_keys, on_verdict
        self._keys = ExitStack()
        self.trouble = ""
        self.begin()

    def begin(self) -> None:
        """A new episode."""
        self.refused = self.judging = False
        self.t_end: float | None = None
        self._verdict: bool | None = None

    def rest(self) -> None:
        """The arm stands: the terminal is for questions."""
        self._stop.moving = self.judging = False
        self._keys.close()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The arm may move while this lasts: keys count."""
        self._watch()
        try:
            yield
        finally:
            self.rest()

    def _watch(self) -> None:
        self._keys.enter_context(self._read_keys(self._on_key))
        self._stop.moving = True

    @contextmanager
    def _before_motion(self) -> Iterator[None]:
        self.rest()
        yield
        if not self.refused:
            self._watch()

    def _on_key(self, key: str) -> None:
        if key in " q":
            self._stop.ask()
        elif key in "yn" and self.person and self.judging and self._verdict is None:
            self._verdict, self.t_end = key == "y", time.monotonic()
            self._on_verdict()

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
            self.judging = True  # a key on the way to the start is no judgement
        return not self.refused

    def ended(self) -> bool:
        """See `Operator`; by key, too."""
        over = self._verdict is not None or self._operator.ended()
        if over:
            self.t_end = self.t_end or time.monotonic()
        return over

    def success(self) -> bool:
        """See `Operator`; a key has answered already."""
        self.rest()
        if self._verdict is not None:
            return self._verdict
        return self._operator.success()

    def stage(self) -> str:
        """See `Operator`."""
        self.rest()
        return self._operator.stage()

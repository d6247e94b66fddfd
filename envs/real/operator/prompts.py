"""The operator beside the arm, who permits motion, places the cube, judges episodes and stops the arm.

The program never clears a fault and never assumes that the workspace is clear: it asks. `TerminalOperator` asks a person;
`s2robot.envs.real.emulator.stand_in.EmulatedOperator` answers for the emulator, which needs no person.
"""

import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.utils.seeding import np_random

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import Array

_YES_NO = {"y": True, "yes": True, "n": False, "no": False}
_LISTEN_S = 0.2  # s, longest delay of a Ctrl-C during a question
WORD = "move"  # the operator must type it before the arm moves
CONFIRM, PLACE, SUCCEEDED = f"Type '{WORD}' to continue: ", "Place the cube.", "Did the episode succeed?"


class Placing(NamedTuple):
    """Cube pose and start joints of an episode; the same seed gives the same pose for every policy."""

    seed: int | None
    cube_xy: tuple[float, float]  # m, table frame: x away from the robot, y to the robot's left
    cube_yaw: float  # rad
    start_joints: Array  # (7,) rad, where the arm starts

    @classmethod
    def draw(cls, config: CubePickConfig, seed: int) -> "Placing":
        """Return cube pose and start of the simulated episode `seed`."""
        return cls(seed, *config.draw_start(np_random(seed)[0]))

    @property
    def instruction(self) -> str:
        x, y = (100 * v for v in self.cube_xy)
        turn = np.degrees(self.cube_yaw) % 90  # a cube looks the same every quarter turn
        where = f"x {x:+.1f} cm (away from the robot), y {y:+.1f} cm (to the robot's left)"
        return f"Place the cube at {where}, rotated {turn:.0f} degrees counterclockwise seen from above."


class Void(Exception):
    """Raised when an attempt does not count and must be repeated."""


class Operator(Protocol):
    """The questions that the bridge asks between two motions. After any `no`, nothing moves.

    Attributes: `person`, whether a person may press keys while the arm moves; `voids`, whether an attempt may be `Void`;
    `closest`, m, the least distance between grip and cube since the cube was placed, or None if it is not measured.
    """

    person: bool = False
    voids: bool = False
    closest: float | None = None

    def wait_to_start(self, episode: int, episodes: int) -> bool:
        """Return whether episode `episode` (from 0) may begin; the arm is stopped. False ends the session."""
        return True

    def lay(self, seed: int) -> Array | None:
        """Place the cube as in the scene of `seed` and return that scene's start joints (7,); None: a person must place it."""
        return None

    def free(self, fault: tuple[str, ...]) -> bool:
        """Return whether the arm may open its gripper and move to its start, and whether `fault`, if any, is cleared."""

    def place(self, placing: Placing) -> bool:
        """Return whether the cube is placed and everyone is clear of the arm, which is stopped meanwhile."""

    def ended(self) -> bool:
        """Return whether the episode is over; called once per step, must not block."""
        return False

    def success(self) -> bool:
        """Return whether an episode that ended without a fault succeeded. Raises Void if it does not count."""

    def failed(self, fault: str) -> None:
        """Accept that an episode ended by a fault counts as failed. Raises Void if it is to be repeated."""
        return None

    def stage(self) -> str:
        """Return the furthest stage of a failed episode, named as in the simulated world."""

    def keep(self) -> bool:
        """Return whether to keep the demonstration just recorded."""
        return True


def ask(question: str) -> str | None:
    """Return the line that a person types, stripped and lower-case; None after Ctrl-D or without a terminal.

    Drop anything typed before the question: it was not meant as an answer, and the arm might move because of it.
    """
    terminal: int | None = None
    with suppress(Exception):  # no terminal
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        terminal = sys.stdin.fileno()
    print(question, end="", flush=True)
    while terminal is not None and not select.select([terminal], [], [], _LISTEN_S)[0]:
        pass  # a Ctrl-C just before the call takes effect here; `input` would delay it until the next line
    try:
        return input().strip().lower()
    except EOFError:
        print(flush=True)  # end the question's line
        return None


class TerminalOperator(Operator):
    """Asks on the terminal. Before a motion, any answer but yes means no; a question about an outcome is repeated."""

    person = True
    stages: Sequence[str] = ("approach", "grasp", "lift", "held")

    def __init__(self, ask: Callable[[str], str | None] = ask):
        self._ask = ask

    def _yes(self, question: str) -> bool:
        return (self._ask(f"{question} [y/N] ") or "").lower() in ("y", "yes")

    def _one_of(self, question: str, answers: dict[str, Any]) -> Any:
        """Return the meaning of the answer; Ctrl-D is none. Raises EnvError at the end of standard input."""
        while (answer := self._ask(f"{question} ")) is not None or sys.stdin.isatty():
            if answer and answer.lower() in answers:
                return answers[answer.lower()]
        raise EnvError(f"operator: expected an answer to '{question}', got the end of standard input")

    def wait_to_start(self, episode: int, episodes: int) -> bool:
        text = f"{PLACE} The arm will then move slowly to its start pose. Enter: continue, q: quit. "
        return self._ask(f"episode {episode + 1} of {episodes}. {text}") == ""

    def free(self, fault: tuple[str, ...]) -> bool:
        question = "Inspect the arm and its surroundings. Is the fault cleared?"
        if fault and not self._yes(f"FAULT: {'; '.join(fault)}. {question}"):
            return False
        return self._yes("The arm will open its gripper and move to its start pose. Is everyone clear of it?")

    def place(self, placing: Placing) -> bool:
        return self._yes(f"{placing.instruction} Is the cube in place, and is everyone clear of the arm?")

    def success(self) -> bool:
        return self._one_of(f"{SUCCEEDED} [y/n]", _YES_NO)

    def stage(self) -> str:
        numbered = {str(i): name for i, name in enumerate(self.stages[:-1])}
        names = ", ".join(f"{i}: {name}" for i, name in numbered.items())
        return self._one_of(f"How far did it get? {names} [{'/'.join(numbered)}]", numbered)

    def keep(self) -> bool:
        return self._one_of("Keep this demonstration? y: keep, n: discard [y/n]", _YES_NO)


def _unnamed(fault: str) -> str:
    """Return a fault without the policy's own words, which may name it."""
    return re.sub("policy: .*", "the policy failed", fault)


class TrialOperator(TerminalOperator):
    """Judges attempts of a trial, which may be void. `scene`: for an emulated arm, the operator that places the cube in the
    emulated scene."""

    voids = True
    scene: Operator | None = None

    def free(self, fault: tuple[str, ...]) -> bool:
        return super().free(tuple(map(_unnamed, fault))) and (self.scene is None or self.scene.free(fault))

    def place(self, placing: Placing) -> bool:
        return (self.scene is None or self.scene.place(placing)) and super().place(placing)

    def success(self) -> bool:
        return self._judge("Did it succeed? y: success, n: failure, v: void (repeat it) [y/n/v]", _YES_NO)

    def failed(self, fault: str) -> None:
        self._judge(
            f"FAULT: {_unnamed(fault)}. n: count it as a failure, v: void (repeat it) [n/v]", {"n": False}
        )

    def _judge(self, question: str, answers: dict[str, bool]) -> bool:
        if (answer := self._one_of(question, {**answers, "v": None})) is None:
            raise Void
        return bool(answer)


class Stop:
    """A stop requested by a key or a signal. A request is never withdrawn."""

    def __init__(self) -> None:
        self.requested = False  # no Event: a signal could interrupt code that holds its lock
        self.interrupted = False  # by a signal
        self.moving = False  # whether a stop must brake the arm before the program ends
        self.storing = False  # whether an episode is being stored: then a signal is a request
        self.stop: Callable[[], None] = lambda: None  # called on request

    def request(self) -> None:
        """Request a stop: the arm brakes. May be called from any thread."""
        self.requested = True
        self.stop()

    def check(self) -> None:
        """Raise a signal's KeyboardInterrupt again if it was lost: the vendor's SDK swallows exceptions raised in its calls."""
        lost = self.interrupted and not self.requested
        if lost and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle Ctrl-C, SIGTERM, SIGHUP: the first brakes the arm; a second one, or any while it is at rest, ends at once."""
        shown = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

        def handle(number: int, frame: object) -> None:
            if number == signal.SIGHUP:  # printing to a closed terminal would raise
                for descriptor in shown:
                    with open(os.devnull, "w") as nowhere:
                        os.dup2(nowhere.fileno(), descriptor)
            again = self.interrupted and number != signal.SIGHUP  # a closing terminal may send two
            self.interrupted = True
            if (again or not self.moving) and not self.storing:
                raise KeyboardInterrupt
            self.request()

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

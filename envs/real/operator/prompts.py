"""Who stands beside the arm: says when it may move, where the cube lies, whether an episode succeeded, and stops it.

A program never clears a fault and never decides that the bench is free: it asks. `TerminalOperator` asks a person;
`s2robot.envs.real.emulator.stand_in.EmulatedOperator` answers for the emulator, which has nobody beside it.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium.utils.seeding import np_random

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import Array
from s2robot.envs.robots import robot_spec

_YES_NO = {"y": True, "yes": True, "n": False, "no": False}
_LISTEN_S = 0.2  # s that a Ctrl-C may wait while a question stands


@dataclass(frozen=True)
class Placing:
    """Where an episode wants its cube, so that the same seed means the same place for every policy."""

    seed: int | None
    cube_xy: tuple[float, float]  # m, table frame: x away from the robot, y to its left
    cube_yaw: float  # rad
    start_joints: Array  # (7,) rad, where the arm starts

    @classmethod
    def draw(cls, config: CubePickConfig, seed: int) -> "Placing":
        """Draw the cube and the start of the simulated episode `seed`, in the order of `CubePick.begin`."""
        rng, _ = np_random(seed)
        xy = (rng.uniform(*config.box_x), rng.uniform(*config.box_y))
        yaw = rng.uniform(*config.yaw)
        noise = rng.uniform(-config.start_noise, config.start_noise, 7)
        return cls(seed, xy, yaw, np.array(robot_spec(config.robot).home) + noise)

    @property
    def instruction(self) -> str:
        x, y = (100 * v for v in self.cube_xy)
        turn = np.degrees(self.cube_yaw) % 90  # a cube looks the same every quarter turn
        return f"Place the cube at x {x:+.1f} cm (away from the robot), y {y:+.1f} cm (to its left), turned {turn:.0f} degrees."


class Void(Exception):
    """An attempt that does not count: it is repeated."""


class Operator(Protocol):
    """What the bridge asks between two motions. Every `no` ends the matter: nothing moves.

    Attributes: `person`, whether somebody may press keys while the arm moves; `voids`, whether an attempt may be `Void`;
    `closest`, m, the least distance of grip and cube since the cube was placed, where it is measured.
    """

    person: bool = False
    voids: bool = False
    closest: float | None = None

    def wait_to_start(self, episode: int, episodes: int) -> bool:
        """Before episode `episode` (from 0) of a session, the arm stopped: may it begin? A no ends the session."""
        return True

    def lay(self, seed: int) -> Array | None:
        """The cube laid where the scene of `seed` has it: joints (7,) at which that starts; None: a person lays it."""
        return None

    def free(self, fault: tuple[str, ...]) -> bool:
        """May the arm open its gripper and go to its start? With `fault`: and is that fault looked at and cleared?"""

    def place(self, placing: Placing) -> bool:
        """Is the cube placed, and everybody clear of the arm, which is stopped meanwhile?"""

    def ended(self) -> bool:
        """Asked once a step: is the episode over? Must not wait."""
        return False

    def success(self) -> bool:
        """Asked after an episode that ended without a fault: did it succeed? Void: it does not count."""

    def failed(self, fault: str) -> None:
        """Called when a fault has ended an episode, which counts as failed. Raises Void if it is to be repeated."""
        return None

    def stage(self) -> str:
        """The furthest stage of a failed episode, as the simulated world names them."""

    def keep(self) -> bool:
        """Asked after a demonstration: is it to be kept?"""
        return True


def ask(question: str) -> str | None:
    """Return what a person types, stripped, in small letters; None after Ctrl-D or without a terminal.

    What was typed before the question is dropped: it answers something else, and an arm may move upon it.
    """
    terminal: int | None = None
    with suppress(Exception):  # no terminal
        import termios

        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
        terminal = sys.stdin.fileno()
    print(question, end="", flush=True)
    while terminal is not None and not select.select([terminal], [], [], _LISTEN_S)[0]:
        pass  # a Ctrl-C that came just before the call is heard here; `input` would keep it for after the next line
    try:
        return input().strip().lower()
    except EOFError:
        print(flush=True)  # the next line is not to stand behind the question
        return None


class TerminalOperator(Operator):
    """Asks on the terminal. Before a motion anything but `y` is a no; a question about an outcome is repeated."""

    person = True
    stages: Sequence[str] = ("approach", "grasp", "lift", "held")

    def __init__(self, ask: Callable[[str], str | None] = ask):
        self._ask = ask

    def _yes(self, question: str) -> bool:
        return (self._ask(f"{question} [y/N] ") or "").lower() in ("y", "yes")

    def _one_of(self, question: str, answers: dict[str, Any]) -> Any:
        """Return the meaning of the answer. Raises EnvError at the end of standard input."""
        while (answer := self._ask(f"{question} ")) is not None:
            if answer.lower() in answers:
                return answers[answer.lower()]
        raise EnvError(f"operator: expected an answer to '{question}', got the end of standard input")

    def wait_to_start(self, episode: int, episodes: int) -> bool:
        text = "Lay the cube. The arm then moves slowly to its start. Enter: go on, q: end. "
        return self._ask(f"episode {episode + 1} of {episodes}. {text}") not in ("q", "Q", None)

    def free(self, fault: tuple[str, ...]) -> bool:
        if fault and not self._yes(f"FAULT: {'; '.join(fault)}. Look at the arm and the bench. Cleared?"):
            return False
        return self._yes("The arm opens its gripper and moves to its start pose. Is everybody clear of it?")

    def place(self, placing: Placing) -> bool:
        return self._yes(f"{placing.instruction} Is it there, and everybody clear of the arm?")

    def success(self) -> bool:
        return self._one_of("Did the episode succeed? [y/n]", _YES_NO)

    def stage(self) -> str:
        numbered = {str(i): name for i, name in enumerate(self.stages[:-1])}
        names = ", ".join(f"{i}: {name}" for i, name in numbered.items())
        return self._one_of(f"How far did it come? {names} [{'/'.join(numbered)}]", numbered)

    def keep(self) -> bool:  # a no throws the demonstration away
        return self._one_of("Keep it? [y/n]", _YES_NO)


class TrialOperator(TerminalOperator):
    """Judges attempts of a trial, which may be void. `scene`: the operator of an emulated arm, who places what the person says
    is there."""

    voids = True
    scene: Operator | None = None

    def free(self, fault: tuple[str, ...]) -> bool:
        return super().free(fault) and (self.scene is None or self.scene.free(fault))

    def place(self, placing: Placing) -> bool:
        return (self.scene is None or self.scene.place(placing)) and super().place(placing)

    def success(self) -> bool:
        return self._judge("Did it succeed? y: success, n: failure, v: void, repeat it [y/n/v]", _YES_NO)

    def failed(self, fault: str) -> None:
        self._judge(f"FAULT: {fault}. n: it counts as a failure, v: void, repeat it [n/v]", {"n": False})

    def _judge(self, question: str, answers: dict[str, bool]) -> bool:
        if (answer := self._one_of(question, {**answers, "v": None})) is None:
            raise Void
        return bool(answer)


class Stop:
    """A stop that a key or a signal requests. A request is never withdrawn."""

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
        return self._asked.is_set()

    def check(self) -> None:
        """Raise a signal's KeyboardInterrupt anew if it was lost: the vendor's SDK swallows what is raised in its calls."""
        lost = self.interrupted and not self.asked()
        if lost and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM, SIGHUP: the first brakes the arm, the second one, or one while it stands, ends at once."""
        shown = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

        def handle(number: int, frame: object) -> None:
            if number == signal.SIGHUP:  # printing to a terminal that has gone would raise
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

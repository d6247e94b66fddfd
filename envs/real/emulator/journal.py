"""What reached the box and what the arm did, with monotonic times: the evidence behind every fault test."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

JUMP = 0.15  # rad from the last target: more than full speed covers in two periods at 50 Hz


@dataclass(frozen=True)
class Command:
    """One command that arrived, whether or not the box obeyed."""

    number: int
    time: float  # monotonic, s
    kind: str  # motion, gripper, stop, state
    name: str  # the function's name in wire.Fn
    values: tuple[float, ...]
    client: int  # the connection it came by
    accepted: bool
    flags: tuple[str, ...]  # nonfinite, limit, jump, error, not_ready, mode

    @property
    def unsafe(self) -> bool:
        """Whether it could harm the arm, had the box obeyed."""
        return bool({"nonfinite", "limit", "jump"} & set(self.flags))


class Journal:
    """The last commands and the last two minutes of motion."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._count = 0
        self.commands: deque[Command] = deque(maxlen=100_000)
        self._motion: deque[dict] = deque(maxlen=30_000)  # at 250 Hz

    def command(
        self, kind: str, name: str, values, client: int, accepted: bool, flags: tuple[str, ...] = ()
    ) -> None:
        """Note a command that has just arrived."""
        values = tuple(float(v) for v in values)
        self.commands.append(
            Command(self._count, self._clock(), kind, name, values, client, accepted, tuple(flags))
        )
        self._count += 1

    def moved(self, joints: np.ndarray, velocities: np.ndarray, set_point: np.ndarray) -> None:
        """Note where the arm is; the arrays are kept and must not be changed afterwards."""
        row = {"time": self._clock(), "joints": joints, "velocities": velocities, "set_point": set_point}
        self._motion.append(row)

    def commands_since(self, time_s: float = 0.0, number: int = 0) -> list[dict]:
        """Commands that arrived from ``time_s`` on, as JSON types."""
        return [
            asdict(c) | {"unsafe": c.unsafe} for c in self.commands if c.time >= time_s and c.number >= number
        ]

    def motion_since(self, time_s: float) -> list[dict]:
        """Joints, velocities (rad, rad/s) and set point per tick from ``time_s`` on; arrays, not to be changed."""
        first = bisect_left(self._motion, time_s, key=lambda row: row["time"])
        return list(islice(self._motion, first, None))

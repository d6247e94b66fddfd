"""What reached the box and what the arm did, with monotonic times: the evidence behind every fault test."""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

STILL = 0.01  # rad/s, below which a joint counts as standing
JUMP = 0.15  # rad from the last target: more than full speed covers in two periods at 50 Hz

_Row = tuple[float, np.ndarray, np.ndarray, np.ndarray]  # time, joints, velocities, set point


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
    flags: tuple[str, ...]  # nonfinite, limit, jump, error, not_ready, mode, full

    @property
    def unsafe(self) -> bool:
        """The arm could be harmed by it, had the box obeyed."""
        return bool({"nonfinite", "limit", "jump"} & set(self.flags))


class Journal:
    """The last commands and the last two minutes of motion."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._count = 0
        self.commands: deque[Command] = deque(maxlen=100_000)
        self._motion: deque[_Row] = deque(maxlen=30_000)  # at 250 Hz

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
        self._motion.append((self._clock(), joints, velocities, set_point))

    # -------------------------------------------------------------------------------------------- queries

    def commands_since(self, time_s: float = 0.0, number: int = 0) -> list[dict]:
        """Commands that arrived from ``time_s`` on, as JSON types."""
        return [
            asdict(c) | {"unsafe": c.unsafe} for c in self.commands if c.time >= time_s and c.number >= number
        ]

    def motion_since(self, time_s: float) -> list[dict]:
        """Joints, velocities (rad, rad/s) and set point per tick from ``time_s`` on; arrays, which nobody may change."""
        return [
            {"time": t, "joints": q, "velocities": v, "set_point": s} for t, q, v, s in self._rows(time_s)
        ]

    def _rows(self, time_s: float) -> list[_Row]:
        first = bisect_left(self._motion, time_s, key=lambda row: row[0])
        return list(islice(self._motion, first, None))

    def after(self, time_s: float) -> dict:
        """How the arm came to rest after a fault at ``time_s``.

        ``last_motion_command`` (s after it, None if none arrived), ``motion_commands``, ``unsafe``: of the commands
        since; ``zero_velocity``: s until all joints stood for good (None while they move), ``travel``: the largest
        joint motion meanwhile (rad).
        """
        since = [c for c in self.commands if c.time >= time_s and c.kind == "motion"]
        trace = [(t, q, v) for t, q, v, _ in self._rows(time_s)]
        moving = [t for t, _, v in trace if np.abs(v).max() > STILL]
        standing = bool(trace) and np.abs(trace[-1][2]).max() <= STILL
        zero = (moving[-1] - time_s if moving else 0.0) if standing else None
        joints = np.array([q for _, q, _ in trace]) if trace else np.zeros((1, 7))
        return {
            "motion_commands": len(since),
            "accepted": sum(c.accepted for c in since),
            "unsafe": sum(c.unsafe for c in since),
            "last_motion_command": since[-1].time - time_s if since else None,
            "zero_velocity": zero,
            "travel": float(np.abs(joints - joints[0]).max()),
        }

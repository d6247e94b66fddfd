"""What the bridge asks of an arm. SI units here: rad, m, s, N m; other units live inside a driver.

All positions are in the frame of the arm's base: x forward, y to its left, z up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from s2robot.envs.errors import EnvError

Array = NDArray[np.float64]
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # (low, high) of x, y, z

OK = 0  # CommandResult.code of a command that the arm took
LATE_S = 0.005  # s that an answer may take while the command counts as heard when it was sent
REFUSED = -1000  # CommandResult.code of a command that the driver itself did not send


@dataclass(frozen=True)
class ArmLimits:
    """What the stream of commanded joints never leaves."""

    q_min: tuple[float, ...]  # (7,) rad, of the arm itself; `margin` is kept from them
    q_max: tuple[float, ...]  # (7,) rad
    dq_max: tuple[float, ...]  # (7,) rad/s
    ddq_max: tuple[float, ...]  # (7,) rad/s²
    box: Box  # m, where TCP, fingers and knuckles may be
    table_z: float  # m, the table's top
    margin: float = 0.05  # rad, kept from q_min and q_max
    # m from the table to the lowest that a finger tip gets at any opening; below zero, a command may press closing
    # fingers this far into the table: tips reach 12 mm lower while they close
    table_clearance: float = -0.001
    point_speed: float = 1.0  # m/s of TCP, fingers, wrist, elbow; xArm's own error 60 comes at about 1 m/s
    step_max: float = 0.1  # rad, a target further than this from the last command is a jump, and stops
    lag_max: float = 0.15  # rad between commanded and measured joints: more means blocked or not following
    point_lag_max: float = 0.05  # m between a point at the commanded and at the measured joints: likewise
    rate_hz: float = 100.0  # commands a second
    arm_box: Box | None = None  # m, where wrist, forearm and elbow may be; None: anywhere above the table

    def __post_init__(self) -> None:
        for name in ("q_min", "q_max", "dq_max", "ddq_max"):
            values = getattr(self, name)
            if len(values) != 7 or not np.isfinite(values).all():
                raise EnvError(f"limits.{name}: found {values}, expected 7 finite numbers")
        for name in ("dq_max", "ddq_max"):
            if min(getattr(self, name)) <= 0:
                raise EnvError(f"limits.{name}: found {getattr(self, name)}, expected values above 0")
        for name in ("point_speed", "step_max", "lag_max", "point_lag_max", "rate_hz"):
            if not 0 < getattr(self, name) < np.inf:
                raise EnvError(f"limits.{name}: found {getattr(self, name)}, expected a value above 0")
        if not self.margin >= 0 or (np.subtract(self.q_max, self.q_min) <= 2 * self.margin).any():
            raise EnvError(
                f"limits.margin: found {self.margin}, expected 0 or more, and room between q_min and q_max"
            )
        if self.step_max < (least := max(self.dq_max) / self.rate_hz):
            raise EnvError(
                f"limits.step_max: found {self.step_max}, expected at least what dq_max allows in a period, {least:.3g}"
            )
        for name, box in (("box", self.box), ("arm_box", self.arm_box)):
            if not _is_box(box) and (box is not None or name == "box"):
                raise EnvError(f"limits.{name}: found {box}, expected (low, high) of x, y and z")
        if not np.isfinite([self.table_z, self.table_clearance]).all():
            raise EnvError("limits.table_z, limits.table_clearance: expected finite numbers")


@contextmanager
def arming(stop: Callable[[str], object], last_stop: Callable[[], object]) -> Iterator[None]:
    """What an arm goes through until it is ready; a part of it may leave the box ready, and so is stopped.

    Args:
        stop: the driver's own.
        last_stop: a thing that each stop makes anew: one that came from another thread meanwhile is not lost.

    Raises:
        EnvError: it was stopped meanwhile.
    """
    before = last_stop()
    try:
        yield
    except BaseException:
        stop("could not be armed")
        raise
    if last_stop() is not before:
        stop("stopped while it was armed")
        raise EnvError("arm: found a stop while it was armed, expected none")


def _is_box(box: Any) -> bool:
    try:
        numbers = np.array(box, float)
    except (TypeError, ValueError):  # words, or rows of different lengths
        return False
    return numbers.shape == (3, 2) and bool(
        np.isfinite(numbers).all() and (np.diff(numbers, axis=1) > 0).all()
    )


@dataclass(frozen=True)
class ArmState:
    """One reading of the arm."""

    q: Array  # (7,) rad, measured
    dq: Array  # (7,) rad/s
    tau: Array  # (7,) N m, as far as the arm tells
    tcp: Array  # (6,) m and rad: x, y, z, roll, pitch, yaw
    gripper: float  # opening, 0 closed to 1 open
    t_mono: float  # s, host's clock (`control.clock.now`), when the reading was asked for: it is not older than that
    mode: int  # the arm's own number
    error: int  # the arm's own number; 0 = none


@dataclass(frozen=True)
class CommandResult:
    """What became of one command."""

    code: int  # OK, REFUSED, or the arm's own number
    t_sent: float  # s, host's clock
    t_ack: float  # s

    @property
    def t_heard(self) -> float:
        """When the arm heard it, s, as late as that may have been: the next is due no sooner than a period after."""
        return self.t_ack if self.t_ack - self.t_sent > LATE_S else self.t_sent


@dataclass(frozen=True)
class DriverStatus:
    """What is known of the arm without asking it."""

    connected: bool
    error: int  # 0 = none
    warn: int  # 0 = none
    mode: int
    report_age_s: float  # since the arm last said anything by itself; inf = never


class ArmDriver(Protocol):
    """An arm with a gripper. Only `stop` may be called from another thread than the rest."""

    limits: ArmLimits

    def connect(self, timeout_s: float) -> None:
        """Reach the arm, move nothing. Raises EnvError after `timeout_s` at the latest."""

    def arm(self) -> None:
        """Enable motion. Clears no error: raises EnvError where one is pending."""

    def read(self) -> ArmState:
        """Measured state, asked for now. Raises EnvError where the arm does not answer in time."""

    def command(self, q: Array, gripper: float | None) -> CommandResult:
        """Send absolute joints (7,) rad and, unless None, a gripper opening 0 to 1; does not wait for motion."""

    def stop(self, reason: str) -> bool:
        """Stop in a controlled way, no emergency stop; may be repeated, from any thread. Never raises.

        Returns: whether the arm acknowledged it. After False the arm may go on to its last target and stay enabled.
        """

    def status(self) -> DriverStatus:
        """Cheap, never blocks on the arm."""

    def close(self) -> None:
        """Let go of the arm; may be repeated."""


# The joint range is the vendor's (also in robosuite's model of the arm); speeds and accelerations stay well below its
# 3.14 rad/s and 20 rad/s². All but the range equals `limits` of configs/bridge/default.yaml (a test compares). Box and table belong to the cube-pick scene, with the arm's base 0.46 m behind the
# table's centre and 0.112 m above its top: another bench needs its own.
XARM7_LIMITS = ArmLimits(
    q_min=(-6.28318, -2.059, -6.28318, -0.19198, -6.28318, -1.69297, -6.28318),
    q_max=(6.28318, 2.0944, 6.28318, 3.927, 6.28318, 3.14159, 6.28318),
    dq_max=(1.8,) * 7,
    ddq_max=(14.0,) * 7,
    box=((0.15, 0.75), (-0.40, 0.40), (-0.13, 0.50)),
    table_z=-0.112,
)

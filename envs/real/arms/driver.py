"""The interface of an arm, and code that drivers share. It uses SI units (rad, m, s, N m); other units stay in a driver.

All positions are in the frame of the arm's base: x forward, y left, z up.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from s2robot.core.settings import Settings, from_yaml, yaml_defaults
from s2robot.envs.errors import EnvError, expect

T = TypeVar("T")
Array = NDArray[np.float64]

OK = 0  # CommandResult.code of a command that the arm accepted
LATE_S = 0.005  # s; if an answer takes longer, the arm may have received the command as late as the answer
REFUSED = -1000  # CommandResult.code of a command that the driver rejected without sending it


def _check_ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] >= ends[1]:
        raise ValueError(f"expected (low, high), got {ends}")
    return ends


Joints = Annotated[tuple[float, ...], Field(min_length=1)]  # one number per joint
Rates = tuple[Annotated[float, Field(gt=0)], ...]
_Ends = Annotated[tuple[float, float], AfterValidator(_check_ascending)]
Box = tuple[_Ends, _Ends, _Ends]  # (low, high) of x, y, z


class ArmLimits(Settings, at="bridge.limits", file="bridge/default"):
    """Limits that the stream of joint commands never exceeds; configs/bridge/default.yaml documents each value."""

    # rad, the arm's own range, from its description; commands stay `margin` away from its ends
    q_min: Joints = Field(default_factory=lambda: tuple(yaml_defaults("robot/xarm7")["q_min"]), exclude=True)
    q_max: Joints = Field(default_factory=lambda: tuple(yaml_defaults("robot/xarm7")["q_max"]), exclude=True)
    dq_max: Rates = from_yaml()
    ddq_max: Rates = from_yaml()
    margin: float = from_yaml(ge=0)
    box: Box = from_yaml()
    arm_box: Box | None = from_yaml()
    table_z: float = from_yaml()
    table_clearance: float = from_yaml()
    point_speed: float = from_yaml(gt=0)
    step_max: float = from_yaml(gt=0)
    lag_max: float = from_yaml(gt=0)
    stall_lag: float = from_yaml(gt=0)
    point_lag_max: float = from_yaml(gt=0)
    rate_hz: float = from_yaml(ge=25)  # a shorter gap than `loop.STOOD_S`, which counts as rest

    @field_validator("dq_max", "ddq_max", mode="before")
    @classmethod
    def _one_for_all_joints(cls, value: Any, info: ValidationInfo) -> Any:
        one = isinstance(value, int | float) and not isinstance(value, bool)
        return (value,) * len(info.data.get("q_min", ())) if one else value

    def rules(self) -> Iterable[tuple[Any, ...]]:
        for key in ("q_max", "dq_max", "ddq_max"):
            yield key, len(getattr(self, key)) == self.joints, f"{self.joints} values, one per joint"
        room = np.subtract(self.q_max, self.q_min)
        yield "margin", (room > 2 * self.margin).all(), "less than half of each range q_min to q_max"
        least = max(self.dq_max) / self.rate_hz
        yield "step_max", self.step_max >= least, f">= {least:.3g}, what dq_max allows in a period"

    @property
    def joints(self) -> int:
        """The number of joints, N."""
        return len(self.q_min)

    def at_most(self, dq: Rates | float | None, ddq: Rates | float | None) -> Self:
        """Return limits capped at these rates, one for all joints or one per joint; None: no cap."""
        caps = {"dq_max": dq, "ddq_max": ddq}
        return self.replace(**{
            key: tuple(np.minimum(getattr(self, key), cap).tolist()) for key, cap in caps.items() if cap is not None
        })  # fmt: skip


XARM7_LIMITS = ArmLimits()  # box and table fit the cube-pick scene: another bench needs its own values


@dataclass(frozen=True)
class ArmState:
    q: Array  # (N,) rad, measured
    gripper: float  # opening, 0 closed to 1 open; NaN without a gripper
    t_mono: float  # s, host's clock (`control.clock.now`), when the reading was requested: it is no older than that
    mode: int  # the arm's own code
    error: int  # the arm's own code; 0 = none


@dataclass(frozen=True)
class CommandResult:
    """The outcome of one command. Times are on the host's clock."""

    code: int  # OK, REFUSED, or the arm's own code
    t_sent: float  # s
    t_ack: float  # s

    @property
    def t_heard(self) -> float:
        """The latest time, s, at which the arm received it; the next command is due at least one period later."""
        return self.t_ack if self.t_ack - self.t_sent > LATE_S else self.t_sent


@dataclass(frozen=True)
class DriverStatus:
    """The arm's last known status, read without a request to it."""

    connected: bool
    error: int  # 0 = none
    mode: int
    report_age_s: float  # since the arm's last unsolicited report; inf = never


class ArmDriver(AbstractContextManager):
    """An arm of N joints, with or without a gripper. `stop` may be called from any thread, all else from one thread only.

    `command` is rejected before `arm` and after `stop`, and if the joints are not N finite numbers within range, are more
    than `step_max` (rad) from the last command, or the opening is not within 0 to 1.
    """

    armed_mode: int = 1  # the arm's own code of the mode in which it accepts commands
    one_client: bool = False  # accepts one connection, and brakes by itself when that is lost
    described: bool = False  # constructed with the whole ArmDescription instead of its address
    slack: float = 0.0  # rad by which joints at rest may miss their command, for example under gravity
    views: Mapping[str, tuple[int, int]] = {}  # cameras of the robot itself -> (H, W) of their frames
    stop_effect: str = ""  # the effect of each stop, shown to the operator before the arm moves

    def __init__(self, limits: ArmLimits, step_max: Any):
        self.limits, self._step_max = limits, step_max
        self._last = np.full(limits.joints, np.nan)  # rad, the last command
        self.stopped = "not armed"  # why `command` rejects everything; empty while armed
        self._last_stop = object()  # replaced by each stop, so that a stop from another thread is noticed

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def connect(self, timeout_s: float) -> None:
        """Connect to the arm without moving it. Raises EnvError after `timeout_s` at the latest."""

    @abstractmethod
    def arm(self) -> None:
        """Enable motion. Clears no error: raises EnvError if one is pending."""

    @abstractmethod
    def read(self) -> ArmState:
        """Request and return the measured state. Raises EnvError if the arm does not answer in time."""

    @abstractmethod
    def command(self, q: Array, gripper: float | None) -> CommandResult:
        """Send absolute joints (N,) rad and, unless None, a gripper opening 0 to 1, without waiting for the motion."""

    @abstractmethod
    def stop(self, reason: str) -> bool:
        """Stop in a controlled way (not an emergency stop). May be called repeatedly, from any thread. Never raises.

        Returns: whether the arm acknowledged it. After False the arm may move on to its last target and stay enabled.
        """

    @abstractmethod
    def status(self) -> DriverStatus:
        """Return the last known status; cheap, never waits for the arm."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect; may be called repeatedly."""

    def _sendable(self, q: Any, gripper: Any) -> Array | None:
        target = finite_joints(q, self.limits.joints)
        good = gripper is None or (isinstance(gripper, float | int | np.number) and 0 <= gripper <= 1)
        if self.stopped or not good or target is None:
            return None
        inside = ((target >= self.limits.q_min) & (target <= self.limits.q_max)).all()
        return target if inside and (np.abs(target - self._last) <= self._step_max).all() else None

    @contextmanager
    def _arming(self) -> Iterator[None]:
        """Arm the arm within this context; stop it if a step fails, or if `stop` was called meanwhile."""
        before = self._last_stop
        try:
            yield
        except BaseException:
            self.stop("could not be armed")
            raise
        if self._last_stop is not before:
            self.stop("stopped while it was armed")
            raise EnvError("arm: stopped while it was being armed")


def finite_joints(value: Any, n: int) -> Array | None:
    """Return `value` as n finite numbers, or None if it is anything else.  # float64 (n,)"""
    try:
        array = np.asarray(value)
    except Exception:  # an arbitrary object may raise anything; it is not a target
        return None
    if array.shape != (n,) or array.dtype.kind not in "fiu":
        return None
    array = array.astype(float)
    return array if np.isfinite(array).all() else None


def measured(arm: str, q: Array, silent_s: float = 0.0, most_s: float = 0.0) -> Array:
    """Return the measured joints. Raises EnvError unless they are finite and the gripper answered within `most_s`."""
    expect(np.isfinite(q).all(), arm, "finite joints", q.tolist())
    expect(silent_s <= most_s, arm, f"an answer from the gripper within {most_s:g} s", "none")
    return q


def made_within(seconds: float, make: Callable[[], T], drop: Callable[[T], object], what: str) -> T:
    """Return `make()`, called in a separate thread because a library may wait minutes for a silent arm.

    A late result is passed to `drop`. Raises EnvError, prefixed with `what`, if the call failed or took longer.
    """
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(make())
        except BaseException as error:  # passed to the caller's thread
            result.set_exception(RuntimeError(error))

    threading.Thread(target=run, daemon=True, name=what).start()
    try:
        return result.result(max(seconds, 0.0))
    except (TimeoutError, RuntimeError) as error:
        result.add_done_callback(lambda late: late.exception() or drop(late.result()))
        why = str(error) or "no complete answer in time"
        raise EnvError(f"{what}: cannot connect ({why})") from None

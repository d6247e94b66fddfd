"""What drives an arm: control loop, safety filter, watchdog, supervisor and the operator's stop, joined once.

    runtime = ArmRuntime(driver, cameras, policy.act, points, RuntimeConfig(LoopConfig(live=True)), [recorder])
    with runtime.watched(make_driver, limit_s=0.3):        # another process stops the arm if this one cannot
        runtime.arm()
        if runtime.go_to(home):
            result = runtime.run(max_steps=80)

Deployment, evaluation and recording on an arm, and `RealCubePick`, are each a session's course on top of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmDriver, Array
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.clock import REAL, Clock, Thread
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig, Result
from s2robot.envs.real.control.move import move_slowly
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.sensors import Camera
from s2robot.envs.real.control.subscriber import Subscriber, Subscribers
from s2robot.envs.real.control.supervisor import UNCONFIRMED, Supervisor, WatchedArm
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from s2robot.envs.real.operator.stop import Stop

AT = 0.02  # rad; within this the arm is where it is to be
OPEN = 0.9  # of the gripper, likewise
_ASK_S = 0.2  # s between two questions whether the episode is over


@dataclass(frozen=True)
class RuntimeConfig:
    """How an arm is driven."""

    loop: LoopConfig = field(
        default_factory=LoopConfig
    )  # `live=True` moves the arm; otherwise all happens but motion
    watchdog: WatchdogLimits = field(default_factory=WatchdogLimits)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    home_speed: float = 0.3  # rad/s of the way to a start


class ArmRuntime:
    """One arm with its cameras, and who acts.

    Args:
        driver: connected.
        cameras: name -> started reader, in the order of whoever acts.
        act: observation -> action (8,), as of `ControlLoop`.
        points: of the arm, for the filter.
        config: see there.
        subscribers: hear of the loop's episodes.
        stop: the operator's; on the way to a start it is asked every period, in an episode it stops the loop.
        supervisor: stops the arm when this process no longer does; or see `watched`. Without one a live arm stays still.
        clock: of everything but the driver and the cameras.
        disagreement: of the members of who acts, as of `ControlLoop`.

    Attributes: `loop`; `result` and `error` of the episode that `start` has begun, once it is over.
    """

    def __init__(
        self,
        driver: ArmDriver,
        cameras: Mapping[str, Camera],
        act: Callable[[dict], np.ndarray],
        points: ArmPoints,
        config: RuntimeConfig | None = None,
        subscribers: Sequence[Subscriber] = (),
        stop: Stop | None = None,
        supervisor: Supervisor | None = None,
        clock: Clock = REAL,
        disagreement: Callable[[], float] = lambda: 0.0,
    ):
        self.config, self.clock = config or RuntimeConfig(), clock
        self._arm = WatchedArm(driver, lambda: self._supervisor)
        self.driver = cast(ArmDriver, self._arm)
        self.live = self.config.loop.live
        self.loop = ControlLoop(
            self.driver, cameras, act, SafetyFilter(driver.limits, points, self.config.safety), self.config.loop,
            self.config.watchdog, Subscribers(_Heart(self.beat), *subscribers), clock, disagreement,
        )  # fmt: skip
        self.stop = stop or Stop()
        self.stop.stop = self.loop.request_stop
        self._supervisor = supervisor
        self._thread: Thread | None = None
        self.result: Result | None = None
        self.error: BaseException | None = None

    @contextmanager
    def watched(self, make_driver: Callable[[], ArmDriver], limit_s: float) -> Iterator[None]:
        """Beside a supervisor of its own (see there for the arguments); the arm is stopped at the end.

        Signals to end this process are the operator's stop meanwhile, see `Stop.on_signals`.
        """
        with self.stop.on_signals():
            self._supervisor = supervisor = Supervisor(make_driver, limit_s)
            confirmed = False  # a signal may interrupt the stop
            try:
                yield
            finally:
                try:
                    confirmed = self.driver.stop("end of the session")
                finally:
                    self._supervisor = None
                    supervisor.close(confirmed)

    def beat(self) -> None:
        """Tell the supervisor that this process lives.

        Raises:
            EnvError: the supervisor does not live, or there is none; see also `Stop.check`.
        """
        self.stop.check()
        self._check_watched()
        if self._supervisor is not None:
            self._supervisor.beat()

    def _check_watched(self) -> None:
        if self.live and self._supervisor is None:
            raise EnvError(
                "supervisor: found none, expected a process that stops the arm when this one cannot (`watched`, or "
                "`supervisor=`)"
            )

    def rest(self) -> None:
        """Tell the supervisor that the arm stands, and that no beat follows for now."""
        if self._supervisor is not None:
            with suppress(EnvError):  # told by the next beat, before the next motion
                self._supervisor.rest()

    # ---------------------------------------------------------------- between episodes

    @property
    def fault(self) -> tuple[str, ...]:
        """Why the watchdog has latched a fault; empty if it has not."""
        return self.loop.watchdog.reasons if self.loop.watchdog.state == State.FAULT else ()

    def clear(self) -> None:
        """The operator has looked at the arm and says so."""
        self.loop.watchdog.clear(self.clock.now())

    @property
    def confirmed(self) -> bool:
        """Whether the arm acknowledged the last stop."""
        return self._arm.confirmed

    @property
    def known(self) -> str:
        """What is known of an arm after a stop, for the screen."""
        return "The arm is stopped." if self.confirmed else UNCONFIRMED

    def stand(self, reason: str) -> None:
        """Stop the arm because people come near. Raises EnvError if it does not acknowledge that."""
        if not self.driver.stop(reason):
            raise EnvError(f"stop ({reason}): {UNCONFIRMED}")

    def arm(self) -> None:
        """Enable motion; nothing without `live`. A stop that was requested before counts no more.

        Raises:
            EnvError: an error is pending, or there is no supervisor.
        """
        self._check_watched()
        self.loop.clear_stop()
        if self.live:
            try:
                self.driver.arm()
            except BaseException:
                self.driver.stop("could not be armed")
                raise

    def at(self, goal: Array) -> bool:
        """Whether the arm stands at joints (7,) with its gripper open."""
        state = self.driver.read()
        return bool(np.abs(state.q - goal).max() < AT and state.gripper > OPEN)

    def go_to(self, goal: Array) -> bool:
        """Slowly to joints (7,), the gripper open; False after the operator's stop. Raises as `move_slowly`."""
        try:
            return move_slowly(
                self.driver, self.loop.safety, goal, 1.0, self.config.home_speed, self.loop.subscriber.on_beat,
                lambda: self.stop.asked() or self.loop.stop_requested, self.clock,
                self.config.watchdog.gap,
            )  # fmt: skip
        finally:
            self.rest()

    # ---------------------------------------------------------------- episodes

    def run(self, max_steps: int) -> Result:
        """One episode, as `ControlLoop.run`."""
        try:
            return self.loop.run(max_steps)
        finally:
            self.rest()

    def start(self, max_steps: int, ended: Callable[[], None]) -> None:
        """As `run`, in a thread of its own, where `ended` is called when it is over."""
        self.result, self.error = None, None

        def episode() -> None:
            try:
                self.result = self.run(max_steps)
            except BaseException as error:  # whoever waits raises it
                self.error = error
            ended()

        self._thread = self.clock.spawn(episode, "control loop")

    @property
    def running(self) -> bool:
        """Whether the episode that `start` has begun goes on."""
        return self._thread is not None and self.result is None and self.error is None

    def join(self) -> bool:
        """Wait for the end of that episode and stop the arm; False if there was none."""
        if self._thread is None:
            return False
        self._thread.join()
        self._thread = None
        if self.live:
            self.driver.stop("end of the episode")
        return True

    @contextmanager
    def ends_when(self, over: Callable[[], bool]) -> Iterator[None]:
        """While this lasts an episode ends as soon as `over`, asked in a thread of its own, says so."""
        left = self.clock.condition()
        done: list[bool] = []

        def watch() -> None:
            with suppress(
                EnvError
            ):  # who would say so has gone: if that is the arm, the loop hears of it itself
                while not self._waited(left, done):
                    if over():
                        self.loop.request_end()
                        return

        thread = self.clock.spawn(watch, "end of the episode")
        try:
            yield
        finally:
            with left:
                done.append(True)
                left.notify_all()
            thread.join(5.0)

    @staticmethod
    def _waited(left, done: list[bool]) -> bool:
        """Whether it is done, after waiting for that a little."""
        with left:
            return bool(left.wait_for(lambda: done, _ASK_S))


class _Heart(Subscriber):
    """Beats with the loop."""

    def __init__(self, beat: Callable[[], None]):
        self._beat = beat

    def on_beat(self) -> None:
        """See `Subscriber`."""
        self._beat()

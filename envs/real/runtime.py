"""An arm, ready for episodes: control loop, safety filter, watchdog, supervisor and the operator's stop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import numpy as np

from s2robot.envs.errors import EnvError, expect
from s2robot.envs.real.arms.driver import ArmDriver, Array
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.clock import REAL, Clock
from s2robot.envs.real.control.loop import PRESSES, ControlLoop, LoopConfig, Result
from s2robot.envs.real.control.motion import SHARE, Interpolator
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.supervisor import UNCONFIRMED, EndsLoop, Supervisor, WatchedArm
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from s2robot.envs.real.operator.prompts import Operator, Placing, Stop

AT = 0.02  # rad from its goal within which the arm need not move
OPEN = 0.9  # opening from which the gripper counts as open
_ARRIVED = 0.01  # rad, tolerance at the end of a move
_MOVE_HZ, _GRIPPER_S = 10.0, 3.0  # waypoints per second of a move; s allowed for the fingers
_POLL_S = 0.2  # s between two checks whether the episode is over


class ArmRuntime(Subscriber):
    """One arm with its cameras and a policy. Arguments as for `ControlLoop`, and:

    Args:
        points: the arm's monitored points, for the filter.
        stop: the operator's stop; it ends moves to a start as well as episodes.
        supervisor: stops the arm if this process hangs or dies; see also `watched`. A live arm requires one.
        home_speed: rad/s of a move to a start.
    """

    def __init__(
        self, driver: ArmDriver, cameras: Mapping[str, CameraReader], act: Callable[[dict], np.ndarray],
        points: ArmPoints, loop: LoopConfig | None = None, watchdog: WatchdogLimits | None = None,
        safety: SafetyConfig | None = None, subscribers: Sequence[Subscriber] = (), stop: Stop | None = None,
        supervisor: Supervisor | None = None, home_speed: float = 0.3, clock: Clock = REAL,
        disagreement: Callable[[], float] = lambda: 0.0,
    ):  # fmt: skip
        self.clock, self._home_speed = clock, home_speed
        self._arm = WatchedArm(driver, lambda: self._supervisor)
        self.driver = cast(ArmDriver, self._arm)
        self.loop = ControlLoop(
            self.driver, cameras, act, SafetyFilter(driver.limits, points, safety), loop, watchdog,
            [self, *subscribers], clock, disagreement,
        )  # fmt: skip
        self.live = self.loop.config.live
        self.stop = stop or Stop()
        self.stop.stop = self.loop.request_stop
        self._supervisor = supervisor

    @contextmanager
    def watched(self, make_driver: Callable[[], ArmDriver | EndsLoop], limit_s: float) -> Iterator[None]:
        """Run with a `Supervisor` (see there for the arguments); the arm is stopped at the end.

        Signals that would end this process become the operator's stop, see `Stop.on_signals`.
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

    def on_beat(self) -> None:
        """Send the supervisor a heartbeat. Raises EnvError if it has ended or there is none; see also `Stop.check`."""
        self.stop.check()
        self._check_watched()
        if self._supervisor is not None:
            self._supervisor.beat()

    def _check_watched(self) -> None:
        expected = "one that stops the arm if this process cannot"
        expect(self._supervisor is not None or not self.live, "supervisor", expected, "none")

    def rest(self) -> None:
        """Announce to the supervisor that the arm is at rest and no heartbeat follows for now."""
        if self._supervisor is not None:
            with suppress(EnvError):  # the next heartbeat raises it again, before the next motion
                self._supervisor.rest()

    @property
    def fault(self) -> tuple[str, ...]:
        """Why the watchdog has latched a fault; empty if it has not."""
        return self.loop.watchdog.reasons if self.loop.watchdog.state == State.FAULT else ()

    def clear(self) -> None:
        """Clear a fault, after an operator has inspected the arm and confirmed it."""
        self.loop.watchdog.clear(self.clock.now())

    @property
    def confirmed(self) -> bool:
        """Whether the arm acknowledged the last stop."""
        return self._arm.confirmed

    def stop_for_operator(self, reason: str) -> None:
        """Stop the arm before anyone approaches it. Raises EnvError if the arm does not acknowledge the stop."""
        if not self.driver.stop(reason):
            raise EnvError(f"stop ({reason}): {UNCONFIRMED}")

    def arm(self) -> None:
        """Enable motion (only with `live`) and reset the loop's earlier stop request, unless it was the operator's.

        Raises EnvError if an error is pending, or there is no supervisor.
        """
        self._check_watched()
        self.loop.stop_requested = False
        if self.stop.requested:
            self.loop.request_stop()
        if self.live:
            try:
                self.driver.arm()
            except BaseException:
                self.driver.stop("could not be armed")
                raise

    def at(self, goal: Array) -> bool:
        """Return whether the arm is at joints (N,) with its gripper, if any, open."""
        state = self.driver.read()
        near = np.abs(state.q - goal).max() < AT + self.driver.slack
        return bool(near and (self.loop.config.gripper is None or state.gripper > OPEN))

    def go_to(self, goal: Array) -> bool:
        """Move slowly, on a straight line in joint space, to joints (N,) rad with the gripper open; return False after a stop.

        Filter and watchdog act as in an episode. No planner avoids obstacles: the operator must check the path.
        Raises EnvError and leaves the arm stopped after a fault, or if the arm did not arrive.
        """
        speed, main = self._home_speed, self.loop
        kind = "binary" if main.config.gripper else None
        changes = {"policy_hz": _MOVE_HZ, "max_delta": speed / _MOVE_HZ, "gripper_hold": 0, "gripper": kind}
        changes |= {"absolute": False, "check_chunks": False}
        config, n = main.config.replace(**changes), self.driver.limits.joints
        arrived, presses = _ARRIVED + self.driver.slack, PRESSES + self.driver.slack
        waited: list[int] = []  # one entry per step at the goal, while arm and fingers settle

        def act(observation: dict) -> Array:
            left, state = goal - move.stream.commanded, observation["proprio"]
            if np.isnan(left).any():  # the warm-up
                return np.zeros(len(state))
            off = np.abs(state[:n] - goal).max()
            if np.abs(left).max() < 1e-6 and off < arrived:
                waited.append(1)
                # within the tolerance of the loop's end, which otherwise moves the command back to the arm
                if (off < presses and (state[n:] > OPEN).all()) or len(waited) > _GRIPPER_S * _MOVE_HZ:
                    move.request_end()
            part = min(1.0, config.max_delta / max(float(np.abs(left).max()), 1e-9))
            return np.append(left * part, np.zeros(len(state) - n))

        def beat() -> None:
            main.notify("on_beat")
            if self.stop.requested or main.stop_requested:
                move.request_stop()

        beats, limits = Subscriber(), self.driver.limits
        beats.on_beat = beat  # type: ignore[method-assign]
        watchdog = main.watchdog.limits
        move = ControlLoop(self.driver, {}, act, main.safety, config, watchdog, [beats], self.clock)
        # a separate speed limit, so that the arm does not speed up after a delay on a busy machine
        slow = limits.replace(dq_max=tuple(min(v, speed / SHARE) for v in limits.dq_max))
        move.stream.path = Interpolator(slow)
        steps = np.abs(goal - self.driver.read().q).max() / config.max_delta
        try:
            result = move.run(int(3 * steps + 10 * _MOVE_HZ))  # a busy machine stretches the move
        finally:
            self.rest()
        trouble = ""
        if result.state == State.FAULT:
            trouble = "; ".join(result.reasons)
        elif result.cause == "steps" and (off := np.abs(self.driver.read().q - goal).max()) > arrived:
            self.driver.stop("the arm did not arrive")
            trouble = f"expected the arm within {arrived:g} rad of its goal, got {off:.3f}"
        if trouble:
            raise EnvError(f"move: {trouble}")
        return result.cause != "stopped"

    def ready(self, operator: Operator, placing: Placing) -> None:
        """Move the arm to the start of an episode and have the cube placed; the arm is stopped afterwards.

        Raises EnvError if the operator answers no or stops the arm, or if the arm cannot be armed or does not arrive.
        """
        if not self.confirmed:
            self.stop_for_operator("before the operator comes near")
        fault, goal = self.fault, placing.start_joints
        moves = self.live and (bool(fault) or not self.at(goal))
        refused = EnvError("operator: motion was not permitted")
        if (fault or moves) and not operator.free(fault):
            raise refused
        self.clear()
        if moves:
            self.arm()
            try:
                there = self.go_to(goal)
            finally:
                self.stop_for_operator("at the start")  # the operator reaches in to place the cube
            if not there:
                raise EnvError("start: stopped before the arm reached it")
        if not operator.place(placing):
            raise refused

    def run(self, max_steps: int) -> Result:
        try:
            return self.loop.run(max_steps)
        finally:
            self.rest()

    @contextmanager
    def ends_when(self, over: Callable[[], bool]) -> Iterator[None]:
        """End an episode as soon as `over` returns True; `over` is called in a separate thread."""
        done, left = self.clock.condition(), False

        def watch() -> None:
            with suppress(EnvError):  # of the emulator; if the arm is lost too, the loop notices
                while not left:
                    with done:
                        done.wait_for(lambda: left, _POLL_S)
                    if not left and over():
                        self.loop.request_end()  # repeatedly: a starting loop resets earlier requests

        thread = self.clock.spawn(watch, "end of the episode")
        try:
            yield
        finally:
            with done:
                left = True
                done.notify_all()
            thread.join(5.0)

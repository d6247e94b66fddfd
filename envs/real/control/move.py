"""A slow move to given joints through the safety filter: the way to the start of an episode.

    arrived = move_slowly(driver, safety, home, opening=1.0, speed=0.3, beat=supervisor.beat)

A straight line in joint space, streamed as the policy's targets are. Nothing plans around obstacles: what the filter
knows (table, workspace, speeds) stops the move, everything else is the operator's to look at.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, ArmDriver, ArmState, Array
from s2robot.envs.real.control.clock import REAL, Clock
from s2robot.envs.real.control.interpolate import Interpolator
from s2robot.envs.real.control.safety import SafetyFilter, Verdict

ARRIVED = 2e-3  # rad
GRIPPER_S = 2.0  # s that the fingers may take
LOST_S = 0.5  # s that the arm may give no answer
GRIPPED = 0.08  # opening, close enough


def move_slowly(
    driver: ArmDriver,
    safety: SafetyFilter,
    target: Array,
    opening: float | None = None,
    speed: float = 0.3,
    beat: Callable[[], None] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
    clock: Clock = REAL,
    gap_s: float = 0.5,
) -> bool:
    """Bring the armed arm to `target` (7,) rad at `speed` rad/s and the gripper to `opening`.

    Args:
        beat: called every period.
        stopped: asked every period; True brakes and stops the arm.
        gap_s: s between two commands after which this process was suspended, and the arm is stopped.

    Returns: whether it arrived; False after a stop.

    Raises:
        EnvError: the arm does not answer, reports an error, refuses, does not get there in time, or the filter
            stops. The arm is stopped then.
    """
    if not 0 < speed < np.inf:
        raise EnvError(f"home.speed: found {speed}, expected a speed above 0 rad/s")
    move = _Move(driver, safety, np.asarray(target, float), opening, speed, beat, clock, gap_s)
    try:
        there = False
        while not there:
            clock.sleep(move.sent + safety.dt - clock.now())
            beat()
            if stopped():
                move.brake()
                driver.stop("operator")
                return False
            there = move.step()
        return move.wait_for_gripper(stopped)
    except BaseException as error:
        driver.stop(f"{type(error).__name__} while moving")
        raise


class _Move:
    """One such move: the stream's state between two periods."""

    def __init__(
        self, driver: ArmDriver, safety: SafetyFilter, target: Array, opening: float | None, speed: float,
        beat: Callable[[], None], clock: Clock, gap_s: float,
    ):  # fmt: skip
        self._driver, self._safety, self._target, self._opening = driver, safety, target, opening
        self._beat, self._clock, self._gap = beat, clock, gap_s
        self._state = driver.read()
        safety.reset(self._state.q)
        # its own speed limit, so that what a busy machine delays is not made up for in a hurry
        slow = tuple(min(speed, fastest) for fastest in driver.limits.dq_max)
        self._path = Interpolator(replace(driver.limits, dq_max=slow))
        self._path.reset(self._state.q)
        self._begin = clock.now()
        self._seconds = max(float(np.abs(target - self._state.q).max()) / speed, safety.dt)
        self._path.push(self._begin, self._begin + self._seconds, target)
        self._deadline = (
            self._begin + 3 * self._seconds + 10
        )  # a busy machine stretches the move, it never hurries
        self.sent = -np.inf  # s, the last command

    def step(self) -> bool:
        """One period; whether the arm rests at the target."""
        driver, safety = self._driver, self._safety
        state = self._read()
        if state.error:
            raise EnvError(f"move: found arm error {state.error}, expected none")
        now = self._clock.now()
        if now > self._deadline:
            raise EnvError(
                f"move: found the arm under way after {now - self._begin:.0f} s, expected {self._seconds:.0f}"
            )
        q, late = self._path.step(now)
        safe = safety(q, self._opening, state.q, now - state.t_mono)
        if safe.verdict == Verdict.STOP:
            raise EnvError(f"move: found a safety stop ({safe.reasons[0]}), expected a free way")
        if safe.verdict != Verdict.PASS:
            self._path.follow(safe.q, safety.dq_last)
        if (gap := self._clock.now() - max(self.sent, self._begin)) > self._gap:
            raise EnvError(f"move: found {gap:.1f} s between two commands, expected at most {self._gap:g}")
        done = driver.command(safe.q, safe.gripper)
        self.sent = done.t_heard
        if done.code != OK:
            raise EnvError(f"move: found command code {done.code}, expected {OK}")
        off = [np.abs(q - self._target).max() for q in (safe.q, state.q)]
        return bool(late and off[0] < ARRIVED and off[1] < 5 * ARRIVED and not safety.dq_last.any())

    def wait_for_gripper(self, stopped: Callable[[], bool]) -> bool:
        """Until the fingers are there, or long enough; False after a stop."""
        end = self._clock.now() + GRIPPER_S
        while (
            self._opening is not None
            and abs(self._state.gripper - self._opening) > GRIPPED
            and self._clock.now() < end
        ):
            self._clock.sleep(self._safety.dt)
            self._beat()
            if stopped():
                self._driver.stop("operator")
                return False
            self._read()
        return True

    def brake(self) -> None:
        """To rest, along the way that the filter has checked."""
        while self._safety.dq_last.any():
            self._clock.sleep(self.sent + self._safety.dt - self._clock.now())
            done = self._driver.command(self._safety.hold("operator").q, None)
            self.sent = done.t_heard
            if done.code != OK:
                return

    def _read(self) -> ArmState:
        """The arm's state now, or the last one while that is not long ago: its age makes the filter hold."""
        try:
            self._state = self._driver.read()
        except EnvError:
            if self._clock.now() - self._state.t_mono > LOST_S:
                raise
        return self._state

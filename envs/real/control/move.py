"""A slow move to given joints through the safety filter: the way to the start of an episode.

    arrived = move_slowly(driver, safety, home, opening=1.0, speed=0.3, beat=supervisor.beat)

A straight line in joint space, streamed as the policy's targets are. Nothing plans around obstacles: what the filter
knows (table, workspace, speeds) stops the move, everything else is the operator's to look at.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, ArmDriver, ArmState, Array
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
) -> bool:
    """Bring the armed arm to `target` (7,) rad at `speed` rad/s and the gripper to `opening`.

    Args:
        beat: called every period.
        stopped: asked every period; True brakes and stops the arm.

    Returns: whether it arrived; False after a stop.

    Raises:
        EnvError: the arm does not answer, reports an error, refuses, does not get there in time, or the filter
            stops. The arm is stopped then.
    """
    target = np.asarray(target, float)
    if not 0 < speed < np.inf:
        raise EnvError(f"home.speed: found {speed}, expected a speed above 0 rad/s")
    state = driver.read()
    safety.reset(state.q)
    # its own speed limit, so that what a busy machine delays is not made up for in a hurry
    slow = tuple(min(speed, fastest) for fastest in driver.limits.dq_max)
    path = Interpolator(replace(driver.limits, dq_max=slow))
    path.reset(state.q)
    dt, sent = safety.dt, -np.inf
    begin = time.monotonic()
    seconds = max(float(np.abs(target - state.q).max()) / speed, dt)
    path.push(begin, begin + seconds, target)
    deadline = begin + 3 * seconds + 10  # a busy machine stretches the move, it never hurries
    try:
        while True:
            time.sleep(max(0.0, sent + dt - time.monotonic()))
            beat()
            if stopped():
                _brake(driver, safety, sent)
                driver.stop("operator")
                return False
            state = _read(driver, state)
            if state.error:
                raise EnvError(f"move: found arm error {state.error}, expected none")
            now = time.monotonic()
            if now > deadline:
                raise EnvError(
                    f"move: found the arm under way after {now - begin:.0f} s, expected {seconds:.0f}"
                )
            q, late = path.step(now)
            safe = safety(q, opening, state.q, now - state.t_mono)
            if safe.verdict == Verdict.STOP:
                raise EnvError(f"move: found a safety stop ({safe.reasons[0]}), expected a free way")
            if safe.verdict != Verdict.PASS:
                path.follow(safe.q, safety.dq_last)
            done = driver.command(safe.q, safe.gripper)
            sent = done.t_heard
            if done.code != OK:
                raise EnvError(f"move: found command code {done.code}, expected {OK}")
            there = np.abs(safe.q - target).max() < ARRIVED and np.abs(state.q - target).max() < 5 * ARRIVED
            if late and there and not safety.dq_last.any():
                break
        end = time.monotonic() + GRIPPER_S
        while opening is not None and abs(state.gripper - opening) > GRIPPED and time.monotonic() < end:
            time.sleep(dt)
            beat()
            if stopped():
                driver.stop("operator")
                return False
            state = _read(driver, state)
    except BaseException as error:
        driver.stop(f"{type(error).__name__} while moving")
        raise
    return True


def _read(driver: ArmDriver, last: ArmState) -> ArmState:
    """The arm's state now, or the last one while that is not long ago: its age makes the filter hold."""
    try:
        return driver.read()
    except EnvError:
        if time.monotonic() - last.t_mono > LOST_S:
            raise
        return last


def _brake(driver: ArmDriver, safety: SafetyFilter, sent: float) -> None:
    while safety.dq_last.any():
        time.sleep(max(0.0, sent + safety.dt - time.monotonic()))
        done = driver.command(safety.hold("operator").q, None)
        sent = done.t_heard
        if done.code != OK:
            return

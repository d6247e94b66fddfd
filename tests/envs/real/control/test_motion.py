"""The interpolator's bounded stream between waypoints, and the braking formula against a step-by-step simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.control.motion import Interpolator, braking_steps, stopping_speed
from tests.envs.real.home import HOME

DT = 0.01


def seven(limit):
    return st.lists(st.floats(-limit, limit), min_size=7, max_size=7)


def at_rest() -> Interpolator:
    path = Interpolator(XARM7_LIMITS)
    path.reset(HOME)
    return path


def stream(path, seconds, start=0.0, a_push=0.0):
    """Return joints (N, 7) and lateness of each step; each waypoint moves all joints by `a_push` rad in 0.1 s."""
    out, late = [], []
    for i in range(round(seconds / DT)):
        now = start + i * DT
        if a_push and i % 10 == 0:
            path.push(now, now + 0.1, HOME + a_push * (i // 10 + 1))
        q, is_late = path.step(now)
        out.append(q)
        late.append(is_late)
    return np.array(out), late


def bounded(q):
    dq = np.diff(q, axis=0, prepend=HOME[None]) / DT
    ddq = np.diff(dq, axis=0, prepend=0 * dq[:1]) / DT
    assert (np.abs(dq) <= np.array(XARM7_LIMITS.dq_max) + 1e-9).all()
    assert (np.abs(ddq) <= np.array(XARM7_LIMITS.ddq_max) + 1e-6).all()


def test_steady_motion_is_followed_without_lag_once_under_way():
    q, late = stream(at_rest(), 1.0, a_push=0.05)
    bounded(q)
    assert not any(late)
    np.testing.assert_allclose(q[50:, 0], 0.5 * np.arange(50, 100) * DT, atol=1e-9)  # 0.05 rad in 0.1 s


def test_waypoint_is_reached_in_time_and_held_without_overshoot():
    path = at_rest()
    path.push(0.0, 0.1, HOME + 0.05)
    q, late = stream(path, 0.6)
    bounded(q)
    np.testing.assert_allclose(q[12:], np.broadcast_to(HOME + 0.05, q[12:].shape), atol=0.01)
    np.testing.assert_allclose(q[-1], HOME + 0.05, atol=1e-9)
    assert late == [i * DT > 0.12 for i in range(60)]


def test_arm_holds_at_the_last_waypoint_until_the_next_one_arrives():
    path = at_rest()
    stream(path, 0.5, a_push=0.1)
    q, late = stream(path, 1.0, start=0.5)
    np.testing.assert_allclose(q[-1], HOME + 0.5, atol=1e-9)
    assert (q - (HOME + 0.5)).max() <= 1.0**2 / (2 * 0.95 * 20) + 0.011  # the braking distance from 1 rad/s
    assert late[-1] and not late[0]
    path.push(1.5, 1.6, HOME + 0.55)  # it resumes from there
    onward, late = stream(path, 0.5, start=1.5)
    assert np.abs(np.diff(onward, axis=0)).max() <= 2.6 * DT and not late[0]
    np.testing.assert_allclose(onward[-1], HOME + 0.55, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(seven(2), st.integers(1, 40)), min_size=1, max_size=12))
def test_the_stream_is_bounded_for_any_waypoints_at_any_times(waypoints):
    path, out, now = at_rest(), [], 0.0
    for target, wait in waypoints:
        path.push(now, path._points[-1][0] + 0.1 if path._points else 0.1, HOME + target)
        for _ in range(wait):
            out.append(path.step(now)[0])
            now += DT
    bounded(np.array(out))


def test_interpolation_resumes_from_the_targets_actually_sent():
    path = at_rest()
    path.push(0.0, 0.1, HOME + 0.05)
    stream(path, 0.05)
    path.q, path.dq = HOME - 0.001, np.full(7, -0.1)
    q, _ = stream(path, 0.5, start=0.05)
    assert np.abs(q[0] - (HOME - 0.001)).max() < 0.01
    np.testing.assert_allclose(q[-1], HOME + 0.05, atol=1e-9)


def test_waypoints_after_a_slow_one_are_still_reached():
    path = at_rest()
    path.push(0.0, 0.1, HOME + np.eye(7)[0])  # takes 0.4 s
    path.push(0.1, 0.2, HOME + 1.1 * np.eye(7)[0])
    q, _ = stream(path, 1.5)
    bounded(q)
    assert q[-1, 0] == pytest.approx(HOME[0] + 1.1, abs=1e-9)


def stopping_distance(speed: float, acceleration: float) -> float:
    """Return the distance of one step at `speed` and the braking after it."""
    distance = 0.0
    while speed > 0:
        distance += speed * DT
        speed -= acceleration * DT
    return distance


@settings(deadline=None)
@given(st.floats(0, 10), st.floats(0.5, 50))
def test_joint_at_stopping_speed_stops_exactly_at_the_distance(distance, acceleration):
    speed = float(stopping_speed(distance, acceleration, DT))
    assert stopping_distance(speed, acceleration) == pytest.approx(distance, rel=1e-9, abs=1e-12)
    assert not stopping_speed([0.0, -1e-9, -distance], acceleration, DT).any()  # no distance left


@settings(deadline=None)
@given(seven(3))
def test_braking_ends_at_rest_within_the_deceleration(speed):
    steps = np.concatenate([[speed], braking_steps(np.array(speed), 20.0, DT)])
    assert not steps[-1].any()
    assert (np.abs(np.diff(steps, axis=0)) <= 20.0 * DT + 1e-12).all()
    assert (np.abs(steps) <= np.abs(speed)).all() and (steps * speed >= 0).all()

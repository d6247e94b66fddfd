"""Planning while the previous plan is executed, in virtual time, with actions of 0.1 s."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2robot.deployment.ahead import PlanAhead
from s2robot.envs.errors import EnvError
from s2robot.envs.real.control.loop import LoopConfig
from tests.envs.real.home import HOME
from tests.envs.real.patience import CALM
from tests.envs.real.virtual import Calls, FakeArm, VirtualClock, driven, episode
from tests.errors import fails

CHUNK, STEP_S = 8, 0.1


def made(takes, *settings):
    """Return a clock, a `PlanAhead` and its requests; chunks hold (plan number, step) and repeat fixed actions."""
    clock, requests = VirtualClock(), []

    def plan(step, left, fixed):
        requests.append((step, left, fixed))
        number = len(requests)
        clock.sleep(takes(number))
        own = np.stack([np.full(CHUNK, number), step + np.arange(CHUNK)], 1)
        return np.concatenate([left[:fixed], own[fixed:]]) if fixed else own

    return clock, PlanAhead(plan, *settings, clock), requests


def acted(ahead, clock, steps):
    """Return the actions (steps, 2) and the delay of each, s."""
    actions, late = [], []
    for step in range(steps):
        begin = clock.now()
        actions.append(ahead.act(step))
        late.append(clock.now() - begin)
        clock.sleep(begin + STEP_S - clock.now())
    return np.array(actions), np.array(late)


@settings(max_examples=30, deadline=None)
@given(sizes=st.tuples(st.integers(1, 6), st.integers(1, 4)).filter(lambda x: x[1] <= x[0] <= CHUNK - x[1]))
def test_each_plan_continues_the_previous_one_without_a_wait(sizes):
    execute, delay = sizes
    clock, ahead, requests = made(lambda n: delay * STEP_S - 0.01, execute, delay, 0.2)
    actions, late = acted(ahead, clock, 30)
    # only the first plan is awaited
    assert (late[1:] < 1e-9).all() and (actions[:, 1] == np.arange(30)).all()
    seams = np.flatnonzero(np.diff(actions[:, 0])) + 1
    assert seams.tolist() == list(range(execute + delay, 30, execute))
    for (step, left, fixed), seam in zip(requests[1:], seams, strict=False):
        assert (step, fixed, len(left)) == (seam - delay, delay, CHUNK - execute)
        np.testing.assert_array_equal(left[:delay], actions[step:seam])  # fixed actions were executed


def test_a_late_plan_is_waited_for_when_the_chunk_ends():
    clock, ahead, _ = made(lambda n: 0.7 if n == 2 else 0.15, 4, 2, np.inf)
    actions, late = acted(ahead, clock, 10)
    assert actions[:, 0].tolist() == [1] * 8 + [2] * 2 and actions[:, 1].tolist() == list(range(10))
    assert np.flatnonzero(late > 1e-9).tolist() == [0, 8] and late[8] == pytest.approx(0.3)


def test_planning_restarts_after_a_failure_a_pause_or_a_reset():
    def takes(number):
        if number == 2:
            raise EnvError("no camera")
        return 9.0 if number == 6 else 0.15

    clock, ahead, requests = made(takes, 4, 2, 0.25)
    fails("no camera", acted, ahead, clock, 7)
    assert acted(ahead, clock, 5)[0][:, 0].tolist() == [3] * 5  # the fourth plan is in progress
    clock.sleep(1.0)
    assert acted(ahead, clock, 5)[0][:, 0].tolist() == [5] * 5 and requests[4][2] == 0
    fails("^policy: the last plan did not end within 5 s", ahead.reset)
    clock.sleep(5.0)
    ahead.reset()
    assert acted(ahead, clock, 1)[0].tolist() == [[7, 0]]


def test_arm_stream_does_not_stop_between_plans():
    """With plans that take 0.2 s, the loop keeps its speed if it plans ahead, and otherwise stops for each plan."""
    slowest = []
    for is_ahead in (True, False):
        clock, queue = VirtualClock(), []
        arm = FakeArm(clock)

        def plan(observation, left, fixed, clock=clock):
            clock.sleep(0.2)
            return np.tile(np.append(np.eye(7)[6] * 0.05, 1.0), (CHUNK, 1))

        def waits(observation, queue=queue, plan=plan):
            queue += [] if queue else list(plan(observation, None, 0)[:4])
            return queue.pop(0)

        ahead = PlanAhead(plan, 4, 2, 0.25, clock)
        loop = LoopConfig(live=True, image_size=16, policy_hz=10.0, check_chunks=True)
        begin = Calls(begin=ahead.reset if is_ahead else queue.clear)
        runtime = driven(arm, ahead.act if is_ahead else waits, loop, watchdog=CALM, subscribers=[begin])
        result = episode(runtime, 16)
        assert (result.cause, result.steps) == ("steps", 16)
        np.testing.assert_allclose(arm.sent[-1] - HOME, np.eye(7)[6] * 0.8, atol=1e-6)
        speeds = np.diff(np.array(arm.sent)[:, 6]) / np.diff(arm.times)
        moving = np.flatnonzero(speeds > 0.49)
        slowest.append(speeds[moving[0] : moving[-1]].min())
    assert slowest[0] > 0.48 and slowest[1] < 0.01

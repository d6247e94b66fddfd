"""Plans made while the plan before is executed, in virtual time: a plan takes so long, an action 0.1 s."""

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

CHUNK, STEP_S = 8, 0.1


class Planner:
    """Chunks of (number of the plan, when it was begun, step since then), which repeat what is fixed."""

    def __init__(self, clock, takes):
        self.clock, self.takes, self.asked = clock, takes, []

    def __call__(self, observation, left, fixed):
        self.asked.append((observation["step"], left.copy(), fixed))
        plan, steps = len(self.asked), np.arange(CHUNK)
        self.clock.sleep(self.takes(plan))
        chunk = np.stack([np.full(CHUNK, plan), np.full(CHUNK, observation["step"]), steps], 1).astype(float)
        if fixed:
            chunk[:fixed] = left[:fixed]
        return chunk


def acted(ahead, clock, steps):
    """Actions (steps, 3), and how late each came, s."""
    actions, late = [], []
    for step in range(steps):
        begin = clock.now()
        actions.append(ahead.act({"step": step}))
        late.append(clock.now() - begin)
        clock.sleep(begin + STEP_S - clock.now())
    return np.array(actions), np.array(late)


@settings(max_examples=30, deadline=None)
@given(execute=st.integers(1, 6), delay=st.integers(1, 4))
def test_every_plan_continues_the_one_before_without_a_wait(execute, delay):
    execute = max(execute, delay)
    if execute + delay > CHUNK:
        execute = CHUNK - delay
    clock = VirtualClock()
    plan = Planner(clock, lambda n: delay * STEP_S - 0.01)
    actions, late = acted(PlanAhead(plan, execute, delay, 0.2, clock), clock, 30)
    assert (late[1:] < 1e-9).all()  # the first plan alone is waited for
    assert (np.diff(actions.sum(1) - actions[:, 0]) == 1).all()  # begun + step: each action is its time's
    first = np.flatnonzero(np.diff(actions[:, 0])) + 1  # of each plan; the seams
    assert first.tolist() == list(range(execute + delay, 30, execute))
    for (step, left, fixed), seam in zip(plan.asked[1:], first, strict=False):
        assert fixed == delay and step == seam - delay and len(left) == CHUNK - execute
        np.testing.assert_array_equal(left[:delay], actions[step:seam])  # what was fixed was executed


def test_a_late_plan_is_waited_for_when_the_chunk_ends():
    clock = VirtualClock()
    plan = Planner(clock, lambda n: 0.7 if n == 2 else 0.15)
    ahead = PlanAhead(plan, 4, 2, np.inf, clock)
    actions, late = acted(ahead, clock, 10)
    assert (actions[:8, 0] == 1).all() and actions[8].tolist() == [
        2,
        4,
        4,
    ]  # the rest of the old chunk, then in step
    assert np.flatnonzero(late > 1e-9).tolist() == [0, 8] and late[8] == pytest.approx(0.3)
    assert len(ahead.remaining) == 2


def test_what_a_plan_raises_its_next_action_raises():
    clock = VirtualClock()

    def fails(observation, left, fixed):
        if fixed:
            raise EnvError("no camera")
        return np.zeros((CHUNK, 1))

    ahead = PlanAhead(fails, 4, 1, np.inf, clock)
    with pytest.raises(EnvError, match="no camera"):
        acted(ahead, clock, 6)
    assert not len(ahead.remaining)


def test_after_a_pause_or_a_reset_a_plan_is_made_of_what_is_seen_then():
    clock = VirtualClock()
    plan = Planner(clock, lambda n: 0.15 if n != 4 else 9.0)
    ahead = PlanAhead(plan, 4, 2, 0.25, clock)
    acted(ahead, clock, 5)  # the second plan is under way
    clock.sleep(1.0)
    assert acted(ahead, clock, 1)[0][0].tolist() == [3, 0, 0] and plan.asked[-1][2] == 0
    acted(ahead, clock, 4)
    with pytest.raises(EnvError, match="^policy: expected the last plan to end"):
        ahead.reset()
    clock.sleep(5.0)
    ahead.reset()
    assert acted(ahead, clock, 1)[0][0].tolist() == [5, 0, 0]


def test_the_stream_to_the_arm_does_not_stop_at_a_seam():
    """The whole control loop with plans that take 0.2 s: with a plan ahead it keeps its speed, without it stands each time."""
    slowest = []
    for ahead in (True, False):
        clock = VirtualClock()
        arm, queue = FakeArm(clock), []

        def plan(observation, left, fixed, clock=clock):
            clock.sleep(0.2)
            return np.tile(np.append(np.eye(7)[6] * 0.05, 1.0), (CHUNK, 1))

        def waits(observation, queue=queue, plan=plan):
            if not queue:
                queue += list(plan(observation, None, 0)[:4])
            return queue.pop(0)

        planner = PlanAhead(plan, 4, 2, 0.25, clock)
        loop = LoopConfig(live=True, image_size=16, policy_hz=10.0, check_chunks=True)
        forget = Calls(begin=planner.reset if ahead else queue.clear)
        act = planner.act if ahead else waits
        result = episode(driven(arm, act, loop, watchdog=CALM, subscribers=[forget]), 16)
        assert (result.cause, result.steps) == ("steps", 16) and set(result.verdicts) == {"PASS"}
        np.testing.assert_allclose(arm.sent[-1] - HOME, np.eye(7)[6] * 0.8, atol=1e-6)
        speeds = np.diff(np.array(arm.sent)[:, 6]) / np.diff(arm.times)
        moving = np.flatnonzero(speeds > 0.49)
        slowest.append(speeds[moving[0] : moving[-1]].min())
    assert slowest[0] > 0.48 and slowest[1] < 0.01

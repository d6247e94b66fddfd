"""A person takes over from a policy and gives back, in virtual time: no jump, and who acted is known."""

import numpy as np
import pytest

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.ik import ToolIK
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.emulator.operator import EmulatedOperator
from s2robot.envs.real.operator.handover import Handover, LedControls, SharedControl, SpaceMouseControls
from s2robot.envs.real.operator.teleop import Teleoperator
from s2robot.envs.real.real_cube_pick import RealCubePick
from tests.envs.real.patience import CALM
from tests.envs.real.virtual import SLOWLY, Calls, Film, Watch

NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)


class Wish:
    """Wants to go up at full speed once it is told to."""

    up = 0.0

    def velocity(self):
        return np.array([0, 0, self.up, 0])


class Willing(EmulatedOperator):
    """Says yes."""

    def ended(self):
        return False

    def success(self):
        return False


@pytest.fixture
def world(arm, clock):
    """The environment with its arm; `world.steps` are those that were recorded."""
    steps = []
    env = RealCubePick(
        arm, {"hand": Film(clock, NOISE, 30)}, CubePickConfig(cameras=("hand",), image_size=16, max_steps=12),
        Willing(None, False), LoopConfig(live=True, image_size=16), CALM, SafetyConfig(state_age_max=3.0),
        subscriber=Calls(step=steps.append), clock=clock, supervisor=Watch(),
    )  # fmt: skip
    env.steps = steps
    yield env
    env.close()


def test_keys_say_who_acts():
    hand = Handover()
    for key, person, closed in (
        ("g", False, False),
        (" ", True, False),
        ("g", True, True),
        ("g", True, False),
    ):
        hand.on_key(key)
        assert (hand.person, hand.closed, hand.ended) == (person, closed, False)
    buttons, led = SpaceMouseControls(hand), LedControls(hand)
    buttons.on_key(" ")  # the first button of a SpaceMouse is the gripper
    assert hand.person and hand.closed and led.closed and not led.ended
    hand.on_key(" ")
    assert led.ended and not hand.ended  # giving back ends the person's part alone
    buttons.on_key("\n")
    assert hand.ended and not hand.discarded
    hand.reset()
    assert not (hand.person or hand.closed or hand.ended)


def test_a_person_takes_over_and_gives_back_without_a_jump(world, arm):
    asked, forgot, hand, wish = [], [], Handover(), Wish()

    def policy(observation):
        asked.append(observation)
        return SLOWLY  # closes the gripper

    teleoperator = Teleoperator(wish, hand, ToolIK(), XARM7_LIMITS, speed=0.05)
    shared = SharedControl(policy, lambda: forgot.append(1), hand, teleoperator, lambda: world.loop.commanded)
    observation, _ = world.reset(seed=1)
    shared.begin()
    before = len(arm.sent)
    actions = []
    for step in range(12):
        if step in (4, 8):
            hand.on_key(" ")
        wish.up = float(step > 5)
        actions.append(shared.act(observation))
        observation, _, _, truncated, info = world.step(actions[-1])
        shared.acted(info["executed"])
    assert truncated and shared.persons == [False] * 4 + [True] * 4 + [False] * 4
    assert (
        len(asked) == 8 and len(forgot) == 2 and shared.corrected
    )  # the policy plans anew when it is given back
    assert len(world.steps) == len(shared.persons)
    # at the hand-over nothing is wished yet: the tool stays where it was commanded (the elbow may settle), closed
    ik, q = ToolIK(), np.cumsum([world.steps[0]["proprio"][:7], *(s["action"][:7] for s in world.steps)], 0)
    np.testing.assert_allclose(ik.pose(q[5])[0], ik.pose(q[4])[0], atol=1e-3)
    assert np.abs(actions[4][:7]).max() < 0.02
    assert [a[7] for a in actions] == [1.0] * 12 and arm.gripper == 0.0
    rise = [s["proprio"][:7] for s in world.steps]
    assert np.abs(rise[8] - rise[6]).max() > 0.003  # and then the person moved it
    arm.lawful()
    sent = np.array(arm.sent[before - 1 :])
    assert np.abs(np.diff(sent, axis=0)).max() < 0.01  # rad a period: no jump in the stream
    np.testing.assert_allclose([s["action"] for s in world.steps], actions, atol=2e-3)


def test_a_step_that_was_not_executed_is_nobody_s():
    hand = Handover()
    shared = SharedControl(lambda o: SLOWLY, lambda: None, hand, None, lambda: np.zeros(7))
    shared.act({})
    shared.acted(False)
    hand.on_key(" ")
    assert shared.leads and shared.persons == [] and not shared.corrected
    shared.act({})  # taken in hand between two questions: the policy's step is still the policy's
    shared.acted(True)
    shared.take()
    assert hand.closed  # as the policy left the gripper
    shared.led(3)
    assert shared.persons == [False, True, True, True] and shared.corrected


def test_an_episode_goes_on_where_the_arm_was_led_to(world, arm):
    world.reset(seed=1)
    for _ in range(3):
        world.step(SLOWLY)
    world.close()
    assert arm.stopped
    arm.q = arm.q + 0.1  # by hand
    arm.sent.clear()
    observation, info = world.resume(2)
    np.testing.assert_allclose(observation["proprio"][:7], arm.q, atol=1e-6)
    assert info["steps"] == 0
    first, *_ = arm.sent or [arm.q]
    np.testing.assert_allclose(first, arm.q, atol=2e-3)
    assert not world.step(SLOWLY)[3] and world.step(SLOWLY)[3]  # the second is the last
    assert len(world.steps) == 5 and arm.gripper == 0.0

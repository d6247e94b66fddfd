"""A person takes over from a policy and gives back, in virtual time: no jump, and who acted is known."""

import numpy as np

from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ArmPoints, ToolIK
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.operator.teleop import Controls, SharedControl, Teleoperator
from s2robot.envs.real.runtime import ArmRuntime
from tests.envs.real.patience import CALM
from tests.envs.real.virtual import NOISE, SLOWLY, Calls, Film, Watch, episode


class Wish:
    """Wants to go up at full speed once it is told to."""

    up = 0.0

    def velocity(self):
        return np.array([0, 0, self.up, 0])


def test_keys_say_who_acts():
    hand = Controls(shared=True)
    for key, person, closed in (
        ("g", False, False),
        (" ", True, False),
        ("g", True, True),
        ("g", True, False),
    ):
        hand.on_key(key)
        assert (hand.person, hand.closed, hand.ended) == (person, closed, False)
    hand.on_button(0)  # the first button of a SpaceMouse is the gripper
    assert hand.person and hand.closed and not hand.part_ended
    hand.on_key(" ")
    assert hand.part_ended and not hand.ended  # giving back ends the person's part alone
    hand.on_button(1)
    assert hand.ended and not hand.discarded
    hand.reset()
    assert not (hand.person or hand.closed or hand.ended)


def shared(arm, policy, steps, device=None):
    """A runtime in which a person may take over, and its `SharedControl`; the executed steps go to `steps`."""
    hand = Controls(shared=True)
    control = SharedControl(
        policy, lambda: None, hand, device and device(hand), lambda: runtime.loop.stream.commanded
    )
    runtime = ArmRuntime(
        arm, {"hand": Film(arm.clock, NOISE, 30)}, control.act, ArmPoints("xarm7"),
        LoopConfig(live=True, image_size=16), CALM, SafetyConfig(state_age_max=3.0),
        [Calls(step=steps.append), control], supervisor=Watch(), clock=arm.clock,
    )  # fmt: skip
    return runtime, control, hand


def test_a_person_takes_over_and_gives_back_without_a_jump(arm):
    asked, steps, wish = [], [], Wish()

    def policy(observation):
        asked.append(observation)
        return SLOWLY  # closes the gripper

    def press():
        wish.up = float(len(steps) > 5)
        if len(steps) in (3, 7) and len(steps) not in pressed:
            pressed.append(len(steps))
            hand.on_key(" ")

    pressed = []
    device = lambda hand: Teleoperator(wish, hand, ToolIK(), XARM7_LIMITS, speed=0.05)  # noqa: E731
    runtime, control, hand = shared(arm, policy, steps, device)
    forgot = []
    control._forget = lambda: forgot.append(1)
    runtime.loop.subscribers.append(Calls(beat=press))
    assert episode(runtime, 12).cause == "steps"
    assert len(control.persons) == len(steps) == 12
    first, last = control.persons.index(True), 12 - control.persons[::-1].index(True)
    assert control.persons == [False] * first + [True] * (last - first) + [False] * (12 - last)
    assert first in (4, 5) and last in (8, 9)
    assert len(forgot) == 2  # at the start, and when it is given back
    # at the handover nothing is wished yet: the tool stays where it was commanded (the elbow may settle), closed
    ik, q = ToolIK(), np.cumsum([steps[0]["proprio"][:7], *(s["action"][:7] for s in steps)], 0)
    np.testing.assert_allclose(ik.pose(q[first + 1])[0], ik.pose(q[first])[0], atol=1e-3)
    assert np.abs(steps[first]["action"][:7]).max() < 0.02
    assert [s["action"][7] for s in steps] == [1.0] * 12 and arm.gripper == 0.0
    rise = [s["proprio"][:7] for s in steps]
    assert np.abs(rise[last] - rise[first + 2]).max() > 0.003  # and then the person moved it
    arm.lawful()
    assert np.abs(np.diff(arm.sent, axis=0)).max() < 0.01  # rad a period: no jump in the stream


def test_an_episode_goes_on_where_the_arm_was_led_to(arm):
    """Led by hand outside the loop: the policy's step is the policy's until the loop has ended."""
    steps = []
    runtime, control, hand = shared(arm, lambda o: SLOWLY, steps)
    arm.clock.at(0.6, lambda: hand.on_key(" "))
    with runtime.ends_when(lambda: hand.person):
        assert episode(runtime, 20).cause == "ended"
    before = len(steps)
    assert hand.person and control.persons == [False] * before and arm.stopped
    control.take()
    assert hand.closed  # as the policy left the gripper
    arm.q = arm.q + 0.1  # by hand
    arm.sent.clear()
    control.led(3)
    hand.on_key(" ")
    assert episode(runtime, 2).steps == 2
    np.testing.assert_allclose(steps[before]["proprio"][:7], arm.sent[0], atol=2e-3)
    assert control.persons == [False] * before + [True] * 3 + [False] * 2 and arm.gripper == 0.0
    arm.start = arm.sent[0]


def test_the_end_key_counts_while_the_arm_is_being_armed(arm):
    runtime, control, hand = shared(arm, lambda o: SLOWLY, [])
    hand.on_key("\n")
    with runtime.ends_when(lambda: hand.ended):
        assert episode(runtime, 1000).cause == "ended"

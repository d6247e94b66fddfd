"""Teleoperation: inverse kinematics, keyboard, SpaceMouse, and control shared by an operator and a policy."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ToolIK, XArm7Points
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from s2robot.envs.real.operator.teleop import Controls, Keyboard, SharedControl, SpaceMouse, Teleoperator
from tests.envs.real.home import HOME
from tests.envs.real.patience import CALM, wait_for
from tests.envs.real.virtual import SLOWLY, Calls, driven, episode
from tests.errors import fails

POINTS, IK = XArm7Points(), ToolIK()
# velocities towards a pose that the arm only reaches with the tool outside the box
EDGE = ((0.721, -1, 0, 0.29), (0.573, -0.445, 1, -0.708), (-1, 0, 0, 1), (-1, -1, 0, 0.565), (1, -1, -1, -1))


class ScriptedMover:
    """An input device with a settable velocity."""

    def __init__(self, velocity=(0, 0, 0, 0)):
        self.now = np.array(velocity, float)

    def velocity(self):
        return self.now


def made(mover, **settings):
    return Teleoperator(mover, Controls(), IK, XARM7_LIMITS, **settings)


@settings(max_examples=60, deadline=None)
@given(arrays(float, 3, elements=st.floats(-0.05, 0.05)), st.floats(-0.3, 0.3))
def test_inverse_kinematics_reaches_nearby_poses(move, turn):
    position, rotation = IK.pose(HOME)
    c, s = np.cos(turn), np.sin(turn)
    position, rotation = position + move, np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ rotation
    solved_position, solved_rotation = IK.pose(IK.solve(HOME, position, rotation))
    np.testing.assert_allclose(solved_position, position, atol=1e-3)
    np.testing.assert_allclose(solved_rotation, rotation, atol=5e-3)


@settings(max_examples=40, deadline=None)
@example([np.zeros(4), np.ones(4), np.array([0, 0.75, 1, 1]), -np.ones(4)], 15)  # the end of joint 4's range
@example(list(map(np.array, EDGE)), 24)
@given(st.lists(arrays(float, 4, elements=st.floats(-1, 1)), min_size=1, max_size=8), st.integers(1, 25))
def test_filter_accepts_every_teleoperated_target(velocities, repeats):
    mover = ScriptedMover()
    teleoperator, q = made(mover), HOME
    safety = SafetyFilter(XARM7_LIMITS, POINTS)
    for velocity in velocities:
        for _ in range(repeats):
            mover.now = velocity
            action = teleoperator.act(q)
            assert np.isfinite(action).all() and np.abs(action[:7]).max() <= 0.25 + 1e-6
            q = q + action[:7]
    safety.reset(q)  # raises if a point is outside the box or below the table


def test_sustained_motion_stops_at_the_table_and_reverses_at_once():
    mover = ScriptedMover((0, 0, -1, 0))
    teleoperator, q = made(mover), HOME
    for _ in range(60):
        q = q + teleoperator.act(q)[:7]
    assert 0 < POINTS.at(q)[:, 2].min() - XARM7_LIMITS.table_z - XARM7_LIMITS.table_clearance < 0.02
    mover.now = np.array([0, 0, 1.0, 0])
    before = IK.pose(q)[0][2]
    for _ in range(5):
        q = q + teleoperator.act(q)[:7]
    assert IK.pose(q)[0][2] - before == pytest.approx(0.05, abs=5e-3)  # at once: no motion has accumulated


def test_motion_that_the_arm_could_not_follow_is_discarded():
    mover = ScriptedMover((1, 0, 0, 0))
    teleoperator = made(mover)
    for _ in range(50):
        teleoperator.act(HOME)  # the arm is held
    mover.now = np.zeros(4)
    assert np.linalg.norm(IK.pose(HOME + teleoperator.act(HOME)[:7])[0] - IK.pose(HOME)[0]) < 0.06


def test_translation_rotation_and_gripper():
    mover = ScriptedMover((0, 0, 0, 1))
    teleoperator, q = made(mover), HOME
    teleoperator._controls.on_key(" ")
    for _ in range(10):
        action = teleoperator.act(q)
        q = q + action[:7]
    assert action[7] == 1.0
    (position, rotation), (home_position, home_rotation) = IK.pose(q), IK.pose(HOME)
    np.testing.assert_allclose(position, home_position, atol=2e-3)
    turn = rotation @ home_rotation.T
    assert np.arctan2(turn[1, 0], turn[0, 0]) == pytest.approx(0.6, abs=0.02)
    mover.now = np.array([1, 0.5, -0.5, 0])
    for _ in range(10):
        q = q + teleoperator.act(q)[:7]
    np.testing.assert_allclose(IK.pose(q)[0] - position, [0.1, 0.05, -0.05], atol=6e-3)


def test_keyboard_velocity_gripper_and_end_keys():
    clock, controls = [0.0], Controls()
    keyboard = Keyboard(controls, lambda: clock[0])
    assert not keyboard.velocity().any()
    for key in "wAr":
        keyboard.on_key(key)
    np.testing.assert_array_equal(keyboard.velocity(), [1, 1, 1, 0])
    clock[0] = 0.1
    keyboard.on_key("s")
    np.testing.assert_array_equal(keyboard.velocity(), [0, 1, 1, 0])  # opposite keys cancel
    clock[0] = 0.2
    np.testing.assert_array_equal(keyboard.velocity(), [-1, 0, 0, 0])
    keyboard.on_key(" ")
    assert controls.closed and not controls.ended
    keyboard.on_key(" ")
    keyboard.on_key("?")
    assert not controls.closed and not controls.ended
    keyboard.on_key("\n")
    assert controls.ended and not controls.discarded
    controls.reset()
    keyboard.on_key("x")
    assert controls.ended and controls.discarded


class Cap:
    """A SpaceMouse with the library's interface."""

    def __init__(self):
        turned = {"roll": 0.9, "pitch": 0.9, "yaw": -0.55}
        self.silent, self.gone, self.closed = False, False, False
        self.state = SimpleNamespace(t=0, x=1.0, y=0.05, z=0.0, buttons=[0, 0], **turned)

    def read(self):
        if self.gone:
            raise OSError("unplugged")
        self.state.t += not self.silent
        return self.state

    def close(self):
        self.closed = True


def test_spacemouse_motion_buttons_and_loss():
    cap, controls = Cap(), Controls()
    mouse = SpaceMouse(controls, cap)
    expected = [1, 0, 0, -0.5]  # values below `dead` are ignored
    wait_for(lambda: np.allclose(mouse.velocity(), expected))
    cap.silent = True  # the last report stays the newest, as with a lost wireless link
    wait_for(lambda: not mouse.velocity().any())
    cap.silent = False
    wait_for(lambda: np.allclose(mouse.velocity(), expected))
    cap.state.buttons = [1, 0]
    wait_for(lambda: controls.closed)
    time.sleep(0.05)
    assert controls.closed  # once per press
    cap.state.buttons = [0, 1]
    wait_for(lambda: controls.ended)
    cap.gone = True
    fails("spacemouse: unplugged", wait_for, lambda: mouse.velocity() is None)
    mouse.close()
    assert cap.closed


def test_missing_spacemouse_is_one_error_line(monkeypatch):
    def fail(axis_convention):
        raise RuntimeError("No connected or supported devices found.")

    library = SimpleNamespace(open=fail, AxisConvention=SimpleNamespace(ROS="ros"))
    for module, message in ((None, "^pyspacemouse: expected "), (library, "expected a device on USB, got")):
        monkeypatch.setitem(sys.modules, "pyspacemouse", module)
        fails(message, SpaceMouse, Controls())


def test_keys_switch_between_operator_and_policy():
    hand = Controls(shared=True)
    states = [(hand.on_key(key), hand.person, hand.closed)[1:] for key in "g gg"]
    assert states == [(False, False), (True, False), (True, True), (True, False)] and not hand.ended
    hand.on_button(0)  # the first button of a SpaceMouse is the gripper
    assert hand.person and hand.closed and not hand.ended
    hand.on_key(" ")
    assert not hand.person and not hand.ended  # handing back ends only the operator's turn
    hand.on_button(1)
    assert hand.ended and not hand.discarded
    hand.reset()
    assert not (hand.person or hand.closed or hand.ended)


def shared(arm, policy, steps, device=None):
    """Return a runtime with shared control, its `SharedControl` and controls; append executed steps to `steps`."""
    hand = Controls(shared=True)
    commanded = lambda: runtime.loop.stream.commanded  # noqa: E731
    control = SharedControl(policy, lambda: None, hand, device and device(hand), commanded)
    subscribers = [Calls(step=steps.append), control]
    safety = SafetyConfig(state_age_max=3.0)
    runtime = driven(arm, control.act, watchdog=CALM, safety=safety, subscribers=subscribers)
    return runtime, control, hand


def test_operator_takes_over_and_hands_back_without_a_jump(arm):
    steps, mover, pressed, resets = [], ScriptedMover(), [], []

    def press():
        mover.now = np.array([0, 0, float(len(steps) > 5), 0])
        if len(steps) in (3, 7) and len(steps) not in pressed:
            pressed.append(len(steps))
            hand.on_key(" ")

    device = lambda hand: Teleoperator(mover, hand, IK, XARM7_LIMITS, speed=0.05)  # noqa: E731
    runtime, control, hand = shared(arm, lambda o: SLOWLY, steps, device)  # the policy closes the gripper
    control._reset_policy = lambda: resets.append(1)
    runtime.loop.subscribers.append(Calls(beat=press))
    assert episode(runtime, 12).cause == "steps"
    assert len(control.persons) == len(steps) == 12
    first, last = control.persons.index(True), 12 - control.persons[::-1].index(True)
    assert control.persons == [False] * first + [True] * (last - first) + [False] * (12 - last)
    assert first in (4, 5) and last in (8, 9)
    assert len(resets) == 2  # at the start, and when the operator hands back
    # at the handover the operator is still: the tool stays at its command, closed (the elbow may settle)
    q = np.cumsum([steps[0]["proprio"][:7], *(s["action"][:7] for s in steps)], 0)
    np.testing.assert_allclose(IK.pose(q[first + 1])[0], IK.pose(q[first])[0], atol=1e-3)
    assert np.abs(steps[first]["action"][:7]).max() < 0.02
    assert [s["action"][7] for s in steps] == [1.0] * 12 and arm.gripper == 0.0
    rise = [s["proprio"][:7] for s in steps]
    assert np.abs(rise[last] - rise[first + 2]).max() > 0.003  # then the operator moved it
    arm.lawful()
    assert np.abs(np.diff(arm.sent, axis=0)).max() < 0.01  # rad a period: no jump in the stream


def test_episode_resumes_where_the_arm_was_led_by_hand(arm):
    """The arm is led by hand outside the loop; steps count as the policy's until the loop has ended."""
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


def test_policy_that_is_always_late_is_a_fault_with_shared_control_too(arm):
    late = lambda o: arm.clock.sleep(0.03 if len(steps) < 5 else 0.45) or SLOWLY  # noqa: E731
    runtime, control, _ = shared(arm, late, steps := [])
    runtime.loop.watchdog.limits = WatchdogLimits()
    assert episode(runtime, 60).reasons == ("no action for 5 s",) and len(control.persons) == len(steps) > 4
    states = [state for _, state, _ in runtime.loop.watchdog.history]
    assert states.count(State.HOLD) >= 2 and len(arm.stops) == 2  # left HOLD repeatedly; `episode` stops too


def test_end_key_works_while_the_arm_is_being_armed(arm):
    runtime, control, hand = shared(arm, lambda o: SLOWLY, [])
    hand.on_key("\n")
    with runtime.ends_when(lambda: hand.ended):
        assert episode(runtime, 1000).cause == "ended"

"""The arm runtime in virtual time: motion to the start, an episode, its early end, a stop, a fault."""

import signal
import threading
from contextlib import suppress

import numpy as np
import pytest

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.supervisor import UNCONFIRMED
from s2robot.envs.real.emulator.stand_in import EmulatedOperator
from s2robot.envs.real.operator.prompts import Placing, Stop, TerminalOperator
from tests.envs.real.home import HOME
from tests.envs.real.virtual import SLOWLY, FakeArm, VirtualClock, Watch, driven, episode
from tests.errors import fails

WORLD = CubePickConfig(cameras=("hand",))


class PromptedOperator(EmulatedOperator):
    """An operator that records each prompt and answers `willing`."""

    def __init__(self):
        super().__init__(None)
        self.asked, self.willing = [], True

    def free(self, fault):
        self.asked.append(("free", fault))
        return self.willing

    def place(self, placing):
        self.asked.append(("place", placing))
        return self.willing


def made(arm, act=None, **settings):
    def slowly(observation):
        arm.clock.sleep(0.03)  # inference time
        return SLOWLY

    settings = {"safety": SafetyConfig(state_age_max=0.1), "home_speed": 0.5} | settings
    return driven(arm, act or slowly, **settings)


@pytest.fixture
def far():
    """An arm away from home, its gripper closed."""
    arm = FakeArm(VirtualClock(), HOME + 0.15)
    arm.gripper = 0.0
    return arm


def moving(arm, speed=0.5):
    return made(arm, safety=SafetyConfig(state_age_max=0.2), home_speed=speed)


def test_go_to_moves_slowly_and_opens_the_gripper(far):
    runtime = moving(far)
    assert runtime.go_to(HOME)
    np.testing.assert_allclose(far.q, HOME, atol=2e-3)
    assert far.gripper == 1.0 and far.stops == [] and runtime._supervisor.heard.count("beat") >= len(far.sent)
    speeds = np.abs(np.diff([HOME + 0.15, *far.sent], axis=0)) * far.limits.rate_hz
    assert 0.4 < speeds.max() <= 0.5 + 1e-9
    count = len(far.sent)
    assert runtime.go_to(HOME) and len(far.sent) < count + 30  # already there
    far.lawful()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("error", 31, "arm error 31"), ("code", 9, "command code 9"), ("stuck", True, "safety stop: .* lags")],
)
def test_faults_on_the_way_stop_the_arm(far, name, value, text):
    far.limits = XARM7_LIMITS.replace(lag_max=0.05)
    setattr(far, name, value)
    fails(text, moving(far).go_to, HOME)
    assert len(far.stops) == 1


def test_go_to_waits_for_missing_joint_states(far):
    far.silent = lambda arm: 10 <= arm.reads < 18
    assert moving(far).go_to(HOME) and far.stops == []
    far.q, far.reads, far.silent = HOME + 0.15, 0, lambda arm: arm.reads >= 10
    fails("joint state is gone", moving(far, speed=0.2).go_to, HOME)
    # it stood still before
    assert len(far.stops) == 1 and np.abs(np.diff(far.sent[-3:], axis=0)).max() < 1e-9


def test_a_target_below_the_table_is_not_reached(far):
    fails("move: ", moving(far, speed=1.0).go_to, HOME + np.array([0, 0.9, 0, 0.4, 0, -0.4, 0]))
    low = far.limits.table_z + far.limits.table_clearance
    assert (XArm7Points().along(np.array(far.sent))[..., 2] >= low).all() and far.stopped


def test_episode_ends_as_soon_as_the_end_condition_holds(arm):
    begin = arm.clock.now()
    runtime = made(arm)
    with runtime.ends_when(lambda: arm.clock.now() > begin + 1.0):
        result = runtime.run(1000)
    assert result.cause == "ended" and 8 <= result.steps <= 13
    assert not arm.stopped and runtime.fault == ()


def test_failing_end_condition_shows_no_traceback(arm, monkeypatch, capsys):
    """For example after the emulator is killed in an episode: only the arm's fault is shown."""
    tracebacks = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)

    def has_ended():
        raise EnvError("emulator: found the side channel closed during 'scene', expected an answer")

    runtime = made(arm)
    with runtime.ends_when(has_ended):
        assert runtime.run(5).cause == "steps"
    assert tracebacks == [] and capsys.readouterr() == ("", "")


def test_episode_start_matches_the_simulated_episode():
    simulated = CubePick(WORLD, draw=False)
    for seed in (0, 7):
        simulated.reset(seed=seed)
        placing = Placing.draw(WORLD, seed)
        np.testing.assert_allclose(placing.start_joints, simulated.commanded)
        np.testing.assert_allclose(placing.cube_xy, simulated.cube_pose[:2], atol=1e-3)
        assert abs(np.cos(placing.cube_yaw / 2)) == pytest.approx(abs(simulated.cube_pose[3]), abs=1e-3)


def test_nothing_moves_without_a_running_supervisor(arm):
    watch = Watch()
    runtime = made(arm, supervisor=watch)
    arm.clock.at(0.5, lambda: setattr(watch, "gone", True))
    fails("supervisor: connection closed", runtime.run, 1000)
    assert arm.stopped and "supervisor: connection closed" in runtime.fault[0]  # the fault stays
    arm.stopped, before = False, len(arm.sent)
    for runtime, reason in (
        (made(arm, supervisor=watch), "connection closed"),
        (made(arm, supervisor=None), "expected one"),
    ):
        for move in (lambda: runtime.go_to(HOME + 0.1), lambda: runtime.run(1)):  # noqa: B023
            fails(f"^supervisor: {reason}", move)
    fails("^supervisor: expected one", runtime.arm)
    assert len(arm.sent) == before and arm.stopped
    made(arm, loop=LoopConfig(image_size=16), supervisor=None).run(1)  # a dry run needs none


def test_stop_is_confirmed_once_acknowledged(arm, capsys):
    watch = Watch()
    runtime = made(arm, supervisor=watch)
    arm.acknowledges = False
    runtime.stop_for_operator("hands come near")
    assert watch.heard == ["stop"] and runtime.confirmed
    arm.error = 31  # the supervisor stops an arm that cannot be armed
    fails("error 31 pending", runtime.arm)
    assert watch.heard == ["stop", "stop"] and runtime.confirmed
    watch.gone = True
    fails("emergency stop", runtime.stop_for_operator, "hands come near")
    assert not runtime.confirmed and UNCONFIRMED in capsys.readouterr().err
    arm.acknowledges = True
    runtime.stop_for_operator("hands come near")
    assert runtime.confirmed and watch.heard == ["stop"] * 3
    watch.gone, arm.stop = False, lambda reason: {}["code"]  # a driver's defect is no acknowledgement
    runtime.stop_for_operator("hands come near")
    assert runtime.confirmed and watch.heard == ["stop"] * 4


def test_signal_swallowed_by_the_sdk_ends_the_session_at_the_next_beat(arm):
    stop = Stop()
    runtime = made(arm, stop=stop)
    read = arm.read

    def read_swallowing_signal():
        if len(arm.sent) == 20 and not stop.interrupted:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        return read()

    arm.read = read_swallowing_signal
    with stop.on_signals(), pytest.raises(KeyboardInterrupt):
        runtime.go_to(HOME + 0.1)
    assert arm.stopped and len(arm.sent) <= 21
    assert stop.requested is False  # no Event: a second signal within `request` would wait for its lock


def test_signal_while_an_episode_is_stored_takes_effect_afterwards():
    stop = Stop()
    stop.storing = stop.interrupted = True
    with stop.on_signals():
        signal.raise_signal(signal.SIGINT)
    assert stop.requested


def test_requested_stop_holds_until_the_arm_is_armed_again(arm):
    runtime = made(arm)
    runtime.loop.request_stop()
    assert not runtime.go_to(HOME + 0.1) and runtime.run(5).cause == runtime.run(5).cause == "stopped"
    assert arm.sent == []
    runtime.arm()
    assert runtime.run(1).cause == "steps"
    runtime.loop.request_stop()  # also between two episodes
    assert runtime.run(5).cause == "stopped"


def test_stop_takes_effect_while_the_policy_warms_up(arm):
    runtime, begin = made(arm, lambda o: arm.clock.sleep(25) or SLOWLY), arm.clock.now()
    arm.clock.at(2.0, runtime.stop.request)
    assert episode(runtime, 3).cause == episode(runtime, 3).cause == "stopped"  # a request is never withdrawn
    assert arm.clock.now() - begin < 3 and arm.stops[0] == "operator" and arm.sent == []


def test_operator_is_prompted_before_motion_while_the_arm_is_stopped(arm):
    runtime, operator, placing = made(arm), PromptedOperator(), Placing.draw(WORLD, 3)
    runtime.ready(operator, placing)
    assert operator.asked == [("free", ()), ("place", placing)]
    assert runtime.at(placing.start_joints) and arm.stopped
    runtime.ready(operator, placing)  # the arm is already there
    assert operator.asked[2:] == [("place", placing)]
    assert episode(runtime, 3).steps == 3 and arm.stopped
    operator.willing = False
    fails("operator: motion was not permitted", runtime.ready, operator, Placing.draw(WORLD, 4))
    assert operator.asked[3:] == [("free", ())]
    arm.lawful()


def test_fault_stays_until_the_operator_confirms_it_is_cleared(arm):
    runtime = made(arm, act=lambda o: np.full(8, np.nan) if arm.sent else SLOWLY)
    operator = PromptedOperator()
    assert episode(runtime, 5).cause == "fault"
    arm.acknowledges, runtime._supervisor.gone = False, True
    runtime.driver.stop("test")
    fails("emergency stop", runtime.ready, operator, Placing.draw(WORLD, 3))
    assert operator.asked == []  # no prompt near an arm that has not stopped
    arm.acknowledges, runtime._supervisor.gone = True, False
    operator.willing = False
    fails("operator: motion was not permitted", runtime.ready, operator, Placing.draw(WORLD, 3))
    assert operator.asked == [("free", runtime.fault)] and "expected finite numbers" in runtime.fault[0]
    operator.willing = True
    runtime.ready(operator, Placing.draw(WORLD, 3))
    assert runtime.fault == () and arm.stopped


def test_stop_on_the_way_to_the_start_brakes_and_ends_the_session(arm):
    runtime, operator = made(arm), PromptedOperator()
    arm.clock.at(0.2, runtime.stop.request)
    fails("stopped before the arm reached it", runtime.ready, operator, Placing(3, (0, 0), 0, HOME + 0.3))
    assert arm.stopped and [name for name, _ in operator.asked] == ["free"]
    assert not runtime.loop.safety.dq_last.any() and 0.01 < np.abs(arm.q - HOME).max() < 0.25
    arm.lawful()


def test_terminal_operator_accepts_only_yes():
    prompts, answers = [], ["y"]
    operator = TerminalOperator(lambda question: (prompts.append(question), answers.pop(0))[1])
    assert operator.place(Placing(3, (0.051, -0.032), np.pi / 2 + 0.5, HOME))
    assert all(words in prompts[-1] for words in ("x +5.1 cm", "y -3.2 cm", "29 deg"))
    for answers[:] in (["n"], ["y", ""]):
        assert not operator.free(("arm error 31",)) and "arm error 31" in prompts[1]
    answers[:] = ["", "no", None, "Yes", "", "maybe", "y", "", "n"]  # outcomes are asked until answered
    assert [operator.wait_to_start(0, 1) for _ in range(3)] == [True, False, False]
    assert operator.success() and not operator.ended()
    assert operator.keep() and not operator.keep() and not answers

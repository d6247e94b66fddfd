"""The slow move to an episode's start, an episode ended early, and a supervisor at rest; in virtual time."""

from dataclasses import replace

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.move import move_slowly
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.supervisor import _BEAT, _BYE, _REST, _watch
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from tests.envs.real.home import HOME
from tests.envs.real.virtual import FakeArm, Film, VirtualClock

POINTS = ArmPoints("xarm7")


@pytest.fixture
def arm():
    arm = FakeArm(VirtualClock(), HOME + 0.15)
    arm.gripper = 0.0
    return arm


def move(arm, target=HOME, **settings):
    safety = SafetyFilter(arm.limits, POINTS, SafetyConfig(state_age_max=0.2))
    return move_slowly(arm, safety, target, **{"opening": 1.0, "speed": 0.5, "clock": arm.clock} | settings)


def test_it_arrives_slowly_and_opens_the_gripper(arm):
    beats = []
    assert move(arm, beat=lambda: beats.append(1))
    np.testing.assert_allclose(arm.q, HOME, atol=2e-3)
    assert arm.gripper == 1.0 and arm.stops == [] and len(beats) == len(arm.sent)
    speeds = np.abs(np.diff([HOME + 0.15, *arm.sent], axis=0)) * arm.limits.rate_hz
    assert 0.4 < speeds.max() <= 0.5
    assert move(arm)  # already there


def test_a_stop_brakes_on_the_way(arm):
    assert not move(arm, stopped=lambda: len(arm.sent) > 10)
    assert arm.stops == ["operator"] and np.abs(arm.q - HOME).max() > 0.05
    speeds = np.abs(np.diff(arm.sent, axis=0)).max(1) * arm.limits.rate_hz
    assert speeds[-1] <= max(arm.limits.ddq_max) / arm.limits.rate_hz + 1e-6  # the last step of a braking


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"error": 31}, "arm error 31"),
        ({"code": 9}, "command code 9"),
        ({"stuck": True}, r"safety stop \(.* lags"),
    ],
)
def test_what_goes_wrong_stops_the_arm(arm, change, text):
    arm.q, arm.limits = HOME + 0.15, replace(XARM7_LIMITS, lag_max=0.05)
    for name, value in change.items():
        setattr(arm, name, value)
    with pytest.raises(EnvError, match=text):
        move(arm)
    assert len(arm.stops) == 1


def test_an_answer_that_fails_to_come_is_waited_for(arm):
    arm.silent = lambda arm: 10 <= arm.reads < 15
    assert move(arm) and arm.stops == []
    arm.q, arm.reads, arm.silent = HOME + 0.15, 0, lambda arm: arm.reads >= 10
    with pytest.raises(EnvError, match="no answer"):
        move(arm, speed=0.2)
    assert len(arm.stops) == 1 and np.abs(np.diff(arm.sent[-3:], axis=0)).max() < 1e-9  # it stood before


def test_a_supervisor_that_is_gone_stops_the_arm(arm):
    def beat():
        raise EnvError("supervisor: found it gone")

    with pytest.raises(EnvError, match="gone"):
        move(arm, beat=beat)
    assert arm.sent == [] and len(arm.stops) == 1


def test_a_target_below_the_table_is_not_reached(arm):
    limits = replace(XARM7_LIMITS, table_clearance=0.0)
    arm.limits = limits
    down = HOME + np.array([0, 0.9, 0, 0.4, 0, -0.4, 0])
    with pytest.raises(EnvError, match="safety stop"):
        move(arm, target=down, speed=1.0)
    assert (POINTS.along(np.array(arm.sent))[..., 2] >= limits.table_z).all()


def test_an_episode_ends_early_with_the_arm_ready(arm):
    arm.q = HOME.copy()
    pictures = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    reader = Film(arm.clock, pictures)
    calm = WatchdogLimits(
        camera_hold=9, camera_fault=9, state_hold=9, state_fault=9, policy_hold=9, policy_fault=9,
        hold_fault=9, report_fault=9,
    )  # fmt: skip
    safety = SafetyFilter(arm.limits, POINTS, SafetyConfig(state_age_max=9.0))
    slowly = np.append(np.full(7, 0.01), 1.0)
    config = LoopConfig(live=True, image_size=16)
    loop = ControlLoop(arm, {"hand": reader}, lambda o: slowly, safety, config, calm, clock=arm.clock)
    arm.clock.at(0.5, loop.request_end)
    result = loop.run(10_000)
    assert (result.cause, result.state, arm.stops) == ("ended", State.IDLE, [])
    assert result.steps > 0 and not safety.dq_last.any()
    assert loop.run(1).cause == "steps"  # the wish does not outlast its episode


def test_after_a_gap_the_move_does_not_go_on(arm):
    """A process that was suspended finds the arm stopped by its supervisor."""
    safety = SafetyFilter(arm.limits, POINTS, SafetyConfig(state_age_max=9.0))
    sent = []

    def beat():
        if len(arm.sent) == 30 and not sent:
            sent.append(30)
            arm.clock.sleep(1.0)

    with pytest.raises(EnvError, match="between two commands"):
        move_slowly(arm, safety, HOME, beat=beat, clock=arm.clock)
    assert len(arm.sent) == 30 and arm.stopped


class Pipe:
    """What a loop said, word by word; then silence."""

    def __init__(self, *words):
        self.words, self.waits = list(words), []

    def poll(self, timeout):
        self.waits.append(timeout)
        return bool(self.words)

    def recv_bytes(self):
        return self.words.pop(0)

    def send_bytes(self, word):
        """The supervisor's answer."""


def test_no_beat_is_due_while_the_loop_rests(arm):
    pipe = Pipe(_BEAT, _REST, _BEAT)
    assert _watch(pipe, 0.3, arm) == "no heartbeat for 0.3 s"
    assert pipe.waits == [0.5, 0.3, 0.5, 0.3]
    assert _watch(Pipe(_BEAT, _REST, _BYE), 0.3, arm) == ""

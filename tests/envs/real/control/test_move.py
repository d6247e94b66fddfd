"""The slow move to an episode's start, an episode ended early, and a supervisor at rest."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, XARM7_LIMITS, ArmState, CommandResult, DriverStatus
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.cameras.replay import ReplayCamera
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.move import move_slowly
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.supervisor import _BEAT, _BYE, _REST, _watch
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from tests.envs.real.home import HOME

POINTS = ArmPoints("xarm7")


class FakeArm:
    """Stands where it was told last."""

    limits = XARM7_LIMITS

    def __init__(self):
        self.q, self.sent, self.stops, self.error, self.code, self.gripper = HOME + 0.15, [], [], 0, OK, 0.0
        self.stuck, self.reads, self.silent = False, 0, range(0)

    def connect(self, timeout_s): ...
    def arm(self): ...
    def hold(self): ...
    def close(self): ...

    def read(self):
        self.reads += 1
        if self.reads in self.silent:
            raise EnvError("xarm: no answer")
        zero = np.zeros(7)
        return ArmState(self.q.copy(), zero, zero, np.zeros(6), self.gripper, time.monotonic(), 1, self.error)

    def command(self, q, gripper):
        now = time.monotonic()
        self.sent.append(q.copy())
        self.q = self.q if self.stuck else q.copy()
        self.gripper = self.gripper if gripper is None else gripper
        return CommandResult(self.code, now, now)

    def stop(self, reason):
        self.stops.append(reason)

    def status(self):
        return DriverStatus(True, self.error, 0, 1, 0.0)


@pytest.fixture
def arm():
    return FakeArm()


def move(arm, target=HOME, **settings):
    safety = SafetyFilter(arm.limits, POINTS, SafetyConfig(state_age_max=0.2))
    return move_slowly(arm, safety, target, **{"opening": 1.0, "speed": 0.5} | settings)


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
    arm.silent = range(10, 15)
    assert move(arm) and arm.stops == []
    arm.q, arm.reads, arm.silent = HOME + 0.15, 0, range(10, 10_000)
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
    reader = CameraReader("hand", lambda: ReplayCamera(pictures, 50))
    reader.start(60.0)
    calm = WatchdogLimits(
        camera_hold=9, camera_fault=9, state_hold=9, state_fault=9, policy_hold=9, policy_fault=9,
        hold_fault=9, report_fault=9,
    )  # fmt: skip
    safety = SafetyFilter(arm.limits, POINTS, SafetyConfig(state_age_max=9.0))
    slowly = np.append(np.full(7, 0.01), 1.0)
    loop = ControlLoop(
        arm, {"hand": reader}, lambda o: slowly, safety, LoopConfig(live=True, image_size=16), calm
    )
    threading.Timer(0.5, loop.request_end).start()
    result = loop.run(10_000)
    assert (result.cause, result.state, arm.stops) == ("ended", State.IDLE, [])
    assert result.steps > 0 and not safety.dq_last.any()
    assert loop.run(1).cause == "steps"  # the wish does not outlast its episode
    reader.close()


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


def test_no_beat_is_due_while_the_loop_rests():
    pipe = Pipe(_BEAT, _REST, _BEAT)
    assert _watch(pipe, 0.3, lambda: True) == "no heartbeat for 0.3 s"
    assert pipe.waits == [None, 0.3, None, 0.3]
    assert _watch(Pipe(_BEAT, _REST, _BYE), 0.3, lambda: True) == ""

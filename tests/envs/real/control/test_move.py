"""The slow move to an episode's start, an episode ended early, and a supervisor at rest; in virtual time."""

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.supervisor import _BEAT, _BYE, _REST, _watch
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.runtime import ArmRuntime
from tests.envs.real.home import HOME
from tests.envs.real.virtual import SLOWLY, Calls, FakeArm, Film, VirtualClock, Watch

POINTS = ArmPoints("xarm7")
NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)


@pytest.fixture
def arm():
    arm = FakeArm(VirtualClock(), HOME + 0.15)
    arm.gripper = 0.0
    return arm


def made(arm, beat=lambda: None, speed=0.5):
    return ArmRuntime(
        arm, {"hand": Film(arm.clock, NOISE)}, lambda o: SLOWLY, POINTS, LoopConfig(live=True, image_size=16),
        safety=SafetyConfig(state_age_max=0.2), subscribers=[Calls(beat=beat)], supervisor=Watch(), home_speed=speed,
        clock=arm.clock,
    )  # fmt: skip


def test_it_arrives_slowly_and_opens_the_gripper(arm):
    runtime = made(arm)
    assert runtime.go_to(HOME)
    np.testing.assert_allclose(arm.q, HOME, atol=2e-3)
    assert arm.gripper == 1.0 and arm.stops == [] and runtime._supervisor.heard.count("beat") >= len(arm.sent)
    speeds = np.abs(np.diff([HOME + 0.15, *arm.sent], axis=0)) * arm.limits.rate_hz
    assert 0.4 < speeds.max() <= 0.5 + 1e-9
    count = len(arm.sent)
    assert runtime.go_to(HOME) and len(arm.sent) < count + 30  # already there
    arm.lawful()


def test_a_stop_brakes_on_the_way(arm):
    runtime = made(arm, lambda: len(arm.sent) > 10 and runtime.stop.ask())
    assert not runtime.go_to(HOME)
    assert arm.stops == ["operator"] and np.abs(arm.q - HOME).max() > 0.05
    arm.lawful()
    assert not runtime.loop.safety.dq_last.any()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"error": 31}, "arm error 31"),
        ({"code": 9}, "command code 9"),
        ({"stuck": True}, "safety stop: .* lags"),
    ],
)
def test_what_goes_wrong_stops_the_arm(arm, change, text):
    arm.limits = XARM7_LIMITS.replace(lag_max=0.05)
    for name, value in change.items():
        setattr(arm, name, value)
    with pytest.raises(EnvError, match=text):
        made(arm).go_to(HOME)
    assert len(arm.stops) == 1


def test_an_answer_that_fails_to_come_is_waited_for(arm):
    arm.silent = lambda arm: 10 <= arm.reads < 18
    assert made(arm).go_to(HOME) and arm.stops == []
    arm.q, arm.reads, arm.silent = HOME + 0.15, 0, lambda arm: arm.reads >= 10
    with pytest.raises(EnvError, match="joint state is gone"):
        made(arm, speed=0.2).go_to(HOME)
    assert len(arm.stops) == 1 and np.abs(np.diff(arm.sent[-3:], axis=0)).max() < 1e-9  # it stood before


def test_a_target_below_the_table_is_not_reached(arm):
    down = HOME + np.array([0, 0.9, 0, 0.4, 0, -0.4, 0])
    with pytest.raises(EnvError, match="move: "):
        made(arm, speed=1.0).go_to(down)
    low = arm.limits.table_z + arm.limits.table_clearance
    assert (POINTS.along(np.array(arm.sent))[..., 2] >= low).all() and arm.stopped


def test_an_episode_ends_early_with_the_arm_ready(arm):
    arm.q = HOME.copy()
    runtime = made(arm)
    arm.clock.at(0.5, runtime.loop.request_end)
    result = runtime.run(10_000)
    assert (result.cause, result.state, arm.stops) == ("ended", State.IDLE, [])
    assert result.steps > 0 and not runtime.loop.safety.dq_last.any()
    assert runtime.run(1).cause == "steps"  # the request does not outlast its episode


def test_after_a_gap_the_move_does_not_go_on(arm):
    """A process that was suspended finds the arm stopped by its supervisor."""
    slept = []

    def beat():
        if len(arm.sent) == 30 and not slept:
            slept.append(1)
            arm.clock.sleep(1.0)

    with pytest.raises(EnvError, match="stood still"):
        made(arm, beat).go_to(HOME)
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

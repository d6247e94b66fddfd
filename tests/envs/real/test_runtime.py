"""What drives an arm, in virtual time: to the start, an episode, its early end, a stop, a fault."""

import signal
import threading
from contextlib import suppress

import numpy as np
import pytest

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.subscriber import Subscribers
from s2robot.envs.real.control.supervisor import UNCONFIRMED
from s2robot.envs.real.emulator.stand_in import EmulatedOperator
from s2robot.envs.real.operator.prompts import Placing
from s2robot.envs.real.operator.stop import Stop
from s2robot.envs.real.runtime import ArmRuntime
from tests.envs.real.home import HOME
from tests.envs.real.virtual import SLOWLY, Calls, Film, Watch

NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
LIVE = LoopConfig(live=True, image_size=16)
WORLD = CubePickConfig(cameras=("hand",))


class Nodding(EmulatedOperator):
    """Says yes, or not, and notes each question."""

    def __init__(self):
        super().__init__(None, scene=False)
        self.asked, self.willing = [], True

    def free(self, fault):
        self.asked.append(("free", fault))
        return self.willing

    def place(self, placing):
        self.asked.append(("place", placing))
        return self.willing


def made(arm, act=None, loop=LIVE, **settings):
    def slowly(observation):
        arm.clock.sleep(0.03)  # what an answer takes
        return SLOWLY

    cameras = {"hand": Film(arm.clock, NOISE, 30)}
    settings = {
        "supervisor": Watch(),
        "safety": SafetyConfig(state_age_max=0.1),
        "home_speed": 0.5,
    } | settings
    return ArmRuntime(arm, cameras, act or slowly, ArmPoints("xarm7"), loop, clock=arm.clock, **settings)


def test_to_the_start_and_an_episode(arm):
    watch, heard = Watch(), []
    runtime = made(arm, subscribers=[Calls(step=heard.append)], supervisor=watch)
    runtime.arm()
    assert not runtime.at(HOME + 0.1)
    assert runtime.go_to(HOME + 0.1) and runtime.at(HOME + 0.1)
    assert watch.heard[-1] == "rest" and watch.heard.count("rest") == 1
    way = len(arm.sent)
    assert np.abs(np.diff(arm.sent, axis=0)).max() * arm.limits.rate_hz <= 0.5
    assert runtime.run(5).cause == "steps" and len(heard) == 5
    assert watch.heard[-1] == "rest" and watch.heard.count("beat") >= len(arm.sent) > way
    arm.lawful()


def test_an_episode_ends_as_soon_as_it_is_over(arm):
    begin = arm.clock.now()
    runtime = made(arm)
    with runtime.ends_when(lambda: arm.clock.now() > begin + 1.0):
        result = runtime.run(1000)
    assert result.cause == "ended" and 8 <= result.steps <= 13
    assert not arm.stopped and runtime.fault == ()


def test_whoever_says_when_it_is_over_may_vanish_without_a_word(arm, monkeypatch, capsys):
    """The emulator killed in an episode: the arm's own fault is what is told, not a thread's traceback."""
    broken = []
    monkeypatch.setattr(threading, "excepthook", broken.append)

    def over():
        raise EnvError("emulator: found the side channel closed during 'scene', expected an answer")

    runtime = made(arm)
    with runtime.ends_when(over):
        assert runtime.run(5).cause == "steps"
    assert broken == [] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize("soon", [0.1, 1.5])
def test_the_operators_stop_counts_on_the_way_and_in_an_episode(arm, soon):
    stop = Stop()
    runtime = made(arm, stop=stop)
    arm.clock.at(soon, stop.ask)
    there = runtime.go_to(HOME + 0.3)
    assert there is (soon == 1.5)
    if there:
        assert runtime.run(1000).cause == "stopped"
    assert arm.stops == ["operator"]
    arm.lawful()


def test_without_a_supervisor_that_watches_nothing_moves(arm):
    watch = Watch()
    runtime = made(arm, supervisor=watch)
    watch.gone = True
    with pytest.raises(EnvError, match="found it gone"):
        runtime.go_to(HOME + 0.1)
    with pytest.raises(EnvError, match="found it gone"):
        runtime.run(1)
    assert arm.sent == [] and arm.stopped


def test_a_live_arm_without_a_supervisor_is_not_armed_and_does_not_move(arm):
    runtime = made(arm, supervisor=None)
    for move in (runtime.arm, lambda: runtime.go_to(HOME + 0.1), lambda: runtime.run(1)):
        with pytest.raises(EnvError, match="^supervisor: found none"):
            move()
    assert arm.sent == []
    made(arm, loop=LoopConfig(image_size=16), supervisor=None).run(1)  # a dry run needs none


def test_a_stop_counts_once_it_is_acknowledged(arm, capsys):
    watch = Watch()
    runtime = made(arm, supervisor=watch)
    arm.acknowledges = False
    runtime.stand("hands come near")
    assert watch.heard == ["stop"] and runtime.confirmed and runtime.known != UNCONFIRMED
    watch.gone = True
    with pytest.raises(EnvError, match="emergency stop"):
        runtime.stand("hands come near")
    assert not runtime.confirmed and runtime.known == UNCONFIRMED and UNCONFIRMED in capsys.readouterr().err
    arm.acknowledges = True
    runtime.stand("hands come near")
    assert runtime.confirmed and watch.heard == ["stop", "stop"]


def test_a_signal_that_the_sdk_swallows_ends_the_session_at_the_next_beat(arm):
    stop = Stop()
    runtime = made(arm, stop=stop)
    read = arm.read

    def swallowed():
        if len(arm.sent) == 20 and not stop.interrupted:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        return read()

    arm.read = swallowed
    with stop.on_signals(), pytest.raises(KeyboardInterrupt):
        runtime.go_to(HOME + 0.1)
    assert arm.stopped and len(arm.sent) <= 21


def test_an_arm_that_cannot_be_armed_is_stopped_by_whoever_can(arm):
    watch = Watch()
    runtime = made(arm, supervisor=watch)
    arm.error, arm.acknowledges = 31, False
    with pytest.raises(EnvError, match="error 31 pending"):
        runtime.arm()
    assert watch.heard == ["stop"] and runtime.confirmed


def test_a_requested_stop_counts_until_the_arm_is_armed_again(arm):
    runtime = made(arm)
    runtime.loop.request_stop()
    assert not runtime.go_to(HOME + 0.1) and runtime.run(5).cause == runtime.run(5).cause == "stopped"
    assert arm.sent == []
    runtime.arm()
    assert runtime.run(1).cause == "steps"


def test_a_lost_supervisor_in_mid_episode_is_a_fault_that_stays(arm):
    watch = Watch()
    runtime = made(arm, supervisor=watch)
    arm.clock.at(0.5, lambda: setattr(watch, "gone", True))
    with pytest.raises(EnvError, match="found it gone"):
        runtime.run(1000)
    assert arm.stopped and "found it gone" in runtime.fault[0]


# ---------------------------------------------------------------- between episodes


def test_the_start_of_an_episode_is_that_of_the_simulated_one():
    simulated = CubePick(WORLD, draw=False)
    for seed in (0, 7):
        simulated.reset(seed=seed)
        placing = Placing.draw(WORLD, seed)
        np.testing.assert_allclose(placing.start_joints, simulated.commanded)
        np.testing.assert_allclose(placing.cube_xy, simulated.cube_pose[:2], atol=1e-3)


def test_the_operator_is_asked_before_the_arm_moves_and_while_it_is_stopped(arm):
    runtime, operator, placing = made(arm), Nodding(), Placing.draw(WORLD, 3)
    runtime.ready(operator, placing)
    assert operator.asked == [("free", ()), ("place", placing)]
    assert runtime.at(placing.start_joints) and arm.stopped
    runtime.ready(operator, placing)  # it is there already
    assert operator.asked[2:] == [("place", placing)]
    assert runtime.episode(3).steps == 3 and arm.stopped
    operator.willing = False
    with pytest.raises(EnvError, match="the operator said no"):
        runtime.ready(operator, Placing.draw(WORLD, 4))
    assert operator.asked[3:] == [("free", ())]
    arm.lawful()


def test_a_dry_run_only_has_the_cube_placed(arm):
    operator = Nodding()
    made(arm, loop=LoopConfig(image_size=16)).ready(operator, Placing.draw(WORLD, 3))
    assert [name for name, _ in operator.asked] == ["place"] and arm.sent == []


def test_a_fault_stays_until_the_operator_says_that_it_is_cleared(arm):
    runtime, operator = made(arm, act=lambda o: np.full(8, np.nan) if arm.sent else SLOWLY), Nodding()
    assert runtime.episode(5).cause == "fault"
    operator.willing = False
    with pytest.raises(EnvError, match="the operator said no"):
        runtime.ready(operator, Placing.draw(WORLD, 3))
    assert operator.asked == [("free", runtime.fault)] and runtime.fault[0].startswith("policy: found action")
    operator.willing = True
    runtime.ready(operator, Placing.draw(WORLD, 3))
    assert runtime.fault == () and arm.stopped


def test_nobody_is_asked_near_an_arm_that_has_not_stopped(arm):
    runtime, operator = made(arm), Nodding()
    arm.acknowledges = False
    runtime._supervisor.gone = True
    runtime.driver.stop("test")
    with pytest.raises(EnvError, match="emergency stop"):
        runtime.ready(operator, Placing.draw(WORLD, 3))
    assert operator.asked == []


def test_a_stop_on_the_way_to_the_start_or_in_an_episode_ends_the_session(arm):
    runtime, operator = made(arm), Nodding()
    arm.clock.at(0.2, runtime.stop.ask)
    with pytest.raises(EnvError, match="stopped on the way"):
        runtime.ready(operator, Placing(3, (0, 0), 0, HOME + 0.3))
    assert arm.stopped and [name for name, _ in operator.asked] == ["free"]
    runtime = made(arm)
    arm.clock.at(0.5, runtime.stop.ask)
    with pytest.raises(KeyboardInterrupt):
        runtime.episode(1000)
    assert arm.stopped and not runtime.stop.moving
    arm.lawful()


@pytest.mark.realtime
def test_the_emulated_operator_clears_a_fault_as_a_person_would(emulator, driver):
    operator = EmulatedOperator(emulator.side, scene=False)
    emulator.side("place_arm", joints=(HOME + 0.2).tolist())
    emulator.side.fault("error", code=31)
    assert (
        operator.free(()) and emulator.side("status")["error"] == 31
    )  # asked about the way, not about a fault
    assert operator.free(("arm error 31",)) and emulator.side("status")["error"] == 0
    np.testing.assert_allclose(emulator.side("status")["joints"], HOME, atol=1e-3)
    driver.arm()
    assert driver.read().error == 0
    assert not operator.ended() and operator.stage() == "approach" and operator.closest is None


def test_several_hear_in_their_order():
    heard = []
    each = [
        Calls(
            begin=lambda i=i: heard.append((i, "begin")),
            beat=lambda i=i: heard.append((i, "beat")),
            period=lambda now, state, safe, i=i: heard.append((i, now)),
            step=lambda step, i=i: heard.append((i, step)),
        )
        for i in (0, 1)
    ]
    both = Subscribers(*each)
    both.on_begin(), both.on_beat(), both.on_period(1.5, None, None), both.on_step({})
    assert heard == [(i, what) for what in ("begin", "beat", 1.5, {}) for i in (0, 1)]

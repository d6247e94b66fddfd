"""What drives an arm, in virtual time: to the start, an episode, its early end, a stop, a fault."""

import signal
import threading
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.subscriber import Subscribers
from s2robot.envs.real.control.supervisor import UNCONFIRMED
from s2robot.envs.real.control.turns import Turns
from s2robot.envs.real.control.watchdog import WatchdogLimits
from s2robot.envs.real.operator.stop import Stop
from s2robot.envs.real.runtime import ArmRuntime, RuntimeConfig
from tests.envs.real.home import HOME
from tests.envs.real.virtual import SLOWLY, Calls, Film, Watch

NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
CONFIG = RuntimeConfig(
    LoopConfig(live=True, image_size=16), WatchdogLimits(), SafetyConfig(state_age_max=0.1), home_speed=0.5
)


def made(arm, act=None, config=CONFIG, **settings):
    def slowly(observation):
        arm.clock.sleep(0.03)  # what an answer takes
        return SLOWLY

    cameras = {"hand": Film(arm.clock, NOISE, 30)}
    settings = {"supervisor": Watch()} | settings
    return ArmRuntime(arm, cameras, act or slowly, ArmPoints("xarm7"), config, clock=arm.clock, **settings)


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
    made(arm, config=replace(CONFIG, loop=LoopConfig(image_size=16)), supervisor=None).run(
        1
    )  # a dry run needs none


def test_a_fault_stays_until_it_is_cleared(arm):
    runtime = made(arm, act=lambda o: np.full(8, np.nan) if arm.sent else SLOWLY)
    assert runtime.run(5).cause == "fault"
    assert runtime.fault[0].startswith("policy: found action") and arm.stopped
    runtime.clear()
    assert runtime.fault == ()


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


def test_an_episode_in_a_thread_of_its_own(arm):
    turns = Turns(arm.clock)
    runtime = made(arm, act=turns.act, subscribers=[turns])
    assert not runtime.running and not runtime.join()
    turns.begin()
    runtime.start(3, turns.over)
    seen = 0
    while turns.wait(lambda: runtime.running) is not None:
        seen += 1
        turns.answer(SLOWLY)
    assert seen == 3 and not runtime.running and runtime.result.steps == 3
    assert runtime.join() and arm.stops == ["end of the episode"]
    with pytest.raises(AssertionError):  # nobody answers, and nobody is left who could
        arm.clock.wait(lambda: False, None)


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

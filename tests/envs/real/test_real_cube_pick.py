"""The real task's environment: same interface, the loop's rules; in virtual time, and on the vendor's SDK."""

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest

import s2robot.envs  # noqa: F401 (registers the id)
from benchmarks.fault_bridge import note
from benchmarks.fault_judge import unfiltered
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import REFUSED
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.cameras.replay import ReplayCamera
from s2robot.envs.real.control.clock import REAL
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import WatchdogLimits
from s2robot.envs.real.emulator.camera import opened
from s2robot.envs.real.emulator.launch import launch
from s2robot.envs.real.emulator.operator import EmulatedOperator
from s2robot.envs.real.operator.prompts import Placing, TerminalOperator
from s2robot.envs.real.operator.stop import Stop
from s2robot.envs.real.real_cube_pick import RealCubePick
from tests.envs.real.home import HOME
from tests.envs.real.patience import CALM, PATIENCE
from tests.envs.real.virtual import SLOWLY, Calls, Film, Watch

NOISE = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
CONFIG = CubePickConfig(cameras=("hand",), image_size=16, max_steps=4)
LIVE = LoopConfig(live=True, image_size=16)


class Nodding(EmulatedOperator):
    """Says yes and takes notes; `verdict` is what it makes of an episode."""

    def __init__(self, side=None, scene=False):
        super().__init__(side, scene)
        self.asked, self.over, self.verdict, self.willing = [], False, True, True

    def free(self, fault):
        self.asked.append(("free", fault))
        return self.willing

    def place(self, placing):
        self.asked.append(("place", placing))
        return super().place(placing) and self.willing

    def ended(self):
        return self.over

    def success(self):
        return self.verdict


def picked(env, seed):
    """Actions of the scripted picker from the seed to success."""
    env.reset(seed=seed)
    picker = Picker(env, PickerConfig(kicks=(0, 0), misses=0.0))
    picker.reset(seed)
    actions = []
    while not env.is_success:
        actions.append(picker.act()[0])
        env.step_physics(actions[-1])
    return actions


@pytest.fixture
def made(arm, clock):
    """A function that makes the environment; `made.operator` is asked."""
    made = []

    def make(limits=CALM, loop=LIVE, **settings):
        make.operator = Nodding()
        settings = {
            "driver": arm,
            "cameras": {"hand": Film(clock, NOISE, 30)},
            "clock": clock,
            "supervisor": Watch(),
        } | settings
        env = gymnasium.make(
            "s2robot/RealCubePick-v0", config=CONFIG, operator=make.operator, loop=loop, watchdog=limits,
            safety=SafetyConfig(state_age_max=3.0), **settings,
        )  # fmt: skip
        made.append(env)
        return env

    yield make
    for env in made:
        env.close()


def run_episodes(made, steps, arm, joints, on_made=lambda env: None, **settings):
    """An episode of success and one without, with all that the interface promises of them."""
    # gymnasium.make checks reset, step and spaces
    env = made(subscriber=Calls(step=steps.append), render_mode="rgb_array", **settings)
    on_made(env)
    start = HOME + np.linspace(-0.1, 0.1, 7)
    observation, info = env.reset(seed=3, options={"start_joints": start})
    assert observation in env.observation_space
    np.testing.assert_allclose(observation["proprio"][:7], start, atol=0.02)  # it went there itself
    (free, fault), (place, placing) = made.operator.asked
    assert (free, fault, place, placing.seed) == ("free", (), "place", 3)
    assert not info["is_success"] and info["state"] == "running"
    np.testing.assert_allclose(info["cube_asked"], [*placing.cube_xy, placing.cube_yaw])
    started = np.array(joints())
    ends, clock = [], env.unwrapped.runtime.clock
    for _ in range(CONFIG.max_steps):
        began = clock.now()
        observation, reward, terminated, truncated, info = env.step(SLOWLY)
        ends.append((reward, terminated, truncated, info["is_success"]))
        assert clock.now() - began > 0.02
    assert ends == [(0.0, False, False, False)] * 3 + [(1.0, True, False, True)]
    assert info["steps"] == 4 and info["verdict"] in ("PASS", "CLAMP") and info["reasons"] == ()
    # the last step ends the episode while its motion does
    np.testing.assert_allclose(joints(), started + 0.04, atol=0.015)
    assert len(steps) == 4  # of the episode, none of the way to its start
    np.testing.assert_allclose([s["action"] for s in steps], [SLOWLY] * 4, atol=1e-6)
    assert env.render().shape == (16, 16, 3)
    with pytest.raises(EnvError, match="the episode is over"):
        env.step(SLOWLY)
    made.operator.verdict = False
    env.reset(seed=4)
    for _ in range(CONFIG.max_steps):
        *_, terminated, truncated, info = env.step(np.zeros(8, np.float32))
    assert (terminated, truncated, info["is_success"]) == (False, True, False)


def test_an_episode_as_in_the_simulated_world(made, arm):
    run_episodes(made, [], arm, lambda: arm.q)
    arm.lawful()
    assert arm.stopped  # while hands are near


@pytest.mark.realtime
def test_an_episode_over_the_vendor_s_sdk(made, emulator, driver):
    pytest.importorskip("xarm")
    camera = CameraReader("hand", lambda: ReplayCamera(NOISE, 30))
    camera.start(PATIENCE)
    begin, passed = time.monotonic(), []
    own = {"driver": driver, "cameras": {"hand": camera}, "clock": REAL}
    hear = lambda env: passed.append(note(env.unwrapped.loop.safety))  # noqa: E731
    run_episodes(made, [], driver, lambda: emulator.side("status")["joints"], hear, **own)
    camera.close()
    commands = [c for c in emulator.side("commands", since=begin)["commands"] if c["kind"] == "motion"]
    assert len(commands) > 50 and not any(c["unsafe"] for c in commands)
    assert unfiltered(commands, passed[0]) == 0  # on the way to the start, in the episodes, at their ends
    assert emulator.side("status")["state"] >= 4  # stopped while hands are near


def test_spaces_and_draws_are_those_of_the_simulated_world(made):
    real = made().unwrapped
    simulated = CubePick(CONFIG)
    assert real.observation_space == simulated.observation_space
    assert real.action_space == simulated.action_space
    for seed in (0, 7):
        simulated.reset(seed=seed)
        gymnasium.Env.reset(real, seed=seed)
        placing = real._sample(seed, {})
        np.testing.assert_allclose(placing.start_joints, simulated.commanded)
        np.testing.assert_allclose(placing.cube_xy, simulated.cube_pose[:2], atol=1e-3)


def test_nobody_is_asked_near_an_arm_that_has_not_stopped(made, arm):
    env = made()
    env.reset(seed=0)
    arm.acknowledges = False
    env.close()
    made.operator.asked.clear()
    with pytest.raises(EnvError, match="emergency stop"):
        env.reset(seed=0)
    assert made.operator.asked == []


def test_the_end_that_the_operator_sees(made, arm):
    env = made()
    env.reset(seed=0)
    env.step(SLOWLY)
    made.operator.over = True
    _, reward, terminated, truncated, _ = env.step(SLOWLY)
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert arm.stopped


def test_a_late_step_holds_and_one_that_does_not_come_is_a_fault(made, arm, clock):
    limits = WatchdogLimits(
        camera_hold=3.0, camera_fault=9.0, state_hold=3.0, state_fault=9.0, policy_hold=0.3, policy_fault=1.5,
        hold_fault=30.0, report_fault=30.0,
    )  # fmt: skip
    env = made(limits)
    env.reset(seed=0)
    env.step(SLOWLY)
    clock.sleep(0.7)
    *_, info = env.step(SLOWLY)
    assert info["held"] and info["state"] in ("running", "hold") and "policy is late" in info["reasons"]
    clock.sleep(2.5)
    _, reward, terminated, truncated, info = env.step(SLOWLY)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["state"] == "fault" and "policy is gone" in info["reasons"]
    assert arm.stopped
    # the fault stays until the operator says that it is cleared
    made.operator.willing = False
    with pytest.raises(EnvError, match="operator said no"):
        env.reset(seed=0)
    assert made.operator.asked[-1] == ("free", ("policy is gone",))
    assert env.unwrapped.loop.watchdog.state.value == "fault"
    made.operator.willing = True
    env.reset(seed=0)
    assert env.step(SLOWLY)[-1]["state"] == "running"


def test_an_action_that_came_while_the_arm_was_held_is_no_step(made, arm, clock):
    """It was not executed: an episode has as many executed ones as it is to have, as the record says."""
    steps = []
    env = made(replace(CALM, policy_hold=0.3), subscriber=Calls(step=steps.append))
    env.reset(seed=0)
    told = []
    for late in (False, True, True, False, False, False):
        clock.sleep(0.7 if late else 0.0)
        *_, terminated, truncated, info = env.step(SLOWLY)
        told.append((info["executed"], info["steps"], terminated or truncated))
    assert told == [
        (True, 1, False), (False, 1, False), (False, 1, False), (True, 2, False), (True, 3, False), (True, 4, True),
    ]  # fmt: skip
    assert len(steps) == 4
    arm.lawful()


@pytest.mark.parametrize(
    "action, reason", [(np.full(8, np.nan), "expected finite numbers"), (np.zeros(7), "expected 8 numbers")]
)
def test_an_action_that_is_none_is_a_fault(made, arm, action, reason):
    env = made().unwrapped  # past gymnasium's own checks
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(action)
    assert terminated and info["state"] == "fault" and reason in info["reasons"][0]
    assert info["steps"] == 0 and arm.command(arm.read().q, None).code == REFUSED
    arm.lawful()


def test_an_error_of_the_arm_ends_the_episode_and_the_next_reset(made, arm):
    env = made()
    env.reset(seed=0)
    arm.error = 31
    for _ in range(CONFIG.max_steps):
        *_, terminated, _, info = env.step(SLOWLY)
        if terminated:
            break
    assert terminated and info["state"] == "fault" and not info["is_success"]
    with pytest.raises(EnvError, match="error 31 pending"):  # cleared at the arm, not here
        env.reset(seed=0)


def test_a_loop_that_dies_is_a_fault_of_the_episode(made, arm):
    """As where the supervisor has stopped the arm: nobody may take what there is for an episode that was ended."""

    class Gone:
        left = 10**9

        def beat(self):
            self.left -= 1
            if self.left < 0:
                raise EnvError("supervisor: found it gone")

        def rest(self):
            pass

    gone = Gone()
    env = made(supervisor=gone)
    env.reset(seed=3)
    env.step(SLOWLY)
    gone.left = 0
    terminated, info = env.step(SLOWLY)[2::2]
    assert terminated and info["state"] == "fault" and info["reasons"] == ("supervisor: found it gone",)
    assert not info["is_success"] and arm.stops


def test_a_dry_run_moves_nothing(made, arm):
    env = made(loop=LoopConfig(live=False, image_size=16))
    env.reset(seed=0, options={"start_joints": HOME + 0.1})
    for _ in range(CONFIG.max_steps):
        observation, *_ = env.step(SLOWLY)
    np.testing.assert_allclose(observation["proprio"][:7], HOME, atol=2e-3)
    assert arm.sent == [] and [name for name, _ in made.operator.asked] == ["place"]


def test_a_stop_on_the_way_to_the_start_brakes_and_ends_the_reset(made, arm):
    class Soon(Stop):
        looks = 0

        def asked(self):
            self.looks += 1
            return self.looks > 40

    env = made(stop=Soon())
    with pytest.raises(EnvError, match="stopped on the way to the start"):
        env.reset(seed=0, options={"start_joints": HOME + 0.3})
    assert arm.stopped and 0.01 < np.abs(arm.q - HOME).max() < 0.25
    arm.lawful()
    assert [name for name, _ in made.operator.asked] == ["free"]


def test_close_in_the_middle_stops_the_arm(made, arm):
    env = made()
    env.reset(seed=0)
    env.step(SLOWLY)
    env.close()
    assert (
        arm.stopped and np.abs(arm.sent[-1] - arm.sent[-2]).max() * arm.limits.rate_hz < 0.2
    )  # it has braked
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


@pytest.mark.realtime
def test_the_simulated_picker_lifts_the_cube_over_the_bridge(monkeypatch):
    """Actions that lift the cube in the simulated world, open loop, through SDK, emulated box and its cameras."""
    pytest.importorskip("xarm")
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 5.0)
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.GRIPPER_LOST", PATIENCE)
    config = CubePickConfig(cameras=("hand",), image_size=32)
    seed = 1
    simulated = CubePick(config, draw=False)
    actions = picked(simulated, seed)
    looks = json.dumps({"cameras": ["hand"], "image_size": 32})
    with launch("mujoco", "--env", looks, "--fps", "10") as emulator:
        camera = CameraReader("hand", lambda: opened(emulator.ports.frames, "hand"))
        camera.start(PATIENCE)
        with XArmDriver("127.0.0.1", ports=emulator.ports) as driver, ExitStack() as stack:
            driver.connect(PATIENCE)
            make = partial(XArmDriver, "127.0.0.1", ports=emulator.ports, gripper=False)
            supervisor = stack.enter_context(Supervisor(make, limit_s=9.0))
            env = RealCubePick(
                driver, {"hand": camera}, config, EmulatedOperator(emulator.side), LoopConfig(live=True, image_size=32),
                CALM, SafetyConfig(state_age_max=3.0), supervisor=supervisor,
            )  # fmt: skip
            observation, info = env.reset(seed=seed)
            simulated.reset(seed=seed)
            asked = emulator.side("scene")["cube_pose"][:3]
            np.testing.assert_allclose(asked, simulated.cube_pose[:3], atol=2e-3)
            np.testing.assert_allclose(observation["proprio"][:7], simulated.joints, atol=0.02)
            for action in [*actions, *[actions[-1] * np.eye(8)[7]] * 10]:
                observation, reward, terminated, truncated, info = env.step(action)
                if terminated or truncated:
                    break
            env.close()
        camera.close()
    assert info["is_success"] and terminated and reward == 1.0, info


def test_settings_that_do_not_fit(arm):
    with pytest.raises(EnvError, match="cameras: found , expected hand, left, right"):
        RealCubePick(arm, {}, CubePickConfig())
    with pytest.raises(
        EnvError, match="loop: found 20 Hz and images of 256, expected the world's 10 Hz and 16"
    ):
        RealCubePick(arm, {"hand": None}, CONFIG, loop=LoopConfig(policy_hz=20))


def test_the_terminal_asks_and_takes_only_yes():
    said, answers = [], []
    operator = TerminalOperator(lambda question: (said.append(question), answers.pop(0))[1])
    placing = Placing(3, (0.051, -0.032), np.pi / 2 + 0.5, HOME)
    answers[:] = ["y"]
    assert (
        operator.place(placing)
        and "x +5.1 cm" in said[-1]
        and "y -3.2 cm" in said[-1]
        and "29 deg" in said[-1]
    )
    answers[:] = ["n"]
    assert not operator.free(("arm error 31",)) and said[-1].startswith(
        "FAULT: arm error 31. Look at the arm"
    )
    answers[:] = ["y", ""]
    assert not operator.free(("arm error 31",)) and "moves to its start pose" in said[-1]
    answers[:] = [
        "Yes",
    ]
    assert operator.success() and not operator.ended()
    answers[:] = ["", "maybe", "y", "", "n"]  # asked until it is answered: a no throws the demonstration away
    assert operator.keep() and not operator.keep() and not answers

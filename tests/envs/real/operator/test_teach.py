"""An operator leads the arm by hand, emulated or in virtual time, and the motion becomes actions."""

import threading

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import REFUSED
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.cameras.camera import CameraReader, ReplayCamera
from s2robot.envs.real.operator.teleop import Controls, teach
from s2robot.envs.real.runtime import ArmRuntime
from tests.envs.real.home import HOME
from tests.envs.real.patience import CALM, PATIENCE, wait_for
from tests.envs.real.virtual import LIVE, NOISE, Calls, FakeArm, Film, VirtualClock, Watch, driven
from tests.errors import fails

pytest.importorskip("xarm")

LED = LIVE.replace(gripper_hold=0)


def test_hand_guided_motion_of_the_emulated_arm_becomes_actions(emulator, driver):
    steps, controls = [], Controls()
    camera = CameraReader("hand", lambda: ReplayCamera(NOISE.__getitem__, len(NOISE), 30))
    camera.start(PATIENCE)
    goals = [HOME + np.linspace(0.1, -0.1, 7), HOME + np.linspace(0.15, 0.05, 7)]

    def hand():
        wait_for(lambda: steps)
        for goal in goals:
            assert emulator.side("hand", joints=goal.tolist())["led"]
            wait_for(lambda goal=goal: np.abs(emulator.side("status")["joints"] - goal).max() < 1e-3)
            controls.on_key(" ")
            # until a step has recorded it, however slow the machine
            wait_for(lambda opens=goal is goals[1]: (steps[-1]["proprio"][7] > 0.4) == opens)
        wait_for(lambda: steps[-1]["proprio"][7] > 0.95)
        controls.on_key("\n")

    person = threading.Thread(target=hand, daemon=True)
    person.start()
    runtime = ArmRuntime(driver, {"hand": camera}, None, XArm7Points(), LED, CALM, supervisor=Watch())
    assert teach(runtime, controls, 1000, Calls(step=steps.append)) == ""
    person.join(PATIENCE)
    camera.close()
    assert emulator.side("status")["state"] >= 4 and driver.command(HOME, None).code == REFUSED

    actions = np.stack([s["action"] for s in steps])  # (T, 8)
    proprio = np.stack([s["proprio"] for s in steps])
    assert actions.dtype == proprio.dtype == np.float32 and len(steps) > 5
    assert steps[0]["images_hand"].shape == (16, 16, 3)
    np.testing.assert_allclose(proprio[0, :7], HOME, atol=1e-3)
    np.testing.assert_allclose(proprio[-1, :7], goals[-1], atol=1e-3)
    # the gripper closed at the first goal and opened at the second
    assert set(np.diff(actions[:, 7])) == {0.0, 1.0, -1.0} and proprio[:, 7].min() < 0.5
    np.testing.assert_allclose(proprio[0, :7] + actions[:-1, :7].sum(0), proprio[-1, :7], atol=1e-4)


class LedArm(FakeArm):
    """An arm that is led by hand at 0.8 rad/s."""

    led, goal = False, None

    def lead(self):
        if self.error:
            raise EnvError(f"found error {self.error} pending, expected none")
        self.led, self.mode, self.stopped, self._then = True, 2, False, self.clock.now()

    def hand(self, goal):
        self.goal, self._then = np.array(goal), self.clock.now()

    def grip(self, opening):
        self.gripper = opening

    def read(self):
        if self.led and self.goal is not None:
            reach = 0.8 * (self.clock.now() - self._then)
            self.q, self._then = self.q + np.clip(self.goal - self.q, -reach, reach), self.clock.now()
        return super().read()


@pytest.fixture
def led():
    return LedArm(VirtualClock())


def taught(arm, controls, on_step, loop=LED, watchdog=CALM, **settings):
    return teach(driven(arm, None, loop, watchdog=watchdog, **settings), controls, 300, Calls(step=on_step))


def test_gripper_closes_at_once_and_teaching_ends_with_the_step(led):
    steps, controls = [], Controls()
    led.clock.at(0.35, lambda: controls.on_key(" "))
    led.clock.at(0.85, lambda: controls.on_key("\n"))
    begin, closed_at = led.clock.now(), []
    led.grip = lambda opening: closed_at.append((opening, led.clock.now() - begin))
    assert taught(led, controls, steps.append) == ""
    assert [s["action"][7] for s in steps] == [0, 0, 0, 1, 1, 1, 1, 1, 1]  # the command at each step's end
    ((opening, when),) = closed_at
    assert opening == 0.0 and 0.35 <= when <= 0.38
    assert led.stops == ["teaching has ended"]


def test_supervisor_gets_heartbeats_while_the_arm_is_led_by_hand(led):
    watch, beats, controls = Watch(), [], Controls()
    beat, begin = watch.beat, led.clock.now()
    watch.beat = lambda: (beat(), beats.append(led.clock.now()))
    led.clock.at(0.85, lambda: controls.on_key("\n"))
    assert taught(led, controls, lambda step: None, supervisor=watch) == ""
    assert max(np.diff([begin, *beats, led.clock.now()])) < 0.05 and watch.heard[-1] == "rest"
    led.clock.at(0.5, lambda: setattr(watch, "gone", True))
    controls.reset()
    fails("supervisor: connection closed", taught, led, controls, lambda step: None, supervisor=watch)
    assert led.stopped and watch.heard[-1] == "rest"


def test_later_actions_catch_up_with_a_fast_hand(led):
    steps, controls = [], Controls()

    def add(step):
        steps.append(step)
        if len(steps) == 2:
            led.hand(HOME + 0.2)  # 0.8 rad/s against 0.2 rad/s
        controls.ended = len(steps) > 2 and abs(sum(s["action"][0] for s in steps) - 0.2) < 1e-3

    assert taught(led, controls, add, loop=LED.replace(max_delta=0.02)) == ""
    actions = np.stack([s["action"] for s in steps])
    assert np.abs(actions[:, :7]).max() <= 0.02 + 1e-6
    np.testing.assert_allclose(actions[:, :7].sum(0), np.full(7, 0.2), atol=2e-3)


def test_arm_error_or_silent_camera_aborts_teaching(led):
    reason = taught(led, Controls(), lambda step: setattr(led, "error", 31))
    assert "arm error 31" in reason and led.stopped
    fails("error 31 pending", taught, led, Controls(), lambda step: None)
    led.error = 0
    film = Film(led.clock, NOISE, 30)
    limits = CALM.replace(camera_hold=0.4)
    reason = taught(led, Controls(), lambda step: film.end(), camera=film, watchdog=limits)
    assert reason == "camera hand is stale"
    led.silent = lambda arm: True
    with pytest.raises(EnvError, match=r"teaching: expected ready, got idle \(joint state is stale: .+\)"):
        taught(led, Controls(), lambda step: None)

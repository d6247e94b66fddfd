"""Loop, driver, the vendor's SDK and the emulated box together; what reached the wire is judged by the box."""

import time
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.real.arms.geometry import XArm7Points
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.clock import Clock, now
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.emulator.emulator import launch
from s2robot.envs.real.emulator.server import TICK
from s2robot.envs.real.emulator.stand_in import EmulatedCamera, EmulatedOperator
from s2robot.envs.real.operator.prompts import Placing
from s2robot.envs.real.runtime import ArmRuntime
from tests.envs.real.patience import CALM, PATIENCE, wait_for
from tests.envs.real.virtual import episode

pytest.importorskip("xarm")


class BoxClock(Clock):
    """The time that the emulated box has lived through, which a busy machine delays: the loop runs no faster than the arm."""

    def __init__(self, side):
        self._side, self._last, self._time = side, time.monotonic(), now()

    def now(self):
        return self._time

    def sleep(self, seconds):
        end, pause = self._time + seconds, max(0.0, seconds)
        while True:
            time.sleep(pause)
            lived = [row["time"] for row in self._side("motion", since=self._last)["motion"]]
            lived = [at for at in lived if at > self._last]
            self._last, self._time = max([self._last, *lived]), self._time + TICK * len(lived)
            if self._time >= end:
                return
            pause = TICK / 2


def test_actions_that_lift_the_cube_in_simulation_lift_it_over_the_bridge(monkeypatch):
    """Open loop, through runtime, SDK, emulated box and its camera."""
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 5.0)
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.GRIPPER_LOST", PATIENCE)
    config, seed = CubePickConfig(cameras=("hand",), image_size=32), 1
    simulated = CubePick(config, draw=False)
    simulated.reset(seed=seed)
    picker = Picker(simulated, PickerConfig(kicks=(0, 0), misses=0.0))
    targets = []  # (8,): joints that are commanded, and the gripper
    picker.begin(np.random.default_rng([seed, 7]))
    while not simulated.is_success:
        action = picker.act()[0]
        simulated.step_physics(action)
        targets.append(np.append(simulated.commanded, action[7]))
    targets += [targets[-1]] * 10  # the emulated arm lags: hold it up a little longer
    with launch(env={"cameras": ["hand"], "image_size": 32}, fps=10) as emulator, ExitStack() as stack:
        clock = BoxClock(emulator.side)
        monkeypatch.setattr("s2robot.envs.real.arms.xarm.now", clock.now)
        monkeypatch.setattr("s2robot.envs.real.emulator.stand_in.from_monotonic", lambda seconds: clock.now())
        monkeypatch.setattr("s2robot.envs.real.emulator.stand_in._FRAME_S", PATIENCE)
        camera = CameraReader("hand", lambda: EmulatedCamera(emulator.ports.side, "hand", 30.0))
        camera.start(PATIENCE)
        stack.callback(camera.close)
        make = partial(XArmDriver, "127.0.0.1", ports=emulator.ports)
        driver = stack.enter_context(make())
        driver.connect(PATIENCE)

        told = [None]

        def fingers():
            return [c["values"][0] for c in emulator.side("commands")["commands"] if c["kind"] == "gripper"]

        def follows():
            """The arm is where the last action has sent it, which takes longer from rest after each gap in the stream."""
            return np.abs(runtime.loop.sensors.state.q - runtime.loop.stream.commanded).max() < 0.02

        def act(observation):
            """The actions of the simulation, and what a hold has given up, each after arm and fingers have done the one before."""
            if runtime.loop.steps:
                wait_for(follows, "the arm's motion")
            if (wanted := driver._gripper._target) not in told[-1:]:
                wait_for(lambda: fingers()[-1:] == [wanted], "the fingers' command")
                told.append(wanted)
            target = targets[min(runtime.loop.steps, len(targets) - 1)]
            return np.append(np.nan_to_num(target[:7] - runtime.loop.stream.commanded), target[7])

        runtime = ArmRuntime(
            driver, {"hand": camera}, act, XArm7Points(), LoopConfig(live=True, image_size=32),
            CALM, SafetyConfig(state_age_max=3.0), clock=clock,
        )  # fmt: skip
        stack.enter_context(runtime.watched(partial(make, gripper=False), 9.0))
        runtime.ready(EmulatedOperator(emulator.side), Placing.draw(config, seed))
        simulated.reset(seed=seed)
        cube = emulator.side("scene")["cube_pose"]
        np.testing.assert_allclose(cube[:3], simulated.cube_pose[:3], atol=2e-3)
        np.testing.assert_allclose(driver.read().q, simulated.joints, atol=0.02)
        result = episode(runtime, len(targets))
        assert (result.cause, result.reasons) == ("steps", ())
        assert emulator.side("scene")["is_success"]

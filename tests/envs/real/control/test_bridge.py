"""Loop, driver, the vendor's SDK and the emulated box together; what reached the wire is judged by the box."""

import json
import time
from contextlib import ExitStack, suppress
from functools import partial

import numpy as np
import pytest

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.cameras.sources import ReplayCamera
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.emulator.camera import EmulatedCamera
from s2robot.envs.real.emulator.launch import launch
from s2robot.envs.real.emulator.stand_in import EmulatedOperator
from s2robot.envs.real.operator.prompts import Placing
from s2robot.envs.real.runtime import ArmRuntime
from tests.envs.real.patience import CALM, PATIENCE
from tests.envs.real.virtual import NOISE, Calls

pytest.importorskip("xarm")

from benchmarks.fault_bridge import note
from benchmarks.fault_judge import unfiltered


@pytest.fixture
def bridge(driver):
    """A function that runs an episode; the arm is at home, armed and ready."""
    camera = CameraReader("hand", lambda: ReplayCamera(NOISE, 30))
    camera.start(PATIENCE)
    driver.arm()

    def run(act, steps, on_loop=lambda loop: None, **settings):
        safety = SafetyFilter(XARM7_LIMITS, ArmPoints("xarm7"), SafetyConfig(state_age_max=3.0))
        config = LoopConfig(live=True, image_size=16)
        run.loop = ControlLoop(driver, {"hand": camera}, act, safety, config, CALM, **settings)
        run.passed = note(safety)
        on_loop(run.loop)
        return run.loop.run(steps)

    yield run
    camera.close()


def since(emulator, begin):
    return [c for c in emulator.side("commands", since=begin)["commands"] if c["kind"] == "motion"]


FAST = np.array([0, 0, 0, 0, 0.03, 0, 0.06, 1])  # an action of joints that no point is far from


@pytest.mark.parametrize(
    "end", ["steps", "judged", "stopped", "policy", "camera", "arm", "pressing", "exception", "interrupted"]
)
def test_every_command_on_the_wire_has_passed_the_filter(bridge, emulator, end):
    """However an episode ends, and whatever holds the arm back then."""
    begin, calls, loop = time.monotonic(), [], []

    def act(observation):
        calls.append(1)
        if len(calls) != 6 or end == "steps":
            return FAST
        if end == "pressing":
            emulator.side.fault("freeze_joints")
            time.sleep(0.05)
        if end in ("judged", "pressing"):
            loop[0].request_end()
        elif end == "stopped":
            loop[0].request_stop()
        elif end == "camera":
            loop[0].sensors.cameras["hand"].age = lambda now: np.inf
        elif end == "arm":
            emulator.side.fault("error", code=31)
        return FAST[:7] if end == "policy" else FAST

    def beat():
        if len(calls) >= 6 and end in ("exception", "interrupted"):
            raise KeyboardInterrupt if end == "interrupted" else RuntimeError("in the loop")

    raised = (KeyboardInterrupt, RuntimeError) if end in ("exception", "interrupted") else ()
    with suppress(*raised):
        result = bridge(act, 6, loop.append, subscriber=Calls(beat=beat))
        assert result.cause == {
            "steps": "steps",
            "judged": "ended",
            "pressing": "ended",
            "stopped": "stopped",
        }.get(end, "fault")
    time.sleep(0.3)
    commands = since(emulator, begin)
    assert len(commands) > 5 and not any(c["unsafe"] for c in commands)
    assert unfiltered(commands, bridge.passed) == 0
    if end == "pressing":  # the command has come back to where the arm says that it stands
        np.testing.assert_allclose(commands[-1]["values"][:7], bridge.loop.sensors.state.q, atol=3e-3)


@pytest.mark.realtime
def test_actions_that_lift_the_cube_in_simulation_lift_it_over_the_bridge(monkeypatch):
    """Open loop, through runtime, SDK, emulated box and its camera."""
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 5.0)
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.GRIPPER_LOST", PATIENCE)
    config, seed = CubePickConfig(cameras=("hand",), image_size=32), 1
    simulated = CubePick(config, draw=False)
    simulated.reset(seed=seed)
    picker, actions = (
        Picker(simulated, PickerConfig(kicks=(0, 0), misses=0.0)),
        [np.zeros(8)],
    )  # the warm-up's
    picker.reset(seed)
    while not simulated.is_success:
        actions.append(picker.act()[0])
        simulated.step_physics(actions[-1])
    looks = json.dumps({"cameras": ["hand"], "image_size": 32})
    with launch("mujoco", "--env", looks, "--fps", "10") as emulator, ExitStack() as stack:
        camera = CameraReader("hand", lambda: EmulatedCamera(emulator.ports.frames, "hand", 30.0))
        camera.start(PATIENCE)
        stack.callback(camera.close)
        make = partial(XArmDriver, "127.0.0.1", ports=emulator.ports)
        driver = stack.enter_context(make())
        driver.connect(PATIENCE)
        runtime = ArmRuntime(
            driver, {"hand": camera}, lambda o: actions.pop(0), ArmPoints("xarm7"), LoopConfig(live=True, image_size=32),
            CALM, SafetyConfig(state_age_max=3.0),
        )  # fmt: skip
        stack.enter_context(runtime.watched(partial(make, gripper=False), 9.0))
        runtime.ready(EmulatedOperator(emulator.side), Placing.draw(config, seed))
        simulated.reset(seed=seed)
        np.testing.assert_allclose(
            emulator.side("scene")["cube_pose"][:3], simulated.cube_pose[:3], atol=2e-3
        )
        np.testing.assert_allclose(driver.read().q, simulated.joints, atol=0.02)
        result = runtime.episode(len(actions) - 1)
        assert result.cause == "steps" and emulator.side("scene")["is_success"]

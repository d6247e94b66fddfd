"""`s2robot record` on the emulated arm with its cameras: lifted by hand and by teleoperation, then on to training."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from s2robot.cli import main
from s2robot.common.errors import UserError
from s2robot.common.paths import configs_dir
from s2robot.deployment.record import ArmRecording
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.ik import ToolIK
from s2robot.envs.real.emulator.camera import EmulatedCamera
from s2robot.envs.real.emulator.launch import launch
from s2robot.envs.real.emulator.operator import EmulatedOperator
from s2robot.envs.real.emulator.side import SideChannel
from tests import forks
from tests.envs.real.patience import PATIENCE, wait_for

pytest.importorskip("xarm")

ROOT = Path(__file__).resolve().parents[3]
SIZE, SEED = 64, 1
LOOKS = [f"env.image_size={SIZE}", "env.cameras=[hand,left]"]
# a busy machine is no fault
CALM = [f"bridge.watchdog.{n}=9" for n in ("camera_hold", "state_hold", "policy_hold")] + [
    f"bridge.watchdog.{n}=30" for n in ("camera_fault", "state_fault", "policy_fault", "hold_fault", "report_fault")
] + ["bridge.safety.state_age_max=3", "bridge.supervisor_s=9", "bridge.arm.connect_s=60", "bridge.home.speed=1.0"]  # fmt: skip


@pytest.fixture
def emulator():
    looks = f'{{"image_size": {SIZE}, "cameras": ["hand", "left"]}}'
    with launch("mujoco", "--env", looks, "--fps", "4") as emulator:
        end = time.monotonic() + PATIENCE
        while True:  # a busy machine takes long over the first picture
            try:
                EmulatedCamera(emulator.ports.frames, "left").read()
                break
            except EnvError:
                assert time.monotonic() < end
        yield emulator


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 5.0)
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.GRIPPER_LOST", PATIENCE)


def config(emulator, out, *words):
    settings = [f"seed={SEED}", "episodes=1", f"out={out}", "bridge=emulator", f"run_dir={out}.run"]
    port = f"bridge.emulator.port={emulator.ports.side}"
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        return compose("record", [*settings, port, *LOOKS, *CALM, *words])


def person(act):
    """Something to read keys from: `act(on_key)` runs beside each episode."""

    @contextmanager
    def keys(on_key):
        failed = []

        def run():
            try:
                act(on_key)
            except (
                BaseException
            ) as error:  # the test's to raise: here it would only leave the episode without an end
                failed.append(error)
                on_key("x")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield
        thread.join(PATIENCE)
        if failed:
            raise failed[0]

    return keys


def lift_by_hand(emulator):
    """Leads the arm where the scripted picker went in the simulated episode of that seed."""
    simulated = CubePick(CubePickConfig(cameras=("hand",)), draw=False)
    simulated.reset(seed=SEED)
    picker = Picker(simulated, PickerConfig(kicks=(0, 0), misses=0.0))
    picker.reset(SEED)
    way, ik = [], ToolIK()
    while not simulated.is_success:
        action = picker.act()[0]
        simulated.step_physics(action)
        position, rotation = ik.pose(simulated.commanded)
        # a little higher: a hand that waits for closing fingers would press them into the table
        joints = ik.solve(simulated.commanded, position + [0, 0, 0.007], rotation)
        way.append((joints, bool(action[7])))

    def act(on_key):
        with SideChannel(emulator.ports.side) as side:
            wait_for(lambda: side("status")["mode"] == 2 and side("status")["ready"])
            was_closed = False
            for joints, closed in way:
                if closed != was_closed:
                    on_key(" ")
                    was_closed = closed
                assert side("hand", joints=joints.tolist())["led"]
                end = time.monotonic() + 3.0  # no step is skipped where the machine is busy
                while np.abs(side("status")["joints"] - joints).max() > 0.02 and time.monotonic() < end:
                    time.sleep(0.02)
                time.sleep(0.1)
            wait_for(lambda: side("scene")["is_success"])
            time.sleep(0.2)
            on_key("\r")

    return act


@pytest.mark.slow
def test_taught_by_hand_inspected_encoded_and_trained_on(emulator, tmp_path, tiny_encoder, capsys):
    out = tmp_path / "taught.zarr"
    store = ArmRecording(config(emulator, out, "recording=teach"), None, person(lift_by_hand(emulator))).run()
    assert len(store) == 1 and store.meta("success").all() and list(store.meta("seed")) == [SEED]
    assert store.cameras == ("hand", "left") and store.attrs["source"] == "teach, emulator"
    assert store["images_hand"].shape == (store.num_steps, SIZE, SIZE, 3)
    assert store["images_left"].any() and set(store["action"][:, 7]) == {0.0, 1.0}
    # a second session goes on, with the next place
    again = ArmRecording(config(emulator, out, "recording=teach"), None, person(wave(emulator))).run()
    assert (
        len(again) == 2
        and list(again.meta("seed")) == [SEED, SEED + 1]
        and list(again.meta("success")) == [1, 0]
    )
    with pytest.raises(
        UserError, match="found images of teach, emulator, expected images of teleop, emulator"
    ):
        ArmRecording(config(emulator, out, "recording=teleop"), None, person(wave(emulator))).run()

    where = [f"demos.path={out}", *LOOKS]
    assert main(["inspect", f"data={out}", f"hydra.run.dir={tmp_path}/inspect"]) == 0
    assert (tmp_path / "inspect" / "episodes" / "0001.mp4").stat().st_size > 1000
    features = [
        f"encoder.checkpoint={tiny_encoder}",
        f"features.cache={tmp_path}/cache",
        "features.workers=1",
    ]
    assert main(["encode", *where, *features, f"hydra.run.dir={tmp_path}/encode"]) == 0
    training = ["train.steps=1", "train.batch_size=8", f"hydra.run.dir={tmp_path}/train"]
    assert main(["train", *where, *features, *training]) == 0
    assert (tmp_path / "train" / "checkpoint").is_dir()
    assert f"features ({again.num_steps}, 2," in capsys.readouterr().out


def wave(emulator):
    """A short motion that lifts nothing."""

    def act(on_key):
        with SideChannel(emulator.ports.side) as side:
            wait_for(lambda: side("status")["mode"] == 2 and side("status")["ready"])
            joints = np.array(side("status")["joints"])
            for _ in range(6):
                joints[6] += 0.05
                side("hand", joints=joints.tolist())
                time.sleep(0.1)
        on_key("\r")

    return act


def lift_by_keys(emulator):
    """Types what brings the gripper over the cube, down, closed and up, by looking at the emulated scene."""
    ik = ToolIK()
    base = np.array([-0.46, 0.0, 0.112])  # of the arm, in the table's frame

    def act(on_key):
        with SideChannel(emulator.ports.side) as side:

            def off():
                tool = ik.pose(np.array(side("status")["joints"]))[0] + base
                return np.array(side("scene")["cube_pose"][:3]) - tool

            def go(goal, close_enough):
                end = time.monotonic() + PATIENCE
                while np.abs(way := goal(off())).max() > close_enough and time.monotonic() < end:
                    for axis, keys in enumerate(("ws", "ad", "rf")):
                        if abs(way[axis]) > close_enough:
                            on_key(keys[int(way[axis] < 0)])
                    time.sleep(0.05 if np.abs(way).max() > 0.03 else 0.4)  # on the last bit press and look

            go(lambda d: d * [1, 1, 0], 0.006)
            go(lambda d: d + [0, 0, 0.010], 0.006)
            on_key(" ")
            wait_for(lambda: side("status")["opening"] < 0.75)
            time.sleep(0.8)
            end = time.monotonic() + PATIENCE
            while not side("scene")["is_success"] and time.monotonic() < end:
                if side("scene")["cube_pose"][2] < 0.14:
                    on_key("r")
                time.sleep(0.04)
            on_key("\r")

    return act


@pytest.mark.slow
def test_teleoperated_with_keys_lifts_the_cube(emulator, tmp_path):
    out = tmp_path / "teleop.zarr"
    words = ["recording=teleop", "speed=0.03", "max_steps=600"]

    class Straight(EmulatedOperator):
        """Lays the cube along the fingers, so that keys for x, y and z suffice."""

        def place(self, placing):
            self._side("reset_scene", seed=placing.seed, cube_xy=[0.02, -0.03], cube_yaw=0.0)
            return True

    with SideChannel(emulator.ports.side) as side:
        store = ArmRecording(
            config(emulator, out, *words), Straight(side), person(lift_by_keys(emulator))
        ).run()
    assert len(store) == 1 and store.meta("success").all()
    assert {"action", "action_raw", "action_sent", "proprio", "images_hand", "verdict", "code"} <= set(
        store.keys
    )
    assert not store["code"].any() and store["verdict"].max() <= 1
    np.testing.assert_allclose(
        store["proprio"][0, :7] + store["action_sent"][:-1, :7].sum(0), store["proprio"][-1, :7], atol=0.05
    )


def test_a_discarded_episode_is_not_written_and_a_no_ends_it(emulator, tmp_path):
    out = tmp_path / "none.zarr"
    tries = []

    def regret(on_key):
        tries.append(1)
        wave(emulator)(lambda key: on_key("x" if len(tries) == 1 else key))

    store = ArmRecording(config(emulator, out, "recording=teach"), None, person(regret)).run()
    assert len(tries) == 2 and len(store) == 1 and list(store.meta("seed")) == [SEED + 1]

    class Unwilling(EmulatedOperator):
        def place(self, placing):
            return False

    with SideChannel(emulator.ports.side) as side, pytest.raises(EnvError, match="the operator said no"):
        ArmRecording(config(emulator, out, "recording=teach"), Unwilling(side), person(regret)).run()


@pytest.mark.parametrize(
    "kind, mode, name, code",
    [
        ("teach", 2, "SIGKILL", -signal.SIGKILL),  # a hand leads the arm: nothing holds it up but the box
        ("teach", 2, "SIGSTOP", None),
        ("teach", 2, "SIGTERM", 130),
        ("teleop", 1, "SIGTERM", 130),
        ("teleop", 1, "SIGHUP", 130),
    ],
)
def test_whatever_ends_a_recording_stops_the_arm(emulator, tmp_path, kind, mode, name, code):
    words = [
        f"recording={kind}",
        "bridge=emulator",
        f"bridge.emulator.port={emulator.ports.side}",
        "episodes=1",
    ]
    process = forks.Popen(
        [sys.executable, "-m", "s2robot", "record", *words, *LOOKS, *CALM, "bridge.supervisor_s=1.5", "out=out.zarr"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    said = ""
    while "Enter: end" not in said:
        said += (line := process.stdout.readline())
        assert line, said
    wait_for(lambda: emulator.side("status")["mode"] == mode and emulator.side("status")["ready"], "the arm")
    try:
        time.sleep(0.5)  # until the first beat
        begin = time.monotonic()
        os.kill(process.pid, signal.Signals[name])
        while emulator.side("status")["ready"]:
            assert time.monotonic() < begin + 6
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGCONT)
        out = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == code or (code is None and "supervisor" in out), out
    finally:
        process.kill()
        process.wait()
    assert not emulator.side("status")["ready"]


@pytest.mark.parametrize(
    "words, message",
    [
        (["recording=teleop", "device=mouse"], "device: found 'mouse', expected one of keyboard, spacemouse"),
        (["recording=teach"], "robot.ip: found none"),
        (["recording=teach", "episodes=0"], "found episodes 0"),
        (["recording=teach", "seed=-1"], "seed: found -1, expected 0 or more"),
        (["recording=teleop", "speed=0"], "speed: found 0.0, expected a number above 0"),
        (["recording=teach", "bridge=emulator", "bridge.emulator.port=1"], "found nothing at 127.0.0.1:1"),
        (["recording=teach", "robot=panda"], "found 'panda', expected xarm7"),
    ],
)
def test_wrong_settings_are_one_line(words, message, tmp_path, capsys):
    assert main(["record", *words, f"hydra.run.dir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err

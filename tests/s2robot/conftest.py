"""Fixtures for testing the arm's verbs: policies with random weights, and a running `s2robot emulate`."""

import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hydra.core.singleton import Singleton

from s2robot import cli
from s2robot.core.parts import plain
from s2robot.encoders.build import build_encoder
from s2robot.envs.real.emulator.side import SideChannel
from s2robot.policies import save_checkpoint
from tests import forks
from tests.configs import composed
from tests.policies.small import untrained
from tests.s2robot.pictures import write_pictures

CAMERAS = ("hand", "left")
# lenient limits, so that only injected faults count, not a busy machine
CALM = (
    "bridge.watchdog.camera_hold=9", "bridge.watchdog.camera_fault=20", "bridge.watchdog.state_hold=9",
    "bridge.watchdog.state_fault=20", "bridge.watchdog.policy_hold=5", "bridge.watchdog.policy_fault=20",
    "bridge.watchdog.hold_fault=60", "bridge.watchdog.report_fault=30", "bridge.safety.state_age_max=9",
    "bridge.supervisor_s=9", "bridge.loop.ready_s=60", "bridge.arm.connect_s=60", "bridge.speed=0.2", "bridge.home.speed=1",
)  # fmt: skip


@pytest.fixture
def here(inline, tmp_path, monkeypatch, capsys):
    """Run `s2robot <arguments>` in this process, in a temporary folder, where `status` is expected (None: any).

    A new process would import torch and the simulator first, which takes longer than most commands here.
    The state of Hydra is restored.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it
    singletons, argv = Singleton.get_state(), sys.argv

    def run(*args: object, status: int | None = 0) -> subprocess.CompletedProcess[str]:
        words = list(map(str, args))
        capsys.readouterr()
        result = subprocess.CompletedProcess(words, cli.main(words), *capsys.readouterr())
        assert sys.argv is argv
        assert status in (result.returncode, None), result
        return result

    yield run
    Singleton.set_state(singletons)


@pytest.fixture(scope="session")
def save_untrained(tiny_encoder):
    """Save an untrained policy like `s2robot train`; `deltas` rad per step, `contract` overrides its contract."""
    settings = {"name": "mvp-tiny", "checkpoint": str(tiny_encoder), "scales": [1, 2]}

    def save(folder, contract=None, deltas: float = 0.03, **changes):
        encoder = build_encoder(settings)
        policy = untrained(encoder, deltas, **{"execute": 3} | changes)
        own = {
            "encoder": {
                "name": encoder.name, "fingerprint": encoder.fingerprint, "settings": settings,
                "features_dtype": "float16", "sizes": list(encoder.sizes),
            },
            "cameras": list(CAMERAS), "robot": "xarm7", "joint_names": [f"robot0_joint{i}" for i in range(1, 8)],
            "action_frame": "joint_delta_commanded", "rate_hz": 10, "camera_geometry": {"hand": {"fovy": 75.0}},
            "dataset": {"name": "demos.zarr", "fingerprint": "d", "episodes": 2, "seeds": [500, 501]},
        }  # fmt: skip
        return save_checkpoint(folder, policy, own | (contract or {}))

    return save


@pytest.fixture(scope="session")
def save_for(save_untrained):
    """Save an untrained policy for an arm, with small actions."""

    def save(arm, folder):
        parts = {f"{key}_parts": plain(arm.parts(key)) for key in ("action", "proprio")}
        contract = {"robot": arm.name, "joint_names": list(arm.joint_names), "camera_geometry": {}, **parts}
        sizes = {f"{key}_dim": len(arm.q_min) + (arm.gripper is not None) for key in ("action", "proprio")}
        return save_untrained(folder, contract, 0.003, **parts, **sizes)

    return save


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def slow_policy(save_untrained, tmp_path_factory):
    """A checkpoint with small actions, about 3 mrad per joint."""
    return save_untrained(tmp_path_factory.mktemp("policy") / "checkpoint", deltas=0.003)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A dataset of images, so that the pre-flight can compare camera images without rendering demos."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "pictures.zarr", CAMERAS)


@pytest.fixture
def calm(monkeypatch):
    """Settings that tolerate a busy machine; the pre-flight measures the CPU time of a plan, not its waiting time."""
    monkeypatch.setattr("s2robot.deployment.preflight.time", SimpleNamespace(monotonic=time.process_time))
    return CALM


@pytest.fixture(scope="module")
def emulator(request, tmp_path_factory):
    """Run `s2robot emulate` and yield its side channel, whose `port` is passed to deploy.

    One module starts it as a new process. It has two cameras at 10 Hz, runs in real time and stops with the module.
    """
    folder = tmp_path_factory.mktemp("emulator")
    start = subprocess.Popen if request.path.stem == "test_deploy" else forks.Popen
    process = start(
        [
            sys.executable, "-m", "s2robot", "emulate", "emulator.ports=free", "emulator.fps=10", "env.image_size=64",
            f"env.cameras=[{','.join(CAMERAS)}]",
        ],
        cwd=folder, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    greeting = [process.stdout.readline() for _ in range(4)]
    command = greeting[2].split()
    assert command[:2] == ["s2robot", "deploy"] and "bridge=emulator" in command and "Ctrl-C" in greeting[3]
    port = int(re.search(r"bridge.emulator.port=(\d+)", greeting[2])[1])
    with SideChannel(port, timeout_s=60) as side:
        side.port, side.commands = port, lambda since: side("commands", since=since)["commands"]
        yield side
    process.send_signal(signal.SIGINT)
    assert "stopped" in process.stdout.read()
    assert process.wait(30) == 0
    process.stdout.close()


@pytest.fixture
def arm_config(emulator, calm, pictures, tmp_path, monkeypatch):
    """`arm_config(verb, *overrides)`: a config of one of the arm's verbs for a fault-free emulator."""
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.WIRE_TIMEOUT", 5.0)
    monkeypatch.setattr("s2robot.envs.real.arms.xarm.GRIPPER_LOST", 60.0)
    emulator("clear")
    emulator("clear_error")

    def make(verb, *overrides):
        box = ("bridge=emulator", f"bridge.emulator.port={emulator.port}", f"run_dir='{tmp_path}'")
        return composed(verb, *box, f"demos.path='{pictures}'", *calm, *overrides)

    return make

"""Shared fixtures: one CPU thread, a tiny encoder with random weights, three recorded episodes, a fake RealSense.

The pytest-xdist controller loads this file too, without running tests, so slow imports are local.
"""

import ctypes
import gc
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

import pytest

import s2robot.envs  # noqa: F401  chooses the renderer before a test imports mujoco
from s2robot.core.errors import UserError
from tests import forks

# A shell starts a background job with SIGINT and SIGQUIT ignored, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# These depend on the wall clock: the emulated arm and the vendor's SDK run in real time, a server has deadlines. Tests with
# generous time limits (most of deployment's) run beside the others: they wait more than they compute.
REALTIME = (
    "envs/real/control/test_bridge.py", "envs/real/control/test_faults.py", "envs/real/control/test_supervisor.py",
    "s2robot/deployment/test_bench.py", "s2robot/serving/test_open_network.py", "s2robot/serving/test_server.py",
)  # fmt: skip
# The longest modules first, so that no single worker finishes late; waiting ones alternate with computing ones.
LONG = (
    "s2robot/deployment/test_deploy.py", "s2robot/test_pipeline.py", "s2robot/deployment/test_evaluate.py",
    "s2robot/test_kills_run.py", "s2robot/deployment/test_own_arm.py", "test_package.py",
    "s2robot/deployment/test_trial.py", "s2robot/comparison/test_plan.py", "s2robot/deployment/test_record.py",
    "s2robot/dagger/test_record.py", "s2robot/evaluation/test_rollouts.py",
    "s2robot/test_trained.py", "s2robot/test_lineage.py", "s2robot/pretraining/test_frames.py",
    "s2robot/probing/test_readout.py", "s2robot/probing/test_scaling.py", "s2robot/test_tuned.py",
    "s2robot/training/test_processes.py", "s2robot/test_rounds.py", "s2robot/test_examples.py",
)  # fmt: skip


def pytest_configure(config):
    """Start processes as copies of one preloaded process (`forks.py`) that all test workers share."""
    os.environ |= {"PYTHONPATH": str(forks.ROOT), "OMP_NUM_THREADS": "1"}  # of all processes that tests start
    if not hasattr(config, "workerinput"):
        os.environ[forks.SESSION] = str(os.getpid())
    if config.getoption("numprocesses", None):
        forks.copy_all()
    forks.copy_fork_server()


def pytest_ignore_collect(collection_path, config):
    """Skip importing modules without realtime tests in a realtime run: importing all takes ten seconds."""
    if not config.option.markexpr.startswith("realtime") or collection_path.suffix != ".py":
        return None
    realtime = collection_path.as_posix().endswith(REALTIME) or "mark.realtime" in collection_path.read_text()
    return None if realtime else True


def pytest_collection_modifyitems(items):
    """Mark the tests of REALTIME and sort by LONG; single tests elsewhere use `@pytest.mark.realtime`."""
    tests = Path(__file__).parent
    assert all((tests / file).is_file() for file in REALTIME + LONG)
    order = {file: position for position, file in enumerate(LONG)}
    name = {item: item.path.relative_to(tests).as_posix() for item in items}
    for item in items:
        if name[item] in REALTIME:
            item.add_marker(pytest.mark.realtime)
    items.sort(key=lambda item: order.get(name[item], len(LONG)))  # stable: the others keep their order


def pytest_collection_finish():
    """Exclude modules and collected tests from garbage collection: they live until the end."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


_resident_before = 0  # bytes of resident memory after the last collection


def pytest_runtest_logfinish():
    """Collect garbage after growth: a simulated scene is a 60 MB reference cycle, and workers would grow to 6 GB."""
    global _resident_before
    if resident() > _resident_before + 300e6:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _resident_before = resident()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Use a separate cache: neither the user's nor that of another worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2ROBOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_line_errors():
    """Fail a test in whose process a UserError of more than one line is made."""
    texts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UserError, "__init__", lambda error, *_: texts.append(str(error)))
        yield
    assert not [text for text in texts if "\n" in text]


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """An encoder file like those of `s2robot pretrain`: 32 px tile, patch 8, 64 channels, 2 blocks; S2 input 64 px."""
    import torch

    from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder

    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_encoder(MVPViT(ViTSpec(img_size=32, patch_size=8, dim=64, depth=2, heads=2)), path, {"seed": 0})
    return path


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A dataset of 3 recorded xArm7 episodes, seeds 500 to 502; read-only."""
    from s2robot.demos.record import record
    from s2robot.envs.cube_config import CubePickConfig
    from s2robot.envs.cube_picker import PickerConfig
    from tests.inline import do_inline

    path = tmp_path_factory.mktemp("demos") / "demos.zarr"
    with pytest.MonkeyPatch.context() as patch:
        do_inline(patch)
        record(path, CubePickConfig(), PickerConfig(), episodes=3, seed=500, workers=1).close()
    return path


@pytest.fixture
def inline(monkeypatch):
    """Run the work of worker processes in the test's own process."""
    from tests.inline import do_inline

    do_inline(monkeypatch)


@pytest.fixture
def realsense(monkeypatch):
    """A stand-in for `pyrealsense2` with one camera, number 0042, that returns 96 x 72 at 20 Hz.

    It returns its `pictures` uint8 (T, 72, 96, 3) in order, `late_s` after capture, until it is `gone`; without `colour` it
    has only depth. `running`: started and not stopped; `options`: the options set.
    """
    import numpy as np

    rs = SimpleNamespace(
        stream=SimpleNamespace(color="color"), format=SimpleNamespace(rgb8="rgb8"),
        option=SimpleNamespace(global_time_enabled="global time"),
        timestamp_domain=SimpleNamespace(global_time="global", hardware_clock="hardware"),
        pictures=np.zeros((1, 72, 96, 3), np.uint8), late_s=0.02, domain="global", gone=False, colour=True, running=False,
        options={},
    )  # fmt: skip

    def answers(**values):
        """Return an object whose methods return these values for any arguments."""
        return SimpleNamespace(**{name: lambda *_, value=value: value for name, value in values.items()})

    class Config:
        def enable_device(self, serial):
            self.serial = serial

        def enable_stream(self, stream, width, height, kind, fps):
            assert (stream, kind) == ("color", "rgb8")

    class Pipeline:
        def __init__(self):
            self._count = itertools.count()

        def start(self, config):
            if config.serial != "0042":
                raise RuntimeError("No device connected")
            rs.running = True
            stream = answers(as_video_stream_profile=answers(width=96, height=72, fps=20))
            device = SimpleNamespace(first_color_sensor=first_color_sensor)
            return answers(get_device=device, get_stream=stream)

        def wait_for_frames(self, timeout_ms):
            if rs.gone:
                raise RuntimeError(f"Frame didn't arrive within {timeout_ms}")
            time.sleep(0.05)
            image, taken = rs.pictures[next(self._count) % len(rs.pictures)], 1000 * (time.time() - rs.late_s)
            frame = answers(get_timestamp=taken, get_data=image, get_frame_timestamp_domain=rs.domain)
            return answers(get_color_frame=frame)

        def stop(self):
            if not rs.running:
                raise RuntimeError("stop() cannot be called before start()")
            rs.running = False

    def first_color_sensor():
        if not rs.colour:
            raise RuntimeError("Could not find requested sensor type!")
        return SimpleNamespace(supports=lambda option: True, set_option=rs.options.__setitem__)

    rs.config, rs.pipeline = Config, Pipeline
    monkeypatch.setitem(sys.modules, "pyrealsense2", rs)
    return rs

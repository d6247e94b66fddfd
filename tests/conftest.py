"""What several tests share: one CPU thread, a tiny encoder with random weights, three recorded episodes, a RealSense.

The process that hands tests to workers reads this, too, and runs none: what takes seconds is imported where it is used.
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

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; what the tests start takes it over

import pytest

import s2robot.envs  # noqa: F401  chooses what draws, before a test imports mujoco
from tests import forks

# A shell's job behind `&` starts with the signals of Ctrl-C and Ctrl-\ ignored, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# Depend on the wall clock: the emulated box and the vendor's SDK talk in real time, deadlines of a server pass. Tests that
# give the box patience (deployment's do) run beside the others: they wait more than they compute.
REALTIME = (
    "envs/real/control/test_bridge.py", "envs/real/control/test_faults.py", "envs/real/control/test_supervisor.py",
    "s2robot/serving/test_open_network.py", "s2robot/serving/test_server.py",
)  # fmt: skip
# The longest modules first, so that no worker is left alone with one at the end; what waits beside what computes.
LONG = (
    "s2robot/deployment/test_deploy.py", "s2robot/test_pipeline.py", "s2robot/deployment/test_evaluate.py",
    "s2robot/test_kills_run.py", "s2robot/deployment/test_own_arm.py", "test_package.py",
    "s2robot/deployment/test_trial.py", "s2robot/comparison/test_plan.py", "s2robot/deployment/test_record.py",
    "s2robot/dagger/test_record.py", "s2robot/evaluation/test_rollouts.py", "s2robot/deployment/test_bench.py",
    "s2robot/test_trained.py", "s2robot/test_lineage.py", "s2robot/pretraining/test_frames.py",
    "s2robot/probing/test_readout.py", "s2robot/probing/test_scaling.py", "s2robot/test_tuned.py",
    "s2robot/training/test_processes.py", "s2robot/test_rounds.py", "s2robot/test_examples.py",
)  # fmt: skip


def pytest_configure(config):
    """Processes that are copies of one (`forks.py`): of one for all workers, which are copies of it themselves."""
    if not hasattr(config, "workerinput"):
        os.environ[forks.SESSION] = str(os.getpid())
    if config.getoption("numprocesses", None):
        forks.copy_all()
    forks.copy_fork_server()


def pytest_ignore_collect(collection_path, config):
    """The part that lives by the wall clock imports no module without such tests: all of them take ten seconds."""
    if not config.option.markexpr.startswith("realtime") or collection_path.suffix != ".py":
        return None
    clock = collection_path.as_posix().endswith(REALTIME) or "mark.realtime" in collection_path.read_text()
    return None if clock else True


def pytest_collection_modifyitems(items):
    """A test that does without the wall clock leaves REALTIME, or says `@pytest.mark.realtime` by itself."""
    tests = Path(__file__).parent
    assert all((tests / file).is_file() for file in REALTIME + LONG)
    order = {file: place for place, file in enumerate(LONG)}
    name = {item: item.path.relative_to(tests).as_posix() for item in items}
    for item in items:
        if name[item] in REALTIME:
            item.add_marker(pytest.mark.realtime)
    items.sort(key=lambda item: order.get(name[item], len(LONG)))  # stable: all else stays where it was


def pytest_collection_finish():
    """Modules and tests are there to the end: the collector need not look through them each time."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


_left = 0  # bytes in memory after the last collection


def pytest_runtest_logfinish():
    """A simulated scene is 60 MB in a cycle that the collector alone frees, and would hardly ever look for by itself:
    workers grew to 6 GB."""
    global _left
    if resident() > _left + 300e6:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _left = resident()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of this process's own: neither the user's nor that of another worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2ROBOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory):
    """A file as `s2robot pretrain` writes it: 32 px tile, patch 8, 64 channels, 2 blocks; S2 draws 64 px."""
    import torch

    from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder

    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_encoder(MVPViT(ViTSpec(img_size=32, patch_size=8, dim=64, depth=2, heads=2)), path, {"seed": 0})
    return path


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A dataset of 3 xArm7 episodes, seeds 500 to 502, as the recorder makes it; not to be changed."""
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
def realsense(monkeypatch):
    """A stand-in for `pyrealsense2` with one camera, number 0042, that returns 96 x 72 at 20 Hz.

    Its `pictures` uint8 (T, 72, 96, 3) come in turn, `late_s` after they were taken, until it is `gone`; without `colour` it
    has depth alone. `running`: it was started and not stopped; `options`: what was set.
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
        """An object whose methods return these values, whatever they are given."""
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

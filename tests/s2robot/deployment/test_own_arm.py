"""Arms other than the xArm7 with `s2robot deploy`: simulated ones, and a custom driver (docs/own-arm.md)."""

import importlib
import json
import re
import shlex
import shutil
import sys
import threading
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.parse import quote

import numpy as np
import pytest
from filelock import FileLock

from s2robot.cli import main
from s2robot.core.errors import UserError
from s2robot.core.files import cache_dir
from s2robot.demos.store import EpisodeStore
from s2robot.deployment import deploy
from s2robot.deployment.session import ArmSession
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.description import ArmDescription
from tests.configs import composed
from tests.envs.real.home import HOME, OWN, described
from tests.envs.real.test_own_driver import box  # noqa: F401
from tests.errors import fails, refuses


@pytest.fixture
def config(save_for, calm, pictures, tmp_path, monkeypatch):
    """Make a config of `s2robot deploy` for an arm."""

    def make(arm: ArmDescription, *overrides):
        monkeypatch.syspath_prepend(OWN)
        monkeypatch.setattr("line_arm.LineArm.answer_s", 20.0)  # a busy machine is no fault
        monkeypatch.setattr("line_arm.LineArm.gone_s", 20.0)
        checkpoint = save_for(arm, tmp_path / "checkpoint")
        words = [f"checkpoint='{checkpoint}'", f"demos.path='{pictures}'", f"run_dir='{tmp_path}'"]
        words += ["confirm=false", f"robot={arm.name}", f"hydra.searchpath=[file://{OWN}/configs]", *calm]
        return composed("deploy", *words, *overrides)

    return make


@pytest.mark.parametrize("gripper", ["continuous", None])
def test_six_joint_episode_is_recorded_with_or_without_a_gripper(config, tmp_path, capsys, gripper):
    arm, size = described("ur5e", gripper=gripper), 6 + (gripper is not None)
    record = f"record='{tmp_path}/mine.zarr'"
    words = [f"robot.gripper={gripper or 'null'}", "bridge.loop.max_steps=3", record]
    assert deploy.deploy(config(arm, "bridge=simulated", "live=true", *words)) == 0
    assert "no Cartesian limits" not in capsys.readouterr().out
    (episode,) = json.loads((tmp_path / "summary.json").read_text())["records"]
    assert (episode["cause"], episode["steps"], episode["fault"]) == ("steps", 3, "")
    store = EpisodeStore.open(tmp_path / "mine.zarr")
    assert store["action"].shape == store["proprio"].shape == (3, size) and store.robot == "ur5e"
    assert store.attrs["joint_names"] == list(arm.joint_names)
    np.testing.assert_allclose(store["proprio"][0, :6], arm.start, atol=0.02)
    assert np.ptp(store["images_hand"], axis=(1, 2)).max() > 10  # not a blank image
    moved = store["proprio"][2, :6] - store["proprio"][0, :6]
    np.testing.assert_allclose(moved, store["action"][:2, :6].sum(0), atol=5e-3)


def test_custom_driver_without_a_model_warns_about_skipped_checks(config, box, pictures, capsys):  # noqa: F811
    arm = described("ur5e", model=None, points=())
    box.state["q_deg"] = np.degrees(arm.start).tolist()
    films = "kind=replay", f"device='{pictures}'"
    cameras = [f"bridge.cameras.{name}.{word}" for name in ("hand", "left") for word in films]
    address = "{}:{}".format(*box.server_address)
    words = ["robot.model=null", "robot.points=[]", f"robot.ip='{address}'", *cameras]
    wanted = config(arm, *words, "dry_run_steps=2")
    other = FileLock(cache_dir("arms", quote(address, safe="")) / ".lock")
    refused = pytest.raises(UserError, match=f"arm at {address} must end")
    with other, pytest.MonkeyPatch.context() as patch, refused:
        patch.setattr("s2robot.core.run_folder._WAIT_S", 0.1)
        deploy.deploy(wanted)
    assert not box.asked
    assert deploy.deploy(wanted) == 0
    out = capsys.readouterr().out
    assert re.search("^warning +arm: no Cartesian limits: without a model", out, re.MULTILINE)
    assert set(box.asked) <= {"state", "stop"}  # nothing was sent


def test_connection_that_never_returns_ends_in_one_line(config, monkeypatch, capsys):
    ended, codes = threading.Event(), []

    def hang(self, timeout_s):
        ended.wait(60)
        raise EnvError("too late")

    wanted = config(described("ur5e"), "robot.ip=192.0.2.1", "bridge.arm.connect_s=0.1")
    monkeypatch.setattr("line_arm.LineArm.connect", hang)
    monkeypatch.setattr("s2robot.deployment.arm.START_S", 0.0)
    monkeypatch.setattr("os._exit", lambda code: (codes.append(code), ended.set()))
    fails("too late", deploy.deploy, wanted)
    assert codes == [2] and "robot.driver: expected connect() to return" in capsys.readouterr().err


def test_panda_is_simulated_and_its_driver_is_loaded(config, monkeypatch):
    arm = described("panda")
    assert deploy.deploy(config(arm, "bridge=simulated", "check=true")) == 0
    monkeypatch.setitem(sys.modules, "franky", None)
    fails(r"^franky: expected .*s2robot\[franka\]", deploy.deploy, config(arm, "robot.ip=192.0.2.1"))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["bridge=emulator"], "bridge.emulator.port: expected null with robot=ur5e"),
        (["robot.ip=x", "robot.driver=null"], "robot.driver: expected module:Class, got 'None'"),
        (["robot.ip=x", "robot.driver=s2robot.envs.real.arms.driver:ArmDriver"], "robot.driver: expected a class that can be"),
        (["robot.ip=x", "robot.driver=json:JSONDecoder"], "robot.driver: expected a subclass of ArmDriver, got 'json:JSONDecoder'"),
        (["robot.ip=x", "bridge.limits.dq_max=[1,1,1,1,1,1,1]"], "bridge.limits.dq_max: expected 6 values, one per joint"),
        (["robot.ip=x", "bridge.limits.dq_max=0"], "bridge.limits.dq_max: expected > 0, got 0"),
        (["robot.home=[0,0,0]"], "robot.home: expected 6 values"), (["robot.home=null"], "robot.home: expected 6 values"), ([], "robot.ip: expected the arm's address"),
        (["bridge=simulated", "robot.model=null"], "robot.model: expected a file with bridge=simulated, got null"),
        (["bridge=simulated", "robot.gripper=null"], "policy: actions: expected the arm's joints (6 delta), got joints (6 delta), gripper"),
    ],
)  # fmt: skip
def test_mismatch_with_the_arm_is_one_error_line(config, overrides, text):
    refuses(re.escape(text), deploy.deploy, config(described("ur5e"), *overrides))


def test_configured_home_replaces_the_simulated_start():
    arm = described("xarm7", home=tuple(HOME + 0.1))
    session = SimpleNamespace(arm=SimpleNamespace(bench=arm), runtime=Mock(), operator=None)
    assert (ArmSession.ready(session, CubePickConfig(), 3).start_joints == arm.start).all()
    with pytest.raises(ValueError, match="^robot.points: expected none with robot.model=xarm7"):
        described("xarm7", points=described("ur5e").points)


def test_documented_commands_run_as_written(inline, tiny_encoder, calm, tmp_path, monkeypatch, capsys):
    """Run the commands of docs/own-arm.md with smaller frames, a smaller encoder and generous time limits."""
    page = (OWN.parents[1] / "docs" / "own-arm.md").read_text(encoding="utf-8")
    enter, demos, train, live = (shlex.split(line) for line in re.findall("^    (.*)$", page, re.MULTILINE))
    assert enter == ["cd", "examples/own_arm"] and demos[1] == "../own_demos.py"
    shutil.copytree(OWN, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    store = importlib.import_module("examples.own_demos").main([*demos[2:], "--size", "64"])
    assert store["action"].shape[1] == 7
    small = ["features.cache=cache", "features.workers=1", f"encoder.checkpoint='{tiny_encoder}'"]
    assert main([*train[1:], *small]) == 0
    own = [word.replace("$PWD", str(tmp_path)) for word in live[1:]]
    assert main([*own, "hydra.run.dir=deployed", "bridge.loop.max_steps=4", *calm]) == 0
    (episode,) = json.loads((tmp_path / "deployed/summary.json").read_text())["records"]
    assert (episode["cause"], episode["steps"]) == ("steps", 4), capsys.readouterr().out

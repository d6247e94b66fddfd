"""`s2robot deploy` against `s2robot emulate`; the journal of the emulated box lists the commands that reached it."""

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import numpy as np
import pytest

from s2robot.core.errors import UserError
from s2robot.demos.errors import DiskError
from s2robot.demos.store import EpisodeStore
from s2robot.deployment import deploy
from s2robot.deployment.store import CAUSES
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import State
from tests import forks
from tests.envs.real.patience import PATIENCE
from tests.errors import refuses
from tests.s2robot.serving.test_server import command

pytest.importorskip("xarm")


@pytest.fixture
def config(slow_policy, arm_config):
    """Make a config of `s2robot deploy` against the emulator."""

    def make(*overrides, policy=slow_policy):
        own = [f"checkpoint='{policy}'"] if policy else []
        return arm_config("deploy", *own, "confirm=false", *overrides)

    return make


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(count, function)` calls the function after `count` actions of the policy."""
    on_step, steps = deploy.Board.on_step, itertools.count(1)

    def make(count, function):
        acted = lambda self, step: (on_step(self, step), next(steps) == count and function())  # noqa: E731
        monkeypatch.setattr(deploy.Board, "on_step", acted)

    return make


def test_dry_run_sends_nothing_and_plots_the_commands(config, emulator, tmp_path, capsys):
    before = emulator("status")
    begin = time.monotonic()
    assert deploy.deploy(config("check=true")) == 0 and "this policy fits" in capsys.readouterr().out
    assert deploy.deploy(config("dry_run_steps=4")) == 0
    assert emulator.commands(begin) == []
    after = emulator("status")
    assert after["joints"] == pytest.approx(before["joints"], abs=1e-3) and after["mode"] == before["mode"]
    found = json.loads((tmp_path / "dry_run.json").read_text())
    assert found["periods"] == len(found["joints"]) == len(found["verdict"]) > 10
    assert np.abs(np.array(found["joints"]) - before["joints"]).max() > 1e-5  # it would have moved
    assert (tmp_path / "dry_run.png").stat().st_size > 10_000
    assert (tmp_path / "camera_check.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "dry run: 4 decisions" in out and "commands not sent" in out
    assert not [line for line in out.splitlines() if line.startswith("stop")]
    assert f"{tmp_path}/xarm_sdk.log" in out and "ROBOT_IP" not in out
    assert "ROBOT_IP" in (tmp_path / "xarm_sdk.log").read_text()


def test_preflight_stops_with_one_line_per_finding(config, save_untrained, emulator, tmp_path, capsys):
    begin = time.monotonic()
    geometry = {"hand": {"fovy": 60.0, "size": [64, 64]}}
    names = [f"robot0_joint{i}" for i in (2, 1, 3, 4, 5, 6, 7)]
    contract = {"robot": "panda", "joint_names": names, "camera_geometry": geometry}
    wrong = save_untrained(tmp_path / "wrong", contract)
    with pytest.raises(UserError, match="pre-flight: 4 of .* nothing has moved"):
        deploy.deploy(config("live=true", "bridge.cameras.left.kind=opencv", policy=wrong))
    stops = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stop")]
    assert len(stops) == 4
    for text in ("robot: ", "joints: ", "60", "left.device: "):
        assert sum(text in line for line in stops) == 1, stops
    assert emulator.commands(begin) == []


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["bridge.emulator.port=null", "live=true"], "confirm: expected true on a real arm"),
        (["bridge.emulator.port=null", "live=true", "confirm=true"], "standard input: expected a terminal"),
        (["bridge.emulator.port=null"], "robot.ip: expected"), (["robot.ip=192.168.1.7"], "robot.ip: expected 127.0.0.1"),
        (["bridge.emulator.port=1"], "bridge.emulator.port=1: expected a running `s2robot emulate`, got no answer to 'ports'"),
        (["record=demos.zarr"], "record: expected null"), (["check=true", "live=true"], "check: expected false"),
        (["policy.url=ws://127.0.0.1:1"], "checkpoint: expected either checkpoint or policy.url, got both"),
        (["checkpoint=null"], "checkpoint: expected either checkpoint or policy.url, got neither"),
        (["checkpoint=nope", "bridge.emulator.port=1"], "checkpoint nope: no such folder"),  # before connecting to the arm
        (["+bridge.watchdog.camera_holt=1"], "bridge.watchdog.camera_holt: unknown key, expected camera_hold"),
        (["bridge.limits.box=[[0,1],[0,1],[0]]"], "bridge.limits.box"),
        (["bridge.home.speed=inf"], "bridge.home.speed: expected a finite number, got inf"),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_error_line(config, monkeypatch, overrides, text):
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    with pytest.raises(ValueError, match=re.escape(text)) as caught:
        deploy.deploy(config(*overrides))
    assert caught.value.user_error


def test_nothing_moves_without_the_operators_confirmation(config, emulator, monkeypatch):
    begin = time.monotonic()
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", lambda: "yes")
    refuses("^confirmation: expected 'move', got 'yes'", deploy.deploy, config("live=true", "confirm=true"))
    # `echo move | s2robot deploy --live` is not a confirmation, emulated or not
    for box in ((), ("bridge.emulator.port=null", "robot.ip=127.0.0.1")):
        monkeypatch.setattr("sys.stdin", io.StringIO("move\nmove\n"))
        refuses("input: expected a terminal", deploy.deploy, config("live=true", "confirm=true", *box))
    assert emulator.commands(begin) == []


def test_live_episodes_are_recorded_as_demos(config, emulator, tmp_path, capsys, monkeypatch):
    begin, path = time.monotonic(), tmp_path / "real.zarr"
    overrides = ("live=true", "episodes=2", f"record='{path}'", "bridge.loop.max_steps=3")
    assert deploy.deploy(config(*overrides)) == 0
    found = emulator.commands(begin)
    assert sum(c["kind"] == "motion" for c in found) > 50 and not any(c["unsafe"] for c in found)
    assert emulator("status")["state"] >= 4  # stopped at the end
    store = EpisodeStore.open(path)
    assert len(store) == 2 and store.num_steps == 6 and store.attrs["kind"] == "images"
    assert store["images_left"].shape == (6, 64, 64, 3) and store["images_hand"].std() > 5  # real, not blank
    assert (store.attrs["rate_hz"], store.attrs["speed"]) == (10, 0.2)
    assert store.meta("seed").tolist() == [10000, 10001] and not store.meta("success").any()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["episodes"] == 2 and summary["records"][0]["cause"] == "steps"
    assert summary["records"][0]["period_deviation_ms"]["p50"] >= 0
    assert (tmp_path / "episodes" / "episode_0001.png").exists()
    assert "0 of 2 episodes succeeded" in capsys.readouterr().out
    overrides = ("live=true", f"record='{path}'", "bridge.loop.max_steps=2")
    refuses("hydra.run.dir: expected a folder without episodes", deploy.deploy, config(*overrides))
    monkeypatch.setattr(deploy.EpisodeLog, "write", Mock(side_effect=DiskError("full")))
    assert deploy.deploy(config(*overrides, f"run_dir='{tmp_path / 'again'}'")) == 1
    assert len(EpisodeStore.open(path)) == 3  # appended to the same dataset before the plot was written


def test_arm_fault_ends_the_session_and_keeps_the_episode(config, emulator, at_step, tmp_path, capsys):
    path = tmp_path / "real.zarr"
    at_step(3, lambda: emulator.fault("error", code=31))
    words = "live=true", "episodes=3", f"record='{path}'", "bridge.loop.max_steps=300"
    assert deploy.deploy(config(*words)) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["episodes"] == 1 and summary["records"][0]["cause"] == "fault"
    fault = summary["records"][0]["fault"]  # a busy machine may add another reason
    assert "arm error 31" in fault
    assert len(EpisodeStore.open(path)) == 1
    told = capsys.readouterr().out
    assert told.index(f"FAULT: {fault}\n") < told.index("The arm is stopped. Inspect the arm")
    assert max(np.abs(emulator("status")["velocities"])) < 0.01


@pytest.mark.parametrize(
    ("error", "fault"), [(KeyError("mode"), "KeyError: 'mode'"), (DiskError("disk is full"), "disk is full")]
)
def test_error_while_acting_keeps_the_episode(config, at_step, tmp_path, monkeypatch, capsys, error, fault):
    at_step(3, lambda: monkeypatch.setattr(XArmDriver, "status", Mock(side_effect=error)))
    assert deploy.deploy(config("live=true", "bridge.loop.max_steps=300")) == 1
    (record,) = json.loads((tmp_path / "summary.json").read_text())["records"]
    assert (record["cause"], record["fault"]) == ("fault", fault) and record["steps"] >= 3
    told = capsys.readouterr()
    assert f"FAULT: {fault}\nThe arm is stopped." in told.out
    assert ("Traceback" in told.err) == isinstance(error, KeyError)  # of a bug, not of a user's mistake


@pytest.mark.parametrize("when", ["acting", "judging"])
def test_interrupted_episode_is_stored_as_stopped(config, emulator, at_step, tmp_path, monkeypatch, when):
    ctrl_c = Mock(side_effect=KeyboardInterrupt)  # while acting: a second one, which does not wait
    if when == "acting":
        at_step(3, ctrl_c)
    else:
        monkeypatch.setattr("s2robot.deployment.session.WatchingOperator.success", ctrl_c)
    words = "live=true", f"record='{tmp_path}/real.zarr'", "bridge.loop.max_steps=4"
    with pytest.raises(KeyboardInterrupt):
        deploy.deploy(config(*words))
    (record,) = json.loads((tmp_path / "summary.json").read_text())["records"]
    assert (record["cause"], record["success"]) == ("stopped", False) and record["steps"] >= 2
    (stored,) = EpisodeStore.open(tmp_path / "real.zarr").meta("cause")
    assert CAUSES[stored] == "stopped" and max(np.abs(emulator("status")["velocities"])) < 0.01


def test_stop_without_acknowledgement_is_a_fault(config, emulator, monkeypatch, tmp_path, capsys):
    stop, lost = XArmDriver.stop, "end of the episode"
    monkeypatch.setattr(XArmDriver, "stop", lambda self, why: stop(self, why) and why != lost)
    monkeypatch.setattr(Supervisor, "stop", lambda self: False)
    assert deploy.deploy(config("live=true", "bridge.loop.max_steps=1")) == 1
    assert "FAULT: The arm has NOT confirmed a stop" in capsys.readouterr().out
    lost = "end of the session"  # of every verb that moves an arm
    assert deploy.deploy(config("live=true", "bridge.loop.max_steps=1", f"run_dir='{tmp_path / 'b'}'")) == 1
    told = capsys.readouterr().out
    assert "FAULT: The arm has NOT confirmed a stop" in told and "The arm is stopped" not in told


def test_episode_lost_to_a_full_disk_is_a_fault_in_the_summary(config, tmp_path, monkeypatch, capsys):
    full = Mock(side_effect=DiskError("real.zarr: the disk is full"))
    monkeypatch.setattr("s2robot.deployment.deploy.EpisodeRecorder.finish", full)
    words = "live=true", "episodes=3", f"record='{tmp_path}/real.zarr'", "bridge.loop.max_steps=2"
    assert deploy.deploy(config(*words)) == 1
    assert "FAULT: real.zarr: the disk is full" in capsys.readouterr().out
    (episode,) = json.loads((tmp_path / "summary.json").read_text())["records"]
    assert episode["steps"] == 2 and (tmp_path / "episodes" / "episode_0000.png").exists()


def test_ctrl_c_brakes_and_stops_the_arm(emulator, slow_policy, pictures, calm, tmp_path):
    emulator("clear_error")
    begin = time.monotonic()
    words = [
        f"checkpoint='{slow_policy}'", "bridge=emulator", f"bridge.emulator.port={emulator.port}", "confirm=false", *calm,
        f"demos.path='{pictures}'", "bridge.loop.max_steps=1000",
    ]  # fmt: skip
    process = forks.Popen(
        [sys.executable, "-m", "s2robot", "deploy", "--live", "--episodes", "3", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    while not any(re.search(r"state running, .*step [1-9]\d* of 1000", line) for line in lines[-1:]):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    process.send_signal(signal.SIGINT)
    remainder = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 130, remainder
    output = "".join(lines) + remainder
    (log,) = tmp_path.glob("runs/deploy/*/xarm_sdk.log")
    assert log.read_text().count("ROBOT_IP") >= 2  # the supervisor has its own connection
    assert not re.search("SDK_VERSION|ROBOT_IP|protocol identifier|ready to move", output), output
    assert "1 of 3 (seed 10000)" in remainder and "stopped" in remainder
    status = emulator("status")
    assert status["state"] >= 4 and max(np.abs(status["velocities"])) < 0.01
    found = emulator.commands(begin)
    assert not any(c["unsafe"] for c in found)
    last = max(c["time"] for c in found if c["kind"] == "motion")
    # the stop came last
    assert max(c["time"] for c in found if c["kind"] in ("stop", "state")) >= last - 0.01


def test_lost_remote_policy_holds_before_it_is_a_fault(config, slow_policy, at_step, tmp_path, monkeypatch):
    words = "live=true", "bridge.watchdog.policy_hold=0.5", "bridge.loop.max_steps=300"
    deadlines = "policy.deadline_s=30", "policy.connect_s=60"
    with command(slow_policy, tmp_path, "serve.threads=1") as (server, url, token):
        monkeypatch.setenv("S2ROBOT_TOKEN", token)
        at_step(3, server.kill)
        assert deploy.deploy(config(*words, f"policy.url={url}", *deadlines, policy=None)) == 1
    record = json.loads((tmp_path / "summary.json").read_text())["records"][0]
    states = [state for state, _ in record["changes"]]
    assert record["cause"] == "fault" and "Policy" in record["fault"], record["fault"]
    assert states[-1] == State.FAULT.value and State.HOLD.value in states[-3:-1], states
    assert record["steps"] > 0

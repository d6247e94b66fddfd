"""What a training reports while it runs: loggers, rollouts, the checkpoints that did best."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s2robot.core.errors import UserError
from s2robot.policies import load_checkpoint
from s2robot.training import run as module
from s2robot.training.run import Loggers
from s2robot.training.settings import RolloutSettings
from tests.s2robot.training.small import Killed, fit, make_settings

SUCCESS = {4: 0.5, 8: 0.25, 12: 0.5, 16: 0.1, 20: 0.4}
STEPS = [4, 5, 8, 10, 12, 15, 16, 20]  # of the rows


def tries(data, out, **changes):
    """A training of 20 steps with a rollout after every fourth; returns the steps of the checkpoints it got."""
    tried = []

    def rollout(folder):
        tried.append(load_checkpoint(folder)[1]["training"]["step"])
        return SUCCESS[tried[-1]]

    fit(data, out, rollout=rollout, rollouts=RolloutSettings(every=4, keep=2), **changes)
    return tried


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert tries(data, folder) == [4, 8, 12, 16, 20]
    return folder


def test_the_best_checkpoints_by_success_are_kept(whole):
    rows = json.loads((whole / "metrics.json").read_text())
    assert {row["step"]: row["success"] for row in rows if "success" in row} == SUCCESS
    assert [row["step"] for row in rows] == STEPS
    index = json.loads((whole / "checkpoints.json").read_text())
    assert index == [{"checkpoint": f"checkpoint_{s}", "step": s, "success": 0.5} for s in (12, 4)]
    assert {p.name for p in whole.glob("checkpoint*")} == {
        "checkpoint", "checkpoint_best", "checkpoint_4", "checkpoint_12", "checkpoints.json",
    }  # fmt: skip
    assert load_checkpoint(whole / "checkpoint_12")[1]["training"]["step"] == 12


@pytest.mark.parametrize("kill_at", [4, 10, 15, 16])
def test_a_killed_training_rolls_out_no_step_twice_and_keeps_the_same(data, whole, tmp_path, kill_at):
    with pytest.raises(Killed):  # row 15 is logged, and the state is that of 12
        tries(data, tmp_path, kill_at=kill_at, checkpoint_every=10)
    assert tries(data, tmp_path, checkpoint_every=10) == [s for s in SUCCESS if s > kill_at]
    weights = [f"{name}/policy.safetensors" for name in ("checkpoint_4", "checkpoint_12", "checkpoint")]
    for file in [*weights, "checkpoints.json"]:
        assert (whole / file).read_bytes() == (tmp_path / file).read_bytes()
    assert [row["step"] for row in json.loads((tmp_path / "metrics.json").read_text())] == STEPS
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == STEPS
    success = [event.value for event in events.Scalars("success")]
    np.testing.assert_allclose(success, list(SUCCESS.values()), rtol=1e-6)


def test_a_service_gets_no_step_twice_and_keeps_its_run(tmp_path, monkeypatch):
    service, runs = Mock(), []
    monkeypatch.setattr(module, "_mlflow", lambda out, run: (runs.append(run) or service, run or "r1"))
    for done, steps in ((0, (5, 10, 15)), (10, (15, 20))):  # killed after row 15, with the state of 10
        loggers = Loggers(("mlflow",), tmp_path, done)
        for step in steps:
            loggers.write({"step": step, "train_loss": 1 / step})
        loggers.close()
    assert [call.args[1] for call in service.log_metrics.call_args_list] == [5, 10, 15, 20]
    assert runs == [None, "r1"]
    Loggers(("mlflow",), tmp_path)  # a training from the start
    assert runs[-1] is None


def test_a_service_that_fails_or_is_missing_is_one_line(tmp_path, monkeypatch):
    def fail(out, run):
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(module, "_wandb", fail)
    with pytest.raises(UserError, match=r"\Atrain.loggers: wandb: [^\n]*\Z"):
        Loggers(("wandb",), tmp_path)
    monkeypatch.setattr("s2robot.core.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match="^wandb"):
        make_settings(loggers=("wandb",))

"""What is told of a training while it runs: loggers, tries by the way, the checkpoints that did best."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s2robot.core.errors import UserError
from s2robot.policies import load_checkpoint
from s2robot.training import loggers as module
from s2robot.training.loggers import Loggers
from s2robot.training.settings import RolloutSettings
from s2robot.training.train import train
from tests.s2robot.training.small import CONTRACT, make_data, make_settings, make_spec

SUCCESS = {4: 0.5, 8: 0.25, 12: 0.5, 16: 0.1, 20: 0.4}
TRIED = RolloutSettings(every=4, keep=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("tracking") / "d.zarr")


class Killed(Exception):
    pass


def fit(data, out, kill_at=None, **changes):
    """A training of 20 steps that is tried after every fourth; the steps of the checkpoints that were tried."""
    tried = []

    def rollout(folder):
        step = load_checkpoint(folder)[1]["training"]["step"]
        tried.append(step)
        return SUCCESS[step]

    def progress(step, steps, row):
        if step == kill_at:
            raise Killed

    settings = make_settings(rollouts=TRIED, **changes)
    train(settings, make_spec(), *data, CONTRACT, out, progress=progress, rollout=rollout)
    return tried


def test_the_best_checkpoints_by_success_are_kept(data, tmp_path):
    assert fit(data, tmp_path) == [4, 8, 12, 16, 20]
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert {row["step"]: row["success"] for row in rows if "success" in row} == SUCCESS
    assert [row["step"] for row in rows] == [4, 5, 8, 10, 12, 15, 16, 20]
    index = json.loads((tmp_path / "checkpoints.json").read_text())
    assert index == [{"checkpoint": f"checkpoint_{s}", "step": s, "success": 0.5} for s in (12, 4)]
    assert {p.name for p in tmp_path.glob("checkpoint*")} == {
        "checkpoint", "checkpoint_best", "checkpoint_4", "checkpoint_12", "checkpoints.json",
    }  # fmt: skip
    assert load_checkpoint(tmp_path / "checkpoint_12")[1]["training"]["step"] == 12


@pytest.mark.parametrize("kill_at", [4, 10, 16])
def test_a_killed_training_is_tried_no_step_twice_and_keeps_the_same(data, tmp_path, kill_at):
    fit(data, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(data, tmp_path / "cut", kill_at)
    assert fit(data, tmp_path / "cut") == [s for s in SUCCESS if s > kill_at]
    for name in ("checkpoint_4", "checkpoint_12", "checkpoint"):
        one, other = ((tmp_path / run / name / "policy.safetensors").read_bytes() for run in ("whole", "cut"))
        assert one == other
    one, other = ((tmp_path / run / "checkpoints.json").read_text() for run in ("whole", "cut"))
    assert one == other


def test_tries_need_somebody_who_tries(data, tmp_path):
    with pytest.raises(UserError, match=r"^train.rollouts.every: expected 0"):
        train(make_settings(rollouts=TRIED), make_spec(), *data, CONTRACT, tmp_path)


def test_tensorboard_holds_every_row_once_after_a_kill(data, tmp_path):
    with pytest.raises(Killed):  # row 15 is logged, and the state is that of 12
        fit(data, tmp_path, 15, checkpoint_every=10)
    fit(data, tmp_path, checkpoint_every=10)
    steps = [row["step"] for row in json.loads((tmp_path / "metrics.json").read_text())]
    assert steps == [4, 5, 8, 10, 12, 15, 16, 20]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == steps
    np.testing.assert_allclose(
        [e.value for e in events.Scalars("success")], list(SUCCESS.values()), rtol=1e-6
    )


class Service:
    """A service's logger: it never forgets what it was told."""

    told: list = []

    def log_hyperparams(self, about):
        self.about = about

    def log_metrics(self, row, step):
        self.told.append((step, row["train_loss"]))

    def finalize(self, status): ...


def test_a_service_hears_of_no_step_twice_and_keeps_its_run(tmp_path, monkeypatch):
    runs = []
    monkeypatch.setattr(Service, "told", [])
    monkeypatch.setattr(module, "_mlflow", lambda out, run: (runs.append(run) or Service(), run or "r1"))
    rows = [{"step": step, "train_loss": 1 / step} for step in (5, 10, 15, 20)]
    first = Loggers(("mlflow",), tmp_path)
    for row in rows[:3]:
        first.write(row)
    again = Loggers(("mlflow",), tmp_path, 10)  # killed after row 15, whose state was not saved yet
    for row in rows[2:]:
        again.write(row)
    assert Service.told == [(row["step"], row["train_loss"]) for row in rows]
    assert runs == [None, "r1"]
    Loggers(("mlflow",), tmp_path)  # a training from the start
    assert runs[-1] is None


def test_what_a_service_raises_is_one_line(tmp_path, monkeypatch):
    def refuse(out, run):
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(module, "_wandb", refuse)
    with pytest.raises(UserError, match="^train.loggers: wandb: [^\n]*$"):
        Loggers(("wandb",), tmp_path)
    monkeypatch.setattr("s2robot.core.errors.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^wandb is not installed: "):
        make_settings(loggers=("wandb",))

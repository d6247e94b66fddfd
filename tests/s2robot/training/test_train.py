"""Training: learning, exact resumption after a stop, starting from other weights, errors, and logging."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.policies import ChunkPolicy, load_checkpoint
from s2robot.training import run as module
from s2robot.training.batches import Batches
from s2robot.training.run import Loggers
from s2robot.training.settings import RolloutSettings
from tests.errors import refuses
from tests.kills import kill_at_every_write
from tests.s2robot.training.small import CONTRACT, TIMES, Killed, fit, make_data, make_settings, make_spec


def weights(folder) -> bytes:
    return (folder / "policy.safetensors").read_bytes()


def rows_of(run) -> list[dict]:
    """Return the metrics of a run without those that differ between equal runs."""
    rows = json.loads((run / "metrics.json").read_text())
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


@pytest.mark.parametrize("kind", ("mlp", "transformer"))
def test_training_learns_and_writes_a_complete_checkpoint(data, tmp_path, kind):
    rows = []
    how = {"progress": lambda *row: rows.append(row), "steps": 125, "checkpoint_every": 50}
    folder = fit(data, tmp_path, make_spec(kind), **how)
    assert folder == tmp_path / "checkpoint"
    assert [r[:2] for r in rows] == [(i, 125) for i in range(5, 126, 5)]
    losses = [row["train_loss"] for *_, row in rows]
    assert losses[-1] < 0.6 * losses[0] and rows[-1][2]["val_loss"] < rows[0][2]["val_loss"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == [row for *_, row in rows]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    policy, contract = load_checkpoint(folder)
    assert policy.spec == make_spec(kind)
    assert {k: contract[k] for k in CONTRACT} == CONTRACT
    assert contract["training"]["step"] == 125 and math.isfinite(contract["training"]["val_loss"])
    best = load_checkpoint(tmp_path / "checkpoint_best")[1]["training"]
    assert best["val_loss"] == min(row["val_loss"] for *_, row in rows)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize(
    ("number", "at", "kind"),
    [(signal.SIGINT, 2, "transformer"), (signal.SIGTERM, 7, "mlp"), (signal.SIGINT, 9, "mlp")],
)
def test_a_stopped_run_resumes_exactly(data, tmp_path, monkeypatch, number, at, kind):
    """Before any state is due, between two rows, and at a row; the signal arrives in the middle of a step."""
    spec = make_spec(kind, proprio_noise=0.1)  # dropout and noise must repeat too
    fit(data, tmp_path / "whole", spec)
    usual, step = signal.getsignal(number), Batches.step

    def signalled(self, i, *rest):
        if i == at:
            os.kill(os.getpid(), number)
        return step(self, i, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Batches, "step", signalled)
        fit(data, tmp_path / "cut", spec)
    assert signal.getsignal(number) is usual
    assert torch.load(tmp_path / "cut/training_state.pt", weights_only=True)["step"] == at + 1
    assert load_checkpoint(tmp_path / "cut/checkpoint")[1]["training"]["step"] == at + 1
    torch.manual_seed(99)  # a new process has a different random state
    fit(data, tmp_path / "cut", spec)
    for name in ("checkpoint", "checkpoint_best"):
        assert weights(tmp_path / "whole" / name) == weights(tmp_path / "cut" / name)
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "cut")


def train_ten_steps(folder: Path) -> None:
    data = folder.parent / "data.zarr"  # created by the uninterrupted run, for all runs
    if not data.exists():
        np.save(folder.parent / "features.npy", make_data(data)[1])
    made = EpisodeStore.open(data), np.load(folder.parent / "features.npy")
    fit(made, folder / "run", make_spec(proprio_noise=0.1), steps=10)


def results_of(folder: Path) -> dict:
    run, names = folder / "run", ("checkpoint", "checkpoint_best")
    files = {p.name for p in run.iterdir() if not p.name.startswith("events")}
    policies = {name: (weights(run / name), (run / name / "policy.json").read_text()) for name in names}
    return {"rows": rows_of(run), "files": files, **policies}


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_changes_nothing(tmp_path, every):
    killed = kill_at_every_write(train_ten_steps, tmp_path, every)
    final = results_of(tmp_path / "whole")
    assert final["files"] == {".lock", "checkpoint", "checkpoint_best", "metrics.json", "training_state.pt"}
    assert final["rows"][-1]["step"] == 10
    for write, folder in killed.items():
        assert results_of(folder) == final, write
    writes = (tmp_path / "writes.json").read_text()
    assert "rename run/training_state.pt" in writes and "rename run/checkpoint" in writes


def test_signal_between_steps_stops_training_at_once(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path, progress=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert torch.load(tmp_path / "training_state.pt", weights_only=True)["step"] == 5


def test_the_state_of_another_run_is_rejected(data, tmp_path):
    with pytest.raises(Killed):
        fit(data, tmp_path, kill_at=5)
    path = tmp_path / "training_state.pt"
    state = path.read_bytes()
    for change, spec, contract, key in (
        ({"lr": 1e-4}, {}, {}, "train.lr"),
        ({"precision": "bf16-mixed"}, {}, {}, "train.precision"),
        ({}, {}, {"dataset": {"fingerprint": "x"}}, "dataset.fingerprint"),
        ({}, {"chunk": 5}, {}, "policy.chunk: expected 4"),
    ):
        other = make_spec(**spec), CONTRACT | contract
        refuses(rf"training_state.pt: {key}.* saved state", fit, data, tmp_path, *other, **change)
    assert path.read_bytes() == state
    fit(data, tmp_path, *other, resume=False, validation=0.0)
    assert not (tmp_path / "checkpoint_best").exists()  # from the previous run
    for content in (b"", b"no state", {"policy": {}}):
        torch.save(content, path) if isinstance(content, dict) else path.write_bytes(content)
        refuses(r"training_state.pt: not a readable training state", fit, data, tmp_path)


def test_unsupported_hardware_settings_are_one_error_line(data, tmp_path):
    wrong = {"precision": "64-true", "strategy": "ddp_spawn", "accelerator": "tpu", "threads": 10**12}
    for key, value in wrong.items():
        where = "train.precision" if key == "precision" else "train"
        refuses(rf"\A{where}: [^\n]*\Z", fit, data, tmp_path, **{key: value})


def test_non_finite_loss_keeps_the_last_state(data, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        fit(data, tmp_path, kill_at=5)
    state, before = (tmp_path / "training_state.pt").read_bytes(), weights(tmp_path / "checkpoint")
    original = ChunkPolicy.forward

    def with_nan(self, batch):
        loss, scalars = original(self, batch)
        return loss, {name: value * float("nan") for name, value in scalars.items()}

    monkeypatch.setattr(ChunkPolicy, "forward", with_nan)
    refuses("the loss is nan at step 10", fit, data, tmp_path)
    assert (tmp_path / "training_state.pt").read_bytes() == state
    assert before == weights(tmp_path / "checkpoint")


def test_a_finished_run_restores_its_checkpoint(data, tmp_path):
    """The checkpoint was damaged or removed, but the last training state is left."""
    folder = fit(data, tmp_path)
    expected = weights(folder)
    (folder / "policy.safetensors").write_bytes(b"half")
    for _ in range(2):
        fit(data, tmp_path)
        assert weights(folder) == expected and load_checkpoint(folder)[1]["training"]["step"] == 20
        shutil.rmtree(folder)


def test_without_validation_every_episode_is_used_for_the_set_epochs(data, tmp_path):
    windows = len(make_windows(data[0], np.arange(8), 1, 4))
    rows = []
    how = {"progress": lambda *row: rows.append(row), "validation": 0.0, "epochs": 1.5}
    policy, contract = load_checkpoint(fit(data, tmp_path, make_spec(pooling={"kind": "mean"}), **how))
    assert rows[-1][:2] == (math.ceil(1.5 * windows / 16),) * 2
    for norm, spread in zip(policy.network.pooling.norms, data[1].mean(2, float).std(0), strict=True):
        np.testing.assert_allclose(norm.inverse_std, 1 / spread, rtol=1e-4)  # of means over tokens
    training = contract["training"]
    assert (training["demos"], training["longest_target"]) == (8, 4) and "val_loss" not in training
    assert not (tmp_path / "checkpoint_best").exists()
    trained = {"loss", "joint_loss", "gripper_loss", "gripper_accuracy", "joint_error_rad"}
    expected = {"step", "passes", "lr", "grad_norm", *TIMES} | {f"train_{name}" for name in trained}
    assert all(set(row) == expected and row["passes"] == done * 16 / windows for done, _, row in rows)


def test_equal_weights_have_equal_validation_loss(data, tmp_path):
    fit(data, tmp_path, make_spec(head={"kind": "flow"}), lr=1e-12, weight_decay=0.0)
    assert len({round(row["val_loss"], 6) for row in rows_of(tmp_path)}) == 1


def test_steps_without_a_target_are_not_executed(data, tmp_path):
    for key, changes in (("execute", {"execute": 17}), ("chunk", {"execute": 1, "ensemble": 0.01})):
        with pytest.raises(UserError, match=rf"^policy.{key}: expected <= 16 steps, .* got 17$"):
            fit(data, tmp_path, make_spec(chunk=17, **changes), validation=0.0)
    fit(data, tmp_path, make_spec(chunk=17, execute=16), validation=0.0, steps=1)


def test_training_starts_from_given_weights_and_normalisation(data, tmp_path):
    first = str(fit(data, tmp_path / "first", seed=3, steps=5, validation=0.0))
    spec, how = make_spec(execute=1, proprio_noise=0.1), {"steps": 1, "lr": 1e-9, "weight_decay": 0.0}
    folder = fit(data, tmp_path, spec, from_=first, **how)  # no weight depends on the changed settings
    before, after = (load_checkpoint(f)[0] for f in (first, folder))
    for name, value in after.state_dict().items():
        torch.testing.assert_close(value, before.state_dict()[name], rtol=0, atol=1e-6)
    assert torch.equal(before.normaliser.target.scale, after.normaliser.target.scale)
    assert after.spec.execute == 1
    with pytest.raises(UserError, match="saved state.*train.from"):  # a state belongs to its initial weights
        fit(data, tmp_path, spec, **how)
    swapped = {"cameras": ["left", "hand"]}
    for changes, contract, words in (
        ({"chunk": 5}, {}, "policy.chunk: expected 4, got 5"),
        (swapped, swapped, r"policy.cameras: expected \['hand', 'left'\]"),
        ({}, {"encoder": {"name": "other", "fingerprint": "f"}}, "encoder random e, got other f"),
        ({}, {"robot": "panda"}, "robot 'xarm7', got 'panda'"),
    ):
        with pytest.raises(UserError, match=f"^train.from: {first}: .*{words}"):
            fit(data, tmp_path / "new", make_spec(**changes), CONTRACT | contract, from_=first)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "bf16-mixed", "16-mixed", "32-true"])
def test_gpu_trains_in_every_precision_and_resumes(data, tmp_path, precision):
    for _ in range(2):  # the second run finds the state of the first
        fit(data, tmp_path, steps=10, accelerator="cuda", precision=precision)
    rows = json.loads((tmp_path / "metrics.json").read_text())
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert rows[-1]["step"] == 10 and math.isfinite(rows[-1]["train_loss"])
    assert ("scale" in state["precision"]) is (precision == "16-mixed")


SUCCESS = {4: 0.5, 8: 0.25, 12: 0.5, 16: 0.1, 20: 0.4}
STEPS = [4, 5, 8, 10, 12, 15, 16, 20]  # of the logged rows


def train_with_rollouts(data, out, **changes):
    """Train 20 steps with a rollout after every fourth; return the steps of the evaluated checkpoints."""
    evaluated = []

    def rollout(folder):
        evaluated.append(load_checkpoint(folder)[1]["training"]["step"])
        return SUCCESS[evaluated[-1]]

    fit(data, out, rollout=rollout, rollouts=RolloutSettings(every=4, keep=2), **changes)
    return evaluated


@pytest.fixture(scope="module")
def reference_run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train_with_rollouts(data, folder) == [4, 8, 12, 16, 20]
    return folder


def test_the_best_checkpoints_by_success_are_kept(reference_run):
    rows = json.loads((reference_run / "metrics.json").read_text())
    assert {row["step"]: row["success"] for row in rows if "success" in row} == SUCCESS
    assert [row["step"] for row in rows] == STEPS
    index = json.loads((reference_run / "checkpoints.json").read_text())
    assert index == [{"checkpoint": f"checkpoint_{s}", "step": s, "success": 0.5} for s in (12, 4)]
    assert {p.name for p in reference_run.glob("checkpoint*")} == {
        "checkpoint", "checkpoint_best", "checkpoint_4", "checkpoint_12", "checkpoints.json",
    }  # fmt: skip
    assert load_checkpoint(reference_run / "checkpoint_12")[1]["training"]["step"] == 12


@pytest.mark.parametrize("kill_at", [4, 10, 15, 16])
def test_resumed_training_repeats_no_rollout_and_keeps_the_same_files(data, reference_run, tmp_path, kill_at):
    with pytest.raises(Killed):  # row 15 is logged, but the state is that of step 12
        train_with_rollouts(data, tmp_path, kill_at=kill_at, checkpoint_every=10)
    assert train_with_rollouts(data, tmp_path, checkpoint_every=10) == [s for s in SUCCESS if s > kill_at]
    weights = [f"{name}/policy.safetensors" for name in ("checkpoint_4", "checkpoint_12", "checkpoint")]
    for file in [*weights, "checkpoints.json"]:
        assert (reference_run / file).read_bytes() == (tmp_path / file).read_bytes()
    assert [row["step"] for row in json.loads((tmp_path / "metrics.json").read_text())] == STEPS
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == STEPS
    success = [event.value for event in events.Scalars("success")]
    np.testing.assert_allclose(success, list(SUCCESS.values()), rtol=1e-6)


def test_logging_service_receives_each_step_once_in_one_run(tmp_path, monkeypatch):
    service, runs = Mock(), []
    monkeypatch.setattr(module, "_mlflow", lambda out, run: (runs.append(run) or service, run or "r1"))
    for done, steps in ((0, (5, 10, 15)), (10, (15, 20))):  # killed after row 15, with the state of 10
        loggers = Loggers(("mlflow",), tmp_path, done)
        for step in steps:
            loggers.write({"step": step, "train_loss": 1 / step})
        loggers.close()
    assert [call.args[1] for call in service.log_metrics.call_args_list] == [5, 10, 15, 20]
    assert runs == [None, "r1"]
    Loggers(("mlflow",), tmp_path)  # a run from the start
    assert runs[-1] is None


def test_failing_or_missing_logging_service_is_one_error_line(tmp_path, monkeypatch):
    def fail(out, run):
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setattr(module, "_wandb", fail)
    refuses(r"\Atrain.loggers: wandb: [^\n]*\Z", Loggers, ("wandb",), tmp_path)
    monkeypatch.setattr("s2robot.core.errors.find_spec", lambda name: None)
    refuses("^wandb", make_settings, loggers=("wandb",))

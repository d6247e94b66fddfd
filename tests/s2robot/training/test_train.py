"""Training: it learns, goes on exactly after a kill, and says what is wrong."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s2robot.common.errors import UserError
from s2robot.demos.windows import make_windows
from s2robot.policies import ChunkPolicy, PolicyError, channel_moments, load_checkpoint
from s2robot.policies.checkpoint import Contract
from s2robot.pretraining.pretrain import pretrain
from s2robot.training.batches import Batches, shuffled
from s2robot.training.train import train
from tests.s2robot.pretraining import small as pretraining
from tests.s2robot.training.small import CONTRACT, NETWORKS, TIMES, make_data, make_settings, make_spec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("train") / "d.zarr")


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    pass


def fit(data, out, spec=None, contract=CONTRACT, progress=lambda *row: None, **changes):
    settings = make_settings(**changes)
    return train(settings, spec or make_spec(), *data, contract, out, progress=progress)


def killed_after(step: int):
    def progress(done, total, row):
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_learns_and_leaves_a_complete_checkpoint(data, tmp_path, kind):
    rows = []
    keep = lambda *row: rows.append(row)  # noqa: E731
    folder = fit(data, tmp_path, make_spec(kind), progress=keep, steps=125, checkpoint_every=50)
    assert folder == tmp_path / "checkpoint"
    assert [r[:2] for r in rows] == [(i, 125) for i in range(5, 126, 5)]
    losses = [row["train_loss"] for *_, row in rows]
    assert losses[-1] < 0.6 * losses[0] and rows[-1][2]["val_loss"] < rows[0][2]["val_loss"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == [row for *_, row in rows]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    policy, contract = load_checkpoint(folder)
    assert policy.spec == make_spec(kind)
    assert set(Contract.model_fields) <= set(contract) and {k: contract[k] for k in CONTRACT} == CONTRACT
    assert contract["training"]["step"] == 125 and math.isfinite(contract["training"]["val_loss"])
    best = load_checkpoint(tmp_path / "checkpoint_best")[1]["training"]
    assert best["val_loss"] == min(row["val_loss"] for *_, row in rows)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize(
    ("number", "at", "kind"),
    [(signal.SIGINT, 2, "transformer"), (signal.SIGTERM, 7, "mlp"), (signal.SIGINT, 9, "mlp")],
)
def test_a_stopped_run_has_saved_its_last_step_and_resumes_exactly(
    data, tmp_path, monkeypatch, number, at, kind
):
    """Before any state is due, between two rows, and at a row; the signal comes in the middle of a step."""
    spec = make_spec(kind, proprio_noise=0.1)  # dropout and noise have to come again, too
    whole = fit(data, tmp_path / "whole", spec=spec)
    usual, step = signal.getsignal(number), Batches.step

    def signalled(self, i, *rest):
        if i == at:
            os.kill(os.getpid(), number)
        return step(self, i, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Batches, "step", signalled)
        fit(data, tmp_path / "cut", spec=spec)
    assert signal.getsignal(number) is usual
    assert torch.load(tmp_path / "cut/training_state.pt", weights_only=True)["step"] == at + 1
    load_checkpoint(tmp_path / "cut/checkpoint")
    torch.manual_seed(99)  # the random state of a new process is another one
    cut = fit(data, tmp_path / "cut", spec=spec)
    assert same(weights(whole), weights(cut))
    assert same(weights(tmp_path / "whole/checkpoint_best"), weights(tmp_path / "cut/checkpoint_best"))
    history = [json.loads((p.parent / "metrics.json").read_text()) for p in (whole, cut)]
    bare = [[{k: v for k, v in row.items() if k not in TIMES} for row in rows] for rows in history]
    assert bare[0] == bare[1]


def test_a_signal_between_steps_ends_a_training_at_once(data, tmp_path):
    progress = lambda done, *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        fit(data, tmp_path, progress=progress)
    assert torch.load(tmp_path / "training_state.pt", weights_only=True)["step"] == 5


@pytest.mark.parametrize("change", ["lr", "dataset", "spec", "precision"])
def test_the_state_of_another_run_is_refused(data, tmp_path, change):
    store, features = data
    with pytest.raises(Killed):
        fit(data, tmp_path, progress=killed_after(5))
    state = (tmp_path / "training_state.pt").read_bytes()
    values = {"lr": 1e-4, "validation": 0.5, "grad_clip": None, "precision": "bf16-mixed"}
    changes = {change: values[change]} if change in values else {}
    contract = CONTRACT | ({"dataset": {"fingerprint": "x"}} if change == "dataset" else {})
    spec = make_spec(chunk=5) if change == "spec" else make_spec()
    key = {"dataset": "dataset.name random", "spec": "policy.chunk 4"}.get(change, f"train.{change} ")
    words = rf"training_state.pt: found the state of another run; remove it .* \(made with {key}"
    with pytest.raises(UserError, match=words):
        fit(data, tmp_path, spec=spec, contract=contract, **changes)
    assert (tmp_path / "training_state.pt").read_bytes() == state
    fit(data, tmp_path, spec, contract, **changes | {"resume": False, "validation": 0.0})
    assert not (tmp_path / "checkpoint_best").exists()  # of the run before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"precision": "64-true"},
            "^train.precision: ",
        ),
        ({"strategy": "deepspeed"}, "^train: "),
        ({"strategy": "ddp_spawn"}, "^train: "),
        ({"accelerator": "tpu"}, "^train: "),
        ({"threads": 10**12}, "^train: "),
    ],
)
def test_a_machine_that_cannot_train_is_one_line(data, tmp_path, change, words):
    with pytest.raises(UserError, match=words) as caught:
        fit(data, tmp_path, **change)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_keeps_the_last_state(data, tmp_path, monkeypatch):
    with pytest.raises(Killed):
        fit(data, tmp_path, progress=killed_after(5))
    state, before = (tmp_path / "training_state.pt").read_bytes(), weights(tmp_path / "checkpoint")
    sound = ChunkPolicy.loss

    def broken(self, batch):
        loss, scalars = sound(self, batch)
        return loss, {name: value * float("nan") for name, value in scalars.items()}

    monkeypatch.setattr(ChunkPolicy, "loss", broken)
    with pytest.raises(UserError, match="the loss is nan at step 10"):
        fit(data, tmp_path)
    assert (tmp_path / "training_state.pt").read_bytes() == state
    assert same(before, weights(tmp_path / "checkpoint"))


def test_every_process_takes_its_share_and_every_window_comes_once_an_epoch(data):
    store, features = data
    windows = make_windows(store, np.arange(8), 1, 4)
    batches = Batches(store, features, windows, torch.device("cpu"))
    assert batches.count == len(windows) == store.num_steps - 4  # four steps are pushed
    for step in range(9):  # over the end of the first epoch
        whole = batches.step(step, 16, seed=5)["actions"]
        shares = [batches.step(step, 16, seed=5, rank=r, world=2) for r in range(2)]
        assert torch.equal(whole, torch.cat([share["actions"] for share in shares]))
        targets = torch.cat([~share["action_pad"] for share in shares]).sum(0)  # (K,)
        assert all(torch.equal(share["target_counts"], targets / 2) for share in shares)
    first = shuffled(batches.count, 5, range(batches.count))
    second = shuffled(batches.count, 5, range(batches.count, 2 * batches.count))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(batches.count))
    assert not torch.equal(first, second)
    across = shuffled(batches.count, 5, range(batches.count - 3, batches.count + 3))
    assert torch.equal(across, torch.cat([first[-3:], second[:3]]))


def test_a_frame_that_several_windows_show_is_read_once(data):
    store, features = data
    windows = make_windows(store, np.arange(8), 3, 4)
    batch = Batches(store, features, windows, torch.device("cpu")).take(torch.arange(10))
    assert len(batch["features"]) < 30 == batch["frames"].numel()
    shown = batch["features"][batch["frames"]]  # (10, 3, C, N, D)
    assert torch.equal(shown, torch.from_numpy(features[windows.context[:10]]))
    policy = ChunkPolicy(make_spec("transformer")).eval()
    policy.network.set_moments(torch.zeros(2, 6), torch.ones(2, 6))
    once = policy.loss(batch)[0]
    each = {k: v for k, v in batch.items() if k != "frames"} | {"features": shown}
    torch.testing.assert_close(once, policy.loss(each)[0])


@pytest.mark.parametrize("members", [1, 2])
def test_a_step_that_rounds_its_frames_itself_is_the_same_to_the_bit(data, members):
    store, features = data
    windows = make_windows(store, np.arange(8), 1, 4)
    losses = []
    for rounds in (False, True):
        torch.manual_seed(0)
        policy = ChunkPolicy(make_spec(members=members)).train()
        moments = channel_moments(features)
        policy.fit_normaliser(store["proprio"], store["action"], windows.actions, windows.action_pad, moments)
        policy.network.pooling.multiply_in(torch.bfloat16)
        token_dtype = policy.network.pooling.token_dtype if rounds else None
        assert token_dtype == (torch.bfloat16 if rounds else None)
        batch = Batches(store, features, windows, torch.device("cpu"), False, token_dtype).step(3, 16, 0)
        assert ("means" in batch) == rounds and batch["features"].dtype == (token_dtype or torch.float16)
        torch.manual_seed(1)
        loss, _ = policy(batch)
        loss.backward()
        losses.append([loss, *(p.grad for p in policy.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


def test_a_causal_body_asks_every_step_of_a_window(data):
    store, features = data
    windows = make_windows(store, np.arange(8), 3, 4)
    batches = Batches(store, features, windows, torch.device("cpu"), every=True)
    batch = batches.step(0, 16, seed=0)
    assert batch["actions"].shape == (5, 3, 4, 8)  # 16 // 3 windows of three targets each
    start_of = {int(row): i for i, row in enumerate(windows.steps)}
    rows = shuffled(len(windows), 0, range(5))
    for row, window in enumerate(rows.tolist()):
        for place, step in enumerate(windows.context[window].tolist()):
            other = start_of.get(step)
            if other is None or windows.pad[window, place]:  # pushed, or before the episode
                assert batch["action_pad"][row, place].all()
            else:
                assert torch.equal(batch["actions"][row, place], torch.from_numpy(windows.actions[other]))
                assert batch["action_pad"][row, place].tolist() == windows.action_pad[other].tolist()


def test_the_present_action_is_not_shown(data):
    store, features = data
    batches = Batches(store, features, make_windows(store, np.arange(8), 3, 4), torch.device("cpu"))
    batch = batches.take(torch.arange(batches.count))
    assert not batch["past_actions"][:, -1].any() and batch["past_actions"][:, :-1].any()
    assert torch.equal(batches.action, torch.from_numpy(store["action"]))  # the data itself is unchanged


@pytest.mark.parametrize("content", [b"", b"no state", None])
def test_a_state_that_cannot_be_read_is_one_line(data, tmp_path, content):
    path = tmp_path / "training_state.pt"
    if content is None:  # as earlier versions wrote it
        torch.save({"policy": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"training_state.pt: not a readable state"):
        fit(data, tmp_path)


@pytest.mark.parametrize("damage", ["gone", "broken"])
def test_a_finished_run_gives_its_checkpoint_back(data, tmp_path, damage):
    """Somebody removed or damaged the checkpoint, and left the last state."""
    folder = fit(data, tmp_path)
    want = weights(folder)
    if damage == "broken":
        (folder / "policy.safetensors").unlink()  # `want` is mapped from it
        (folder / "policy.safetensors").write_bytes(b"half")
    else:
        shutil.rmtree(folder)
    fit(data, tmp_path)
    assert same(weights(folder), want) and load_checkpoint(folder)[1]["training"]["step"] == 20


def test_without_validation_every_episode_is_trained_on_for_so_many_passes(data, tmp_path):
    windows = len(make_windows(data[0], np.arange(8), 1, 4))
    rows = []
    folder = fit(data, tmp_path, progress=lambda *row: rows.append(row), validation=0.0, epochs=1.5)
    assert rows[-1][:2] == (math.ceil(1.5 * windows / 16),) * 2
    training = load_checkpoint(folder)[1]["training"]
    assert training["demos"] == 8 and "val_loss" not in training
    assert not (tmp_path / "checkpoint_best").exists()
    trained = {"loss", "joint_loss", "gripper_loss", "gripper_accuracy", "joint_error_rad"}
    known = {"step", "passes", "lr", "grad_norm", *TIMES} | {f"train_{name}" for name in trained}
    assert all(set(row) == known and row["passes"] == done * 16 / windows for done, _, row in rows)


@pytest.mark.parametrize("target", [".training_state.part", ".checkpoint_best.new", ".checkpoint.new"])
def test_a_full_disk_names_the_file_and_leaves_nothing_half_written(data, tmp_path, monkeypatch, target):
    with pytest.raises(Killed):
        fit(data, tmp_path, progress=killed_after(5))
    before = {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".pt", ".safetensors")
    }
    sync = os.fsync

    def full(descriptor):
        if target in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, PolicyError), match=r"No space left on device") as error:
        fit(data, tmp_path)
    name = "training_state" if "state" in target else target[1:].removesuffix(".new")
    assert str(tmp_path) in str(error.value) and name in str(error.value)
    assert not list(tmp_path.rglob("*.new")) and not list(tmp_path.rglob("*.part*"))
    assert (tmp_path / "training_state.pt").read_bytes() == before[tmp_path / "training_state.pt"]
    monkeypatch.undo()
    whole = fit(data, tmp_path / "whole")
    assert same(weights(fit(data, tmp_path)), weights(whole))


@pytest.mark.parametrize("job", ["train", "pretrain"])
def test_a_second_training_in_one_folder_is_refused(data, tmp_path, monkeypatch, job):
    monkeypatch.setattr("s2robot.common.run_folder._WAIT_S", 0.1)
    folder = tmp_path / "out"
    code = f"from pathlib import Path; from s2robot.common.run_folder import locked\nwith locked(Path({str(folder)!r})): print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="out: expected no other process"):
            if job == "train":
                train(make_settings(), make_spec(), *data, CONTRACT, folder)
            else:
                pretrain(pretraining.make_settings(tmp_path), progress=False)
        other.communicate(b"\n")
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "bf16-mixed", "16-mixed", "32-true"])
def test_a_gpu_trains_in_every_precision_and_goes_on_where_it_was(data, tmp_path, precision):
    store, features = data
    for steps in (10, 10):  # the second one finds the state of the first
        settings = make_settings(steps=steps, accelerator="cuda", precision=precision)
        train(settings, make_spec(), store, features, CONTRACT, tmp_path)
    rows = json.loads((tmp_path / "metrics.json").read_text())
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert rows[-1]["step"] == 10 and math.isfinite(rows[-1]["train_loss"])
    assert ("scale" in state["precision"]) is (precision == "16-mixed")

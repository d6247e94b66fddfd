"""Training: it learns, goes on exactly after a kill, and says what is wrong."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s2robot.common.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.policies import ChunkPolicy, PolicySpec, load_checkpoint
from s2robot.policies.checkpoint import REQUIRED
from s2robot.policies.errors import PolicyError
from s2robot.training.train import Batches, train

CAMERAS, TOKENS, DIM = ("hand", "left"), 4, 6
CFG = {
    "epochs": 4, "batch_size": 16, "lr": 3e-3, "weight_decay": 0.01, "warmup": 0.1, "grad_clip": 1.0,
    "ema": 0.9, "validation": 0.25, "seed": 0, "resume": True, "checkpoint_every": 1, "precision": "32-true",
    "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "threads": 1,
}  # fmt: skip
CONTRACT = {
    "encoder": {"name": "random", "fingerprint": "e"},
    "cameras": list(CAMERAS),
    "robot": "xarm7",
    "joint_names": [f"joint{i}" for i in range(1, 8)],
    "action_frame": "joint_delta_commanded",
    "rate_hz": 10,
    "dataset": {"name": "random", "fingerprint": "d", "episodes": 8, "seeds": []},
}
NETWORKS = {
    "mlp": {"image_dim": 8, "state_dim": 8, "hidden": [32], "dropout": 0.1},
    "transformer": {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.1},
}


def make_spec(kind: str = "mlp", **changes) -> PolicySpec:
    values = {
        "cameras": list(CAMERAS), "dim": DIM, "tokens": TOKENS, "kind": kind, "chunk": 4, "execute": 2,
        "context": 3 if kind == "transformer" else 1, "network": NETWORKS[kind],
        "pooling": {"kind": "spatial_softmax", "keypoints": 4, "values": 2},
    }  # fmt: skip
    return PolicySpec.from_dict(values | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight episodes of 10 to 17 steps whose actions follow from the features."""
    rng = np.random.default_rng(0)
    attributes = {k: CONTRACT[k] for k in ("robot", "joint_names", "cameras", "action_frame", "rate_hz")}
    attributes |= {
        "camera_geometry": {},
        "env_version": "none",
        "env_config": {},
        "seed": 0,
        "kind": "states",
    }
    features = []
    path = tmp_path_factory.mktemp("train") / "d.zarr"
    with EpisodeStore.create(path, attributes) as store:
        for i in range(8):
            length = 10 + i
            seen = rng.normal(size=(length, len(CAMERAS), TOKENS, DIM)).astype(np.float16)
            action = np.tanh(seen[:, 0].mean(1, dtype=np.float32) @ rng.normal(size=(DIM, 8)) / 4) * 0.1
            action[:, 7] = np.arange(length) > length / 2
            proprio = np.append(np.cumsum(action[:, :7], 0), action[:, 7:], 1)
            perturbed = np.zeros(length, np.uint8)
            perturbed[3] = i % 2
            store.append(
                {"action": action.astype("f4"), "proprio": proprio.astype("f4"), "perturbed": perturbed},
                {"seed": i, "success": True},
            )
            features.append(seen)
    return EpisodeStore.open(path), np.concatenate(features)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(Exception):
    pass


def killed_after(epoch: int):
    def progress(done, total, row):
        if done == epoch:
            raise Killed

    return progress


@pytest.mark.parametrize("kind", NETWORKS)
def test_it_learns_and_leaves_a_complete_checkpoint(data, tmp_path, kind):
    store, features = data
    rows = []
    folder = train(
        CFG | {"epochs": 25, "checkpoint_every": 10}, make_spec(kind), store, features, CONTRACT, tmp_path,
        progress=lambda done, total, row: rows.append((done, total, row)),
    )  # fmt: skip
    assert folder == tmp_path / "checkpoint"
    assert [r[:2] for r in rows] == [(i, 25) for i in range(1, 26)]
    losses = [row["train_loss"] for *_, row in rows]
    assert losses[-1] < 0.6 * losses[0] and rows[-1][2]["val_loss"] < rows[0][2]["val_loss"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == [row for *_, row in rows]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    policy, contract = load_checkpoint(folder)
    assert policy.spec == make_spec(kind)
    assert set(REQUIRED) <= set(contract) and {k: contract[k] for k in CONTRACT} == CONTRACT
    assert contract["training"]["epoch"] == 25 and math.isfinite(contract["training"]["val_loss"])
    best = load_checkpoint(tmp_path / "checkpoint_best")[1]["training"]
    assert best["val_loss"] == min(row["val_loss"] for *_, row in rows)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_killed_run_goes_on_exactly(data, tmp_path, kind):
    store, features = data
    spec = make_spec(kind, proprio_noise=0.1)  # dropout and noise have to come again, too
    whole = train(CFG, spec, store, features, CONTRACT, tmp_path / "whole")
    with pytest.raises(Killed):
        train(CFG, spec, store, features, CONTRACT, tmp_path / "cut", progress=killed_after(2))
    torch.manual_seed(99)
    torch.rand(7)  # the random state of the new process is another one
    epochs = []
    cut = train(
        CFG, spec, store, features, CONTRACT, tmp_path / "cut", progress=lambda e, *_: epochs.append(e)
    )
    assert epochs == [3, 4]
    assert same(weights(whole), weights(cut))
    assert same(weights(tmp_path / "whole/checkpoint_best"), weights(tmp_path / "cut/checkpoint_best"))
    history = [json.loads((p.parent / "metrics.json").read_text()) for p in (whole, cut)]
    for a, b in zip(*history, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }


def test_a_finished_run_is_not_trained_again(data, tmp_path):
    store, features = data
    folder = train(CFG, make_spec(), store, features, CONTRACT, tmp_path)
    before = weights(folder)
    epochs = []
    train(CFG, make_spec(), store, features, CONTRACT, tmp_path, progress=lambda e, *_: epochs.append(e))
    assert epochs == [] and same(before, weights(folder))


def test_seeds_decide_the_result(data, tmp_path):
    store, features = data
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cfg = CFG | {"epochs": 1, "seed": seed}
        runs[name] = weights(train(cfg, make_spec(), store, features, CONTRACT, tmp_path / name))
    assert same(runs["a"], runs["b"]) and not same(runs["a"], runs["c"])


@pytest.mark.parametrize("change", ["lr", "dataset", "spec"])
def test_the_state_of_another_run_is_refused(data, tmp_path, change):
    store, features = data
    with pytest.raises(Killed):
        train(CFG, make_spec(), store, features, CONTRACT, tmp_path, progress=killed_after(1))
    state = (tmp_path / "training_state.pt").read_bytes()
    cfg = CFG | ({"lr": 1e-4} if change == "lr" else {})
    contract = CONTRACT | ({"dataset": {"fingerprint": "x"}} if change == "dataset" else {})
    spec = make_spec(chunk=5) if change == "spec" else make_spec()
    with pytest.raises(UserError, match="training_state.pt: found the state of another run; remove it"):
        train(cfg, spec, store, features, contract, tmp_path)
    assert (tmp_path / "training_state.pt").read_bytes() == state
    train(cfg | {"resume": False}, spec, store, features, contract, tmp_path)  # asked to start anew


def test_a_loss_that_is_not_finite_is_one_line(data, tmp_path):
    store, features = data
    with pytest.raises(
        UserError, match=r"^train: the loss is (nan|inf) in epoch 1; lower train.lr \(1e\+30\)$"
    ):
        train(CFG | {"lr": 1e30}, make_spec(), store, features, CONTRACT, tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_a_loss_that_is_not_finite_keeps_the_last_state(data, tmp_path, monkeypatch):
    store, features = data
    with pytest.raises(Killed):
        train(CFG, make_spec(), store, features, CONTRACT, tmp_path, progress=killed_after(1))
    state, before = (tmp_path / "training_state.pt").read_bytes(), weights(tmp_path / "checkpoint")
    sound = ChunkPolicy.loss

    def broken(self, batch):
        loss, scalars = sound(self, batch)
        return loss, {name: value * float("nan") for name, value in scalars.items()}

    monkeypatch.setattr(ChunkPolicy, "loss", broken)
    with pytest.raises(UserError, match="the loss is nan in epoch 2"):
        train(CFG, make_spec(), store, features, CONTRACT, tmp_path)
    assert (tmp_path / "training_state.pt").read_bytes() == state
    assert same(before, weights(tmp_path / "checkpoint"))


def test_features_that_are_not_finite_are_refused(data, tmp_path):
    store, features = data
    broken = features.copy()
    broken[::3] = np.nan
    with pytest.raises(PolicyError, match="^features: [0-9]+ frames with values that are not finite"):
        train(CFG, make_spec(), store, broken, CONTRACT, tmp_path)


def test_every_process_takes_its_share_of_an_epoch(data):
    store, features = data
    windows = make_windows(store, np.arange(8), 1, 4)
    batches = Batches(store, features, windows, torch.device("cpu"))
    assert batches.count == len(windows) == store.num_steps - 4  # four steps are pushed
    alone = [b["actions"] for b in batches.epoch(16, seed=5)]
    shares = [[b["actions"] for b in batches.epoch(8, seed=5, rank=r, world=2)] for r in range(2)]
    assert len(alone) == len(shares[0]) == len(shares[1]) == batches.count // 16
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(whole, torch.cat(parts))


def test_the_present_action_is_not_shown(data):
    store, features = data
    batches = Batches(store, features, make_windows(store, np.arange(8), 3, 4), torch.device("cpu"))
    batch = batches.take(torch.arange(batches.count))
    assert not batch["past_actions"][:, -1].any() and batch["past_actions"][:, :-1].any()
    assert torch.equal(batches.action, torch.from_numpy(store["action"]))  # the data itself is unchanged

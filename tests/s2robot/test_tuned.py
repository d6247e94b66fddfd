"""`train.tune`: training a policy together with blocks of its encoder, up to a checkpoint that acts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s2robot import pipeline
from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.encoders.tuning import FullEncoder, Tail
from s2robot.envs.cube_config import CubePickConfig
from s2robot.features import FeaturesSettings
from s2robot.loading import load_policy
from s2robot.policies import load_checkpoint, load_tuned
from s2robot.policies.spec import PolicySettings
from s2robot.training.settings import TuneSettings
from tests.errors import refuses
from tests.s2robot.training.small import CAMERAS, CONTRACT, about, make_settings

FROZEN = {"blocks": 0}
SIZES = {"hand": (64, 64), "left": (64, 96)}
POLICY = {
    "chunk": 4, "execute": 2, "action_target": "delta", "network": {"image_dim": 8, "state_dim": 8, "hidden": [16], "dropout": 0.1},
    "pooling": {"keypoints": 4, "values": 2}, "members": 2, "proprio_noise": 0.1,
}  # fmt: skip


def make_demos(path: Path, seed: int = 0) -> Path:
    """Write four episodes of 8 steps with images of a bright square; the actions encode its position."""
    rng = np.random.default_rng(seed)
    with EpisodeStore.create(path, about("images")) as store:
        for i in range(4):
            at = rng.integers(0, 48, (8, 2))
            images = {}
            for name, size in SIZES.items():
                images[f"images_{name}"] = frames = rng.integers(0, 60, (8, *size, 3), dtype=np.uint8)
                for step, (y, x) in enumerate(at):
                    frames[step, y : y + 16, x : x + 16] = 250
            action = np.repeat((at[:, :1] - 24) / 240, 8, 1).astype(np.float32)
            action[:, 7] = at[:, 1] > 24
            arrays = {"action": action, "proprio": np.zeros_like(action), **images}
            store.append(arrays, {"seed": i, "success": True})
    return path


def task_of(demos: Path, encoder: Path, dtype="float32", policy=None, tune=None, **changes) -> pipeline.Task:
    own = {"name": "mvp-tiny", "checkpoint": str(encoder), "scales": [1, 2], "dtype": dtype}
    tune = TuneSettings(**{"blocks": 1, "lora": 0, "rate": 0.1} | (tune or {}))
    train = make_settings(**{"lr": 0.01, "loggers": (), "tune": tune} | changes)
    features = FeaturesSettings(workers=1, cache=str(demos.parent / "cache"), dtype="float32", device="cpu")
    space = {"robot": "xarm7", "rate_hz": 10, "action_frame": CONTRACT["action_frame"], "cameras": CAMERAS}
    settings, source = PolicySettings(**POLICY | (policy or {})), DemosSettings(path=str(demos))
    return pipeline.Task(source, own, features, settings, train, CubePickConfig(), space)


def trained(task: pipeline.Task, out: Path) -> Path:
    store, encoder = task.open_demos(), build_encoder(task.encoder)
    features, _ = pipeline.encode(task, store, encoder)
    return pipeline.train_policy(task, store, encoder, features, out)


@pytest.fixture
def demos(inline, tmp_path):
    return make_demos(tmp_path / "demos.zarr")


def planned(task: pipeline.Task, checkpoint: Path, tail: Tail | FullEncoder) -> tuple[np.ndarray, np.ndarray]:
    """Return a checkpoint's plans for every step: of the loaded policy from images, and from the training features."""
    loaded, store = load_policy(checkpoint, device="cpu"), task.open_demos()
    policy, entering = load_checkpoint(checkpoint)[0], pipeline.encode(task, store, loaded.encoder)[0]
    states, acted, seen = torch.from_numpy(store["proprio"]), [], []
    for step in range(store.num_steps):
        loaded.reset()
        images = {name: store[f"images_{name}"][step] for name in CAMERAS}
        acted.append(loaded.plan({"images": images, "proprio": store["proprio"][step]}))
        with torch.no_grad():
            pooled = policy.pool(tail(torch.from_numpy(np.array(entering[step : step + 1])))[:, None])
        plans = policy.plan_members(pooled, states[step : step + 1, None])
        seen.append(policy.clip(policy.combine(plans))[0, : policy.spec.execute].numpy())
    return np.stack(acted), np.stack(seen)


@pytest.mark.parametrize(("dtype", "lora"), [("float32", 0), ("bfloat16", 2)])
def test_checkpoint_acts_as_trained(demos, tiny_encoder, tmp_path, dtype, lora):
    task = task_of(demos, tiny_encoder, dtype, tune={"lora": lora, "rate": 0.5})
    folder = trained(task, tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] and "val_loss" in rows[-1]
    tuned, encoder = load_tuned(folder), build_encoder(task.encoder)
    contract = load_checkpoint(folder)[1]["encoder"]
    assert contract["tuned"] == {"blocks": 1, "lora": lora, "rate": 0.5, "cached": "float32"}
    assert contract["fingerprint"] == build_encoder(task.encoder, tuned).fingerprint != encoder.fingerprint
    tail = Tail(task.encoder, list(SIZES.values()), 1)
    tail.last.load_state_dict(tail.last.state_dict() | tuned)
    acted, seen = planned(task, folder, tail)
    np.testing.assert_allclose(acted, seen, atol=1e-5 if dtype == "float32" else 0.02, rtol=0)
    before = load_file(tiny_encoder)
    assert max((tuned[name] - before[name]).abs().max() for name in tuned) > 1e-3


def test_rate_of_0_leaves_the_encoder_unchanged(demos, tiny_encoder, tmp_path):
    folder = trained(task_of(demos, tiny_encoder, tune={"rate": 0.0}), tmp_path / "run")
    before = load_file(tiny_encoder)
    assert all(torch.equal(value, before[name]) for name, value in load_tuned(folder).items())
    frozen = task_of(demos, tiny_encoder, tune=FROZEN)
    assert load_policy(folder).contract["encoder"]["fingerprint"] == build_encoder(frozen.encoder).fingerprint
    other = trained(frozen, tmp_path / "frozen")
    assert not (other / "encoder.safetensors").exists() and not load_tuned(other)
    assert "tuned" not in load_checkpoint(other)[1]["encoder"]
    # normalised with the unchanged features
    moments = [load_file(f / "policy.safetensors")["network.pooling/norms/0/mean"] for f in (folder, other)]
    torch.testing.assert_close(*moments, atol=1e-6, rtol=1e-6)


def test_causal_policy_on_a_mix_is_tuned(demos, tiny_encoder, tmp_path):
    body = {"kind": "transformer", "context": 3, "network": {"width": 16, "blocks": 1, "heads": 2}}
    task = task_of(demos, tiny_encoder, policy=body, steps=5)
    mix = ({"path": str(demos)}, {"path": str(make_demos(tmp_path / "more.zarr", 1)), "weight": 2.0})
    task = replace(task, demos=DemosSettings(mix=mix))
    assert load_checkpoint(trained(task, tmp_path / "run"))[1]["encoder"]["tuned"]["blocks"] == 1


def test_start_from_a_frozen_policy_and_a_missing_encoder_file(demos, tiny_encoder, tmp_path, monkeypatch):
    """A run can start from a frozen policy, but not from a tuned one, whose features are not cached."""
    refuses(r"^train.tune.blocks: expected 0", task_of, demos, tiny_encoder, policy={"zero_features": True})
    refuses(r"^train.tune.lora: ", TuneSettings, blocks=0, lora=4, rate=0.1)
    frozen = trained(task_of(demos, tiny_encoder, tune=FROZEN, steps=5), tmp_path / "frozen")
    task = task_of(demos, tiny_encoder, from_=str(frozen), steps=5)
    tuned = trained(task, tmp_path / "tuned")
    wrong = {"train.from: .* settings differ$": {"from_": str(tuned)}, "train.batch_size: ": {"devices": 3}}
    for words, changes in wrong.items():
        with pytest.raises(UserError, match=f"^{words}"), monkeypatch.context() as patched:
            patched.setattr(pipeline, "encode_demos", None)  # before encoding
            trained(task_of(demos, tiny_encoder, steps=5, **changes), tmp_path / "again")
    file = tuned / "encoder.safetensors"
    content = file.read_bytes()
    file.unlink()
    refuses(r"checkpoint .*/checkpoint: encoder.safetensors is missing", load_policy, tuned)
    trained(task, tmp_path / "tuned")
    assert file.read_bytes() == content
    file.write_bytes(content[:-1])
    refuses(r"encoder.safetensors: expected sha256 .* the file is truncated", load_policy, tuned)

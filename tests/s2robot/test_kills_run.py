"""`s2robot run record=true` that is killed at any of its writes ends, with the same command, as one that was not.

Simulation and evaluation are made up, so that all else is quick: recording, encoding, training and the run's own files
are the real ones. Kills in an evaluation: tests/s2robot/evaluation.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from s2robot import features, pipeline
from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.cli import main
from s2robot.core.files import write_json
from s2robot.demos import record as recorder
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation import evaluate
from tests.inline import do_inline
from tests.kills import kill_at_every_write
from tests.s2robot.pictures import ABOUT

WORDS = [
    "record=true", "recording.episodes=3", "recording.seed=500", "env.cameras=[hand]", "train.steps=2",
    "train.batch_size=4", "train.checkpoint_every=1", "train.threads=1", "train.accelerator=cpu", "features.device=cpu", "features.threads=1",
    "policy.network.hidden=[8]", "policy.network.image_dim=4", "policy.network.state_dim=4",
    "policy.pooling.keypoints=2", "policy.pooling.values=1",
]  # fmt: skip


def about(world, picker, seed: int) -> dict:
    own = {"cameras": ["hand"], "camera_geometry": {"hand": {}}, "kind": "states", "picker": {}}
    return {**ABOUT, **own, "env_version": "CubePick-v0", "seed": seed}


def episode(world, picker, seed: int, expert: int, kicks: bool) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    arrays = {
        "state": rng.random((4, 2)),
        **{k: rng.random((4, 8), np.float32) for k in ("action", "proprio")},
        "expert": rng.random((4, expert, 8), np.float32),
        "imitate": np.ones(4, np.uint8),
    }
    return arrays, {"seed": seed, "success": seed != 501}


def frames(path, episode, cameras, size, world):
    return [np.random.default_rng(episode).integers(0, 256, (4, size, size, 3), np.uint8)]


def evaluated(cfg, checkpoint: Path, out: Path, demos=None, world=None) -> dict:
    """Something of the policy, written where an evaluation writes."""
    summary = {"weights": (checkpoint / "policy.safetensors").stat().st_size, "policy": {"parameters": 5}}
    summary |= {"success": 1.0, "low": 0.2, "high": 1.0, "episodes": 1}
    write_json(out / "summary.json", summary)
    return summary


def running(folder: Path) -> None:
    encoder = folder.parent / "tiny.safetensors"
    if not encoder.exists():
        torch.manual_seed(0)
        save_encoder(MVPViT(ViTSpec(32, 8, dim=16, depth=1, heads=2)), encoder, {"seed": 0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2ROBOT_CACHE", str(folder / "cache"))
        patch.setattr(recorder, "demo_attributes", about)
        do_inline(patch)
        patch.setattr(recorder, "record_episode", episode)
        patch.setattr(features.replay, "drawn_by", lambda store: {"made": "up"})
        patch.setattr(features, "world_of_demos", lambda store: None)
        patch.setattr(features.replay, "episode_frames", frames)
        patch.setattr(evaluate, "evaluate_policy", evaluated)
        patch.setattr(pipeline, "finish", lambda *_: None)
        words = [*WORDS, f"encoder.checkpoint={encoder}", f"hydra.run.dir={folder / 'out'}"]
        assert main(["run", *words]) == 0


def what_is_left(folder: Path) -> dict:
    out = folder / "out"
    (features,) = (folder / "cache/features").glob("*/features.bin")
    metrics = json.loads((out / "metrics.json").read_text())
    return {
        "files": {f.name for f in out.iterdir() if not f.name.startswith("events")},
        "demos": EpisodeStore.open(out / "demos.zarr").fingerprint,
        "features": features.read_bytes(),
        "policy": (out / "checkpoint/policy.safetensors").read_bytes(),
        "losses": [row["train_loss"] for row in metrics],
        "summary": (out / "summary.json").read_text(),
        "stages": [stage["stage"] for stage in json.loads((out / "stages.json").read_text())],
    }


@pytest.mark.parametrize("every", [71, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_of_a_run_changes_nothing(tmp_path, every):
    """Every 71st write, other ones in each of the stages; all of them take ten minutes."""
    killed = kill_at_every_write(running, tmp_path, every, seconds=3600)
    whole = what_is_left(tmp_path / "whole")
    assert len(EpisodeStore.open(tmp_path / "whole/out/demos.zarr")) == 3
    assert whole["stages"] == ["start", "record", "encode", "train", "evaluate"]
    for write, folder in killed.items():
        assert what_is_left(folder) == whole, write

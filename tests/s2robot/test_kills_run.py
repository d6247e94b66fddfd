"""A run or an evaluation that is killed at any of its writes ends, with the same command, as one that was not."""

import json
from pathlib import Path

import pytest
import torch

from s2robot import pipeline, verbs  # noqa: F401  before the forks
from s2robot.backbones.vit import MVPViT, ViTSpec, save_encoder
from s2robot.cli import main
from s2robot.demos.store import EpisodeStore
from tests.inline import do_inline
from tests.kills import kill_at_every_write
from tests.s2robot.pictures import TRAINING
from tests.s2robot.point import POINT

WORDS = [
    *POINT, "evaluate.episodes=3", "evaluate.videos=2", "evaluate.video_size=32", "evaluate.workers=1",
    "evaluate.threads=1", "evaluate.device=cpu",
]  # fmt: skip
RUN = [
    *WORDS, *TRAINING, "record=true", "recording.episodes=3", "recording.seed=500", "train.checkpoint_every=1",
    "train.accelerator=cpu", "features.device=cpu", "features.threads=1",
]  # fmt: skip


def command(folder: Path, verb: str, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2ROBOT_CACHE", str(folder / "cache"))
        patch.setattr(pipeline, "finish", lambda *_: None)  # the report takes seconds
        do_inline(patch)
        assert main([verb, *words, f"hydra.run.dir={folder / 'out'}"]) == 0


def running(folder: Path) -> None:
    encoder = folder.parent / "tiny.safetensors"
    if not encoder.exists():
        torch.manual_seed(0)
        save_encoder(MVPViT(ViTSpec(32, 8, dim=16, depth=1, heads=2)), encoder, {"seed": 0})
    command(folder, "run", *RUN, f"encoder.checkpoint={encoder}")


def evaluating(folder: Path) -> None:
    command(folder, "evaluate", *WORDS, f"checkpoint={folder.parent / 'first/out'}")


def what_is_left(folder: Path) -> dict:
    """What is in the folder but for times: files by their bytes, JSON without its times."""
    out = folder / "out"
    summary = json.loads((out / "summary.json").read_text())
    del summary["timing"]
    files = [
        "episodes.jsonl",
        "actions/*.npy",
        "videos/[!.]*",
        "checkpoint/policy.safetensors",
        "../cache/features/*/features.bin",
    ]
    return {
        "names": {f.name for f in out.iterdir() if not f.name.startswith("events")},
        "bytes": {str(f.relative_to(folder)): f.read_bytes() for pattern in files for f in out.glob(pattern)},
        "summary": summary,
    }


@pytest.mark.parametrize("every", [71, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_of_a_run_changes_nothing(tmp_path, every):
    """Every 71st write, other ones in each of the stages; all of them take ten minutes."""

    def left(folder: Path) -> tuple:
        out = folder / "out"
        metrics, stages = (json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "stages"))
        demos = EpisodeStore.open(out / "demos.zarr")
        losses = [row["train_loss"] for row in metrics]
        return what_is_left(folder), len(demos), demos.fingerprint, losses, [row["stage"] for row in stages]

    killed = kill_at_every_write(running, tmp_path, every, seconds=3600)
    whole = left(tmp_path / "whole")
    assert whole[1] == 3 and whole[-1] == ["start", "record", "encode", "train", "evaluate"]
    for write, folder in killed.items():
        assert left(folder) == whole, write


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_of_an_evaluation_changes_nothing(tmp_path, every):
    running(tmp_path / "first")
    killed = kill_at_every_write(evaluating, tmp_path, every)
    whole = what_is_left(tmp_path / "whole")
    assert {"actions", "videos", "episodes.jsonl", "episodes.settings.json", "summary.json"} <= whole["names"]
    assert whole["summary"]["episodes"] == 3 and len(whole["bytes"]) == 1 + 3 + 2
    for write, folder in killed.items():
        assert what_is_left(folder) == whole, write

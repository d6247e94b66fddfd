"""A run or an evaluation that is killed at any write and repeated gives the results of an uninterrupted one."""

import json
from pathlib import Path

import pytest

from s2robot import pipeline, verbs  # noqa: F401  before the forks
from s2robot.cli import main
from tests.inline import do_inline
from tests.kills import kill_at_every_write
from tests.s2robot.pictures import TRAINING
from tests.s2robot.point import POINT

WORDS = [
    *POINT, "evaluate.episodes=3", "evaluate.videos=2", "evaluate.video_size=32", "evaluate.workers=1",
    "evaluate.threads=1", "evaluate.device=cpu",
]  # fmt: skip
RUN = [
    *WORDS, *TRAINING, "record=true", "recording.episodes=3", "recording.seed=500", "train.steps=3", "train.log_every=1",
    "train.checkpoint_every=1", "train.accelerator=cpu", "train.tune.blocks=1", "train.tune.rate=0.1",
    "features.device=cpu", "features.threads=1",
]  # fmt: skip
FILES = (
    "episodes.jsonl", "actions/*.npy", "videos/[!.]*", "checkpoint/*.safetensors", "demos.zarr/data/*/c.*",
    "../cache/features/*/features.bin",
)  # fmt: skip
STAGES = ["start", "record", "encode", "train", "evaluate"]


def command(folder: Path, verb: str, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S2ROBOT_CACHE", str(folder / "cache"))
        patch.setattr(pipeline, "finish", lambda *_: None)  # the report takes seconds
        do_inline(patch)
        assert main([verb, *words, f"hydra.run.dir={folder / 'out'}"]) == 0


def running(folder: Path) -> None:
    command(folder, "run", *RUN, f"encoder.checkpoint={folder.parents[1] / 'tiny.safetensors'}")


def evaluating(folder: Path) -> None:
    command(folder, "evaluate", *WORDS, f"checkpoint={folder.parents[1] / 'running/whole/out'}")


def results_of(folder: Path) -> dict:
    """Return the file names, contents and figures of a run, without its times."""
    out = folder / "out"
    summary = json.loads((out / "summary.json").read_text())
    del summary["timing"]
    stages = json.loads((out / "stages.json").read_text()) if (out / "stages.json").exists() else []
    return {
        "names": {f.name for f in out.iterdir() if not f.name.startswith("events")},
        "bytes": {str(f.relative_to(folder)): f.read_bytes() for pattern in FILES for f in out.glob(pattern)},
        "summary": summary,
        "stages": [row["stage"] for row in stages],
    }


@pytest.mark.parametrize(
    "intervals",  # every n-th write and the first one, per job; all writes take ten minutes
    [[(54, 206), (9, 0)], pytest.param([(1, 0), (1, 0)], marks=pytest.mark.slow)],
)
def test_kill_at_any_write_changes_no_result(tiny_encoder, tmp_path, intervals):
    (tmp_path / "tiny.safetensors").symlink_to(tiny_encoder)
    for job, (every, first) in zip((running, evaluating), intervals, strict=True):
        (root := tmp_path / job.__name__).mkdir()
        killed = kill_at_every_write(job, root, every, first, seconds=3600)
        reference = results_of(root / "whole")
        assert reference["stages"] == STAGES * (job is running)
        assert {"actions", "videos", "episodes.jsonl", "episodes.settings.json"} <= reference["names"]
        assert reference["summary"]["episodes"] == 3 and len(reference["bytes"]) >= 1 + 3 + 2
        for write, folder in killed.items():
            assert results_of(folder) == reference, write

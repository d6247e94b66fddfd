"""`s2robot dagger`, and `s2robot record recording=dagger`."""

import json

import pytest

from s2robot import rounds
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.records import read_summary
from s2robot.policies import load_checkpoint
from tests.s2robot.pictures import TRAINING
from tests.s2robot.point import POINT
from tests.s2robot.test_pipeline import refused

SMALL = [
    *TRAINING, "train.steps=1", "policy.chunk=2", "policy.execute=2", "evaluate.episodes=1", "evaluate.workers=1",
    "evaluate.videos=0", "evaluate.threads=1", "recording.episodes=1", "recording.workers=1", "recording.rounds=2",
    "recording.takeover.patience=2", "recording.device=cpu",
]  # fmt: skip


@pytest.fixture
def dagger(here, tiny_encoder):
    """The words of the command, in a folder with one demo, of seed 503."""
    words = [*POINT, "task.max_steps=20"]
    here("record", *words, "episodes=1", "seed=503", "expert=2", "workers=1", "out=demos.zarr")
    words += [*SMALL, "demos.path=demos.zarr", f"encoder.checkpoint={tiny_encoder}", "hydra.run.dir=out"]
    return ["dagger", *words]


def test_rounds_of_correction_and_training_end_with_a_report(here, dagger, tmp_path, monkeypatch):
    out = tmp_path / "out"
    result = here(*dagger)
    rows = json.loads((out / "rounds.json").read_text())
    figures = [[row[key] for key in ("seed", "episodes", "corrected", "stalled")] for row in rows]
    assert figures == [[200000, 2, 1, 1], [200001, 3, 1, rows[1]["stalled"]]]
    assert "round 1: 0 without help, 1 corrected, 0 failed by both" in result.stdout
    store = EpisodeStore.open(out / "demos.zarr")
    assert store.fingerprint_of_first(1) == EpisodeStore.open(tmp_path / "demos.zarr").fingerprint
    assert store.meta("seed").tolist() == [503, 200000, 200001]
    positions = [load_checkpoint(out / f"round_{i}/checkpoint")[1]["lineage"]["positions"] for i in range(3)]
    assert [a["recorded"] for a in positions] == [[503], [503, 200000], [503, 200000, 200001]]
    assert [a.get("corrected") for a in positions] == [None, [200000], [200000, 200001]]
    assert read_summary(out / "summary.json")["dataset"]["episodes"] == 3 and (out / "report.html").is_file()
    assert stages(out) == ["start", "encode", "train", *["record", "encode", "train"] * 2, "evaluate"]

    monkeypatch.setattr(rounds, "record", None)  # finished stages are not repeated
    rows[1]["checkpoint"] = None
    rows[0]["checkpoint"] = "where/the/folder/was"  # it has been moved
    (out / "rounds.json").write_text(json.dumps(rows))
    here(*dagger)
    assert stages(out) == ["start", "encode", "train", "encode", "train", "evaluate"]
    for change, words in (
        ("recording.seed=300000", "rounds.settings.json: recording.seed: expected 200000"),
        ("recording.rounds=3", "out: expected an unfinished run, got an evaluation of 2 rounds"),
    ):
        assert words in refused(here, *dagger, change)


def stages(out):
    return [stage["stage"] for stage in json.loads((out / "stages.json").read_text())]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("recording.seed=9999", "recording.seed: expected positions other than the evaluation's from 10000"),
        ("recording.rounds=two", "recording.rounds: expected an integer, got 'two'"),
        ("recording.device=x", "recording.device: expected auto, cpu"),
        ("evaluate.seed=503", "evaluate.seed: positions 503 to 503 hold 1 that the demos"),
        ("recording.imitate_visited=opne", "recording.imitate_visited: expected "),
        ("policy.members=1 recording.takeover.disagreement=0.1", "expected null, because the policy has one member"),
        ("recording.checkpoint=''", "recording.checkpoint: expected "),
    ],
)  # fmt: skip
def test_wrong_setting_is_reported_before_training_or_writing(here, dagger, tmp_path, change, words):
    assert words in refused(here, *dagger, *change.split())
    assert not (tmp_path / "out").exists()


def test_record_requires_a_checkpoint(here, tmp_path):
    for more, words in (
        ((), "checkpoint: "),
        (("takeover.patience=0",), "recording.takeover.patience: expected >= 1"),
    ):
        assert words in refused(here, "record", "recording=dagger", "out=out", *more)
    assert not (tmp_path / "out").exists()

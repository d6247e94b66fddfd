"""`s2robot dagger`, and `s2robot record recording=dagger`, as a config asks for them."""

import json

import pytest

from s2robot import rounds, verbs
from s2robot.core.errors import UserError
from s2robot.demos.errors import DatasetError
from s2robot.demos.record import record_episode
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import PickerConfig
from s2robot.evaluation.records import read_summary
from s2robot.policies import load_checkpoint
from tests.configs import composed
from tests.inline import do_inline
from tests.s2robot.pictures import TRAINING

SMALL = [
    *TRAINING, "train.steps=1", "policy.chunk=2", "policy.execute=2", "evaluate.episodes=1", "evaluate.workers=1",
    "evaluate.videos=0", "evaluate.threads=1", "env.cameras=[hand]", "recording.episodes=1", "recording.workers=1",
    "recording.takeover.patience=2", "recording.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """One demo, seen by one camera."""
    world = CubePickConfig(cameras=("hand",))
    own = {"seed": 500, "kind": "states", "picker": vars(PickerConfig())}
    about = CubePick(world, draw=False).describe() | own
    with EpisodeStore.create(tmp_path_factory.mktemp("rounds") / "demos.zarr", about) as store:
        store.append(*record_episode(world, PickerConfig(), 503, 2))
    return store


@pytest.fixture
def config(tmp_path, demos, tiny_encoder, monkeypatch):
    do_inline(monkeypatch)

    def make(verb, *overrides):
        own = [f"run_dir='{tmp_path / 'out'}'", f"demos.path='{demos.path}'", *overrides]
        if verb == "dagger":
            own = [f"encoder.checkpoint='{tiny_encoder}'", *SMALL, *own]
        return composed(verb, *own)

    return make


def test_rounds_of_correcting_and_training_end_with_a_report(config, demos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    rounds.dagger(config("dagger", "recording.rounds=2"))
    rows = json.loads((out / "rounds.json").read_text())
    found = [[row[key] for key in ("seed", "episodes", "corrected", "stalled")] for row in rows]
    assert found == [[200000, 2, 1, 1], [200001, 3, 1, rows[1]["stalled"]]]
    assert "round 1: 0 without help, 1 corrected, 0 failed by both" in capsys.readouterr().out
    store = EpisodeStore.open(out / "demos.zarr")
    assert store.fingerprint_of_first(1) == demos.fingerprint
    assert store.meta("seed").tolist() == [503, 200000, 200001]
    met = [load_checkpoint(out / f"round_{i}" / "checkpoint")[1]["lineage"]["positions"] for i in range(3)]
    assert [a["recorded"] for a in met] == [[503], [503, 200000], [503, 200000, 200001]]
    assert [a.get("corrected") for a in met] == [None, [200000], [200000, 200001]]
    assert read_summary(out / "summary.json")["dataset"]["episodes"] == 3 and (out / "report.html").is_file()
    assert stages(out) == ["start", "encode", "train", *["record", "encode", "train"] * 2, "evaluate"]

    monkeypatch.setattr(rounds, "record", None)  # what is done is not done again
    rows[1]["checkpoint"] = None
    (out / "rounds.json").write_text(json.dumps(rows))
    rounds.dagger(config("dagger", "recording.rounds=2"))
    assert stages(out) == ["start", "encode", "train", "encode", "train", "evaluate"]
    for change, words in (
        ("recording.seed=300000", "rounds.settings.json: recording.seed: expected 200000 .*, got 300000"),
        ("recording.rounds=3", "out: holds the evaluation after 2 rounds"),
    ):
        with pytest.raises(UserError, match=words):
            rounds.dagger(config("dagger", "recording.rounds=2", change))


def stages(out):
    return [stage["stage"] for stage in json.loads((out / "stages.json").read_text())]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["recording.seed=9999", "recording.rounds=2"], "recording.seed: .* 9999.* 10000"),
        (["evaluate.seed=503"], "evaluate.seed: positions 503 to .* hold 1 that the demos"),
        (["recording.imitate_visited=opne"], "^recording.imitate_visited: expected .*, got 'opne'"),
        (["recording.checkpoint=''"], "^recording.checkpoint: expected .*, got ''"),
    ],
)
def test_a_mistake_is_told_before_anything_is_trained_or_kept(config, tmp_path, changes, words):
    with pytest.raises((UserError, DatasetError), match=words):
        rounds.dagger(config("dagger", *changes))
    assert not any(path.name != ".hydra" for path in (tmp_path / "out").glob("*"))


def test_record_asks_for_a_checkpoint(config, tmp_path):
    with pytest.raises(UserError, match="checkpoint: found none, expected the folder of a trained policy"):
        verbs.record(config("record", "recording=dagger"))
    with pytest.raises(UserError, match="^recording.takeover.patience: expected >= 1, got 0"):
        verbs.record(config("record", "recording=dagger", "takeover.patience=0"))
    assert not (tmp_path / "out").exists()

"""`s2robot evaluate evaluate=recorded` from end to end on a small LeRobot dataset, without a simulator."""

import json
import shutil

import pytest

from s2robot import cli
from s2robot.demos.lineage import Lineage
from s2robot.evaluation.recorded import _of_training
from tests.demos.formats import made
from tests.errors import refuses
from tests.s2robot.html_page import Page
from tests.s2robot.pictures import TRAINING, trained
from tests.s2robot.test_pipeline import refused

RECORDED = ("evaluate", "evaluate=recorded")


@pytest.fixture(scope="module")
def checkpoint(home, tiny_encoder):
    """Trained on one of the two episodes."""
    words = [f"encoder.checkpoint={tiny_encoder}", "train.validation=0.5", "policy.members=1"]
    return trained(home / "run", f"demos.path={made.lerobot_v21(home / 'koch')}", *words)


def evaluated(checkpoint, out, *words) -> dict:
    assert cli.main([*RECORDED, f"checkpoint={checkpoint}", f"hydra.run.dir={out}", *words]) == 0
    return json.loads((out / "open_loop.json").read_text())


def test_demos_recorded_by_a_run_are_found_in_its_folder(tmp_path):
    """`s2robot run record=true` sets their path after writing its config."""
    stored = tmp_path / "run/.hydra"
    stored.mkdir(parents=True)
    (stored / "hydra.yaml").write_text(f"hydra: {{runtime: {{cwd: {tmp_path}}}}}")
    for record, path in (("true", tmp_path / "run/demos.zarr"), ("false", None)):
        (stored / "config.yaml").write_text(f"record: {record}\ndemos: {{name: xarm7_cube, path: null}}")
        assert _of_training(tmp_path / "run/checkpoint").path == (path and str(path))


def test_file_table_and_page_show_the_same_figures(home, checkpoint, capsys):
    out = home / "out"
    result = evaluated(checkpoint, out)
    assert result["verdict"] in capsys.readouterr().out.splitlines()
    assert result["dataset"]["unseen"] is True
    (number,) = result["episodes"]
    assert result["steps"] == made.LENGTHS[number] - 1  # no action precedes the first
    (part,) = result["parts"]
    for method in ("policy", "repeat", "mean"):
        assert result["by_episode"]["action_error"][method] == [part[method]["value"]]
    page = Page(out / "report.html")
    assert result["verdict"] in page.text and page.tags.count("svg") == 2
    assert page.row("action")[2] == f"{part['policy']['value']:.3g}"
    assert not [a for a in page.addresses if "://" in a]


def test_mismatched_data_and_a_missing_run_are_one_error_line(here, checkpoint, tmp_path, monkeypatch):
    line = refused(here, *RECORDED, f"checkpoint={checkpoint}", "demos.name=xarm7_cube")
    assert line.endswith("the policy requires cameras top, got hand, left, right: 'top' is missing")
    copied = tmp_path / "copied"
    shutil.copytree(checkpoint, copied)
    (tmp_path / ".hydra").mkdir()
    for damaged in ("demos: null", "demos: {mix: [a]}", "demos:\n\t- a"):
        (tmp_path / ".hydra/config.yaml").write_text(damaged)
        refuses("copied: .* expected demos.path=<the dataset>", _of_training, copied)
    shutil.rmtree(tmp_path / ".hydra")
    monkeypatch.setattr(Lineage, "seen", lambda lineage, store: [])  # as if a run directory named other demos
    for each in (copied, checkpoint):
        assert "expected demos.path=<the dataset>" in refused(here, *RECORDED, f"checkpoint={each}")


def test_mix_of_datasets_is_validated_by_share_and_split(here, home, tiny_encoder):
    """The overrides take effect, and the held-out episodes of both datasets are validated."""
    split, other = home / "split.json", made.lerobot_v30(home / "koch3")
    split.write_text(json.dumps({"train": ["0:1"], "validation": [1]}))
    mix = f"[{{path: '{made.lerobot_v21(home / 'koch2')}', episodes: [0]}}, {{path: '{other}', weight: 2, split: '{split}'}}]"
    encoder = f"encoder.checkpoint={tiny_encoder}"
    checkpoint = trained(home / "mixed", f"demos.mix={mix}", encoder, "policy.members=1")
    dataset = json.loads((checkpoint / "policy.json").read_text())["contract"]["dataset"]
    assert [part["share"] for part in dataset["mix"]] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]
    assert dataset["selection"] == {"train": [0, 1], "validation": [2]}
    assert evaluated(checkpoint, home / "mixed_out", "evaluate.plots=0")["episodes"] == [2]
    assert Page(home / "mixed_out/report.html").tags.count("svg") == 1
    line = refused(here, *RECORDED, f"checkpoint={checkpoint}", "demos.episodes=1")
    assert "demos.episodes: expected some of the 1 episodes of" in line and line.endswith("(2), got 0")
    words = ["demos.episodes=[0:2,7]", f"demos.path={home / 'koch2'}", encoder]
    assert "episodes: expected episodes of 0 to 1" in refused(here, "train", *words, *TRAINING)
    (home / "koch2/data/chunk-000/episode_000000.parquet").write_bytes(b"damaged")  # and not chosen
    other = f"demos.path={home / 'koch2'}", "demos.episodes=[1]"
    assert evaluated(checkpoint, home / "other", "evaluate.plots=0", *other)["steps"] > 0

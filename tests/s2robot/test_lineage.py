"""Training episodes of a policy or its ancestors are never held out, even under another name or format."""

import json
import shutil

import pytest

from s2robot.demos.formats.export import ExportSettings, export
from s2robot.demos.store import EpisodeStore
from tests.demos.formats import made
from tests.s2robot.evaluation.test_recorded import RECORDED, evaluated
from tests.s2robot.pictures import TRAINING, trained, write_noise
from tests.s2robot.test_pipeline import refused


@pytest.fixture(scope="module")
def demos(home):
    """Six imported episodes of images."""
    own = {"robot": "koch", "joint_names": [], "action_frame": "parts", "source": {"name": "koch"}}
    return write_noise(home / "koch.zarr", {"top": (16, 24)}, (7, 5, 8, 6, 8, 5), 3, 4, **own | made.PARTS)


@pytest.fixture(scope="module")
def train(home, tiny_encoder):
    """`train(name, *words)`: train in a folder of that name and return the checkpoint."""
    encoder = f"encoder.checkpoint={tiny_encoder}"
    return lambda name, *words: trained(home / name, encoder, "policy.members=1", *words)


def split(home, train, validation):
    file = home / f"split_{train}_{validation}.json".replace(" ", "")
    file.write_text(json.dumps({"train": train, "validation": validation}))
    return f"demos.split='{file}'"


@pytest.fixture(scope="module")
def parent(home, demos, train):
    """Trained on episodes 0 to 2; 3 is held out."""
    return train("parent", f"demos.path={demos}", split(home, [0, 1, 2], [3]))


def validated(home, checkpoint, *words) -> dict:
    shutil.rmtree(home / "validated", ignore_errors=True)
    return evaluated(checkpoint, home / "validated", "evaluate.plots=0", *words)


def test_training_episodes_of_an_ancestor_are_not_validated(here, home, demos, train, parent):
    path = f"demos.path={demos}"
    child = train("child", path, f"train.from={parent}", split(home, [3, 4], [5]))
    assert validated(home, parent)["episodes"] == [3, 4, 5]
    assert validated(home, child)["episodes"] == [5]
    for seen in (0, 3):
        line = refused(here, *RECORDED, f"checkpoint={child}", path, f"demos.episodes=[{seen}]")
        assert f"(5), got {seen}" in line


def test_ancestor_training_episodes_are_never_held_out(here, home, demos, train, parent, tiny_encoder):
    words = [f"demos.path={demos}", f"train.from={parent}", "policy.members=1"]
    child = train("drawn", *words, "train.validation=0.5", "train.seed=0")
    assert validated(home, child)["episodes"] == [3, 4, 5]
    assert json.loads((child / "policy.json").read_text())["contract"]["training"]["held_out"] == 3
    for overrides, text in (
        ([split(home, [3], [1])], "expected unseen episodes to hold out, got 1"),
        (["demos.episodes=3", "train.validation=0.5"], "expected unseen episodes to hold out"),
    ):
        settings = [f"encoder.checkpoint={tiny_encoder}", *TRAINING, *words, *overrides]
        assert text in refused(here, "train", *settings)


def test_converted_copies_mixes_and_masked_datasets_are_recognised(home, demos, train, parent):
    store = EpisodeStore.open(demos)
    export(store, home / "koch.hdf5", "robomimic", ExportSettings(action_range="data"))
    assert validated(home, parent, f"demos.path={home / 'koch.hdf5'}")["episodes"] == [3, 4, 5]
    export(store, home / "masked", "lerobot", ExportSettings(image_codec="png"))
    info = home / "masked/meta/info.json"
    info.write_text(info.read_text().replace('"train": "0:6"', '"train": "0:4", "rest": "4:6"'))
    masked = train("mask", f"demos.path={home / 'masked'}", "demos.mask=train")
    assert validated(home, masked, f"demos.path={home / 'masked'}")["episodes"] == [4, 5]
    mix = f"[{{path: '{home / 'masked'}', mask: rest}}, {{path: '{demos}', episodes: [1, 2]}}]"
    assert validated(home, train("mix", f"demos.mix={mix}"), f"demos.path={demos}")["episodes"] == [0, 3]


def test_ancestor_without_a_lineage_makes_the_lineage_unknown(home, demos, train, parent, capsys):
    older, path = home / "older/checkpoint", f"demos.path={demos}"
    shutil.copytree(parent, older)
    record = json.loads((older / "policy.json").read_text())
    del record["contract"]["lineage"]
    (older / "policy.json").write_text(json.dumps(record))
    heir = train("heir", path, f"train.from={older}", split(home, [3], [4]))
    for checkpoint, episodes in ((older, [0, 1, 2, 3, 4, 5]), (heir, [0, 1, 2, 4, 5])):
        assert "unknown" in capsys.readouterr().out
        result = validated(home, checkpoint, path)
        assert (result["episodes"], result["dataset"]["unseen"]) == (episodes, "unknown")
    assert validated(home, parent, path)["dataset"]["unseen"] is True

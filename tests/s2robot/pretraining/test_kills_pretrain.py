"""A pre-training that is killed at any of its writes ends, when it is started again, as one that was not."""

from pathlib import Path

import pytest
import torch

from s2robot.backbones.vit import load_encoder
from s2robot.pretraining.pretrain import pretrain
from tests.kills import kill_at_every_write
from tests.s2robot.pretraining.small import make_settings


def pretraining(folder: Path) -> None:
    settings = make_settings(
        folder.parent, out=str(folder / "out"), steps=4, checkpoint_every=2, picture_every=2, log_every=1
    )
    pretrain(settings, progress=False)


def what_is_left(folder: Path) -> dict:
    vit, recipe = load_encoder(folder / "out" / "encoder.safetensors")
    state = torch.load(folder / "out" / "checkpoint.pt", weights_only=True)
    return {
        "encoder": recipe["sha256"],
        "recipe": {key: value for key, value in recipe.items() if key != "minutes"},
        "model": {key: value.tolist() for key, value in state["model"].items()},
        "pictures": {path.name: path.read_bytes() for path in (folder / "out").glob("reconstruction*.png")},
        "files": {path.name for path in (folder / "out").iterdir() if not path.name.startswith("events")},
    }


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_changes_nothing(tmp_path, every):
    killed = kill_at_every_write(pretraining, tmp_path, every)
    whole = what_is_left(tmp_path / "whole")
    assert whole["recipe"]["steps"] == 4 and len(whole["pictures"]) == 3
    for write, folder in killed.items():
        assert what_is_left(folder) == whole, write
    writes = (tmp_path / "writes.json").read_text()
    assert "rename out/checkpoint.pt" in writes

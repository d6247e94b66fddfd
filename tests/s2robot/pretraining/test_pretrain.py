"""Masked pre-training: the loss falls, and a killed run resumes as if nothing had happened."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import load_encoder
from s2robot.core.errors import UserError
from s2robot.pretraining.pretrain import PretrainSettings, crop_box, normalise, pretrain
from tests.kills import kill_at_every_write
from tests.s2robot.pretraining.small import make_settings

torch.set_num_threads(1)


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


def test_crops_cover_both_s2_sizes():
    sides, settings = [], PretrainSettings(data="none", out="none")
    for u in torch.rand(500, 4, generator=torch.Generator().manual_seed(0)):
        y, x, h, w = crop_box(256, 256, u, settings)
        assert 0 <= y <= 256 - h and 0 <= x <= 256 - w and min(h, w) >= 90
        sides.append(math.sqrt(h * w))
    assert min(sides) < 130 and max(sides) > 240
    assert 0.3 < np.mean(np.array(sides) < 165) < 0.7
    whole = crop_box(256, 256, torch.tensor([1.0, 0.5, 0.3, 0.3]), settings.replace(ratio=(1, 1)))
    assert whole == (0, 0, 256, 256)


def test_normalise_and_jitter():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    plain = normalise(x, 0.0, torch.Generator())
    torch.testing.assert_close(plain, (x / 255 - mean) / std)
    assert not torch.equal(normalise(x, 0.2, torch.Generator().manual_seed(0)), plain)


def test_pretrain_learns_and_writes_the_recipe(settings, tmp_path):
    path = pretrain(settings.replace(steps=60))
    vit, recipe = load_encoder(path)
    assert vit.spec == settings.encoder
    assert recipe["images_seen"] == 480 and recipe["data"]["made"] == {"seed": 3}
    assert recipe["data"]["shape"] == [32, 32, 3] and recipe["mask_ratio"] == 0.75 and recipe["loss"] < 1.1
    assert str(tmp_path).encode() not in path.read_bytes()[:5000]  # no machine paths in a shipped file
    with Image.open(tmp_path / "out" / "reconstruction.png") as image:
        assert image.size == (3 * 16, 8 * 16)
    assert list((tmp_path / "out").glob("events.*"))


def test_s2_in_the_pretraining_learns_and_resumes(settings, tmp_path):
    settings = settings.replace(scales=(1, 2), batch_size=4, steps=30, store="float32")
    _, recipe = load_encoder(pretrain(settings))
    assert recipe["scales"] == [1, 2] and recipe["recipe"].endswith("with S2") and recipe["loss"] < 1.1
    with Image.open(tmp_path / "out" / "reconstruction.png") as image:
        assert image.size == (3 * 32, 4 * 32)
    # the rate depends on the steps, so the runs differ, but the state must load
    assert load_encoder(pretrain(settings.replace(steps=33)))[1]["steps"] == 33
    assert load_encoder(pretrain(settings.replace(scales=(1,), steps=1, resume=False)))[1]["steps"] == 1


def test_the_state_of_another_run_is_rejected(settings, tmp_path):
    pretrain(settings)
    path, other = Path(settings.out) / "checkpoint.pt", tmp_path / "other"
    other.mkdir()
    Image.fromarray(np.full((64, 64, 3), 40, np.uint8)).save(other / "0.png")
    changes = {"crop": (0.5, 1.0), "precision": "bf16-mixed", "scales": (1, 2), "data": str(other)}
    for key, value in changes.items():
        words = {"data": "pictures", "scales": r"scales \[1\]"}.get(key, key)
        with pytest.raises(UserError, match=rf"another run.* \(made with {words}.*, this run has .*\)$"):
            pretrain(settings.replace(**{key: value}))
    torch.save(torch.load(path, weights_only=True) | {"identity": {"processes": 2}}, path)
    with pytest.raises(UserError, match=r"another run.* \(made with processes.*, this run has .*\)$"):
        pretrain(settings)


def test_values_that_do_not_fit_name_their_key():
    for key, changes in (
        ("crop", {"crop": (2.0, 1.0)}),
        ("decoder_dim", {"decoder_dim": 18}),
        ("decoder_dim", {"decoder_dim": 20, "decoder_heads": 3}),
        *(("scales", {"scales": scales}) for scales in ((2,), (1, 3), (1, 2, 3), (), (1, 1))),
        ("mask_ratio", {"mask_ratio": 0.59, "scales": (1, 2)}),
        ("mask_ratio", {"mask_ratio": 0.99}),
    ):
        with pytest.raises(UserError, match=f"^pretrain.{key}: "):
            PretrainSettings(data="none", out="none", **changes)


def pretraining(folder: Path) -> None:
    often = {"steps": 4, "checkpoint_every": 2, "picture_every": 2, "log_every": 1}
    pretrain(make_settings(folder.parent, out=str(folder / "out"), **often))


def what_is_left(folder: Path) -> dict:
    _, recipe = load_encoder(folder / "out" / "encoder.safetensors")
    state = torch.load(folder / "out" / "checkpoint.pt", weights_only=True)
    return {
        "recipe": {key: value for key, value in recipe.items() if key != "minutes"},  # sha256 too
        "model": {key: value.tolist() for key, value in state["model"].items()},
        "images": {path.name: path.read_bytes() for path in (folder / "out").glob("reconstruction*.png")},
        "files": {path.name for path in (folder / "out").iterdir() if not path.name.startswith("events")},
    }


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_changes_nothing(tmp_path, every):
    killed = kill_at_every_write(pretraining, tmp_path, every)
    whole = what_is_left(tmp_path / "whole")
    assert whole["recipe"]["steps"] == 4 and len(whole["images"]) == 3
    for write, folder in killed.items():
        assert what_is_left(folder) == whole, write
    assert "rename out/checkpoint.pt" in (tmp_path / "writes.json").read_text()

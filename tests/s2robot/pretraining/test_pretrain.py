"""Masked pre-training: the loss falls, and a killed run goes on as if nothing had happened."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import load_encoder
from s2robot.core.errors import UserError
from s2robot.pretraining.crops import crop_box, normalise
from s2robot.pretraining.pretrain import pretrain
from s2robot.pretraining.settings import CropSettings, PretrainSettings
from tests.s2robot.pretraining.small import make_settings

torch.set_num_threads(1)


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


def test_crops_cover_both_s2_sizes():
    crop = CropSettings()
    sides = []
    for u in torch.rand(500, 4, generator=torch.Generator().manual_seed(0)):
        y, x, h, w = crop_box(256, 256, u, crop)
        assert 0 <= y <= 256 - h and 0 <= x <= 256 - w and min(h, w) >= 90
        sides.append(math.sqrt(h * w))
    assert min(sides) < 130 and max(sides) > 240
    assert 0.3 < np.mean(np.array(sides) < 165) < 0.7
    assert crop_box(256, 256, torch.tensor([1.0, 0.5, 0.3, 0.3]), crop.replace(ratio=(1, 1))) == (
        0,
        0,
        256,
        256,
    )


def test_normalise_and_jitter():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    plain = normalise(x, 0.0, torch.Generator())
    expected = (x / 255 - torch.tensor(IMAGENET[0]).view(3, 1, 1)) / torch.tensor(IMAGENET[1]).view(3, 1, 1)
    torch.testing.assert_close(plain, expected)
    assert not torch.equal(normalise(x, 0.2, torch.Generator().manual_seed(0)), plain)


def test_pretrain_learns_and_writes_the_recipe(settings, tmp_path):
    path = pretrain(settings.replace(steps=60), progress=False)
    vit, recipe = load_encoder(path)
    assert vit.spec == settings.encoder
    assert recipe["images_seen"] == 480 and recipe["data"]["made"] == {"seed": 3}
    assert recipe["data"]["shape"] == [32, 32, 3] and recipe["mask_ratio"] == 0.75 and recipe["loss"] < 1.1
    assert str(tmp_path) not in path.read_bytes()[:5000].decode(
        "latin1"
    )  # no machine paths in a shipped file
    with Image.open(tmp_path / "out" / "reconstruction.png") as picture:
        assert picture.size == (3 * 16, 8 * 16)
    assert list((tmp_path / "out").glob("events.*"))


def test_s2_in_the_pretraining_learns_and_resumes(settings, tmp_path):
    settings = settings.replace(scales=(1, 2), batch_size=4, steps=30, store="float32")
    _, recipe = load_encoder(pretrain(settings, progress=False))
    assert recipe["scales"] == [1, 2] and recipe["recipe"].endswith("with S2") and recipe["loss"] < 1.1
    with Image.open(tmp_path / "out" / "reconstruction.png") as picture:
        assert picture.size == (3 * 32, 4 * 32)
    settings = settings.replace(out=str(tmp_path / "early"))
    pretrain(settings.replace(steps=3), progress=False)
    # the rate depends on the steps, so the runs differ, but the state must load
    assert load_encoder(pretrain(settings.replace(steps=6), progress=False))[1]["steps"] == 6
    with pytest.raises(UserError, match=r"made with scales \[1, 2\], this run has \[1\]"):
        pretrain(settings.replace(scales=(1,)), progress=False)


@pytest.mark.parametrize("change", ["crop", "precision", "processes", "pictures"])
def test_the_state_of_another_run_is_refused(settings, change, tmp_path):
    pretrain(settings, progress=False)
    path = Path(settings.out) / "checkpoint.pt"
    if change == "pictures":
        (tmp_path / "other").mkdir()
        Image.fromarray(np.full((64, 64, 3), 40, np.uint8)).save(tmp_path / "other" / "0.png")
        settings = settings.replace(data=str(tmp_path / "other"))
    if change == "processes":
        torch.save(torch.load(path, weights_only=True) | {"identity": {"processes": 2}}, path)
    changes = {"crop": CropSettings(min=0.5), "precision": "bf16-mixed"}
    settings = settings.replace(**{change: changes[change]}) if change in changes else settings
    with pytest.raises(
        UserError, match=rf"another run; remove it .* \(made with {change}.*, this run has .*\)$"
    ):
        pretrain(settings, progress=False)


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 0), ("crop", {"min": 2.0}), ("decoder", {"depth": 0}), ("stesp", 3)]
)
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(UserError, match=f"^pretrain.{key}"):
        PretrainSettings(data="none", out="none", **{key: value})

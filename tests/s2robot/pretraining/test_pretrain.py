"""Masked pre-training: the loss matches MAE and falls, and a killed run resumes exactly."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import MVPViT, ViTSpec, load_encoder
from s2robot.pretraining.mae import MAE, patchify, unpatchify
from s2robot.pretraining.pretrain import PretrainSettings, crop_box, normalise, pretrain
from s2robot.s2.engine import encode, resize
from s2robot.s2.tiling import square
from tests.errors import refuses
from tests.kills import kill_at_every_write
from tests.s2robot.pretraining.small import make_settings

torch.set_num_threads(1)


@pytest.fixture
def settings(tmp_path):
    return make_settings(tmp_path)


def test_crops_cover_both_s2_sizes_and_colours_can_be_jittered():
    sides, settings = [], PretrainSettings(data="none", out="none")
    for u in torch.rand(500, 4, generator=torch.Generator().manual_seed(0)):
        y, x, h, w = crop_box(256, 256, u, settings)
        assert 0 <= y <= 256 - h and 0 <= x <= 256 - w and min(h, w) >= 90
        sides.append(math.sqrt(h * w))
    assert min(sides) < 130 and max(sides) > 240
    assert 0.3 < np.mean(np.array(sides) < 165) < 0.7
    full_crop = crop_box(256, 256, torch.tensor([1.0, 0.5, 0.3, 0.3]), settings.replace(ratio=(1, 1)))
    assert full_crop == (0, 0, 256, 256)
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


def test_pretraining_with_s2_learns_and_resumes(settings, tmp_path):
    settings = settings.replace(scales=(1, 2), batch_size=4, steps=30, store="float32")
    _, recipe = load_encoder(pretrain(settings))
    assert recipe["scales"] == [1, 2] and recipe["recipe"].endswith("with S2") and recipe["loss"] < 1.1
    with Image.open(tmp_path / "out" / "reconstruction.png") as image:
        assert image.size == (3 * 32, 4 * 32)
    # the learning rate depends on the steps, so the runs differ, but the state must load
    assert load_encoder(pretrain(settings.replace(steps=33)))[1]["steps"] == 33
    assert load_encoder(pretrain(settings.replace(scales=(1,), steps=1, resume=False)))[1]["steps"] == 1


def test_the_state_of_another_run_is_rejected(settings, tmp_path):
    pretrain(settings)
    path, other = Path(settings.out) / "checkpoint.pt", tmp_path / "other"
    other.mkdir()
    Image.fromarray(np.full((64, 64, 3), 40, np.uint8)).save(other / "0.png")
    changes = {"crop": (0.5, 1.0), "precision": "bf16-mixed", "scales": (1, 2), "data": str(other)}
    for key, value in changes.items():
        words = {"data": "pictures", "scales": r"scales: expected \[1\]"}.get(key, key)
        refuses(rf": {words}.* as in the saved state", pretrain, settings.replace(**{key: value}))
    torch.save(torch.load(path, weights_only=True) | {"identity": {"processes": 2}}, path)
    refuses(": processes.* as in the saved state", pretrain, settings)


def test_invalid_values_name_their_key():
    for key, changes in (
        ("crop", {"crop": (2.0, 1.0)}),
        ("seed", {"seed": 2**32}),
        *(("decoder_dim", each) for each in ({"decoder_dim": 18}, {"decoder_dim": 20, "decoder_heads": 3})),
        *(("scales", {"scales": scales}) for scales in ((2,), (1, 3), (1, 2, 3), (), (1, 1))),
        ("mask_ratio", {"mask_ratio": 0.59, "scales": (1, 2)}),
        ("mask_ratio", {"mask_ratio": 0.99}),
    ):
        refuses(f"^pretrain.{key}: ", PretrainSettings, data="none", out="none", **changes)


def pretrain_four_steps(folder: Path) -> None:
    short = {"steps": 4, "checkpoint_every": 2, "image_every": 2, "log_every": 1}
    pretrain(make_settings(folder.parent, out=str(folder / "out"), **short))


def results_of(folder: Path) -> dict:
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
    killed = kill_at_every_write(pretrain_four_steps, tmp_path, every)
    expected = results_of(tmp_path / "whole")
    assert expected["recipe"]["steps"] == 4 and len(expected["images"]) == 3 and ".lock" in expected["files"]
    for write, folder in killed.items():
        assert results_of(folder) == expected, write
    assert "rename out/checkpoint.pt" in (tmp_path / "writes.json").read_text()


SPEC = ViTSpec(img_size=16, patch_size=4, dim=24, depth=2, heads=3)


def draw_cells(mae: MAE, images: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return mae.draw_mask(len(images), torch.Generator().manual_seed(seed))


def make_mae(seed: int = 0, scales: tuple[int, ...] = (1,)) -> MAE:
    torch.manual_seed(seed)
    return MAE(MVPViT(SPEC), decoder_dim=16, decoder_depth=1, decoder_heads=2, scales=scales)


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 4), (1, 2, 4)])
def test_visible_tokens_match_s2_when_all_are_visible(scales):
    mae, side = MAE(MVPViT(ViTSpec(32, 4, 24, 2, 3)), 16, 1, 2, scales=scales), 32 * scales[-1]
    x = torch.randn(2, 3, side, side)
    levels, layout = [resize(x, 32 * scale) for scale in scales], square([32 * s for s in scales], 32, 4)
    with torch.no_grad():
        tokens = mae.encode_visible(mae.cells(x), torch.arange(64).expand(2, 64))
        torch.testing.assert_close(tokens[:, 1:], encode(mae.vit, levels, layout, 1), rtol=1e-4, atol=1e-5)
        tiles = [plan.split(v) for plan, v in zip(layout.levels, levels, strict=True)]
        first = [mae.vit(v)[:, 0].unflatten(0, (-1, 2)).mean(0) for v in tiles]
        torch.testing.assert_close(tokens[:, 0], torch.cat(first, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_loss_and_mask_match_mae(scales):
    mae, side = make_mae(scales=scales), 16 * scales[-1]
    x = torch.randn(3, 3, side, side)
    loss, pred, mask = mae(x, draw_cells(mae, x, 1))
    assert pred.shape == (3, 12, sum(s * s for s in scales), 48)
    assert mask.shape == (3, 16) and mask.sum(dim=1).tolist() == [12, 12, 12]
    # slow reference: normalise every patch and average the errors of the hidden ones
    losses = {scale: [] for scale in scales}
    for i in range(3):
        for j, n in enumerate(mask[i].nonzero().flatten().tolist()):
            row, column, at = n // 4, n % 4, 0
            for scale in scales:
                level = resize(x, 16 * scale)[i]
                for y in range(row * scale, (row + 1) * scale):
                    for z in range(column * scale, (column + 1) * scale):
                        target = level[:, 4 * y : 4 * y + 4, 4 * z : 4 * z + 4].reshape(-1)
                        target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
                        losses[scale].append(((pred[i, j, at] - target) ** 2).mean())
                        at += 1
    slow = torch.stack([torch.stack(v).mean() for v in losses.values()]).mean()
    torch.testing.assert_close(loss, slow, rtol=1e-5, atol=1e-6)
    assert torch.equal(loss, mae(x, draw_cells(mae, x, 1))[0])
    assert not torch.equal(mae(x, draw_cells(mae, x, 2))[2], mask)


def test_every_tile_of_the_largest_scale_keeps_equally_many_cells():
    keep, hidden = make_mae(scales=(1, 2)).draw_mask(50, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([keep, hidden], dim=1).sort(dim=1).values, torch.arange(16).expand(50, 16))
    tile = keep // 8 * 2 + keep % 4 // 2  # of a 4 x 4 grid
    assert all(sorted(row) == [0, 1, 2, 3] for row in tile.tolist())
    assert keep.unique().tolist() == list(range(16))


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_hidden_pixels_do_not_affect_predictions_and_visible_ones_stay(scales):
    mae, cell = make_mae(scales=scales), 4 * scales[-1]  # of the base grid
    x = torch.randn(2, 3, 4 * cell, 4 * cell)
    _, pred, mask = mae(x, draw_cells(mae, x))
    patches = patchify(x, cell)
    images = mae.reconstruct(x, torch.Generator().manual_seed(0))
    for image, hidden in zip(images, (True, False), strict=True):
        shown = patchify(image, cell)
        assert torch.equal(shown[~mask], patches[~mask]) and (shown[mask].abs().max() == 0) == hidden
    patches[mask] = torch.randn_like(patches[mask])
    assert torch.equal(mae(unpatchify(patches, cell), draw_cells(mae, x))[1], pred)
    patches[~mask] += 1 + torch.randn_like(patches[~mask])
    assert not torch.equal(mae(unpatchify(patches, cell), draw_cells(mae, x))[1], pred)


def test_every_trained_parameter_gets_a_gradient_and_tables_do_not():
    mae = make_mae()
    mae(torch.randn(2, 3, 16, 16))[0].backward()
    assert [n for n, p in mae.named_parameters() if p.grad is None] == ["vit.pos_embed"]
    assert set(mae.vit.state_dict()) == set(MVPViT(SPEC).state_dict())

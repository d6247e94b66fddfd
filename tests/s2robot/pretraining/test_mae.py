"""Masked pre-training: the loss is MAE's, it falls, and a killed run goes on as if nothing had happened."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from s2robot.backbones.vit import MVPViT, ViTSpec, load_encoder
from s2robot.common.errors import UserError
from s2robot.pretraining import pretrain as module
from s2robot.pretraining.mae import MAE, patchify, unpatchify
from s2robot.pretraining.pretrain import crop_boxes, learning_rate, normalise, pretrain
from s2robot.s2.reference import resize, s2_tokens, split

torch.set_num_threads(1)
SPEC = ViTSpec(img_size=16, patch_size=4, dim=24, depth=2, heads=3)


def make_mae(seed: int = 0, scales: tuple[int, ...] = (1,)) -> MAE:
    torch.manual_seed(seed)
    return MAE(MVPViT(SPEC), decoder_dim=16, decoder_depth=1, decoder_heads=2, scales=scales)


def make_frames(n: int, side: int) -> np.ndarray:
    """Pictures with something to predict: gradients of random colours."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, side)
    a, b, c = rng.random((3, n, 1, 1, 3))
    x = a * ramp[None, :, None, None] + b * ramp[None, None, :, None] + c
    return (255 * x / x.max()).astype(np.uint8)


@pytest.fixture
def cfg(tmp_path):
    np.save(tmp_path / "frames.npy", make_frames(12, 32))
    (tmp_path / "meta.json").write_text('{"seed": 3}')
    cfg = OmegaConf.load(Path(__file__).parents[3] / "configs" / "pretrain" / "default.yaml")
    changes = {
        "encoder": {"img_size": 16, "patch_size": 4, "dim": 24, "depth": 2, "heads": 3},
        "decoder": {"dim": 16, "depth": 1, "heads": 2},
        "data": str(tmp_path),
        "out": str(tmp_path / "out"),
        "batch_size": 8,
        "steps": 8,
        "lr": 3e-3,
        "warmup_steps": 2,
        "threads": 1,
        "precision": "32-true",
        "accelerator": "cpu",
        "checkpoint_every": 3,
        "picture_every": 4,
        "log_every": 2,
    }
    return OmegaConf.merge(cfg, changes)


@pytest.mark.parametrize(("grid", "patch"), [(1, 1), (2, 3), (3, 2), (5, 7)])
def test_patchify_round_trip(grid, patch):
    x = torch.randn(2, 3, grid * patch, grid * patch)
    patches = patchify(x, patch)
    assert patches.shape == (2, grid * grid, 3 * patch * patch)
    assert torch.equal(patches[1, -1].view(3, patch, patch), x[1, :, -patch:, -patch:])
    assert torch.equal(unpatchify(patches, patch), x)


def take(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[i] for row, i in zip(x, index, strict=True)])


def test_visible_tokens_are_the_vits_when_all_are_visible():
    mae, x = make_mae(), torch.randn(2, 3, 16, 16)
    everything = torch.arange(16).expand(2, 16)
    with torch.no_grad():
        tokens = mae.encode_visible(mae.cells(x), everything)
        torch.testing.assert_close(tokens, mae.vit(x), rtol=1e-5, atol=1e-5)
        # and the order of visible patches does not matter to what a patch gets
        order = torch.randperm(16).expand(2, 16)
        shuffled = mae.encode_visible(mae.cells(x), order)
        torch.testing.assert_close(shuffled[:, 1:], take(tokens[:, 1:], order), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scales", [(1, 2), (1, 4), (1, 2, 4)])
def test_visible_tokens_are_s2s_when_all_are_visible(scales):
    mae, side = MAE(MVPViT(ViTSpec(32, 4, 24, 2, 3)), 16, 1, 2, scales=scales), 32 * scales[-1]
    x = torch.randn(2, 3, side, side)
    levels = [resize(x, 32 * scale) for scale in scales]
    with torch.no_grad():
        tokens = mae.encode_visible(mae.cells(x), torch.arange(64).expand(2, 64))
        torch.testing.assert_close(tokens[:, 1:], s2_tokens(mae.vit, levels, 32, 1), rtol=1e-4, atol=1e-5)
        first = [mae.vit(split(v, 32))[:, 0].unflatten(0, (-1, 2)).mean(0) for v in levels]
        torch.testing.assert_close(tokens[:, 0], torch.cat(first, dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_loss_is_maes_and_mask_counts(scales):
    mae, side = make_mae(scales=scales), 16 * scales[-1]
    x = torch.randn(3, 3, side, side)
    loss, pred, mask = mae(x, torch.Generator().manual_seed(1))
    assert pred.shape == (3, 12, sum(s * s for s in scales), 48)
    assert mask.shape == (3, 16) and mask.sum(dim=1).tolist() == [12, 12, 12]
    # slowly: the reference takes all patches, normalises, and keeps the hidden ones' mean
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
    again = mae(x, torch.Generator().manual_seed(1))[0]
    assert torch.equal(loss, again)
    assert not torch.equal(mae(x, torch.Generator().manual_seed(2))[2], mask)


def test_every_tile_of_the_largest_scale_keeps_as_many_cells():
    mae = make_mae(scales=(1, 2))
    keep, hidden = mae.draw_mask(50, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([keep, hidden], dim=1).sort(dim=1).values, torch.arange(16).expand(50, 16))
    tile = keep // 8 * 2 + keep % 4 // 2  # of a 4 x 4 grid
    assert all(sorted(row) == [0, 1, 2, 3] for row in tile.tolist())
    assert keep.unique().tolist() == list(range(16))


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_hidden_pixels_do_not_reach_the_prediction(scales):
    mae, scale = make_mae(scales=scales), scales[-1]
    x = torch.randn(1, 3, 16 * scale, 16 * scale)
    _, pred, mask = mae(x, torch.Generator().manual_seed(0))
    patches = patchify(x, 4 * scale)  # a cell of the base grid
    patches[mask] = torch.randn_like(patches[mask])
    assert torch.equal(mae(unpatchify(patches, 4 * scale), torch.Generator().manual_seed(0))[1], pred)
    patches[~mask] += 1 + torch.randn_like(patches[~mask])
    assert not torch.equal(mae(unpatchify(patches, 4 * scale), torch.Generator().manual_seed(0))[1], pred)


@pytest.mark.parametrize(
    ("scales", "words"),
    [((2,), "found [2]"), ((1, 3), "grid 4"), ((1, 2, 3), "[1, 2, 3]"), ((), "found []"), ((1, 1), "[1, 1]")],
)
def test_scales_that_do_not_nest_are_refused(scales, words):
    with pytest.raises(UserError, match=re.escape(words)):
        make_mae(scales=scales)


def test_cells_in_view_must_fill_the_tiles_evenly():
    with pytest.raises(UserError, match="leaves 6 of 16 patches in view, expected a multiple of 4"):
        MAE(MVPViT(SPEC), 16, 1, 2, mask_ratio=0.6, scales=(1, 2))
    with pytest.raises(UserError, match=r"takes 32 px, found 16x16"):
        make_mae(scales=(1, 2))(torch.randn(1, 3, 16, 16))


def test_every_trained_parameter_gets_a_gradient_and_tables_stay():
    mae = make_mae()
    mae(torch.randn(2, 3, 16, 16))[0].backward()
    without = [n for n, p in mae.named_parameters() if p.grad is None]
    assert without == ["vit.pos_embed"]
    assert set(mae.vit.state_dict()) == set(MVPViT(SPEC).state_dict())


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_picture_keeps_what_is_visible(scales):
    mae, cell = make_mae(scales=scales), 4 * scales[-1]
    x = torch.randn(2, 3, 4 * cell, 4 * cell)
    masked, filled = mae.picture(x, torch.Generator().manual_seed(0))
    _, _, mask = mae(x, torch.Generator().manual_seed(0))
    keep = ~mask
    assert torch.equal(patchify(filled, cell)[keep], patchify(x, cell)[keep])
    assert torch.equal(patchify(masked, cell)[keep], patchify(x, cell)[keep])
    assert patchify(masked, cell)[mask].abs().max() == 0


@pytest.mark.parametrize(("ratio", "words"), [(0.99, "0 of 16"), (0.0, "16 of 16")])
def test_mask_ratio_must_leave_something(ratio, words):
    with pytest.raises(UserError, match=words):
        MAE(MVPViT(SPEC), 16, 1, 2, mask_ratio=ratio)


def test_crops_cover_both_s2_sizes():
    crop = {"min": 0.43, "max": 1.0, "ratio": [0.75, 1.333]}
    sides = []
    for u in torch.rand(500, 4, generator=torch.Generator().manual_seed(0)):
        y, x, h, w = crop_boxes(256, 256, u, crop)
        assert 0 <= y <= 256 - h and 0 <= x <= 256 - w and min(h, w) >= 90
        sides.append(math.sqrt(h * w))
    assert min(sides) < 130 and max(sides) > 240
    assert 0.3 < np.mean(np.array(sides) < 165) < 0.7
    assert crop_boxes(256, 256, torch.tensor([1.0, 0.5, 0.3, 0.3]), crop | {"ratio": [1, 1]}) == (
        0,
        0,
        256,
        256,
    )


def test_normalise_and_jitter():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    plain = normalise(x, 0.0, torch.Generator())
    expected = (x / 255 - torch.tensor(module.IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        module.IMAGENET_STD
    ).view(3, 1, 1)
    torch.testing.assert_close(plain, expected)
    assert not torch.equal(normalise(x, 0.2, torch.Generator().manual_seed(0)), plain)


def test_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(step, step / 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[100] == 0
    assert np.argmax(rates) == 9


def test_pretrain_learns_and_writes_the_recipe(cfg, tmp_path):
    cfg.steps = 60
    path = pretrain(cfg, progress=False)
    vit, recipe = load_encoder(path)
    assert vit.spec == SPEC
    assert recipe["images_seen"] == 480 and recipe["data"]["made"] == {"seed": 3}
    assert recipe["data"]["shape"] == [32, 32, 3] and recipe["mask_ratio"] == 0.75 and recipe["loss"] < 1.1
    assert str(tmp_path) not in path.read_bytes()[:5000].decode(
        "latin1"
    )  # no machine paths in a shipped file
    with Image.open(tmp_path / "out" / "reconstruction.png") as picture:
        assert picture.size == (3 * 16, 8 * 16)
    with Image.open(tmp_path / "out" / "loss.png") as picture:
        assert np.asarray(picture.convert("L")).min() < 100
    assert list((tmp_path / "out").glob("events.*"))


def test_s2_in_the_pretraining_learns_and_resumes(cfg, tmp_path):
    cfg = OmegaConf.merge(cfg, {"scales": [1, 2], "batch_size": 4, "steps": 60, "store": "float32"})
    _, recipe = load_encoder(pretrain(cfg, progress=False))
    assert recipe["scales"] == [1, 2] and recipe["recipe"].endswith("with S2") and recipe["loss"] < 1.1
    with Image.open(tmp_path / "out" / "reconstruction.png") as picture:
        assert picture.size == (3 * 32, 4 * 32)
    cfg.steps = 3
    cfg.out = str(tmp_path / "early")
    pretrain(cfg, progress=False)
    cfg.steps = 60  # the rate depends on the steps, so the runs differ, but the state must load
    assert load_encoder(pretrain(cfg, progress=False))[1]["steps"] == 60
    with pytest.raises(UserError, match=r"made with scales \[1, 2\], this run has \[1\]"):
        pretrain(OmegaConf.merge(cfg, {"scales": [1]}), progress=False)


def test_weights_are_stored_in_half_the_bytes_and_bfloat16_loses_nothing(cfg, tmp_path):
    paths = {}
    for store in ("float32", "bfloat16"):
        cfg.out, cfg.store = str(tmp_path / store), store
        paths[store] = pretrain(cfg, progress=False)
    assert paths["bfloat16"].stat().st_size < 0.7 * paths["float32"].stat().st_size
    whole, half = (load_encoder(paths[store])[0].bfloat16().state_dict() for store in paths)
    assert all(torch.equal(whole[k], half[k]) for k in whole)
    cfg.out, cfg.store = str(tmp_path / "other"), "float16"
    with pytest.raises(
        UserError, match=r"pretrain.store: found 'float16', expected one of float32, bfloat16"
    ):
        pretrain(cfg, progress=False)


def test_a_killed_run_goes_on_exactly(cfg, tmp_path, monkeypatch):
    whole = load_encoder(pretrain(cfg, progress=False))[1]
    cfg.out = str(tmp_path / "killed")
    real, calls = module.make_batch, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 6:  # between the checkpoints of steps 3 and 6
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, "make_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        pretrain(cfg, progress=False)
    assert load_encoder(tmp_path / "killed" / "encoder.safetensors")[1]["steps"] == 3
    monkeypatch.setattr(module, "make_batch", real)
    resumed = load_encoder(pretrain(cfg, progress=False))[1]
    assert resumed["steps"] == 8
    assert (resumed["sha256"], resumed["loss"]) == (whole["sha256"], whole["loss"])


def test_another_run_is_not_overwritten(cfg):
    pretrain(cfg, progress=False)
    with pytest.raises(UserError, match="made with seed 0, this run has 1"):
        pretrain(OmegaConf.merge(cfg, {"seed": 1}), progress=False)
    with pytest.raises(UserError, match="resume=true"):
        pretrain(OmegaConf.merge(cfg, {"resume": False}), progress=False)


def test_time_budget_ends_a_run(cfg):
    cfg.steps, cfg.max_minutes = 10**6, 1 / 600
    recipe = load_encoder(pretrain(cfg, progress=False))[1]
    assert 0 < recipe["steps"] < 10**5

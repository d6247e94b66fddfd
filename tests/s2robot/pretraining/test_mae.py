"""Masked autoencoding: the loss is MAE's, and only what is visible reaches the prediction."""

import pytest
import torch

from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.pretraining.mae import MAE, patchify, unpatchify
from s2robot.s2.engine import encode, resize
from s2robot.s2.tiling import square

torch.set_num_threads(1)
SPEC = ViTSpec(img_size=16, patch_size=4, dim=24, depth=2, heads=3)


def drawn(mae: MAE, images: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells to keep and to hide."""
    return mae.draw_mask(len(images), torch.Generator().manual_seed(seed))


def make_mae(seed: int = 0, scales: tuple[int, ...] = (1,)) -> MAE:
    torch.manual_seed(seed)
    return MAE(MVPViT(SPEC), decoder_dim=16, decoder_depth=1, decoder_heads=2, scales=scales)


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 4), (1, 2, 4)])
def test_visible_tokens_are_s2s_when_all_are_visible(scales):
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
def test_loss_is_maes_and_mask_counts(scales):
    mae, side = make_mae(scales=scales), 16 * scales[-1]
    x = torch.randn(3, 3, side, side)
    loss, pred, mask = mae(x, drawn(mae, x, 1))
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
    again = mae(x, drawn(mae, x, 1))[0]
    assert torch.equal(loss, again)
    assert not torch.equal(mae(x, drawn(mae, x, 2))[2], mask)


def test_every_tile_of_the_largest_scale_keeps_as_many_cells():
    mae = make_mae(scales=(1, 2))
    keep, hidden = mae.draw_mask(50, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat([keep, hidden], dim=1).sort(dim=1).values, torch.arange(16).expand(50, 16))
    tile = keep // 8 * 2 + keep % 4 // 2  # of a 4 x 4 grid
    assert all(sorted(row) == [0, 1, 2, 3] for row in tile.tolist())
    assert keep.unique().tolist() == list(range(16))


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_hidden_pixels_do_not_reach_the_prediction_and_visible_ones_stay(scales):
    mae, cell = make_mae(scales=scales), 4 * scales[-1]  # of the base grid
    x = torch.randn(2, 3, 4 * cell, 4 * cell)
    _, pred, mask = mae(x, drawn(mae, x))
    patches = patchify(x, cell)
    for picture, hidden in zip(mae.picture(x, torch.Generator().manual_seed(0)), (True, False), strict=True):
        shown = patchify(picture, cell)
        assert torch.equal(shown[~mask], patches[~mask]) and (shown[mask].abs().max() == 0) == hidden
    patches[mask] = torch.randn_like(patches[mask])
    assert torch.equal(mae(unpatchify(patches, cell), drawn(mae, x))[1], pred)
    patches[~mask] += 1 + torch.randn_like(patches[~mask])
    assert not torch.equal(mae(unpatchify(patches, cell), drawn(mae, x))[1], pred)


def test_every_trained_parameter_gets_a_gradient_and_tables_stay():
    mae = make_mae()
    mae(torch.randn(2, 3, 16, 16))[0].backward()
    without = [n for n, p in mae.named_parameters() if p.grad is None]
    assert without == ["vit.pos_embed"]
    assert set(mae.vit.state_dict()) == set(MVPViT(SPEC).state_dict())

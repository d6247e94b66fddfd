"""S2 against a slow implementation written from the paper's description, one pixel block at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from s2robot.errors import UserError
from s2robot.s2 import combine, merge, pyramid, s2_forward, s2_tokens, split

torch.set_num_threads(1)


class TinyModel:
    """Patch means of every channel as tokens, behind prefix tokens that depend on the whole tile."""

    def __init__(self, patch: int, prefix: int = 0) -> None:
        self.patch, self.prefix, self.calls = patch, prefix, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(x.shape))
        rows = []
        for image in x:
            patches = F.avg_pool2d(image, self.patch)  # (C, g, g)
            tokens = [image.amax(dim=(1, 2)) * (i + 1) for i in range(self.prefix)]
            for r in range(patches.shape[1]):
                for c in range(patches.shape[2]):
                    # squared, so that the order of averaging matters, and unlike at every place of the tile
                    tokens.append(patches[:, r, c] ** 2 + 0.1 * r - 0.2 * c)
            rows.append(torch.stack(tokens))
        return torch.stack(rows)


def window(cell, fine, coarse):
    """The fine cells that a coarse cell touches, wholly or in part."""
    return cell * fine // coarse, -(-(cell + 1) * fine // coarse)


def slow_s2(model, images, sizes, tile, prefix):
    """Image by image, tile by tile, cell by cell."""
    out = []
    for image in images:
        maps, fronts = [], []
        for size in sizes:
            x = F.interpolate(image[None].float(), size=(size, size), mode="bicubic")[0]
            k = size // tile
            rows, front = [], []
            for i in range(k):
                row = []
                for j in range(k):
                    cut = x[:, i * tile : (i + 1) * tile, j * tile : (j + 1) * tile]
                    tokens = model(cut[None])[0]
                    front.append(tokens[:prefix])
                    grid = round((len(tokens) - prefix) ** 0.5)
                    row.append(tokens[prefix:].reshape(grid, grid, -1))
                rows.append(torch.cat(row, dim=1))
            maps.append(torch.cat(rows, dim=0))
            fronts.append(sum(front) / len(front))
        side = maps[0].shape[0]
        cells = []
        for r in range(side):
            for c in range(side):
                parts = []
                for m in maps:
                    (top, bottom), (left, right) = window(r, len(m), side), window(c, len(m), side)
                    parts.append(m[top:bottom, left:right].mean(dim=(0, 1)))
                cells.append(torch.cat(parts))
        out.append(torch.cat([torch.cat(fronts, dim=-1), torch.stack(cells)]))
    return torch.stack(out)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    grid=st.integers(1, 4),
    patch=st.integers(1, 3),
    scales=st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True).map(sorted),
    prefix=st.integers(0, 2),
)
def test_equals_the_slow_one(batch, grid, patch, scales, prefix):
    tile = grid * patch
    images = torch.randn(batch, 3, tile, tile, generator=torch.Generator().manual_seed(batch * 31 + tile))
    model = TinyModel(patch, prefix)
    out = s2_forward(model, images, scales=scales, num_prefix_tokens=prefix)
    assert out.shape == (batch, prefix + (grid * scales[0]) ** 2, 3 * len(scales))
    expected = slow_s2(model, images, [s * tile for s in scales], tile, prefix)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_split_is_tile_major_and_merge_is_its_inverse(k):
    x = torch.arange(2 * 3 * (2 * k) ** 2, dtype=torch.float32).reshape(2, 3, 2 * k, 2 * k)
    tiles = split(x, 2)
    assert tiles.shape == (k * k * 2, 3, 2, 2)
    for i in range(k):
        for j in range(k):
            for b in range(2):
                cut = x[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                assert torch.equal(tiles[(i * k + j) * 2 + b], cut)
    assert torch.equal(merge(tiles, k), x)


def test_one_call_a_scale_as_the_reference_and_one_call_in_all_for_us():
    model = TinyModel(2)
    s2_forward(model, torch.rand(3, 3, 4, 4), scales=(1, 2))
    assert model.calls == [(3, 3, 4, 4), (12, 3, 4, 4)]
    model.calls.clear()
    levels = pyramid(torch.zeros(3, 8, 8, 3, dtype=torch.uint8), (4, 8))
    assert s2_tokens(model, levels, tile=4).shape == (3, 4, 6)
    assert model.calls == [(15, 3, 4, 4)]


def test_scale_one_is_the_model_itself():
    model, images = TinyModel(2, prefix=1), torch.rand(2, 3, 6, 6)
    assert torch.equal(s2_forward(model, images, scales=(1,), num_prefix_tokens=1), model(images))


@given(k=st.integers(1, 3), grid=st.integers(1, 3), batch=st.integers(1, 3), prefix=st.integers(0, 1))
@settings(max_examples=20, deadline=None)
def test_mean_of_the_map_is_the_mean_of_tile_means(k, grid, batch, prefix):
    tile, model = 2 * grid, TinyModel(2, prefix)
    images = torch.randint(0, 256, (batch, k * tile, k * tile, 3), dtype=torch.uint8)
    levels = [x / 255 for x in pyramid(images, (tile, k * tile))]
    tokens = s2_tokens(model, levels, tile, prefix)
    mean = s2_tokens(model, levels, tile, prefix, pool="mean")
    assert mean.shape == (batch, 1, 6)
    torch.testing.assert_close(mean, tokens.mean(dim=1, keepdim=True), rtol=1e-6, atol=1e-6)


def test_our_tokens_are_the_reference_on_the_same_levels():
    model = TinyModel(2, prefix=1)
    levels = pyramid(torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8), (8, 16))
    one_by_one = combine([model(split(x, 8)) for x in levels], [1, 2], num_prefix_tokens=1)[:, 1:]
    torch.testing.assert_close(s2_tokens(model, levels, 8, 1), one_by_one, rtol=0, atol=0)


def test_pyramid_averages_areas_exactly():
    image = torch.tensor([[0, 255], [1, 2]], dtype=torch.uint8)[None, :, :, None].expand(1, 2, 2, 3)
    small, large = pyramid(image, (1, 2))
    assert small.flatten().tolist() == [64.5, 64.5, 64.5]
    assert large[0, 0].tolist() == [[0, 255], [1, 2]]
    image = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    for size in (4, 6, 8, 12):
        f = 24 // size
        blocks = image.double().reshape(2, size, f, size, f, 3).mean(dim=(2, 4)).permute(0, 3, 1, 2)
        torch.testing.assert_close(pyramid(image, (size,))[0].double(), blocks, rtol=1e-6, atol=1e-5)


def test_pyramid_antialiases_other_ratios():
    noise = torch.randint(0, 256, (1, 448, 448, 3), dtype=torch.uint8)
    (small,) = pyramid(noise, (300,))
    aliased = F.interpolate(noise.permute(0, 3, 1, 2).float(), size=(300, 300), mode="bilinear")
    assert small.shape == (1, 3, 300, 300)
    assert small.std() < 0.9 * aliased.std()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: s2_forward(m, torch.rand(1, 3, 4, 6), scales=(1, 2)), "height 4 and width 6"),
        (lambda m: s2_forward(m, torch.rand(1, 3, 4, 4), scales=(1, 1.5)), "S2 size 6 .* tile 4"),
        (lambda m: s2_forward(m, torch.rand(1, 3, 4, 4), sizes=(4, 9)), "S2 size 9 .* tile 4"),
        (lambda m: s2_forward(m, torch.rand(1, 3, 4, 4), sizes=(2, 4)), "S2 size 2 .* tile 4"),
        (lambda m: s2_forward(m, torch.rand(1, 3, 4, 4)), "either scales or sizes"),
        (lambda m: s2_forward(m, torch.zeros(1, 3, 4, 4, dtype=torch.uint8), scales=(1,)), "torch.uint8"),
        (lambda m: pyramid(torch.zeros(1, 4, 6, 3, dtype=torch.uint8), (2,)), "height 4 and width 6"),
        (lambda m: pyramid(torch.zeros(1, 4, 4, 3), (2,)), "torch.float32"),
    ],
)
def test_errors_say_both_numbers(call, words):
    with pytest.raises(UserError, match=words):
        call(TinyModel(2))


def test_forgotten_prefix_tokens_are_named():
    with pytest.raises(UserError, match="5 tokens.*without 0 prefix tokens"):
        s2_forward(TinyModel(2, prefix=1), torch.rand(1, 3, 4, 4), scales=(1, 2))

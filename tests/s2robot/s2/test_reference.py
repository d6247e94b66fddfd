"""S2 against a slow implementation written from the paper's description, one cell at a time; tiling and resizing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from s2robot.backbones.device import channels_first
from s2robot.s2 import forward
from s2robot.s2.engine import encode, pyramid, resize
from s2robot.s2.tiling import Layout, plan_levels, plan_tiles, square
from tests.errors import refuses


class TinyModel:
    """Patch means of every channel as tokens, behind prefix tokens that depend on the whole tile."""

    def __init__(self, patch: int, prefix: int = 0) -> None:
        self.patch, self.prefix, self.calls = patch, prefix, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(x.shape))
        rows = []
        for image in x:
            patches = F.avg_pool2d(image, self.patch)  # (C, rows, columns)
            tokens = [image.amax(dim=(1, 2)) * (i + 1) for i in range(self.prefix)]
            for r in range(patches.shape[1]):
                for c in range(patches.shape[2]):
                    # squared, so that averaging order matters, and different at every position in the tile
                    tokens.append(patches[:, r, c] ** 2 + 0.1 * r - 0.2 * c)
            rows.append(torch.stack(tokens))
        return torch.stack(rows)


def as_map(model):
    """Return the model with maps (B, D, rows, columns) instead of tokens."""
    return lambda x: model(x).mT.unflatten(2, [side // model.patch for side in x.shape[2:]])


def offsets(size, tile):
    """Return the starts of the fewest tiles that cover `size` cells, evenly spread to the nearest cell."""
    count = -(-size // tile)
    return [int(i * (size - tile) / (count - 1) + 0.5) if count > 1 else 0 for i in range(count)]


def shares(starts, tile, cell):
    """Return the weight of each tile along an axis at a cell: linear across overlaps."""
    out, end = [], 0
    for start in starts:
        share = 0.0
        if start <= cell < start + tile:
            share = 1.0 if cell >= end else (cell - start + 1) / (end - start + 1)
            out = [other * (1 - share) for other in out]
        out.append(share)
        end = start + tile
    return out


def slow_map(model, image, tile, patch, prefix):
    """Return the map (rows, columns, D) of an image, tile by tile, and the mean of the prefix tokens."""
    rows, columns, (gh, gw) = image.shape[1] // patch, image.shape[2] // patch, (n // patch for n in tile)
    ys, xs = offsets(rows, gh), offsets(columns, gw)
    total, front = torch.zeros(rows, columns, 3), []
    for i, y in enumerate(ys):
        for j, left in enumerate(xs):
            top, lead = y * patch, left * patch
            tokens = model(image[None, :, top : top + tile[0], lead : lead + tile[1]])[0]
            front.append(tokens[:prefix])
            for r in range(gh):
                for c in range(gw):
                    share = shares(ys, gh, y + r)[i] * shares(xs, gw, left + c)[j]
                    total[y + r, left + c] += share * tokens[prefix + r * gw + c]
    return total, sum(front) / len(front)


def slow_s2(model, levels, tile, patch, prefix, base=0):
    """Compute S2 cell by cell; `tile` is (height, width) in whole patches, each level is (B, 3, H, W)."""
    out = []
    for images in zip(*levels, strict=True):
        maps, fronts = zip(*(slow_map(model, x, tile, patch, prefix) for x in images), strict=True)
        high, wide = maps[base].shape[:2]
        cells = []
        for r in range(high):
            for c in range(wide):
                parts = []
                for m in maps:  # the fine cells that a coarse cell touches, wholly or in part
                    top, bottom = r * m.shape[0] // high, -(-(r + 1) * m.shape[0] // high)
                    left, right = c * m.shape[1] // wide, -(-(c + 1) * m.shape[1] // wide)
                    parts.append(m[top:bottom, left:right].mean(dim=(0, 1)))
                cells.append(torch.cat(parts))
        out.append(torch.cat([torch.cat(fronts, dim=-1), torch.stack(cells)]))
    return torch.stack(out)


def noise(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height * 31 + width))


def enlarged(images, sizes):
    return [F.interpolate(images, size=size, mode="bicubic") for size in sizes]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3), grid=st.integers(1, 4), patch=st.integers(1, 3), prefix=st.integers(0, 5),
    scales=st.lists(st.integers(1, 3), min_size=1, max_size=3), shape=st.sampled_from(["bnc", "bchw"]),
    one_by_one=st.booleans(), data=st.data(),
)  # fmt: skip
def test_forward_equals_the_slow_reference(batch, grid, patch, scales, prefix, shape, one_by_one, data):
    prefix = 0 if shape == "bchw" else prefix
    base = data.draw(st.integers(0, len(scales) - 1))
    tile, images, model = grid * patch, noise(batch, grid * patch, grid * patch), TinyModel(patch, prefix)
    called = as_map(model) if shape == "bchw" else model
    out = forward(called, images, scales, None, None, base, prefix, shape, one_by_one)
    count = sum(s * s for s in scales)
    assert sum(call[0] for call in model.calls) == count * batch
    assert len(model.calls) == (count if one_by_one else len(scales))
    levels = enlarged(images, [(s * tile, s * tile) for s in scales])
    expected = slow_s2(model, levels, (tile, tile), patch, prefix, base)
    if shape == "bchw":
        expected = expected.transpose(1, 2).unflatten(2, (grid * scales[base], grid * scales[base]))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    again = forward(called, images, None, [s * tile for s in scales], tile, base - len(scales), prefix, shape)
    torch.testing.assert_close(again, out, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    patch=st.integers(1, 3), tile=st.tuples(st.integers(1, 4), st.integers(1, 4)), prefix=st.integers(0, 5),
    sizes=st.lists(st.tuples(st.integers(4, 13), st.integers(4, 13)), min_size=1, max_size=3),
)  # fmt: skip
def test_levels_of_any_shape_equal_the_slow_reference(patch, tile, sizes, prefix):
    model, levels = TinyModel(patch, prefix), [noise(2, h * patch, w * patch) for h, w in sizes]
    side = (tile[0] * patch, tile[1] * patch)
    plans = tuple(plan_tiles((h * patch, w * patch), side, patch) for h, w in sizes)
    out = encode(model, levels, Layout(plans, tile, sizes[0]), prefix, prefix=True)
    torch.testing.assert_close(out, slow_s2(model, levels, side, patch, prefix), rtol=1e-5, atol=1e-5)
    as_map = encode(model, levels, Layout(plans, tile, sizes[0]), prefix, "map")
    assert torch.equal(as_map.flatten(2).mT, out[:, prefix:])
    assert torch.equal(encode(model, levels, Layout(plans, tile, sizes[0]), prefix), out[:, prefix:])
    pooled = encode(model, levels, Layout(plans, tile, sizes[0]), prefix, "pooled")
    torch.testing.assert_close(pooled, as_map.mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_fractional_scales_are_cut_into_equal_tiles():
    images, model = noise(2, 16, 16), TinyModel(4)
    out = forward(model, images, scales=[1, 1.5])
    assert model.calls == [(2, 3, 16, 16), (8, 3, 12, 12)]
    fine = slow_s2(model, enlarged(images, [(16, 16), (24, 24)]), (12, 12), 4, 0)
    torch.testing.assert_close(out[..., 3:], fine[..., 3:])
    shapes = (2, 3, 16, 12), (2, 3, 12, 16), (2, 3, 15, 15), (3, 16, 16), (2, 3, 16, 16)
    for shape, scales in zip(shapes, ([1], [1], [1, 1.4], [1], []), strict=True):
        refuses("input, scales: expected", forward, model, torch.zeros(shape), scales=scales)


def test_integer_images_saturate_instead_of_wrapping():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[..., 2:] = 255
    seen = []
    forward(lambda x: seen.append(x) or F.avg_pool2d(x.float(), 2), image, scales=[1, 2], output_shape="bchw")
    assert seen[1].dtype == torch.uint8
    row = plan_tiles((8, 8), (4, 4)).merge(seen[1])[0, 0, 0].int()  # bicubic overshoots near the edge
    assert torch.all(row[1:] >= row[:-1]) and (row[0], row[-1]) == (0, 255)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3), patch=st.integers(1, 3), tile=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    more=st.tuples(st.integers(0, 12), st.integers(0, 12)), overlap=st.integers(0, 4),
)  # fmt: skip
def test_split_then_merge_is_exact(batch, patch, tile, more, overlap):
    size = tuple((t + m) * patch for t, m in zip(tile, more, strict=True))
    tile = tuple(t * patch for t in tile)
    overlap = min([overlap, *(t - patch for t in tile)])
    plan, images = plan_tiles(size, tile, patch, overlap), noise(batch, *size)
    tiles = plan.split(images)
    assert tiles.shape == (plan.count * batch, 3, *tile)
    assert torch.equal(plan.merge(tiles), images)
    for starts, side, length in zip((plan.rows, plan.columns), tile, size, strict=True):
        moves = [b - a for a, b in zip(starts, starts[1:], strict=False)]
        assert all(move % patch == 0 and 0 < move <= side - overlap for move in moves)
        assert (starts[0], starts[-1] + side) == (0, length)
        assert max(moves, default=0) - min(moves, default=0) <= patch
        stride = (side - overlap) // patch * patch  # one tile fewer would not cover it
        assert side + (len(starts) - 2) * stride < length


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: square((4, 6), 4, 2), r"sizes: .* tile of 4 px, got \[4, 6\]"),
        (lambda: plan_levels(8, 8, (6, 6), 4), "tile: .* patches of 4 px, got 6 x 6"),
        (lambda: plan_levels(4, 65, (4, 4), 2), "frame: expected .* at most 16, got .* 4 x 65 px.* sizes="),
        (lambda: plan_levels(8, 8, (4, 4), 2, sizes=(7,)), "whole patches of 2 px .* a level of 7 x 7 px"),
        (lambda: plan_levels(8, 8, (4, 4), 2, scales=()), "scales, sizes: expected at least one, got none"),
        (lambda: plan_levels(8, 8, (4, 4), 2, overlap=4), "overlap: expected 0 to 2 px, got 4"),
        (lambda: plan_levels(8, 8, (4, 4), 2, overlap=-1), "overlap: expected 0 to 2 px, got -1"),
        (lambda: plan_levels(8, 8, (6, 4), 2, sizes=((4, 8),)), "at least the tile of 6 x 4 px, got a level of 4 x 8 px"),
        (lambda: plan_levels(8, 8, (4, 6), 2, sizes=((8, 4),)), "at least the tile of 4 x 6 px, got a level of 8 x 4 px"),
    ],
)  # fmt: skip
def test_invalid_sizes_are_rejected(call, words):
    refuses(words, call)


def test_non_square_tile():
    layout = plan_levels(12, 8, (6, 4), 2)
    assert (layout.cells, layout.grid, layout.tiles) == ((3, 2), (3, 2), 1 + 4)


def test_reduced_images_are_antialiased():
    checkerboard = (torch.arange(90)[:, None] + torch.arange(90)).remainder(2).float().expand(1, 3, 90, 90)
    for size in ((20, 20), (30, 30), (45, 45)):
        assert resize(checkerboard, size)[..., 2:-2, 2:-2].std() < 0.12


def test_pyramid_averages_areas_exactly():
    images = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    levels = pyramid(channels_first(images), [(size, size) for size in (4, 6, 8, 12, 24)], (24, 24))
    for size, level in zip((4, 6, 8, 12, 24), levels, strict=True):
        f = 24 // size
        blocks = images.double().reshape(2, size, f, size, f, 3).mean(dim=(2, 4)).permute(0, 3, 1, 2)
        torch.testing.assert_close(level.double(), blocks, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 6, 10), (4, 3, 128, 128)])
def test_halving_is_bit_equal_to_torch_average_pooling(shape):
    for images in (torch.randn(shape) * 1e6, torch.randn(shape).to(memory_format=torch.channels_last)):
        expected = F.avg_pool2d(images, 2)
        assert torch.equal(resize(images, expected.shape[-2:]), expected)
        assert torch.equal(resize(images.requires_grad_(), expected.shape[-2:]), expected)

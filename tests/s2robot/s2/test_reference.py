"""S2 against a slow implementation written from the paper's description, one cell at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from s2robot.core.errors import UserError
from s2robot.s2.engine import encode
from s2robot.s2.layout import square
from s2robot.s2.pyramid import channels_first, pyramid
from s2robot.s2.reference import forward, tile_grid
from s2robot.s2.tiling import plan_tiles

torch.set_num_threads(1)


def split(x, tile):
    return plan_tiles(x.shape[-1], tile).split(x)


def merge(tiles, k):
    return plan_tiles(k * tiles.shape[-1], tiles.shape[-1]).merge(tiles)


def from_largest(images, sizes):
    """Levels of square frames as this project's encoders make them."""
    return pyramid(channels_first(images), [(size, size) for size in sizes], (max(sizes), max(sizes)))


def s2_tokens(model, levels, tile, num_prefix_tokens=0, output="tokens"):
    layout = square([x.shape[-1] for x in levels], tile, model.patch)
    return encode(model, levels, layout, num_prefix_tokens, output)


class TinyModel:
    """Patch means of every channel as tokens, behind prefix tokens that depend on the whole tile."""

    def __init__(self, patch: int, prefix: int = 0, only: tuple[int, int] | None = None) -> None:
        self.patch, self.prefix, self.only, self.calls = patch, prefix, only, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(tuple(x.shape))
        if self.only is not None:
            assert x.shape[2:] == self.only, f"Input {tuple(x.shape[2:])} doesn't match model {self.only}"
        rows = []
        for image in x:
            patches = F.avg_pool2d(image, self.patch)  # (C, rows, columns)
            tokens = [image.amax(dim=(1, 2)) * (i + 1) for i in range(self.prefix)]
            for r in range(patches.shape[1]):
                for c in range(patches.shape[2]):
                    # squared, so that the order of averaging matters, and unlike at every place of the tile
                    tokens.append(patches[:, r, c] ** 2 + 0.1 * r - 0.2 * c)
            rows.append(torch.stack(tokens))
        return torch.stack(rows)


def as_map(model):
    """The same model with maps (B, D, rows, columns) instead of tokens."""

    def call(x):
        return model(x).transpose(1, 2).unflatten(2, (x.shape[2] // model.patch, x.shape[3] // model.patch))

    return call


def as_output(model):
    """The same model with Hugging Face's kind of output."""
    return lambda x: SimpleNamespace(last_hidden_state=model(x), pooler_output=None)


KINDS = {"tokens": (lambda m: m, "bnc"), "map": (as_map, "bchw"), "output": (as_output, "bnc")}


def window(cell, fine, coarse):
    """The fine cells that a coarse cell touches, wholly or in part."""
    return cell * fine // coarse, -(-(cell + 1) * fine // coarse)


def offsets(size, tile):
    """The fewest tiles over `size` cells, evenly spread to the nearest cell."""
    count = -(-size // tile)
    return [int(i * (size - tile) / (count - 1) + 0.5) if count > 1 else 0 for i in range(count)]


def shares(starts, tile, cell):
    """How much each tile along an axis counts at a cell: linear across what neighbours share."""
    out, end = [], 0
    for start in starts:
        if not start <= cell < start + tile:
            share = 0.0
        else:
            share = 1.0 if cell >= end else (cell - start + 1) / (end - start + 1)
            out = [other * (1 - share) for other in out]
        out.append(share)
        end = start + tile
    return out


def slow_s2(model, images, sizes, tile, patch, prefix, base=0):
    """Image by image, tile by tile, cell by cell; sizes and tile are (height, width) in whole patches."""
    out = []
    gh, gw = tile[0] // patch, tile[1] // patch
    for image in images:
        maps, fronts = [], []
        for height, width in sizes:
            x = F.interpolate(image[None].float(), size=(height, width), mode="bicubic")[0]
            rows, columns = height // patch, width // patch
            ys, xs = offsets(rows, gh), offsets(columns, gw)
            total, front = torch.zeros(rows, columns, 3), []
            for i, y in enumerate(ys):
                for j, left in enumerate(xs):
                    top, lead = y * patch, left * patch
                    tokens = model(x[None, :, top : top + tile[0], lead : lead + tile[1]])[0]
                    front.append(tokens[:prefix])
                    for r in range(gh):
                        for c in range(gw):
                            share = shares(ys, gh, y + r)[i] * shares(xs, gw, left + c)[j]
                            total[y + r, left + c] += share * tokens[prefix + r * gw + c]
            maps.append(total)
            fronts.append(sum(front) / len(front))
        high, wide = maps[base].shape[:2]
        cells = []
        for r in range(high):
            for c in range(wide):
                parts = []
                for m in maps:
                    top, bottom = window(r, m.shape[0], high)
                    left, right = window(c, m.shape[1], wide)
                    parts.append(m[top:bottom, left:right].mean(dim=(0, 1)))
                cells.append(torch.cat(parts))
        out.append(torch.cat([torch.cat(fronts, dim=-1), torch.stack(cells)]))
    return torch.stack(out)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.integers(1, 3),
    scales=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    prefix=st.integers(0, 5),
    kind=st.sampled_from(sorted(KINDS)),
    one_by_one=st.booleans(),
    data=st.data(),
)
def test_equals_the_slow_one(batch, grid, patch, scales, prefix, kind, one_by_one, data):
    wrap, shape = KINDS[kind]
    prefix = 0 if shape == "bchw" else prefix
    base = data.draw(st.integers(0, len(scales) - 1))
    tile = (grid[0] * patch, grid[1] * patch)
    images = torch.randn(batch, 3, *tile, generator=torch.Generator().manual_seed(batch * 31 + tile[0]))
    model = TinyModel(patch, prefix)
    out = forward(wrap(model), images, scales, None, None, base, prefix, shape, one_by_one, grid=grid)
    count = sum(s * s for s in scales)
    assert sum(call[0] for call in model.calls) == count * batch
    assert len(model.calls) == (count if one_by_one else len(scales))
    expected = slow_s2(model, images, [(s * tile[0], s * tile[1]) for s in scales], tile, patch, prefix, base)
    if shape == "bchw":
        expected = expected.transpose(1, 2).unflatten(2, (grid[0] * scales[base], grid[1] * scales[base]))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    patch=st.integers(1, 3),
    grid=st.integers(2, 4),
    sizes=st.lists(st.tuples(st.integers(4, 13), st.integers(4, 13)), min_size=1, max_size=4),
    prefix=st.integers(0, 5),
    odd=st.integers(0, 2),
)
def test_frames_of_any_shape_are_covered_by_whole_tiles(patch, grid, sizes, prefix, odd):
    tile, images = grid * patch, torch.randn(2, 3, 11, 17, generator=torch.Generator().manual_seed(patch))
    model = TinyModel(patch, prefix, only=(tile, tile))
    # heights that are no whole patches are rounded to the nearest
    asked = [(max(tile, h * patch + odd % patch), w * patch) for h, w in sizes]
    rounded = [((h + patch // 2) // patch * patch, w) for h, w in asked]
    out = forward(model, images, img_sizes=asked, max_split_size=tile, num_prefix_token=prefix)
    assert out.shape == (2, prefix + rounded[0][0] * rounded[0][1] // patch**2, 3 * len(sizes))
    expected = slow_s2(model, images, rounded, (tile, tile), patch, prefix)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_fractional_scales():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    # 24 px in tiles of 12, whole patches: as the reference, if the model takes them
    free, fixed, uneven = TinyModel(4), TinyModel(4, only=(16, 16)), TinyModel(8)
    out = forward(free, images, scales=[1, 1.5])
    assert free.calls[-1] == (8, 3, 12, 12)
    torch.testing.assert_close(
        out[..., 3:], slow_s2(free, images, [(16, 16), (24, 24)], (12, 12), 4, 0)[..., 3:]
    )
    forward(
        free, torch.rand(2, 3, 24, 24), scales=[1], max_split_size=15
    )  # though 15 px are no whole patches
    assert free.calls[-1] == (8, 3, 12, 12)
    # a model of one size, or tiles that would lose pixels: tiles of full size overlap
    for model, patch in ((fixed, 4), (uneven, 8)):
        out = forward(model, images, scales=[1, 1.5])
        assert model.calls[-1] == (8, 3, 16, 16)
        torch.testing.assert_close(out, slow_s2(model, images, [(16, 16), (24, 24)], (16, 16), patch, 0))
    # 16 * 1.3 = 20.8 px is no multiple of 4 or 2 tiles of whole pixels: 20 px
    torch.testing.assert_close(
        forward(fixed, images, scales=[1, 1.3]), slow_s2(fixed, images, [(16, 16), (20, 20)], (16, 16), 4, 0)
    )
    # patches of 5 px are no whole ones of either tile, so that only equal tiles can be cut
    coarse = TinyModel(5)
    assert forward(coarse, images, img_sizes=[24], max_split_size=16).shape == (2, 16, 3)
    assert coarse.calls[-1] == (8, 3, 12, 12)
    with pytest.raises(UserError, match="24 x 24 .* tile 16 x 16, and its 3 x 3 tokens"):
        forward(TinyModel(5, only=(16, 16)), images, img_sizes=[24], max_split_size=16)
    # without a level of full size the grid is found by one more call
    torch.testing.assert_close(
        forward(fixed, images, scales=[1.5]), slow_s2(fixed, images, [(24, 24)], (16, 16), 4, 0)
    )


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_a_size_in_pixels_is_that_of_the_shorter_side(shape):
    images, model = torch.rand(2, 3, *shape), TinyModel(2)
    twice = (2 * shape[0], 2 * shape[1])
    expected = slow_s2(model, images, [shape, twice], shape, 2, 0)
    torch.testing.assert_close(forward(model, images, img_sizes=[4, 8]), expected)
    torch.testing.assert_close(forward(model, images, img_sizes=list(np.array([4, 8]))), expected)
    for level, base in ((-2, 0), (-1, 1)):  # as in a list
        expected = slow_s2(model, images, [shape, twice], shape, 2, 0, base)
        torch.testing.assert_close(
            forward(model, images, img_sizes=[4, 8], resize_output_to_idx=level), expected
        )
    for level in (-3, 2, 3):
        with pytest.raises(UserError, match=f"resize_output_to_idx: expected 0 to 1, got {level}"):
            forward(model, images, img_sizes=[4, 8], resize_output_to_idx=level)


def test_integer_images_saturate_instead_of_wrapping():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[..., 2:] = 255
    seen = []

    def model(x):
        seen.append(x)
        return F.avg_pool2d(x.float(), 2)

    forward(model, image, scales=[1, 2], output_shape="bchw")
    fine = seen[1]
    assert fine.dtype == torch.uint8
    row = merge(fine, 2)[0, 0, 0].int()  # bicubic overshoots on both sides of the edge
    assert torch.all(row[1:] >= row[:-1])
    assert (row[0], row[-1]) == (0, 255)
    with pytest.raises(UserError, match="4 x 4 px of torch.uint8"):
        forward(torch.nn.Conv2d(3, 5, 2, 2), image, scales=[1], output_shape="bchw")


def test_token_grids():
    assert tile_grid(36, (64, 144), 0) == (4, 9)  # not 6 x 6
    assert tile_grid(5 + 36, (144, 64), 5) == (9, 4)
    assert tile_grid(14 * 18, (225, 300), 0) == (14, 18)  # patches of 16 with a rest
    assert tile_grid(36, (64, 64), 0) == (6, 6)
    with pytest.raises(UserError, match="37 tokens for 64 x 144 px"):
        tile_grid(37, (64, 144), 0)
    # patches that are not square cannot be seen from the outside
    images = torch.rand(1, 3, 4, 18)
    model = lambda x: F.avg_pool2d(x, (1, 2)).flatten(2).transpose(1, 2)  # noqa: E731
    assert forward(model, images, scales=[1, 2], grid=(4, 9)).shape == (1, 36, 6)
    with pytest.raises(UserError, match="36 tokens, 0 of them prefix tokens, expected a grid of 4 x 8"):
        forward(model, images, scales=[1, 2], grid=(4, 8))


def test_pyramid_averages_areas_exactly():
    image = torch.tensor([[0, 255], [1, 2]], dtype=torch.uint8)[None, :, :, None].expand(1, 2, 2, 3)
    small, large = from_largest(image, (1, 2))
    assert small.flatten().tolist() == [64.5, 64.5, 64.5]
    assert large[0, 0].tolist() == [[0, 255], [1, 2]]
    image = torch.randint(0, 256, (2, 24, 24, 3), dtype=torch.uint8)
    for size in (4, 6, 8, 12):
        f = 24 // size
        blocks = image.double().reshape(2, size, f, size, f, 3).mean(dim=(2, 4)).permute(0, 3, 1, 2)
        torch.testing.assert_close(from_largest(image, (size,))[0].double(), blocks, rtol=1e-6, atol=1e-5)


def test_errors_name_the_argument_and_the_values():
    m, x = TinyModel(2), torch.rand(1, 3, 4, 4)
    for call, words in (
        (lambda: forward(m, torch.rand(3, 4, 4), [1]), r"input: .*\(3, 4, 4\)"),
        (lambda: forward(m, x), "scales: .* got None"),
        (lambda: forward(m, x, []), r"scales: .* got \[\]"),
        (lambda: forward(m, x, [0.1]), r"scales: .* 4 x 4, got \[0.1\]"),
        (lambda: forward(m, x, [1, 2], None, -2), "max_split_size: .* got -2"),
        (lambda: forward(m, x, [1], output_shape="bhwc"), "output_shape: .* got 'bhwc'"),
        (lambda: forward(m, x, [1], output_shape="bchw"), r"\(1, 4, 3\).*\(B, C, H, W\)"),
        (lambda: forward(as_map(m), x, [1]), r"\(1, 3, 2, 2\).*\(B, N, C\)"),
        (lambda: forward(m, x, [1], None, None, 0, 1, "bchw"), "num_prefix_token: .* got 1"),
        (lambda: forward(lambda x: m(x)[:1], torch.rand(2, 3, 4, 4), [1]), r"\(1, 4, 3\) for 2 tiles"),
        (lambda: forward(TinyModel(2, 0, (8, 8)), x, [1]), r"\(4, 4\).*\(8, 8\)"),
        (lambda: forward(torch.nn.Linear(7, 2), x, [1]), "fails on 4 x 4 px"),
        (lambda: forward(m, x, img_sizes=[0]), "img_sizes: .* got 0"),
        (lambda: channels_first(torch.zeros(1, 4, 4, 3)), "images: .* torch.float32"),
    ):
        with pytest.raises(UserError, match=words):
            call()

"""Sizes, tiles and tokens of a vision tower with S2, without a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s2robot.common.errors import UserError
from s2robot.vlm.plan import Plan, shapes

CLIP = dict(tile=336, patch=14)


@pytest.mark.parametrize("scales, tiles", [((1,), 1), ((1, 2), 5), ((1, 2, 3), 14), ((1, 3), 10)])
@pytest.mark.parametrize("side", [336, 672, 1008])
def test_a_square_has_576_tokens_at_every_scale(scales, tiles, side):
    layout = Plan(**CLIP, scales=scales).layout_of(side, side)
    assert layout.grid == (24, 24) and layout.tiles == tiles
    assert [level.frame for level in layout.levels] == [(336 * s, 336 * s) for s in scales]


@pytest.mark.parametrize(
    "size, shape, tokens",
    [
        ((1000, 1000), (3, 3), 576),
        ((600, 1500), (2, 5), 640),
        ((1500, 600), (5, 2), 640),
        ((900, 1200), (3, 4), 768),
        ((480, 640), (3, 4), 768),
        ((100, 5000), (1, 12), 768),  # nothing is longer than twelve tiles
        ((1600, 500), (6, 2), 768),
    ],
)
def test_a_shape_chooses_its_tiles_and_their_number_the_tokens(size, shape, tokens):
    """A tile of the largest scale gives 576 / 9 = 64 tokens; the square's nine give 576."""
    plan = Plan(**CLIP, layout="dynamic")
    assert plan.shape(*size) == shape
    layout = plan.layout_of(shape[0] * 336, shape[1] * 336)
    assert layout.grid == (8 * shape[0], 8 * shape[1]) and layout.grid[0] * layout.grid[1] == tokens
    assert [level.frame for level in layout.levels[:2]] == [(336, 336), (672, 672)]  # thumbnail and square
    assert layout.levels[2].count == shape[0] * shape[1]


def test_all_tokens_of_the_largest_scale():
    assert Plan(**CLIP, layout="dynamic", pool=1).layout_of(672, 1680).grid == (48, 120)
    assert Plan(**CLIP, pool=1).layout_of(336, 336).grid == (72, 72)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3), st.integers(9, 20))
def test_no_other_number_of_tiles_is_nearer_to_the_shape(height, width, largest, most):
    plan = Plan(**CLIP, scales=tuple(range(1, largest + 1)), layout="dynamic", most=most)
    rows, columns = plan.shape(height, width)
    assert largest**2 <= rows * columns <= most
    everything = [
        (r, c) for r in range(1, most + 1) for c in range(1, most + 1) if largest**2 <= r * c <= most
    ]
    assert sorted(shapes(largest**2, most)) == sorted(everything)
    assert abs(width / height - columns / rows) == min(abs(width / height - c / r) for r, c in everything)


@pytest.mark.parametrize("side, shape", [(400, (1, 1)), (600, (2, 2)), (830, (3, 3)), (3000, (3, 3))])
def test_of_shapes_alike_the_picture_fills_more_than_half_of_the_larger(side, shape):
    """672 / sqrt(2) = 475, 1008 / sqrt(2) = 713: a square of 400 px has too few pixels for 2 x 2 tiles."""
    assert Plan(**CLIP, scales=(1,), layout="dynamic", most=12).shape(side, side) == shape


@pytest.mark.parametrize("rows, columns", [(1, 9), (2, 5), (3, 3), (6, 2), (12, 1)])
@pytest.mark.parametrize("tile, patch", [(6, 2), (7, 2)])
def test_merge_is_the_inverse_of_split(rows, columns, tile, patch):
    """In pixels, and in tokens; a tile of 7 px with patches of 2 has a rest, as SigLIP's 384 px with 14."""
    layout = Plan(tile, patch, layout="dynamic").layout_of(rows * tile, columns * tile)
    level = layout.levels[-1]
    x = torch.arange(2 * 3 * rows * tile * columns * tile).reshape(2, 3, rows * tile, columns * tile)
    tiles = level.split(x)
    assert tiles.shape == (rows * columns * 2, 3, tile, tile)
    assert torch.equal(level.merge(tiles), x)
    second = tiles.reshape(rows, columns, 2, 3, tile, tile)[rows - 1, columns - 1, 1]
    assert torch.equal(second, x[1, :, -tile:, -tile:])
    maps = torch.randn(rows * columns, 4, 3, 3)
    merged = level.merge(maps)
    assert merged.shape == (1, 4, 3 * rows, 3 * columns)
    assert torch.equal(merged[0, :, :3, -3:], maps[columns - 1])


def test_levels_are_made_from_the_picture_itself():
    x = torch.rand(1, 3, 18, 18)
    native, theirs = (Plan(6, 2, resize=way) for way in ("native", "reference"))
    layout = native.layout_of(18, 18)
    small, _, full = native.levels(x, layout)
    assert torch.equal(small, torch.nn.functional.avg_pool2d(x, 3)) and torch.equal(full, x)
    bicubic = [torch.nn.functional.interpolate(x, (side, side), mode="bicubic") for side in (6, 12)]
    assert all(torch.equal(a, b) for a, b in zip(theirs.levels(x, layout), [*bicubic, x], strict=True))
    assert native.levels(x.half(), layout)[0].dtype == torch.half


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Plan(**CLIP, layout="tall"), "layout: found 'tall', expected one of square, dynamic"),
        (lambda: Plan(**CLIP, resize="area"), "resize: found 'area', expected one of native, reference"),
        (lambda: Plan(**CLIP, scales=(1, 1.5)), r"scales: found \(1, 1.5\), expected whole numbers from 1"),
        (lambda: Plan(**CLIP, scales=(2, 3)), "expected whole numbers from 1 upwards"),
        (lambda: Plan(**CLIP, scales=()), "expected whole numbers from 1 upwards"),
        (lambda: Plan(**CLIP, scales=2), r"scales: found 2, expected several, such as \(1, 2, 3\)"),
        (lambda: Plan(336, 0), "patch: found 0, expected a whole number of at least 1"),
        (lambda: Plan(0, 14), "tile: found 0, expected a whole number of at least 1"),
        (lambda: Plan(10, 14), "tile: found 10 px, expected at least the patch of 14 px"),
        (lambda: Plan(**CLIP, layout="dynamic", most="12"), "most: found '12', expected a whole number"),
        (lambda: Plan(**CLIP, layout="dynamic", most=9.5), "most: found 9.5, expected a whole number"),
        (lambda: Plan(**CLIP, pool=0), "pool: found 0, expected a whole number of at least 1"),
        (lambda: Plan(**CLIP, layout="dynamic", most=8), "most: found 8 tiles, expected at least the 9"),
        (lambda: Plan(224, 14, layout="dynamic"), "16 tokens a side do not divide by pool 3"),
        (lambda: Plan(**CLIP, pool=5), "72 tokens a side do not divide by pool 5"),
        (lambda: Plan(384, 14, pool=1), "1152 px does not divide into 81 tokens a side"),
        (lambda: Plan(**CLIP).layout_of(1000, 1000), "1000 x 1000 px does not divide into tiles of 336 px"),
        (lambda: Plan(**CLIP).layout_of(336, 672), "336 x 672 px is not square"),
        (lambda: Plan(**CLIP, layout="dynamic").shape(0, 5), "a picture of 0 x 5 px has no shape"),
    ],
)
def test_what_does_not_fit_together_is_said_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)

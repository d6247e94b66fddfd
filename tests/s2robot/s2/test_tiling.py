"""Tiling: frames are covered exactly, and split -> merge gives every pixel back, bit by bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s2robot.core.errors import UserError
from s2robot.s2.tiling import plan_tiles

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    tile=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    more=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    rest=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    overlap=st.integers(0, 4),
    cover=st.sampled_from(["overlap", "pad"]),
)
def test_split_then_merge_is_exact(batch, patch, tile, more, rest, overlap, cover):
    size = [(t + m) * p for t, m, p in zip(tile, more, patch, strict=True)]
    tile = [t * p for t, p in zip(tile, patch, strict=True)]
    if cover == "pad":
        size, overlap = [s + r for s, r in zip(size, rest, strict=True)], 0
    overlap = min([overlap, *(t - p for t, p in zip(tile, patch, strict=True))])
    plan = plan_tiles(size, tile, patch, cover, overlap)
    images = torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(sum(size)))
    tiles = plan.split(images)
    assert tiles.shape == (plan.count * batch, 2, *tile)
    assert torch.equal(plan.merge(tiles), images)
    for starts, side, step, length in zip((plan.rows, plan.columns), tile, patch, size, strict=True):
        assert starts[0] == 0 and starts[-1] + side >= length
        moves = [b - a for a, b in zip(starts, starts[1:], strict=False)]
        assert all(move % step == 0 and 0 < move <= side - overlap for move in moves)
        if cover == "overlap":
            assert starts[-1] + side == length and max(moves, default=0) - min(moves, default=0) <= step
            least = (side - overlap) // step * step  # one tile fewer would not reach
            assert side + (len(starts) - 2) * least < length


def test_the_overlap_is_blended_linearly():
    plan = plan_tiles((1, 6), (1, 4))
    line = plan.merge(torch.stack([torch.zeros(1, 1, 4), torch.ones(1, 1, 4)]))
    torch.testing.assert_close(line.flatten(), torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))


def test_padding_repeats_the_edge_and_is_cut_off():
    plan = plan_tiles((1, 3), (1, 2), cover="pad")
    tiles = plan.split(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    assert tiles.flatten().tolist() == [1, 2, 3, 3]
    assert plan.merge(tiles).flatten().tolist() == [1, 2, 3]


def test_errors_give_both_numbers():
    for call, words in (
        (lambda: plan_tiles((200, 448), 224, 16), "height 200 is smaller than the tile's 224"),
        (lambda: plan_tiles((448, 450), 224, 16), "width 450 .* patches of 16 px; nearest is 448"),
        (lambda: plan_tiles(448, 224, 15), "tile 224 x 224 .* patches of 15 x 15"),
        (lambda: plan_tiles(448, 224, 16, "stretch"), "cover: .*'stretch'"),
        (lambda: plan_tiles(448, 224, 16, "overlap", 224), "found 224 px, expected 0 to 208"),
        (lambda: plan_tiles(448, 224, 16, "pad", 16), "overlap 16 px"),
        (lambda: plan_tiles((1, 2, 3), 1), r"frame: .*\(1, 2, 3\)"),
        (lambda: plan_tiles(8, 0), "tile: .* got 0"),
        (lambda: plan_tiles(8, 4).split(torch.zeros(1, 1, 8, 9)), r"\(8, 8\), found an image of \(8, 9\)"),
        (lambda: plan_tiles(6, 4).merge(torch.zeros(4, 1, 3, 3)), "2 px lies between two tokens"),
    ):
        with pytest.raises(UserError, match=words):
            call()

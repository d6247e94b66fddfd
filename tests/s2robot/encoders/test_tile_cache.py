"""Tiles that repeat are computed once, and what comes out is the model's."""

import pytest
import torch
from torch import Tensor

from s2robot.encoders.tile_cache import TileCache


class Model:
    """Tokens that depend on every pixel; it counts its tiles."""

    def __init__(self) -> None:
        self.tiles = 0

    def __call__(self, tiles: Tensor) -> Tensor:
        self.tiles += len(tiles)
        return tiles.float().cumsum(-1).flatten(2).mT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [1, 3, 8])
def test_what_repeats_within_a_call_and_from_call_to_call_is_computed_once(dtype, side):
    torch.manual_seed(0)
    tiles, counting = torch.randn(5, 3, side, side).to(dtype), Model()
    model = TileCache(counting)
    for rows, new in (([0, 1, 0, 2], 3), ([2, 3, 3], 1), ([4, 0, 1], 1)):
        before, given = counting.tiles, tiles[rows]
        assert torch.equal(model(given), Model()(given))
        assert counting.tiles - before == new


def test_tiles_of_the_same_sum_are_not_the_same():
    tiles, counting = torch.randn(1, 3, 4, 4), Model()
    tiles = torch.cat([tiles, tiles.flip(1)])  # the same numbers elsewhere
    model = TileCache(counting)
    for given in (tiles, tiles.flip(0), tiles):
        assert torch.equal(model(given), Model()(given))


def test_the_tiles_seen_last_are_kept():
    tiles, counting = torch.randn(4, 3, 2, 2), Model()
    model = TileCache(counting, size=2)
    for rows, seen in (([0, 1], 2), ([0], 2), ([2], 3), ([0], 3), ([1], 4), ([0], 4), ([0, 1, 2, 3], 6)):
        assert torch.equal(model(tiles[rows]), Model()(tiles[rows]))
        assert counting.tiles == seen
    assert len(model._entries) == 2


def test_a_call_that_failed_leaves_nothing_behind():
    """As where a GPU's memory is full: the same tiles again, fewer at a time."""
    tiles, counting = torch.randn(3, 3, 4, 4), Model()

    def full(given: Tensor) -> Tensor:
        if len(given) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return counting(given)

    model = TileCache(full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        model(tiles)
    assert torch.equal(torch.cat([model(tiles[:2]), model(tiles[2:])]), Model()(tiles))

"""The tiles of a frame, what is remembered of them, and which are wanted most; for `selective`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class Held:
    """What the model gave for a tile; filled in when the tile's turn in the model has come."""

    coarse: list[Held]  # the coarse tiles of the same moment, empty unless needed for the choice
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))  # (g * g, D)


@dataclass(eq=False)
class Stream:
    """The memory of one camera: per size the pixels, per tile the features that were made of them."""

    pixels: list[Tensor]  # one float32 (3, size, size) a size
    held: list[Held | None]  # one a tile, None if never computed
    frames: int = 0


@dataclass(eq=False)
class Frame:
    """A frame on its way: what stands for each tile, None for the coarse tokens of that region."""

    stream: Stream
    levels: list[Tensor]  # one float32 (3, size, size) a size
    point: Sequence[float] | None
    tiles: list[Held | None]


class Tiles:
    """The tiles of all sizes of a square frame, one after the other, the coarse ones first.

    Attributes: places, (level, row, column) of each; base, how many are coarse; under, which coarse token lies under
    each token of a tile.
    """

    def __init__(self, tile: int, sizes: Sequence[int], grid: int, device: torch.device) -> None:
        self.tile, self.grid = tile, grid
        self.sides = [size // tile for size in sizes]  # tiles along a side
        self.base = self.sides[0] ** 2
        self.places = [
            (level, row, column)
            for level, k in enumerate(self.sides)
            for row in range(k)
            for column in range(k)
        ]
        self.under = [self._coarse_under(*place).to(device) for place in self.places]

    def _coarse_under(self, level: int, row: int, column: int) -> Tensor:
        """Which coarse token lies under each token of a tile: indices (g * g,) into the coarse tiles in a row."""
        k0, k = self.sides[0], self.sides[level]
        g = self.grid // k0  # tokens along the side of a tile
        r = k // k0  # fine tokens along the side of a coarse one
        rows, columns = (torch.arange(i * g, (i + 1) * g) // r for i in (row, column))  # (g,) in 0..grid - 1
        tile = (rows // g)[:, None] * k0 + columns // g
        token = (rows % g)[:, None] * g + columns % g
        return (tile * g * g + token).flatten()

    def crop(self, level: Tensor, index: int) -> Tensor:
        """A tile's pixels, a view (3, tile, tile) of its size's (3, size, size)."""
        _, row, column = self.places[index]
        t = self.tile
        return level[:, row * t : (row + 1) * t, column * t : (column + 1) * t]

    def changes(self, frame: Frame, level: int) -> list[float]:
        """Summed absolute difference of each tile of a size to the pixels it was last computed from; 0 only if
        all are the same."""
        k, t = self.sides[level], self.tile
        difference = (frame.levels[level] - frame.stream.pixels[level]).abs_()
        return difference.view(3, k, t, k, t).sum((0, 2, 4)).flatten().tolist()

    def ranked(self, frame: Frame, tiles: list[int], changes: list[float], choose: str) -> list[int]:
        """The tiles, the most wanted first; those equally wanted in their order. `changes`: of the pixels, one a tile."""
        held = frame.stream.held
        if choose == "coarse":
            changes = self._coarse_changes(frame)
        # what has never been computed comes first, ordered by what is in it: it has nothing to differ from
        urgent = {i: (held[i] is None, changes[i]) for i in tiles}
        if choose != "coarse":
            urgent |= {i: (True, self._contrast(frame, i)) for i in tiles if held[i] is None}
        near = dict.fromkeys(tiles, 0.0)
        if choose == "gripper" and frame.point is not None and np.isfinite(frame.point).all():
            near = {i: -self._distance(frame.point, i) for i in tiles}
        return sorted(tiles, key=lambda i: (near[i], *urgent[i]), reverse=True)

    def _contrast(self, frame: Frame, index: int) -> float:
        """Summed absolute difference of a tile's pixels to their mean colour."""
        tile = self.crop(frame.levels[self.places[index][0]], index)
        return float((tile - tile.mean((1, 2), keepdim=True)).abs_().sum())

    def _distance(self, point: Sequence[float], index: int) -> float:
        """From a point to a tile, in widths of the picture; 0 inside."""
        level, row, column = self.places[index]
        k = self.sides[level]
        off = [max(i / k - p, 0.0, p - (i + 1) / k) for i, p in zip((column, row), point, strict=True)]
        return math.hypot(*off)

    def _coarse_changes(self, frame: Frame) -> list[float]:
        """For each tile, how far the coarse tokens under it are from those of when it was computed; their range
        if it never was."""
        now = in_a_row(frame.tiles[: self.base])  # (tokens, D)
        out = [torch.zeros((), device=now.device)] * self.base
        for index in range(self.base, len(self.places)):
            tokens, held = now[self.under[index]], frame.stream.held[index]
            if held is None:
                out.append((tokens.amax(0) - tokens.amin(0)).norm())
            else:
                out.append((tokens - in_a_row(held.coarse)[self.under[index]]).norm())
        return torch.stack(out).tolist()


def in_a_row(tiles: Iterable[Held | None]) -> Tensor:
    """The tokens of the coarse tiles, one tile after the other, float32 (tiles * g * g, D)."""
    return torch.cat([held.tokens.float() for held in tiles if held is not None])

"""The tiles of a frame, what is remembered of them, and which are wanted most; for `selective`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from s2robot.s2.layout import Layout
from s2robot.s2.tiling import Tiling


@dataclass(eq=False)
class Held:
    """What the model gave for a tile; filled in when the tile's turn in the model has come."""

    coarse: list[Held]  # the coarse tiles of the same moment, empty unless needed for the choice
    tokens: Tensor = field(default_factory=lambda: torch.empty(0))  # (g * g, D)


@dataclass(eq=False)
class Stream:
    """The memory of one camera: per size the pixels, per tile the features that were made of them.

    Where the tiles of a size overlap, their pixels are remembered tile by tile: one may be older than its neighbour.
    """

    plan: Tiles  # of frames of its shape
    pixels: list[Tensor]  # a size: float32 (3, height, width), or (tiles, 3, tile, tile) where tiles overlap
    held: list[Held | None]  # one a tile, None if never computed
    frames: int = 0


@dataclass(eq=False)
class Frame:
    """A frame on its way: what stands for each tile, None for the coarse tokens of that region."""

    stream: Stream
    levels: list[Tensor]  # one float32 (3, height, width) a size
    point: Sequence[float] | None
    tiles: list[Held | None]


class Tiles:
    """The tiles of all sizes of a frame, one after the other, the coarse ones first.

    Attributes: layout; places, (level, row, column) of each; base, how many are coarse; under, which coarse token lies
    under the middle of each token of a tile.
    """

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        self.base = layout.levels[0].count
        self.firsts = [0, *accumulate(level.count for level in layout.levels)]  # where each level begins
        self.places = [
            (level, row, column)
            for level, tiling in enumerate(layout.levels)
            for row in range(len(tiling.rows))
            for column in range(len(tiling.columns))
        ]
        self.under = [self._coarse_under(*place).to(device) for place in self.places]

    def _coarse_under(self, level: int, row: int, column: int) -> Tensor:
        """Indices (g * g,) into the tokens of the coarse tiles in a row."""
        fine = self.layout.levels[level]
        tile_y, y = self._under_along(0, fine, fine.rows[row])
        tile_x, x = self._under_along(1, fine, fine.columns[column])
        g = self.layout.cells
        tile = tile_y[:, None] * len(self.layout.levels[0].columns) + tile_x
        return (tile * g[0] * g[1] + y[:, None] * g[1] + x).flatten()

    def _under_along(self, axis: int, fine: Tiling, start: int) -> tuple[Tensor, Tensor]:
        """Along an axis: which coarse tile, and which of its tokens, lies under the middle of each token of a fine tile
        that starts at a pixel; of coarse tiles that overlap, the one whose middle is nearest.  # (g,) each"""
        coarse, cells = self.layout.levels[0], self.layout.cells[axis]
        middles = start + (torch.arange(cells, dtype=torch.float64) + 0.5) * fine.tile[axis] / cells
        middles = middles * coarse.frame[axis] / fine.frame[axis]
        edges = torch.tensor((coarse.rows, coarse.columns)[axis], dtype=torch.float64)
        tile = (middles[:, None] - (edges + coarse.tile[axis] / 2)).abs().argmin(1)
        token = (middles - edges[tile]) * cells / coarse.tile[axis]
        return tile, token.floor().long().clamp(0, cells - 1)

    def blank(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """What a stream of frames like this remembers at first: black pixels."""
        tilings = zip(levels, self.layout.levels, strict=True)
        return [
            x.new_zeros((tiling.count, 3, *tiling.tile)) if tiling.overlaps else torch.zeros_like(x)
            for x, tiling in tilings
        ]

    def crop(self, level: Tensor, index: int) -> Tensor:
        """A tile's pixels, a view (3, tile, tile) of its size's (3, height, width)."""
        number, row, column = self.places[index]
        tiling = self.layout.levels[number]
        y, x, (height, width) = tiling.rows[row], tiling.columns[column], tiling.tile
        return level[:, y : y + height, x : x + width]

    def remembered(self, stream: Stream, index: int) -> Tensor:
        """The pixels that a tile was last computed from, a view (3, tile, tile)."""
        level = self.places[index][0]
        if self.layout.levels[level].overlaps:
            return stream.pixels[level][index - self.firsts[level]]
        return self.crop(stream.pixels[level], index)

    def changes(self, frame: Frame, level: int) -> list[float]:
        """Summed absolute difference of each tile of a size to the pixels it was last computed from; 0 only if
        all are the same."""
        tiling, seen = self.layout.levels[level], frame.levels[level]
        if tiling.overlaps:
            return (tiling.split(seen[None]) - frame.stream.pixels[level]).abs_().sum((1, 2, 3)).tolist()
        (height, width), rows, columns = tiling.tile, len(tiling.rows), len(tiling.columns)
        difference = (seen - frame.stream.pixels[level]).abs_()
        return difference.view(3, rows, height, columns, width).sum((0, 2, 4)).flatten().tolist()

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
        tiling = self.layout.levels[level]
        height, width = tiling.frame
        sides = (
            (tiling.columns[column], tiling.tile[1], width, 1.0),
            (tiling.rows[row], tiling.tile[0], height, height / width),
        )
        off = [
            max(at / size - p, 0.0, p - (at + tile) / size) * scale
            for (at, tile, size, scale), p in zip(sides, point, strict=True)
        ]
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

"""Plan the sizes of a frame that S2 uses, and the tiling of each.

plan = Sizes(tile=(224, 224), patch=16, scales=(1, 2))
layout = plan.layout(480, 640)         # levels of 224 x 304 and 448 x 608 px
layout.tiles, layout.grid              # 8, (14, 19)
square((128, 256), tile=128, patch=16).grid                   # (8, 8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s2robot.backbones.facts import pair
from s2robot.core.errors import UserError
from s2robot.s2.tiling import Size, Tiling, plan_tiles

LONGEST = 16  # times the shorter side: the axes of a longer frame are most likely in another order


@dataclass(frozen=True)
class Layout:
    """One tiling a level, and the grids (rows, columns) of a tile and of the result."""

    levels: tuple[Tiling, ...]
    cells: tuple[int, int]
    grid: tuple[int, int]

    @property
    def tiles(self) -> int:
        """Tiles of a frame over all levels."""
        return sum(level.count for level in self.levels)


def square(sizes: Sequence[int], tile: int, patch: int) -> Layout:
    """Plan square frames whose levels are multiples of the tile; UserError for other sizes."""
    if not sizes:
        raise UserError("S2 sizes are empty, expected at least one")
    for size in sizes:
        if size < tile or size % tile:
            raise UserError(f"S2 size {size} is not a whole multiple of the model's tile {tile}")
    cells, k = tile // patch, sizes[0] // tile
    return Layout(tuple(plan_tiles(size, tile) for size in sizes), (cells, cells), (k * cells, k * cells))


@dataclass(frozen=True)
class Sizes:
    """The levels for frames of any shape: multiples of a base size, or explicit sizes.

    Attributes: as the arguments of `s2robot.s2.module.S2`; tile and patch are the model's, in pixels.
    """

    tile: tuple[int, int]
    patch: int
    scales: tuple[float, ...] = (1, 2)
    sizes: tuple[Size, ...] | None = None
    base: Size | None = None
    cover: str = "overlap"
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.sizes is not None and self.base is not None:
            raise UserError(f"give sizes {self.sizes} or base {self.base}, not both")
        if not (self.scales if self.sizes is None else self.sizes):
            raise UserError("S2 needs at least one scale or size, found none")

    @property
    def count(self) -> int:
        """Number of levels."""
        return len(self.scales if self.sizes is None else self.sizes)

    def layout(self, height: int, width: int) -> Layout:
        """Plan a frame of height x width pixels; UserError if a level cannot be tiled."""
        (th, tw), patch = self.tile, self.patch
        if th % patch or tw % patch:
            raise UserError(
                f"the tile of {th} x {tw} px is no whole number of patches of {patch} px; give one of {th // patch * patch}"
            )
        if self.sizes is not None:
            first = self._sized(self.sizes[0], height, width)
            sizes = [first, *(self._sized(size, *first) for size in self.sizes[1:])]
        else:
            one = self.one(height, width)
            sizes = [(self._whole(one[0] * scale), self._whole(one[1] * scale)) for scale in self.scales]
        for size in sizes:
            if size[0] < th or size[1] < tw:
                raise UserError(f"S2 level {size[0]} x {size[1]} px is smaller than the tile {th} x {tw} px")
        levels = tuple(plan_tiles(size, self.tile, patch, self.cover, self.overlap) for size in sizes)
        return Layout(
            levels, (th // patch, tw // patch), (-(-sizes[0][0] // patch), -(-sizes[0][1] // patch))
        )

    def one(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of scale 1: the given one, or the smallest of the frame's shape that covers the tile."""
        if self.base is not None:
            return self._sized(self.base, height, width)
        _check_shape(height, width)
        th, tw = self.tile
        ratio = max(th / height, tw / width)
        return max(th, self._whole(height * ratio)), max(tw, self._whole(width * ratio))

    def _sized(self, size: Size, height: int, width: int) -> tuple[int, int]:
        """Return an explicit size as (height, width); an integer is the shorter side of the frame's shape."""
        side, other = pair(size, "S2 size")
        if isinstance(size, Sequence) or height == width:
            return side, other
        _check_shape(height, width)
        ratio = side / min(height, width)
        return (
            side if height <= width else self._whole(height * ratio),
            side if width <= height else self._whole(width * ratio),
        )

    def _whole(self, pixels: float) -> int:
        """Round to whole patches."""
        return int(pixels / self.patch + 0.5) * self.patch


def _check_shape(height: int, width: int) -> None:
    if not 0 < max(height, width) <= LONGEST * min(height, width):
        raise UserError(
            f"a frame of {height} x {width} px is more than {LONGEST} times as long as wide, which would be as many "
            "times the tokens; is (height, width) right? Its levels can be given as base= or sizes=((height, width), ...)"
        )


def several(values: Any, what: str, example: str) -> tuple:
    """Return a sequence as a tuple; UserError, naming `what`, for anything else, such as the number 2."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"{what}: expected a sequence, such as {example}, got {values!r}")
    return tuple(values)


def scales_of(values: Any, what: str = "scales") -> tuple[float, ...]:
    """Return multiples of the base size as a tuple; UserError, naming `what`, unless they are positive numbers."""
    scales = several(values, what, "(1, 2)")
    for scale in scales:
        if not hasattr(scale, "__float__") or not 0 < scale < math.inf:
            raise UserError(f"{what}: expected positive numbers, such as (1, 2), got {scale!r}")
    return scales

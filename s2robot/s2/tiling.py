"""Plan the sizes at which S2 encodes a frame, cover each with tiles, and merge the tiles' maps into one.

    layout = plan_levels(480, 640, tile=(224, 224), patch=16)      # levels of 224 x 304 and 448 x 608 px
    layout.tiles, layout.grid                                      # 8, (14, 19)
    level = layout.levels[1]                                       # 2 x 3 tiles; columns start at 0, 192 and 384 px
    tiles = level.split(images)                                    # (6 * B, 3, 224, 224), tile by tile
    level.merge(maps)                                              # (6 * B, C, 14, 14) -> (B, C, 28, 38)

If a side is not a multiple of the tile, tiles overlap evenly (at offsets of whole patches) and the maps are blended
linearly across the overlap. `merge(split(x))` equals x bit for bit: a + w * (b - a) is exact where both tiles agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2robot.backbones.libraries import Size, check_tile, pair
from s2robot.core.errors import UserError

MAX_ASPECT = 16  # longer side / shorter side; beyond it, the axes are most likely in the wrong order


@dataclass(frozen=True)
class Tiling:
    """The tiles of a frame, from `plan_tiles`. Sizes and offsets are (height, width) in pixels."""

    frame: Size
    tile: Size
    rows: tuple[int, ...]  # top edges
    columns: tuple[int, ...]  # left edges

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def overlaps(self) -> bool:
        """Whether any two tiles share pixels."""
        return (len(self.rows) * self.tile[0], len(self.columns) * self.tile[1]) != self.frame

    def split(self, images: Tensor) -> Tensor:
        """Split (B, C, H, W) into (count * B, C, th, tw), ordered by tile (row by row), then by image."""
        (b, c, _, _), (th, tw) = images.shape, self.tile
        if self.overlaps:
            return torch.cat([images[:, :, y : y + th, x : x + tw] for y in self.rows for x in self.columns])
        grid = images.reshape(b, c, len(self.rows), th, len(self.columns), tw)
        return grid.permute(2, 4, 0, 1, 3, 5).reshape(self.count * b, c, th, tw)

    def merge(self, maps: Tensor) -> Tensor:
        """Invert `split` for tokens or pixels: (count * B, C, h, w) -> (B, C, rows, columns)."""
        n, c, h, w = maps.shape
        b, kh, kw = n // self.count, len(self.rows), len(self.columns)
        x = maps.reshape(kh, kw, b, c, h, w)
        if self.overlaps:
            tops = [s * h // self.tile[0] for s in self.rows]
            lefts = [s * w // self.tile[1] for s in self.columns]
            x = _blend(x.unbind(1), lefts, dim=-1)  # (kh, B, C, h, columns)
            return _blend(x.unbind(0), tops, dim=-2)
        if maps.stride(1) == 1:  # a transformer's tokens are contiguous: copy whole tokens
            return x.permute(2, 0, 4, 1, 5, 3).reshape(b, kh * h, kw * w, c).permute(0, 3, 1, 2)
        return x.permute(2, 3, 0, 4, 1, 5).reshape(b, c, kh * h, kw * w)


def _blend(parts: Sequence[Tensor], starts: Sequence[int], dim: int) -> Tensor:
    """Concatenate parts that start at `starts` (in cells) along dim, blending where they overlap."""
    out = parts[0]
    for part, start in zip(parts[1:], starts[1:], strict=True):
        shared = out.shape[dim] - start
        if shared == 0:
            out = torch.cat([out, part], dim)
            continue
        ramp = torch.arange(1, shared + 1, device=part.device).to(part.dtype) / (shared + 1)
        ramp = ramp.reshape([shared if axis == dim % part.ndim else 1 for axis in range(part.ndim)])
        old, new = out.narrow(dim, start, shared), part.narrow(dim, 0, shared)
        remainder = part.narrow(dim, shared, part.shape[dim] - shared)
        out = torch.cat([out.narrow(dim, 0, start), old + ramp * (new - old), remainder], dim)
    return out


def plan_tiles(frame: Size, tile: Size, patch: int = 1, overlap: int = 0) -> Tiling:
    """Plan the fewest tiles that cover a frame, evenly spread, at offsets of whole patches.

    Frame and tile are multiples of the patch. Neighbours overlap by at least `overlap` pixels.
    """

    def starts(side: int, length: int) -> tuple[int, ...]:
        # in patches: the distance to cover, and the longest step
        free, step = (side - length) // patch, (length - overlap) // patch
        moves = -(-free // step)  # tiles after the first
        return tuple((i * free + moves // 2) // moves * patch if moves else 0 for i in range(moves + 1))

    return Tiling(frame, tile, starts(frame[0], tile[0]), starts(frame[1], tile[1]))


@dataclass(frozen=True)
class Layout:
    """One tiling per level, and the grids (rows, columns) of a tile and of the result."""

    levels: tuple[Tiling, ...]
    cells: Size
    grid: Size

    @property
    def tiles(self) -> int:
        """The number of tiles of a frame over all levels."""
        return sum(level.count for level in self.levels)


def square(sizes: Sequence[int], tile: int, patch: int) -> Layout:
    """Plan square frames; UserError unless the sizes are multiples of the tile."""
    if not sizes or any(size < tile or size % tile for size in sizes):
        raise UserError(f"sizes: expected multiples of the model's tile of {tile} px, got {list(sizes)}")
    cells, k = tile // patch, sizes[0] // tile
    levels = tuple(plan_tiles((size, size), (tile, tile)) for size in sizes)
    return Layout(levels, (cells, cells), (k * cells, k * cells))


def plan_levels(
    height: int,
    width: int,
    tile: Size,
    patch: int,
    scales: Sequence[float] = (1, 2),
    sizes: Sequence[int | Size] | None = None,
    overlap: int = 0,
) -> Layout:
    """Plan the levels of a frame of height x width pixels; the arguments are those of `s2robot.s2.module.S2`.

    Raises UserError for a level that cannot be tiled, and for a frame that is most likely transposed.
    """
    check_tile(tile, patch)
    if not 0 <= overlap <= min(tile) - patch:
        raise UserError(f"overlap: expected 0 to {min(tile) - patch} px, got {overlap}")
    if not len(scales if sizes is None else sizes):
        raise UserError("scales, sizes: expected at least one, got none")
    if sizes is None:
        one = base_size(height, width, tile, patch)
        frames = [(_rounded(one[0] * scale, patch), _rounded(one[1] * scale, patch)) for scale in scales]
    else:
        first = _sized(sizes[0], height, width, patch)
        frames = [first, *(_sized(size, *first, patch) for size in sizes[1:])]
    for frame in frames:
        if frame[0] < tile[0] or frame[1] < tile[1] or frame[0] % patch or frame[1] % patch:
            expected = f"whole patches of {patch} px and at least the tile of {tile[0]} x {tile[1]} px"
            raise UserError(f"sizes: expected {expected}, got a level of {frame[0]} x {frame[1]} px")
    levels = tuple(plan_tiles(frame, tile, patch, overlap) for frame in frames)
    tile_grid, grid = ((rows // patch, columns // patch) for rows, columns in (tile, frames[0]))
    return Layout(levels, tile_grid, grid)


def base_size(height: int, width: int, tile: Size, patch: int) -> Size:
    """Return the size at scale 1: the smallest with the frame's aspect ratio that covers the tile, in whole patches."""
    _check_shape(height, width)
    ratio = max(tile[0] / height, tile[1] / width)
    return max(tile[0], _rounded(height * ratio, patch)), max(tile[1], _rounded(width * ratio, patch))


def _sized(size: int | Size, height: int, width: int, patch: int) -> Size:
    """Return an explicit size as (height, width); an integer is the shorter side at the frame's aspect ratio."""
    side, other = pair(size, "sizes")
    if isinstance(size, Sequence) or height == width:
        return side, other
    _check_shape(height, width)
    longer = _rounded(max(height, width) * (side / min(height, width)), patch)
    return (side, longer) if height < width else (longer, side)


def _rounded(pixels: float, patch: int) -> int:
    return int(pixels / patch + 0.5) * patch


def _check_shape(height: int, width: int) -> None:
    if not 0 < max(height, width) <= MAX_ASPECT * min(height, width):
        raise UserError(
            f"frame: expected an aspect ratio of at most {MAX_ASPECT}, got (height, width) of {height} x {width} px; "
            "check the order of the axes, or pass the levels as sizes=((height, width), ...)"
        )

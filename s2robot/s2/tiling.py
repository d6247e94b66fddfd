"""Cover a frame of any size with tiles, and merge the tiles' maps into one map.

    plan = plan_tiles((448, 608), tile=224, patch=16)        # 2 x 3 tiles; columns start at 0, 192 and 384 px
    tiles = plan.split(images)                               # (6 * B, 3, 224, 224), tiles outside, batch inside
    plan.merge(maps)                                         # (6 * B, C, 14, 14) -> (B, C, 28, 38)

If a side is not a multiple of the tile, tiles overlap evenly (at offsets of whole patches) and the maps are blended
linearly across the overlap, or the frame is padded and the padding's tokens are cut off.
`merge(split(x))` is x, bit by bit: blending is a + w * (b - a), which is exact where both tiles agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.backbones.facts import pair
from s2robot.core.errors import UserError

Size = int | Sequence[int]  # one side of a square, or (height, width), in pixels
COVERS = ("overlap", "pad")


def _blend(parts: Sequence[Tensor], starts: Sequence[int], dim: int) -> Tensor:
    """Concatenate parts that start at `starts` (in cells) along dim, blending where they overlap."""
    out = parts[0]
    for part, start in zip(parts[1:], starts[1:], strict=True):
        both = out.shape[dim] - start
        if both == 0:
            out = torch.cat([out, part], dim)
            continue
        ramp = torch.arange(1, both + 1, device=part.device).to(part.dtype) / (both + 1)
        ramp = ramp.reshape([both if axis == dim % part.ndim else 1 for axis in range(part.ndim)])
        old, new = out.narrow(dim, start, both), part.narrow(dim, 0, both)
        rest = part.narrow(dim, both, part.shape[dim] - both)
        out = torch.cat([out.narrow(dim, 0, start), old + ramp * (new - old), rest], dim)
    return out


@dataclass(frozen=True)
class Tiling:
    """The tiles of a frame, from `plan_tiles`. Sizes and offsets are (height, width) in pixels."""

    frame: tuple[int, int]
    tile: tuple[int, int]
    rows: tuple[int, ...]  # top edges
    columns: tuple[int, ...]  # left edges

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def canvas(self) -> tuple[int, int]:
        """The frame with its padding."""
        return self.rows[-1] + self.tile[0], self.columns[-1] + self.tile[1]

    @property
    def overlaps(self) -> bool:
        """Whether any two tiles share pixels."""
        (th, tw), (height, width) = self.tile, self.canvas
        return len(self.rows) * th != height or len(self.columns) * tw != width

    def split(self, images: Tensor) -> Tensor:
        """Split (B, C, H, W) into (count * B, C, th, tw): tiles row by row outside, batch inside.

        Padding repeats the last row and column. Raises UserError for images of another size.
        """
        if tuple(images.shape[-2:]) != self.frame:
            raise UserError(
                f"tiles planned for a frame of {self.frame}, found an image of {tuple(images.shape[-2:])}"
            )
        bottom, right = self.canvas[0] - self.frame[0], self.canvas[1] - self.frame[1]
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom), mode="replicate")
        (b, c, _, _), (th, tw) = images.shape, self.tile
        if self.overlaps:
            return torch.cat([images[:, :, y : y + th, x : x + tw] for y in self.rows for x in self.columns])
        grid = images.reshape(b, c, len(self.rows), th, len(self.columns), tw)
        return grid.permute(2, 4, 0, 1, 3, 5).reshape(self.count * b, c, th, tw)

    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Return the map's size without padding, for height x width tokens a tile; UserError if they do not fit."""
        for start, side, cells in [(s, self.tile[0], height) for s in self.rows] + [
            (s, self.tile[1], width) for s in self.columns
        ]:
            if start * cells % side:
                raise UserError(
                    f"a tile at {start} px lies between two tokens: its {side} px give {cells} tokens"
                )
        return -(-self.frame[0] * height // self.tile[0]), -(-self.frame[1] * width // self.tile[1])

    def merge(self, maps: Tensor) -> Tensor:
        """Invert `split` for tokens or pixels: (count * B, C, h, w) -> (B, C, rows, columns)."""
        n, c, h, w = maps.shape
        height, width = self.cells(h, w)
        b, kh, kw = n // self.count, len(self.rows), len(self.columns)
        x = maps.reshape(kh, kw, b, c, h, w)
        if self.overlaps:
            x = _blend(x.unbind(1), self._starts(w, 1), dim=-1)  # (kh, B, C, h, columns)
            x = _blend(x.unbind(0), self._starts(h, 0), dim=-2)  # (B, C, rows, columns)
        elif maps.stride(1) == 1:  # a transformer's tokens are contiguous: copy whole ones
            x = x.permute(2, 0, 4, 1, 5, 3).reshape(b, kh * h, kw * w, c).permute(0, 3, 1, 2)
        else:
            x = x.permute(2, 3, 0, 4, 1, 5).reshape(b, c, kh * h, kw * w)
        return x if x.shape[-2:] == (height, width) else x[:, :, :height, :width]

    def _starts(self, cells: int, axis: int) -> list[int]:
        return [start * cells // self.tile[axis] for start in (self.rows, self.columns)[axis]]


def _axis(size: int, tile: int, patch: int, overlap: int, pad: bool, name: str) -> tuple[int, ...]:
    """Return the offsets of the tiles along one side."""
    if pad:
        return tuple(range(0, size, tile))
    if size < tile:
        raise UserError(f"the frame's {name} {size} is smaller than the tile's {tile}; enlarge it or use pad")
    if size % patch:
        raise UserError(
            f"the frame's {name} {size} is no whole number of patches of {patch} px; "
            f"nearest is {round(size / patch) * patch}, or use pad"
        )
    free, step = (
        (size - tile) // patch,
        (tile - overlap) // patch,
    )  # in patches: the way, and the longest step
    moves = -(-free // step)  # tiles after the first
    return tuple((i * free + moves // 2) // moves * patch if moves else 0 for i in range(moves + 1))


def plan_tiles(frame: Size, tile: Size, patch: Size = 1, cover: str = "overlap", overlap: int = 0) -> Tiling:
    """Plan the fewest tiles that cover a frame, evenly spread, at offsets of whole patches.

    Args:
        frame, tile: a side or (height, width) in pixels.
        patch: the same of one token; the tile is a multiple of it.
        cover: "overlap" (the frame is a multiple of the patch and at least a tile), or "pad" (any frame).
        overlap: least overlap of neighbours in pixels, rounded up to whole patches. Only with "overlap".

    Raises UserError if that is impossible.
    """
    (height, width), (th, tw), (ph, pw) = pair(frame, "frame"), pair(tile, "tile"), pair(patch, "patch")
    if cover not in COVERS:
        raise UserError(f"cover: found {cover!r}, expected one of {', '.join(COVERS)}")
    if th % ph or tw % pw:
        raise UserError(f"the tile {th} x {tw} is no whole number of patches of {ph} x {pw} px")
    if cover == "pad" and overlap:
        raise UserError(f"overlap {overlap} px: tiles overlap with cover='overlap' only, found cover='pad'")
    if not hasattr(overlap, "__index__") or not 0 <= overlap <= min(th - ph, tw - pw):
        raise UserError(
            f"overlap: found {overlap!r} px, expected 0 to {min(th - ph, tw - pw)} for tiles of {th} x {tw} px"
        )
    rows = _axis(height, th, ph, overlap, cover == "pad", "height")
    columns = _axis(width, tw, pw, overlap, cover == "pad", "width")
    return Tiling((height, width), (th, tw), rows, columns)

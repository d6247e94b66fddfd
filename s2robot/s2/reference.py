"""S2, scaling on scales (Shi et al., arXiv 2403.13043), with the arguments and results of the authors' package.

    forward(model, images, scales=[1, 2]).shape              # (B, N, 2 * D)

Every larger size is cut into tiles of the size that the model knows. The tiles' tokens are merged, averaged down to the
grid of the first size and concatenated on the channel axis. `forward` replaces `s2wrapper.forward` of
bfshi/scaling_on_scales; tiling and merging are shared with `s2robot.s2.module.S2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from s2robot.backbones.facts import pair
from s2robot.backbones.outputs import features
from s2robot.core.errors import UserError
from s2robot.s2.engine import as_map, finish
from s2robot.s2.layout import scales_of, several
from s2robot.s2.pyramid import bicubic, tensor_of
from s2robot.s2.tiling import Size, Tiling, plan_tiles


def tile_grid(n: int, tile: tuple[int, int], num_prefix_tokens: int) -> tuple[int, int]:
    """Return the rows and columns of a tile's n tokens, if a token stands for a square of pixels.

    Raises UserError if the tokens without the prefix tokens form no such grid.
    """
    count = n - num_prefix_tokens
    if tile[0] == tile[1]:
        side = math.isqrt(max(0, count))
        if side and side * side == count:
            return side, side
    else:
        for patch in range(min(tile), 0, -1):
            for grid in (
                (tile[0] // patch, tile[1] // patch),
                (-(-tile[0] // patch), -(-tile[1] // patch)),
            ):
                if math.prod(grid) == count:
                    return grid
    side = math.isqrt(n)
    raise UserError(
        f"the model gives {n} tokens for {tile[0]} x {tile[1]} px: without {num_prefix_tokens} prefix tokens (CLS, "
        f"registers) that is no grid of square patches; is num_prefix_tokens right? {n - side**2} would leave "
        f"{side} x {side}"
    )


@dataclass(frozen=True)
class _Caller:
    """Calls the model of `forward` and reads its output."""

    model: Callable[[Tensor], Any]
    output_shape: str
    num_prefix_token: int
    batch: int | None  # images per call; None: all
    grid: tuple[int, int] | None

    def __call__(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (n, C, th, tw) -> prefix (n, P, D) and map (n, D, rows, columns)."""
        try:
            parts = tiles.split(self.batch) if self.batch else [tiles]
            outputs = [features(self.model(part), self.num_prefix_token) for part in parts]
        except (UserError, torch.OutOfMemoryError):
            raise
        except (AssertionError, ValueError, RuntimeError) as error:  # how models reject a size or a dtype
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the model fails on {tiles.shape[2]} x {tiles.shape[3]} px of {tiles.dtype}: {reason}"
            ) from error
        out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        if out.ndim != len(self.output_shape) or out.shape[0] != tiles.shape[0]:
            expected = "(B, N, C)" if self.output_shape == "bnc" else "(B, C, H, W)"
            raise UserError(
                f"the model gives {tuple(out.shape)} for {tiles.shape[0]} tiles, expected {expected} "
                f"(output_shape={self.output_shape!r})"
            )
        if self.output_shape == "bchw":
            return out[:, :0].flatten(2), out
        prefix, body = out[:, : self.num_prefix_token], out[:, self.num_prefix_token :]
        grid = self.grid or tile_grid(out.shape[1], (tiles.shape[2], tiles.shape[3]), self.num_prefix_token)
        if body.shape[1] != grid[0] * grid[1]:
            raise UserError(
                f"the model gives {out.shape[1]} tokens, {self.num_prefix_token} of them prefix tokens, "
                f"expected a grid of {grid[0]} x {grid[1]}"
            )
        return prefix, as_map(body, grid)

    def level(self, images: Tensor, plan: Tiling) -> tuple[Tensor, Tensor]:
        """Resize images to the plan's frame -> prefix (B, P, D), the mean over tiles, and map (B, D, h, w)."""
        prefix, maps = self(plan.split(bicubic(images, plan.frame)))
        return prefix.unflatten(0, (plan.count, -1)).mean(dim=0), plan.merge(maps)


def _level_sizes(
    height: int, width: int, scales: Sequence[float] | None, img_sizes: Sequence[Size] | None
) -> list[tuple[int, int]]:
    """Return (height, width) in pixels of every level of `forward`."""
    if img_sizes is not None and len(img_sizes := several(img_sizes, "img_sizes", "(224, 448)")):
        short, sizes = min(height, width), []
        for size in img_sizes:
            one, other = pair(size, "img_sizes")
            whole = isinstance(size, Sequence)
            sizes.append((one, other) if whole else (round(height * one / short), round(width * one / short)))
        return sizes
    sizes = [
        (int(height * scale), int(width * scale)) for scale in scales_of(() if scales is None else scales)
    ]
    if not sizes or min(map(min, sizes)) < 1:
        raise UserError(f"scales: expected one or more of at least 1 px of {height} x {width}, got {scales}")
    return sizes


def forward(
    model: Callable[[Tensor], Any],
    input: Tensor,
    scales: Sequence[float] | None = None,
    img_sizes: Sequence[Size] | None = None,
    max_split_size: Size | None = None,
    resize_output_to_idx: int = 0,
    num_prefix_token: int = 0,
    output_shape: str = "bnc",
    split_forward: bool = False,
    *,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Replace `s2wrapper.forward`: the same arguments in the same order, and the same results.

        forward(vit, images, scales=[1, 2], num_prefix_token=1)         # (B, 1 + N, 2 * D)
        forward(cnn, images, scales=[0.5, 1], max_split_size=224, output_shape="bchw")   # (B, 2 * D, h, w)

    Args:
        model: tiles (n, C, th, tw) -> tokens (n, num_prefix_token + N, D), a map (n, D, h, w), or an object that
            holds them (`s2robot.backbones.outputs.features`).
        input: (B, C, H, W) of any shape, normalised for the model.
        scales: multiples of the input's size, rounded down to whole pixels; ignored if `img_sizes` is given.
        img_sizes: sizes in pixels, a side each (the shorter side of the image) or (height, width).
        max_split_size: side or (height, width) of a tile in pixels; default: the input's size.
        resize_output_to_idx: the level whose grid the result has.
        num_prefix_token: CLS and register tokens at the front; their mean over tiles comes first in the result.
        output_shape: "bnc" for tokens (B, N, D), "bchw" for maps; of the model and of the result.
        split_forward: call the model once a tile instead of once a level, to save memory.
        grid: rows and columns of a tile's tokens; only needed if patches are not square.

    A square level that is not a multiple of the tile, say scale 1.5, is cut into equal smaller tiles, as in the
    reference, if the model accepts them and they lose no pixels (168 px would, in patches of 16). Any other such level
    is rounded to whole patches and its full-size tiles overlap (`s2robot.s2.tiling`). Resizing is bicubic in float32
    without antialiasing. Integer images stay integers and saturate. Raises UserError for what is not possible.
    """
    input = tensor_of(input)
    _check(input, output_shape, num_prefix_token)
    height, width = index(input.shape[2]), index(input.shape[3])  # integers, under torch.compile too
    sizes = _level_sizes(height, width, scales, img_sizes)
    if not -len(sizes) <= resize_output_to_idx < len(sizes):
        raise UserError(f"resize_output_to_idx: expected 0 to {len(sizes) - 1}, got {resize_output_to_idx}")
    tile = pair(max_split_size or (height, width), "max_split_size")
    call = _Caller(model, output_shape, num_prefix_token, input.shape[0] if split_forward else None, grid)
    done = _levels(call, input, sizes, tile)
    out_grid = done[resize_output_to_idx][1].shape[-2:]
    fronts = [prefix for prefix, _ in done] if num_prefix_token else []
    return finish([m for _, m in done], out_grid, "map" if output_shape == "bchw" else "tokens", fronts)


def _check(images: Tensor, output_shape: str, num_prefix_token: int) -> None:
    if images.ndim != 4:
        raise UserError(f"input: expected images (B, C, H, W), got {tuple(images.shape)}")
    if output_shape not in ("bnc", "bchw"):
        raise UserError(f"output_shape: expected 'bnc' or 'bchw', got {output_shape!r}")
    if num_prefix_token < 0 or (num_prefix_token and output_shape == "bchw"):
        raise UserError(f"num_prefix_token: expected 0 for 'bchw', >= 0 for 'bnc', got {num_prefix_token}")


def _levels(
    call: _Caller, images: Tensor, sizes: Sequence[tuple[int, int]], tile: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """Return the prefix (B, P, D) and the map (B, D, rows, columns) of every level."""
    levels: dict[int, tuple[Tensor, Tensor]] = {}
    full = None  # rows and columns of a full-size tile
    for level, size in enumerate(sizes):
        part = (min(size[0], tile[0]), min(size[1], tile[1]))
        if size[0] % part[0] or size[1] % part[1]:
            continue
        levels[level] = call.level(images, plan_tiles(size, part))
        if part == tile:
            rows, columns = levels[level][1].shape[-2:]
            full = (rows * tile[0] // size[0], columns * tile[1] // size[1])
    for level, size in enumerate(sizes):
        if level not in levels:
            if full is None:  # one more call, to find the grid
                rows, columns = call(bicubic(images, tile))[1].shape[-2:]
                full = (rows, columns)
            levels[level] = _uneven(call, images, size, tile, full)
    return [levels[level] for level in range(len(sizes))]


def _uneven(
    call: _Caller, images: Tensor, size: tuple[int, int], tile: tuple[int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Compute a level that is not a multiple of the tile, whose tokens form the grid."""
    count = -(-size[0] // tile[0])
    equal = None  # the level as the reference computes it
    if size[0] == size[1] and tile[0] == tile[1] and size[0] % count == 0:
        side = size[0] // count
        try:
            equal = call.level(images, plan_tiles(size, side))
        except UserError:  # a model of one size only
            pass
        else:
            cells = [n // count for n in equal[1].shape[-2:]]
            if all(side % n == 0 and tile[0] // (side // n) == m for n, m in zip(cells, grid, strict=True)):
                return equal  # a token stands for as many pixels as in a full-size tile
    if tile[0] % grid[0] or tile[1] % grid[1]:
        if equal is not None:
            return equal
        raise UserError(
            f"S2 size {size[0]} x {size[1]} is not a multiple of the tile {tile[0]} x {tile[1]}, and its "
            f"{grid[0]} x {grid[1]} tokens are not whole pixels, so tiles cannot overlap"
        )
    patch = (tile[0] // grid[0], tile[1] // grid[1])
    whole = [max(1, (side + step // 2) // step) * step for side, step in zip(size, patch, strict=True)]
    return call.level(images, plan_tiles(whole, (min(whole[0], tile[0]), min(whole[1], tile[1])), patch))

"""The one way from the levels of an image to S2 features: tiles, model, map, join.

    layout = square((128, 256), tile=128, patch=16)
    encode(vit, levels, layout, front=1).shape                    # (B, 64, 2 * D), all tiles in one call of the model
    encode(vit, levels, layout, front=1, output="pooled").shape   # (B, 2 * D), without putting a map together

`s2robot.s2.module.S2` and the pipeline's encoders are this with levels of their own making. The selective encoder
keeps what the model gave for a tile and calls `assemble`; the reference-compatible `forward` calls the model level
by level and ends in `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.common.errors import UserError
from s2robot.s2.layout import Layout
from s2robot.s2.tiling import Tiling

OUTPUTS = ("tokens", "map", "pooled")

Model = Callable[[Tensor], Tensor]  # (B, 3, th, tw) -> (B, P + N, D)


def encode(
    model: Model,
    levels: Sequence[Tensor],
    layout: Layout,
    front: int = 0,
    output: str = "tokens",
    prefix: bool = False,
) -> Tensor:
    """Normalised levels, (B, 3, height, width) each, to S2 features; arguments and result as `assemble`'s."""
    tiles = torch.cat([plan.split(x) for plan, x in zip(layout.levels, levels, strict=True)])
    outputs = model(tiles)  # (tiles * B, P + N, D)
    rows, columns = layout.cells
    if outputs.shape[1] != front + rows * columns:
        raise UserError(
            f"the model gives {outputs.shape[1]} tokens a tile, expected {front} + {rows} x {columns}"
        )
    parts = outputs.unflatten(0, (layout.tiles, -1)).split([level.count for level in layout.levels])
    return assemble(parts, layout, front, output, prefix)


def assemble(
    parts: Sequence[Tensor], layout: Layout, front: int = 0, output: str = "tokens", prefix: bool = False
) -> Tensor:
    """The model's tokens of all tiles, (count, B, P + N, D) a level, as S2 features.

    Args:
        front: P, the prefix tokens (CLS, registers) at the front.
        output: "tokens" (B, N, D * levels), "map" (B, D * levels, rows, columns) or "pooled" (B, D * levels).
        prefix: put the prefix tokens, averaged over tiles, in front of the tokens.

    Means are taken in float32; the result has the type of the parts.
    """
    if output == "pooled":
        means = [
            _pool(part[:, :, front:], plan, layout.cells, layout.grid)
            for part, plan in zip(parts, layout.levels, strict=True)
        ]
        return torch.cat(means, dim=-1).to(parts[0].dtype)
    maps = [
        plan.merge(as_map(part[:, :, front:].flatten(0, 1), layout.cells))
        for part, plan in zip(parts, layout.levels, strict=True)
    ]
    fronts = [part[:, :, :front].float().mean(dim=0) for part in parts] if prefix else []
    return finish(maps, layout.grid, output, fronts)


def as_map(tokens: Tensor, cells: tuple[int, int]) -> Tensor:
    """(n, N, D) -> (n, D, rows, columns)."""
    return tokens.transpose(1, 2).unflatten(2, cells)


def finish(
    maps: Sequence[Tensor], grid: Sequence[int], output: str = "tokens", fronts: Sequence[Tensor] = ()
) -> Tensor:
    """The levels' maps (B, D, h, w), and prefix tokens (B, P, D) where they are wanted, as one result."""
    out = join(maps, grid)
    if output == "map":
        return out
    out = out.flatten(2).transpose(1, 2)  # (B, N, D * levels)
    return torch.cat([torch.cat(list(fronts), dim=-1).to(out.dtype), out], dim=1) if fronts else out


def join(maps: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Maps (B, D, h, w) of any size -> (B, D * maps, *grid): the mean of areas, taken in float32."""
    size = (grid[0], grid[1])
    even = [
        m if m.shape[-2:] == size else F.interpolate(m.float(), size, mode="area").to(m.dtype) for m in maps
    ]
    return torch.cat(even, dim=1)


def _pool(tokens: Tensor, plan: Tiling, cells: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The mean of a level's map from its tiles' tokens (count, B, N, D), in float32 (B, D), without the map."""
    if plan.even(*cells, grid):
        return tokens.float().mean(dim=2).mean(dim=0)
    weights = plan.weights(*cells, grid).to(tokens.device)  # (count, N)
    return (tokens.float() * weights[:, None, :, None]).sum(dim=(0, 2))

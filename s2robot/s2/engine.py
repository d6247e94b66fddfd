"""Turn the levels of an image into S2 features: split into tiles, run the model, merge maps, concatenate.

    layout = square((128, 256), tile=128, patch=16)
    encode(vit, levels, layout, front=1).shape                    # (B, 64, 2 * D), all tiles in one call of the model
    encode(vit, levels, layout, front=1, output="pooled").shape   # (B, 2 * D), the mean of the map

`s2robot.s2.module.S2` and the pipeline's encoders make the levels and call `encode`; the reference-compatible `forward`
calls the model once a level and ends in `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.core.errors import UserError
from s2robot.s2.layout import Layout

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
    """Encode normalised levels, (B, 3, height, width) each; arguments and result as in `assemble`."""
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
    """Assemble S2 features from the tokens of all tiles, (count, B, P + N, D) a level.

    Args:
        front: P, the prefix tokens (CLS, registers) at the front.
        output: "tokens" (B, N, D * levels), "map" (B, D * levels, rows, columns) or "pooled" (B, D * levels).
        prefix: put the prefix tokens, averaged over tiles, in front of the tokens.

    Means are computed in float32; the result has the dtype of the parts.
    """
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
    """Concatenate the levels' maps (B, D, h, w) on the grid, with prefix tokens (B, P, D) in front if given."""
    size, dtype = (grid[0], grid[1]), maps[0].dtype
    # the mean of areas, in float32
    even = [m if m.shape[-2:] == size else F.interpolate(m.float(), size, mode="area") for m in maps]
    if output == "pooled":
        return torch.cat([m.float().mean(dim=(2, 3)) for m in even], dim=1).to(dtype)
    out = torch.cat([m.to(dtype) for m in even], dim=1)
    if output == "map":
        return out
    out = out.flatten(2).transpose(1, 2)  # (B, N, D * levels)
    return torch.cat([torch.cat(list(fronts), dim=-1).to(out.dtype), out], dim=1) if fronts else out

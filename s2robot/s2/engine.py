"""Turn images into S2 features: resize, split into tiles, run the model, merge maps, concatenate.

layout = square((128, 256), tile=128, patch=16)
levels = pyramid(images, [level.frame for level in layout.levels])
encode(vit, levels, layout, front=1).shape                    # (B, 64, 2 * D), all tiles in one call of the model
encode(vit, levels, layout, front=1, output="pooled").shape   # (B, 2 * D), the mean of the map
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.backbones.libraries import Size
from s2robot.s2.tiling import Layout

Model = Callable[[Tensor], Tensor]  # (B, 3, th, tw) -> (B, P + N, D)


def resize(images: Tensor, size: int | Size) -> Tensor:
    """Resize float (B, C, H, W) to (B, C, *size): exact area mean if H and W are multiples, else antialiased bilinear."""
    height, width = (size, size) if isinstance(size, int) else size
    h, w = images.shape[-2:]
    if (h, w) == (height, width):
        return images
    plain = images.dtype == torch.float32 and images.device.type == "cpu" and not images.requires_grad
    if plain and (h, w) == (2 * height, 2 * width):
        return _halved(images)
    if h % height == 0 and w % width == 0:
        return F.avg_pool2d(images, (h // height, w // width))
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)


def _halved(images: Tensor) -> Tensor:
    """Compute F.avg_pool2d(images, 2) bit for bit in half the time, by adding whole rows of pixels."""
    top, bottom = images[..., ::2, :], images[..., 1::2, :]
    total = top[..., ::2] + top[..., 1::2]
    return total.add_(bottom[..., ::2]).add_(bottom[..., 1::2]).mul_(0.25)


def bicubic(images: Tensor, size: Size) -> Tensor:
    """Resize as the reference does: in float32, without antialiasing. Integers saturate (the reference wraps)."""
    if tuple(images.shape[-2:]) == size:
        return images
    x = F.interpolate(images.float(), size=size, mode="bicubic")
    if not images.is_floating_point():
        limits = torch.iinfo(images.dtype)
        x = x.clamp(limits.min, limits.max)
    return x.to(images.dtype)


def pyramid(
    images: Tensor, sizes: Sequence[Size], first: Size | None = None, enlarge: bool = False
) -> list[Tensor]:
    """Resize float (B, C, H, W) to (B, C, *size) for each size.

    first: an intermediate size from which all levels are resized; None resizes each level from the images.
    enlarge: resize bicubically without antialiasing, as in the S2 paper.
    """
    x = images if first is None else resize(images, first)
    return [bicubic(x, size) if enlarge else resize(x, size) for size in sizes]


def encode(
    model: Model,
    levels: Sequence[Tensor],
    layout: Layout,
    front: int,
    output: str = "tokens",
    prefix: bool = False,
) -> Tensor:
    """Encode normalised levels, (B, 3, height, width) each; arguments and result as in `assemble`."""
    tiles = torch.cat([plan.split(x) for plan, x in zip(layout.levels, levels, strict=True)])
    parts = model(tiles).unflatten(0, (layout.tiles, -1))  # (tiles, B, P + N, D)
    return assemble(parts, layout, front, output, prefix)


def assemble(
    outputs: Tensor, layout: Layout, front: int, output: str = "tokens", prefix: bool = False
) -> Tensor:
    """Assemble S2 features from the tokens of all tiles of all levels, (tiles, B, P + N, D).

    Args:
        front: P, the number of prefix tokens (CLS, registers) at the front.
        output: "tokens" (B, N, D * levels), "map" (B, D * levels, rows, columns) or "pooled" (B, D * levels).
        prefix: prepend the prefix tokens, averaged over tiles.

    Means are computed in float32; the result has the dtype of the tokens.
    """
    parts = outputs.split([level.count for level in layout.levels])
    maps = [
        plan.merge(as_map(part[:, :, front:].flatten(0, 1), layout.cells))
        for part, plan in zip(parts, layout.levels, strict=True)
    ]
    fronts = [part[:, :, :front].float().mean(dim=0) for part in parts] if prefix else []
    return finish(maps, layout.grid, output, fronts)


def as_map(tokens: Tensor, cells: Size) -> Tensor:
    """(n, N, D) -> (n, D, rows, columns)."""
    return tokens.transpose(1, 2).unflatten(2, cells)


def finish(
    maps: Sequence[Tensor], grid: Sequence[int], output: str = "tokens", fronts: Sequence[Tensor] = ()
) -> Tensor:
    """Concatenate the levels' maps (B, D, h, w) on the grid, with prefix tokens (B, P, D) in front if given."""
    size, dtype = (grid[0], grid[1]), maps[0].dtype
    # area mean, in float32
    resized = [m if m.shape[-2:] == size else F.interpolate(m.float(), size, mode="area") for m in maps]
    if output == "pooled":
        return torch.cat([m.float().mean(dim=(2, 3)) for m in resized], dim=1).to(dtype)
    out = torch.cat([m.to(dtype) for m in resized], dim=1)
    if output == "map":
        return out
    out = out.flatten(2).transpose(1, 2)  # (B, N, D * levels)
    return torch.cat([torch.cat(list(fronts), dim=-1).to(out.dtype), out], dim=1) if fronts else out

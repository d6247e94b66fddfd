"""S2, scaling on scales (Shi et al., arXiv 2403.13043): one frozen model looks at several sizes of an image.

    s2_forward(model, images, scales=(1, 2)).shape           # (B, N, 2 * D)

Every larger size is cut into tiles of the size the model knows, the tiles' tokens are put together again,
averaged down to the grid of the first size and joined on the channel axis. `s2_forward` has the numerics of
the authors' package (bfshi/scaling_on_scales); `pyramid` and `s2_tokens` are the way this project uses:
frames rendered once at the largest size, all tiles of all sizes in one call of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.errors import UserError

Model = Callable[[Tensor], Tensor]  # (B, 3, tile, tile) -> (B, prefix + N, D)


def split(images: Tensor, tile: int) -> Tensor:
    """(B, C, k * tile, k * tile) -> (k * k * B, C, tile, tile): tiles row by row outside, batch inside."""
    b, c, side, _ = images.shape
    k = side // tile
    x = images.reshape(b, c, k, tile, k, tile).permute(2, 4, 0, 1, 3, 5)  # (k, k, B, C, tile, tile)
    return x.reshape(k * k * b, c, tile, tile)


def merge(tiles: Tensor, k: int) -> Tensor:
    """The inverse of `split`: (k * k * B, C, h, w) -> (B, C, k * h, k * w)."""
    n, c, h, w = tiles.shape
    x = tiles.reshape(k, k, n // (k * k), c, h, w).permute(2, 3, 0, 4, 1, 5)  # (B, C, k, h, k, w)
    return x.reshape(n // (k * k), c, k * h, k * w)


def check_sizes(sizes: Sequence[int], tile: int) -> None:
    """Raise UserError unless every size is a positive multiple of the tile."""
    if not sizes:
        raise UserError("S2 sizes are empty, expected at least one")
    for size in sizes:
        if size < tile or size % tile:
            raise UserError(f"S2 size {size} is not a whole multiple of the model's tile {tile}")


def token_grid(n: int, num_prefix_tokens: int) -> int:
    """Side of the square grid that n tokens form beside the prefix tokens; UserError if they form none."""
    grid = math.isqrt(max(0, n - num_prefix_tokens))
    if grid == 0 or grid * grid != n - num_prefix_tokens:
        raise UserError(
            f"the model gives {n} tokens: without {num_prefix_tokens} prefix tokens (CLS, registers) that is "
            "no square grid; is num_prefix_tokens right?"
        )
    return grid


def combine(outputs: Sequence[Tensor], counts: Sequence[int], num_prefix_tokens: int = 0) -> Tensor:
    """Tokens of all tiles, one (k * k * B, P + N, D) a size with k in `counts` -> (B, P + G * G, D * sizes).

    The map of every size is averaged down to the first size's grid G; prefix tokens are averaged over tiles.
    """
    maps, prefixes = [], []
    for tokens, k in zip(outputs, counts, strict=True):
        grid = token_grid(tokens.shape[1], num_prefix_tokens)
        prefix, body = tokens[:, :num_prefix_tokens], tokens[:, num_prefix_tokens:]
        tiles = body.transpose(1, 2).unflatten(2, (grid, grid))  # (k * k * B, D, g, g)
        maps.append(merge(tiles, k))
        prefixes.append(prefix.unflatten(0, (k * k, -1)).mean(dim=0))  # (B, P, D)
    side = maps[0].shape[-1]
    pooled = [F.interpolate(m.float(), size=(side, side), mode="area").to(m.dtype) for m in maps]
    out = torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)  # (B, G * G, D * sizes)
    return torch.cat([torch.cat(prefixes, dim=-1), out], dim=1) if num_prefix_tokens else out


def s2_forward(
    model: Model,
    images: Tensor,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    tile: int | None = None,
    num_prefix_tokens: int = 0,
) -> Tensor:
    """S2 with the numerics of the authors' package.

    Args:
        model: (B, 3, tile, tile) -> tokens (B, num_prefix_tokens + g * g, D).
        images: float (B, 3, H, H), already normalised.
        scales, sizes: give one; the sizes in pixels are int(H * scale).
        tile: side of what the model sees; H if not given.
        num_prefix_tokens: CLS and register tokens at the front of the model's output.

    Returns (B, num_prefix_tokens + N, D * len(sizes)). Resizing is bicubic in float32 without antialiasing.
    Raises UserError for images that are not square and sizes that are not multiples of the tile.
    """
    _, _, height, width = images.shape
    if height != width:
        raise UserError(f"S2 needs square images, found height {height} and width {width}")
    if not images.is_floating_point():
        raise UserError(f"S2 needs normalised float images, found {images.dtype}")
    if (scales is None) == (sizes is None):
        raise UserError("S2 needs either scales or sizes")
    if sizes is None:
        sizes = [int(height * scale) for scale in scales or ()]
    tile = tile or height
    check_sizes(sizes, tile)
    outputs = []
    for size in sizes:
        x = images
        if size != height:
            x = F.interpolate(x.float(), size=(size, size), mode="bicubic").to(images.dtype)
        outputs.append(model(split(x, tile)))
    return combine(outputs, [size // tile for size in sizes], num_prefix_tokens)


def resize(images: Tensor, size: int) -> Tensor:
    """Float (B, C, H, H) -> (B, C, size, size): exact mean of areas if H is a multiple, else antialiased."""
    side = images.shape[-1]
    if side == size:
        return images
    if side % size == 0:
        return F.avg_pool2d(images, side // size)
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def pyramid(images: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """uint8 (B, H, H, 3) -> one float32 (B, 3, size, size) a size, in 0 to 255.

    The largest size comes from the images, the others from it: rendering once at the largest size is enough.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"expected images uint8 (B, H, W, 3), found {images.dtype} {tuple(images.shape)}")
    if images.shape[1] != images.shape[2]:
        raise UserError(f"expected square images, found height {images.shape[1]} and width {images.shape[2]}")
    largest = resize(images.permute(0, 3, 1, 2).float().contiguous(), max(sizes))
    return [resize(largest, size) for size in sizes]


def s2_tokens(
    model: Model, levels: Sequence[Tensor], tile: int, num_prefix_tokens: int = 0, pool: str = "tokens"
) -> Tensor:
    """Patch tokens (B, N, D * sizes) of a pyramid, or with pool="mean" their mean (B, 1, D * sizes).

    All tiles of all sizes go through the model in one call. Prefix tokens are left out. The mean of the S2
    map is the mean of the tiles' means, so pool="mean" puts no map together.
    """
    tiles = [split(level, tile) for level in levels]
    counts = [level.shape[-1] // tile for level in levels]
    outputs = model(torch.cat(tiles)).split([len(t) for t in tiles])
    outputs = [tokens[:, num_prefix_tokens:] for tokens in outputs]
    if pool == "mean":
        means = [
            tokens.float().mean(dim=1).unflatten(0, (k * k, -1)).mean(dim=0)
            for tokens, k in zip(outputs, counts, strict=True)
        ]
        return torch.cat(means, dim=-1)[:, None]  # (B, 1, D * sizes)
    return combine([t.float() for t in outputs], counts)

"""S2, scaling on scales (Shi et al., arXiv 2403.13043): one model looks at several sizes of an image.

    forward(model, images, scales=[1, 2]).shape              # (B, N, 2 * D)

Every larger size is cut into tiles of the size the model knows, the tiles' tokens are put together again,
averaged down to the grid of the first size and joined on the channel axis. `forward` stands in for the
authors' package (bfshi/scaling_on_scales): same arguments, same numbers. `pyramid` and `s2_tokens` are the
way of this project's encoders: square frames rendered once at the largest size, all tiles of all sizes in one
call of the model. `s2robot.s2.module.S2` does that for any model and any frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.common.errors import UserError
from s2robot.s2.tiling import Size, Tiling, pair, plan_tiles

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
            f"no square grid; is num_prefix_tokens right? {n - math.isqrt(n) ** 2} would leave "
            f"{math.isqrt(n)} x {math.isqrt(n)}"
        )
    return grid


def join(maps: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Maps (B, D, h, w) of any size -> (B, D * maps, *grid): the mean of areas, taken in float32."""
    size = (grid[0], grid[1])
    even = [
        m if m.shape[-2:] == size else F.interpolate(m.float(), size, mode="area").to(m.dtype) for m in maps
    ]
    return torch.cat(even, dim=1)


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
    out = join(maps, maps[0].shape[-2:]).flatten(2).transpose(1, 2)  # (B, G * G, D * sizes)
    return torch.cat([torch.cat(prefixes, dim=-1), out], dim=1) if num_prefix_tokens else out


def tensor_of(output: Any) -> Tensor:
    """The features in what a model returned: a tensor, or the one that an object, mapping or tuple holds.

    Taken in this order: the attribute or key last_hidden_state (Hugging Face), the keys x_norm_patchtokens
    (DINOv2 from torch.hub, without prefix tokens), features and out, a mapping's only tensor, the first of a
    tuple. Raises UserError that says what was found.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "last_hidden_state", None), Tensor):
        return output.last_hidden_state
    found = type(output).__name__
    if isinstance(output, Mapping):
        tensors = {key: value for key, value in output.items() if isinstance(value, Tensor)}
        for key in ("last_hidden_state", "x_norm_patchtokens", "features", "out"):
            if key in tensors:
                return tensors[key]
        if len(tensors) == 1:
            return next(iter(tensors.values()))
        found += f" with {', '.join(map(str, output)) or 'nothing'}"
    elif isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UserError(
        f"the model returned a {found}, expected a tensor; wrap it in a function that returns its tokens"
    )


def tile_grid(n: int, tile: tuple[int, int], num_prefix_tokens: int) -> tuple[int, int]:
    """Rows and columns of the n tokens of a tile of height x width pixels, if a token stands for a square.

    Raises UserError if beside the prefix tokens no such grid is left.
    """
    if tile[0] == tile[1]:
        side = token_grid(n, num_prefix_tokens)
        return side, side
    for patch in range(min(tile), 0, -1):
        for rows, columns in (
            (tile[0] // patch, tile[1] // patch),
            (-(-tile[0] // patch), -(-tile[1] // patch)),
        ):
            if rows * columns == n - num_prefix_tokens:
                return rows, columns
    raise UserError(
        f"the model gives {n} tokens for {tile[0]} x {tile[1]} px: without {num_prefix_tokens} prefix tokens "
        "(CLS, registers) that is no grid of square patches; is num_prefix_tokens right?"
    )


@dataclass(frozen=True)
class _Call:
    """The model of `forward`, how to call it and how to read what it returns."""

    model: Callable[[Tensor], Any]
    output_shape: str
    num_prefix_token: int
    batch: int | None  # images a call; None: all
    grid: tuple[int, int] | None

    def __call__(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles (n, C, th, tw) -> prefix (n, P, D) and map (n, D, rows, columns)."""
        try:
            parts = tiles.split(self.batch) if self.batch else [tiles]
            outputs = [tensor_of(self.model(part)) for part in parts]
        except (UserError, torch.OutOfMemoryError):
            raise
        except (AssertionError, ValueError, RuntimeError) as error:  # how models refuse a size or a dtype
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the model fails on {tiles.shape[2]} x {tiles.shape[3]} px of {tiles.dtype}: {reason}"
            ) from error
        out = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        expected = "(B, N, C)" if self.output_shape == "bnc" else "(B, C, H, W)"
        if out.ndim != len(self.output_shape) or out.shape[0] != tiles.shape[0]:
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
        return prefix, body.transpose(1, 2).unflatten(2, grid)

    def level(self, images: Tensor, plan: Tiling) -> tuple[Tensor, Tensor]:
        """Images resized to the plan's frame -> prefix (B, P, D), the mean over tiles, and map (B, D, h, w)."""
        prefix, maps = self(plan.split(_bicubic(images, plan.frame)))
        return prefix.unflatten(0, (plan.count, -1)).mean(dim=0), plan.merge(maps)


def _bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The reference's resize: float32, no antialiasing, cast back. Integers saturate (the reference wraps)."""
    if tuple(images.shape[-2:]) == size:
        return images
    x = F.interpolate(images.float(), size=size, mode="bicubic")
    if not images.is_floating_point():
        limits = torch.iinfo(images.dtype)
        x = x.clamp(limits.min, limits.max)
    return x.to(images.dtype)


def _level_sizes(
    height: int, width: int, scales: Sequence[float] | None, img_sizes: Sequence[Size] | None
) -> list[tuple[int, int]]:
    """(height, width) in pixels of every level of `forward`."""
    if img_sizes is not None and len(img_sizes):
        short = min(height, width)
        return [
            (round(height * size / short), round(width * size / short))
            if isinstance(size, int)
            else pair(size, "img_sizes")
            for size in img_sizes
        ]
    if scales is None or not len(scales):
        raise UserError("S2 needs scales or img_sizes, found none")
    sizes = [(int(height * scale), int(width * scale)) for scale in scales]
    for scale, size in zip(scales, sizes, strict=True):
        if min(size) < 1:
            raise UserError(f"scale {scale} of a {height} x {width} image gives {size[0]} x {size[1]} px")
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
    """Drop-in for `s2wrapper.forward`: the same arguments in the same order, and the same results.

        forward(vit, images, scales=[1, 2], num_prefix_token=1)         # (B, 1 + N, 2 * D)
        forward(cnn, images, scales=[0.5, 1], max_split_size=224, output_shape="bchw")   # (B, 2 * D, h, w)

    Args:
        model: tiles (n, C, th, tw) -> tokens (n, num_prefix_token + N, D), or a map (n, D, h, w); what holds
            them (`tensor_of`) will do.
        input: (B, C, H, W), normalised as the model wants it. Of any shape, not only square.
        scales: multiples of the input's size, cut down to whole pixels; `img_sizes` go before them.
        img_sizes: pixels, a side each (of an image that is not square, the shorter) or (height, width).
        max_split_size: side or (height, width) of a tile in pixels; default: the input's size.
        resize_output_to_idx: the level whose grid the result has.
        num_prefix_token: CLS and register tokens at the front; averaged over tiles, put in front.
        output_shape: "bnc" for tokens (B, N, D), "bchw" for maps; of the model and of the result.
        split_forward: one call a tile instead of one a level: less memory.
        grid: rows and columns of a tile's tokens. Only needed where patches are not square.

    A square level that is no whole multiple of the tile, say scale 1.5, is cut into equal smaller tiles as in
    the reference if the model takes them and they lose no pixels (168 px would, in patches of 16). Otherwise,
    and if it is not square, it is rounded to whole patches and its full-size tiles overlap (`s2robot.s2.tiling`).
    Resizing is bicubic in float32 without antialiasing. Integer images stay integers and saturate.
    Raises UserError for what cannot be done, with what was found and what was expected.
    """
    if input.ndim != 4:
        raise UserError(f"S2 needs images (B, C, H, W), found {tuple(input.shape)}")
    if output_shape not in ("bnc", "bchw"):
        raise UserError(f"output_shape: found {output_shape!r}, expected 'bnc' or 'bchw'")
    if num_prefix_token < 0 or (num_prefix_token and output_shape == "bchw"):
        raise UserError(
            f"num_prefix_token: found {num_prefix_token}, expected 0 for 'bchw', 0 or more for 'bnc'"
        )
    height, width = index(input.shape[2]), index(input.shape[3])  # numbers, under torch.compile too
    sizes = _level_sizes(height, width, scales, img_sizes)
    if not -len(sizes) <= resize_output_to_idx < len(sizes):
        raise UserError(f"resize_output_to_idx: found {resize_output_to_idx}, expected 0 to {len(sizes) - 1}")
    tile = pair(max_split_size or (height, width), "max_split_size")
    call = _Call(model, output_shape, num_prefix_token, input.shape[0] if split_forward else None, grid)

    levels: dict[int, tuple[Tensor, Tensor]] = {}  # prefix (B, P, D) and map (B, D, rows, columns)
    full = None  # rows and columns of a tile of full size
    for level, size in enumerate(sizes):
        part = (min(size[0], tile[0]), min(size[1], tile[1]))
        if size[0] % part[0] or size[1] % part[1]:
            continue
        levels[level] = call.level(input, plan_tiles(size, part))
        if part == tile:
            rows, columns = levels[level][1].shape[-2:]
            full = (rows * tile[0] // size[0], columns * tile[1] // size[1])
    for level, size in enumerate(sizes):
        if level not in levels:
            if full is None:  # only to see the grid
                rows, columns = call(_bicubic(input, tile))[1].shape[-2:]
                full = (rows, columns)
            levels[level] = _uneven(call, input, size, tile, full)
    done = [levels[level] for level in range(len(sizes))]
    out = join([maps for _, maps in done], done[resize_output_to_idx][1].shape[-2:])
    if output_shape == "bchw":
        return out
    out = out.flatten(2).transpose(1, 2)  # (B, N, D * levels)
    return torch.cat([torch.cat([p for p, _ in done], dim=-1), out], dim=1) if num_prefix_token else out


def _uneven(
    call: _Call, images: Tensor, size: tuple[int, int], tile: tuple[int, int], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """A level of `forward` that is no whole multiple of the tile, whose tokens form the grid."""
    count = -(-size[0] // tile[0])
    equal = None  # the level as the reference has it
    if size[0] == size[1] and tile[0] == tile[1] and size[0] % count == 0:
        side = size[0] // count
        try:
            equal = call.level(images, plan_tiles(size, side))
        except UserError:  # a model of one size only
            pass
        else:
            cells = [n // count for n in equal[1].shape[-2:]]
            if all(side % n == 0 and tile[0] // (side // n) == m for n, m in zip(cells, grid, strict=True)):
                return equal  # a token stands for as many pixels as in a tile of full size
    if tile[0] % grid[0] or tile[1] % grid[1]:
        if equal is not None:
            return equal
        raise UserError(
            f"S2 size {size[0]} x {size[1]} is no whole multiple of the tile {tile[0]} x {tile[1]}, whose "
            f"{grid[0]} x {grid[1]} tokens are no whole pixels that tiles could overlap by"
        )
    patch = (tile[0] // grid[0], tile[1] // grid[1])
    whole = [max(1, (side + step // 2) // step) * step for side, step in zip(size, patch, strict=True)]
    return call.level(images, plan_tiles(whole, (min(whole[0], tile[0]), min(whole[1], tile[1])), patch))


def resize(images: Tensor, size: Size) -> Tensor:
    """Float (B, C, H, W) -> (B, C, *size): exact mean of areas if H and W are multiples, else antialiased.

    An int stands for a square. Enlarging is bilinear.
    """
    height, width = (size, size) if isinstance(size, int) else size
    h, w = images.shape[-2:]
    if (h, w) == (height, width):
        return images
    if h % height == 0 and w % width == 0:
        return F.avg_pool2d(images, (h // height, w // width))
    return F.interpolate(images, size=(height, width), mode="bilinear", antialias=True)


def pyramid(images: Tensor, sizes: Sequence[int], upsampled: bool = False) -> list[Tensor]:
    """uint8 (B, H, H, 3) -> one float32 (B, 3, size, size) a size, about 0 to 255.

    The largest size comes from the images, the others from it: rendering once at the largest size is enough.
    With ``upsampled``, the first size comes from the images and the others from it, enlarged as `forward` does:
    as in the S2 paper's experiments, they hold nothing that it does not.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"expected images uint8 (B, H, W, 3), found {images.dtype} {tuple(images.shape)}")
    if images.shape[1] != images.shape[2]:
        raise UserError(f"expected square images, found height {images.shape[1]} and width {images.shape[2]}")
    frames = images.permute(0, 3, 1, 2).float().contiguous()
    if upsampled:
        first = resize(frames, sizes[0])
        return [_bicubic(first, (size, size)) for size in sizes]
    largest = resize(frames, max(sizes))
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

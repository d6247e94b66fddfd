"""S2 on any vision model, for frames of any shape.

    s2 = S2(timm.create_model("vit_small_patch16_224", pretrained=True))
    s2(frames).shape                       # uint8 (B, 448, 448, 3) -> tokens (B, 196, 768)
    s2(camera).shape                       # uint8 (B, 480, 640, 3) -> tokens (B, 14 * 19, 768)
    S2(model, scales=(1, 2, 3), block=8, output="pooled")(frames).shape      # (B, 3 * 384)

Numerics are those of `s2robot.s2.reference.forward`. What differs is where the large image comes from: by default the
frame's own pixels, antialiased on the way down; `resize="upsample"` is the paper's experiment, in which the
large image is an enlargement of the small one and holds nothing new.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.inference import prepare
from s2robot.common.errors import UserError
from s2robot.s2.reference import join, resize
from s2robot.s2.tiling import Size, Tiling, pair, plan_tiles

OUTPUTS = ("tokens", "map", "pooled")
RESIZES = ("native", "upsample")


@dataclass(frozen=True)
class Layout:
    """What S2 makes of a frame: one tiling a level, and the grid (rows, columns) of the result."""

    levels: tuple[Tiling, ...]
    grid: tuple[int, int]

    @property
    def tiles(self) -> int:
        """Tiles a frame over all levels: what the model has to compute."""
        return sum(level.count for level in self.levels)


class S2(nn.Module):
    """A vision model applied at several sizes of a frame (Shi et al., arXiv 2403.13043).

        S2(vit)(frames)                                        # tokens (B, N, 2 * D)
        S2(cnn, output="map")(frames)                          # (B, 2 * D, rows, columns)
        S2(vit, sizes=((224, 304), (448, 608)))(frames)        # sizes by hand, (height, width) in pixels
        S2(function, tile=224, patch=16, num_prefix_tokens=1)  # any callable, with the facts by hand

    Args:
        model: a timm, torchvision or Hugging Face model, a `Backbone`, or a callable (`find_backbone`).
        scales: multiples of the base size, smallest first; the result has the grid of the first.
        sizes: instead of scales, the levels in pixels: a side (of a frame that is not square, the shorter) or
            (height, width).
        block: take the features after this block, 1 to the model's depth; later ones are not computed.
        output: "tokens" (B, N, D * levels), "map" (B, D * levels, rows, columns), or "pooled"
            (B, D * levels), the map's mean, for which no map is put together.
        resize: "native" resizes the frame itself to each level: exact mean of areas where the frame is a whole
            multiple, antialiased otherwise. "upsample" brings it to the base size first and enlarges that,
            bicubic and without antialiasing, as in the paper's experiments.
        cover: where a level is no whole multiple of the tile, let tiles "overlap" (blended) or "pad" it.
        overlap: least overlap of neighbouring tiles in pixels, with cover="overlap": smoother seams, more tiles.
        frozen: no parameter has a gradient, and norms and dropout stay in evaluation mode after `train()`.
        prefix: put the prefix tokens (CLS, registers), averaged over tiles, in front of the tokens.
        base: the size of scale 1, a side or (height, width) in pixels; every frame is brought to it. Default:
            shorter side = tile, longer side from the frame's shape, rounded to whole patches.
        tile, patch, num_prefix_tokens, mean, std, processor: where the model does not tell (`find_backbone`).

    Input: uint8 RGB (B, H, W, 3), or float RGB (B, 3, H, W) in 0 to 1. Normalisation with the model's mean and
    std happens inside: do not do it before. Resizing is in float32, also under autocast; the result has the
    dtype of the model's tokens, and means are taken in float32. All tiles of all levels go through the model
    in one call. The model is shared, not copied (but for `block`): freezing it here freezes it elsewhere.
    Without `frozen` its mode (train or eval) is left as it is.

    Attributes: dim (channels of the result); grid and num_tokens (for frames of the tile's shape, or for all
    if base or sizes are (height, width); other frames: `layout(height, width)`); backbone.

    Raises UserError for arguments that do not fit together, and at the call for another type or shape.
    """

    def __init__(
        self,
        model: Any,
        scales: Sequence[float] = (1, 2),
        *,
        sizes: Sequence[Size] | None = None,
        block: int | None = None,
        output: str = "tokens",
        resize: str = "native",
        cover: str = "overlap",
        overlap: int = 0,
        frozen: bool = True,
        prefix: bool = False,
        base: Size | None = None,
        tile: int | tuple[int, int] | None = None,
        patch: int | None = None,
        num_prefix_tokens: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        processor: Any = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("output", output, OUTPUTS), ("resize", resize, RESIZES)):
            if value not in known:
                raise UserError(f"{name}: found {value!r}, expected one of {', '.join(known)}")
        if isinstance(model, Backbone):
            by_hand = {"block": block, "tile": tile, "patch": patch, "num_prefix_tokens": num_prefix_tokens}
            given = [key for key, value in by_hand.items() if value is not None]
            if given or mean or std or processor:
                raise UserError(
                    f"a Backbone has its facts; found {', '.join(given) or 'mean or std'} beside it"
                )
            self.backbone = model
        else:
            self.backbone = find_backbone(
                model,
                tile=tile,
                patch=patch,
                num_prefix_tokens=num_prefix_tokens,
                mean=mean,
                std=std,
                block=block,
                processor=processor,
            )
        if prefix and (output != "tokens" or not self.backbone.num_prefix_tokens):
            raise UserError(
                f"prefix: found output {output!r} and {self.backbone.num_prefix_tokens} prefix tokens, expected "
                "'tokens' and at least 1"
            )
        if sizes is not None and base is not None:
            raise UserError(f"give sizes {sizes} or base {base}, not both")
        if not (scales if sizes is None else sizes):
            raise UserError("S2 needs at least one scale or size, found none")
        self.scales, self.sizes, self.base = tuple(scales), None if sizes is None else tuple(sizes), base
        self.output, self.resize, self.cover, self.overlap = output, resize, cover, overlap
        self.frozen, self.prefix = frozen, prefix
        self.dim = self.backbone.dim * len(self.scales if self.sizes is None else self.sizes)
        self.grid = self.layout(*self.backbone.tile).grid
        self.num_tokens = 1 if output == "pooled" else self.grid[0] * self.grid[1] + self._front
        # (x - mean) / std in one multiplication and one addition
        inverse = 1 / torch.tensor(self.backbone.std, dtype=torch.float64)
        shift = -torch.tensor(self.backbone.mean, dtype=torch.float64) * inverse
        self.register_buffer("scale", inverse.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        if frozen:
            self.backbone.requires_grad_(False)
            self.backbone.eval()

    @property
    def _front(self) -> int:
        return self.backbone.num_prefix_tokens if self.prefix else 0

    def train(self, mode: bool = True) -> S2:
        """As in any module, but a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def prepared(self, dtype: Any = "auto") -> S2:
        """The same S2 for inference only, its model copied into the fastest form for this device.

        dtype: "auto" is bfloat16 where the device multiplies in it, else float32; or a torch dtype. See
        `s2robot.backbones.inference.prepare`. The result has that type; this module is left as it is.
        """
        fast = copy.copy(self)
        fast._modules = {**self._modules, "backbone": prepare(self.backbone, dtype)}
        fast.frozen = True
        return fast.eval()

    def layout(self, height: int, width: int) -> Layout:
        """The tilings of a frame of height x width pixels and the grid of the result.

        Raises UserError if a level cannot be tiled, with its size and the tile's.
        """
        tile, patch = self.backbone.tile, self.backbone.patch
        if self.sizes is not None:
            first = self._size(self.sizes[0], height, width)
            sizes = [first, *(self._size(size, *first) for size in self.sizes[1:])]
        else:
            one = self._base(height, width)
            sizes = [(self._whole(one[0] * scale), self._whole(one[1] * scale)) for scale in self.scales]
        for size in sizes:
            if size[0] < tile[0] or size[1] < tile[1]:
                raise UserError(
                    f"S2 level {size[0]} x {size[1]} px is smaller than the tile {tile[0]} x {tile[1]} px"
                )
        levels = tuple(plan_tiles(size, tile, patch, self.cover, self.overlap) for size in sizes)
        return Layout(levels, (-(-sizes[0][0] // patch), -(-sizes[0][1] // patch)))

    def _whole(self, pixels: float) -> int:
        """Rounded to whole patches."""
        return int(pixels / self.backbone.patch + 0.5) * self.backbone.patch

    def _base(self, height: int, width: int) -> tuple[int, int]:
        """The size of scale 1: the given one, or the smallest of the frame's shape that covers the tile."""
        if self.base is not None:
            return self._size(self.base, height, width)
        th, tw = self.backbone.tile
        ratio = max(th / height, tw / width)
        return max(th, self._whole(height * ratio)), max(tw, self._whole(width * ratio))

    def _size(self, size: Size, height: int, width: int) -> tuple[int, int]:
        """A size by hand; an int is the shorter side of something of the shape height x width."""
        if not isinstance(size, int) or height == width:
            return pair(size, "S2 size")
        ratio = size / min(height, width)
        return (
            size if height <= width else self._whole(height * ratio),
            size if width <= height else self._whole(width * ratio),
        )

    def forward(self, images: Tensor) -> Tensor:
        """uint8 RGB (B, H, W, 3), or float RGB (B, 3, H, W) in 0 to 1, to what `output` says."""
        layout = self.layout(*self._frame_size(images))
        outputs = self.backbone(torch.cat(self.tiles(images, layout)))
        front = self.backbone.num_prefix_tokens
        rows, columns = (side // self.backbone.patch for side in self.backbone.tile)
        if outputs.shape[1] != front + rows * columns:
            raise UserError(
                f"the model gives {outputs.shape[1]} tokens a tile, expected {front} + {rows} x {columns}"
            )
        outputs = outputs.unflatten(0, (layout.tiles, -1))  # (tiles, B, P + N, D)
        parts = outputs.split([level.count for level in layout.levels])
        if self.output == "pooled":
            means = [
                _pool(part[:, :, front:], level, (rows, columns), layout.grid)
                for part, level in zip(parts, layout.levels, strict=True)
            ]
            return torch.cat(means, dim=-1).to(outputs.dtype)  # (B, D * levels)
        maps = []
        for part, level in zip(parts, layout.levels, strict=True):
            tokens = part[:, :, front:].flatten(0, 1).transpose(1, 2)  # (count * B, D, N)
            maps.append(level.merge(tokens.unflatten(2, (rows, columns))))
        out = join(maps, layout.grid)  # (B, D * levels, rows, columns)
        if self.output == "map":
            return out
        out = out.flatten(2).transpose(1, 2)
        if not self.prefix:
            return out
        prefix = torch.cat([part[:, :, :front].float().mean(dim=0) for part in parts], dim=-1)
        return torch.cat([prefix.to(out.dtype), out], dim=1)

    def tiles(self, images: Tensor, layout: Layout) -> list[Tensor]:
        """The normalised tiles of every level, (count * B, 3, th, tw) in the dtype of the model."""
        x = images
        if images.dtype == torch.uint8:
            x = images.permute(0, 3, 1, 2).float().contiguous() / 255
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.resize == "upsample":
                x = resize(x, self._base(*x.shape[-2:]) if self.sizes is None else layout.levels[0].frame)
            parts = []
            for level in layout.levels:
                if self.resize == "native" or level.frame == tuple(x.shape[-2:]):
                    y = resize(x, level.frame)
                else:
                    y = F.interpolate(x, size=level.frame, mode="bicubic")
                parts.append(level.split(y * self.scale + self.shift))
        dtype = next((p.dtype for p in self.backbone.parameters() if p.is_floating_point()), torch.float32)
        return [part.to(dtype) for part in parts]

    def _frame_size(self, images: Tensor) -> tuple[int, int]:
        """(H, W) of the images; UserError for another type or shape."""
        height, width = None, None
        if images.dtype == torch.uint8 and images.ndim == 4 and images.shape[3] == 3:
            height, width = images.shape[1:3]
        elif images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3:
            height, width = images.shape[2:]
        if height is not None and width is not None:
            # index() fixes the size under torch.compile, which else makes it a symbol at the second size it sees
            return index(height), index(width)
        raise UserError(
            f"S2 takes uint8 (B, H, W, 3) or float (B, 3, H, W) in 0 to 1, found {images.dtype} {tuple(images.shape)}"
        )

    def extra_repr(self) -> str:
        levels = f"scales={self.scales}" if self.sizes is None else f"sizes={self.sizes}"
        return (
            f"{levels}, output={self.output!r}, resize={self.resize!r}, cover={self.cover!r}, "
            f"overlap={self.overlap}, frozen={self.frozen}, dim={self.dim}, grid={self.grid}"
        )


def _pool(tokens: Tensor, level: Tiling, cells: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The mean of a level's map from its tiles' tokens (count, B, N, D), in float32 (B, D), without the map."""
    if level.even(*cells, grid):
        return tokens.float().mean(dim=2).mean(dim=0)
    weights = level.weights(*cells, grid).to(tokens.device)  # (count, N)
    return (tokens.float() * weights[:, None, :, None]).sum(dim=(0, 2))

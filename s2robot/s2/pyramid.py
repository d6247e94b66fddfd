"""Resize an image to several sizes.

pyramid(images, [(128, 128), (256, 256)])                     # each level from the image itself
pyramid(images, sizes, first=(256, 256))                      # from the largest: render once, then average
pyramid(images, sizes, first=(128, 128), enlarge=True)        # as in the S2 paper: nothing new in the larger ones
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from s2robot.core.errors import UserError
from s2robot.s2.tiling import Size


def resize(images: Tensor, size: Size) -> Tensor:
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
    """F.avg_pool2d(images, 2) to the last bit, in half the time: the same additions, a row of pixels at once."""
    top, bottom = images[..., ::2, :], images[..., 1::2, :]
    total = top[..., ::2] + top[..., 1::2]
    return total.add_(bottom[..., ::2]).add_(bottom[..., 1::2]).mul_(0.25)


def bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize as the reference does: in float32, without antialiasing. Integers saturate (the reference wraps)."""
    if tuple(images.shape[-2:]) == size:
        return images
    x = F.interpolate(images.float(), size=size, mode="bicubic")
    if not images.is_floating_point():
        limits = torch.iinfo(images.dtype)
        x = x.clamp(limits.min, limits.max)
    return x.to(images.dtype)


def pyramid(
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    first: tuple[int, int] | None = None,
    enlarge: bool = False,
) -> list[Tensor]:
    """Resize float (B, C, H, W) to one (B, C, *size) a size.

    first: resize the images to this size before all others; None makes each level from the images.
    enlarge: make the levels as `forward` does, bicubic without antialiasing.
    """
    x = images if first is None else resize(images, first)
    return [bicubic(x, size) if enlarge else resize(x, size) for size in sizes]


def tensor_of(images: Any, device: torch.device | None = None) -> Tensor:
    """Return a tensor as it is, or a numpy array as a tensor on the device; UserError for anything else."""
    if isinstance(images, Tensor):
        return images
    if isinstance(images, np.ndarray) and images.dtype.kind in "uif":
        return torch.as_tensor(np.ascontiguousarray(images), device=device)  # torch rejects flipped views
    found = (
        f"{type(images).__name__} of {images.dtype}"
        if isinstance(images, np.ndarray)
        else type(images).__name__
    )
    raise UserError(f"images: expected a tensor or a numpy array of numbers, got a {found}")


def channels_first(images: Tensor) -> Tensor:
    """Convert uint8 RGB (B, H, W, 3) to float32 (B, 3, H, W), 0 to 255; UserError for another type or shape."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"images: expected uint8 (B, H, W, 3), got {images.dtype} {tuple(images.shape)}")
    return images.permute(0, 3, 1, 2).contiguous().float()  # permuted as bytes, which is faster

"""Encoders whose weights are all trained with a policy: for acting, and for caching frames instead of features.

    encoder = build_encoder({"name": "timm:resnet18", "trained": True, "crop": 0.9, "img_size": 96, "scales": [1]})
    encoder.encode_cameras([hand, left]).shape     # the central 96 px of frames of 107 px -> (B, 2, 9, 512)
    Pixels(encoder).encode_cameras([hand, left])   # the frames themselves, uint8 (B, 2, 107 * 107, 3)

`s2robot.encoders.tuning.FullEncoder` adds gradients and random crops. Source: Chi et al., 2023 (arXiv 2303.04137).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2robot.backbones.device import channels_first, moved, tensor_of
from s2robot.core.errors import UserError
from s2robot.encoders.encoder import S2Encoder, stack_padded
from s2robot.s2.engine import resize
from s2robot.s2.tiling import Layout, Size


class TrainedEncoder(S2Encoder):
    """An encoder of a crop of each frame, with the weights of one camera and, in `copies`, those of the others.

    Args:
        crop: fraction of each side of a frame in the model's input, a centre crop when acting.
        copies: one encoder for each camera after the first; if empty, all cameras share the weights.

    Frames are resized to `frame_size` and rounded to uint8, as in training; a crop then has the size of the largest scale.
    """

    def __init__(self, model: nn.Module, crop: float, copies: Sequence[S2Encoder] = (), **args: Any) -> None:
        self.crop = crop  # needed when the base class plans a layout
        super().__init__(model, **args)
        self.copies = nn.ModuleList(copies)
        if copies:
            hashes = "".join([self.weights_sha256, *(copy.weights_sha256 for copy in copies)])
            self.weights_sha256 = hashlib.sha256(hashes.encode()).hexdigest()

    @property
    def image_size(self) -> int:
        """Side of the square frames to render; their crop has the size of the largest scale."""
        return round(super().image_size / self.crop)

    @property
    def num_parameters(self) -> int:
        return super().num_parameters * (1 + len(self.copies))

    def check_frames(self, sizes: Mapping[str, Size]) -> None:
        """Raise UserError for recorded frames that are smaller than the model's input."""
        for camera, (height, width) in sizes.items():
            if min(height, width) < super().image_size:
                raise UserError(
                    f"encoder.img_size: expected at most {min(height, width)} px for the largest of s2.scales, as camera "
                    f"'{camera}' has frames of {height} x {width} px, got {super().image_size}"
                )

    def window(self, height: int, width: int) -> Size:
        """Return (H, W) of the crop of frames of this shape."""
        high, wide = self.frame_size(height, width)
        return round(high * self.crop), round(wide * self.crop)

    def layout_of(self, height: int, width: int) -> Layout:
        return super().layout_of(*self.window(height, width))

    def fitted(self, images: Tensor | np.ndarray) -> Tensor:
        """Resize uint8 (B, H, W, 3) to `frame_size`, uint8 (B, h, w, 3)."""
        images = moved(tensor_of(images), self.scale.device)
        size = self.frame_size(*channels_first(images[:1]).shape[-2:])
        if tuple(images.shape[1:3]) == size:
            return images
        sized = (resize(channels_first(part), size) for part in images.split(16))
        return torch.cat([x.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1) for x in sized])

    def _levels(self, images: Tensor, layout: Layout) -> list[Tensor]:
        frames = self.fitted(images)
        return self.levels_of_crop(center_crop(frames, self.window(*frames.shape[1:3])), layout)

    def levels_of_crop(self, crops: Tensor, layout: Layout) -> list[Tensor]:
        """uint8 crops (B, h, w, 3) -> normalised levels (B, 3, height, width)."""
        return super()._levels(crops, layout)

    def encode_cameras(self, frames: Sequence[np.ndarray]) -> Tensor:
        if not self.copies:
            return super().encode_cameras(frames)
        each = zip([self, *self.copies], frames, strict=True)
        return stack_padded([encoder.encode(seen) for encoder, seen in each])


class Pixels(TrainedEncoder):
    """Return the frames that a `TrainedEncoder` crops, uint8 (B, h * w, 3), so that the feature cache stores them."""

    stored, dtype, computes_in = "uint8", "float32", torch.float32

    def __init__(self, encoder: TrainedEncoder) -> None:
        nn.Module.__init__(self)
        for name in ("name", "sizes", "crop", "upsampled"):
            setattr(self, name, getattr(encoder, name))
        self.register_buffer("scale", torch.empty(0), persistent=False)  # stores the device
        self.copies = nn.ModuleList()
        self.dim, self.fingerprint = 3, f"pixels {encoder.image_size}"

    def map_of(self, height: int, width: int) -> tuple[int, int]:
        return self.frame_size(height, width)

    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        return self.fitted(images).flatten(1, 2)


def center_crop(images: Tensor, size: Size) -> Tensor:
    """Crop the centre of (B, H, W, 3)."""
    top, left = ((n - m) // 2 for n, m in zip(images.shape[1:3], size, strict=True))
    return images[:, top : top + size[0], left : left + size[1]]


def random_crop(images: Tensor, size: Size) -> Tensor:
    """Crop each image of (B, H, W, 3) at a random position of its own."""
    positions = []
    for full, cropped in zip(images.shape[1:3], size, strict=True):
        first = torch.randint(full - cropped + 1, (len(images), 1), device=images.device)
        positions.append(first + torch.arange(cropped, device=images.device))  # (B, cropped)
    rows, columns = positions
    image = torch.arange(len(images), device=images.device)[:, None, None]
    return images[image, rows[:, :, None], columns[:, None]]


def with_group_norms(model: nn.Module) -> nn.Module:
    """Replace batch norms with group norms of 16 channels per group, which suit small batches and averaged weights."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                width = child.num_features
                norm: nn.Module = nn.GroupNorm(math.gcd(width, max(1, width // 16)), width)
                act = getattr(child, "act", None)  # timm's norm with a built-in activation
                setattr(module, name, norm if act is None else nn.Sequential(norm, act))
    return model

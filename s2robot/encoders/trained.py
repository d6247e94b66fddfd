"""Encoders that are trained whole with a policy: what acts, and what a cache holds in place of features.

    encoder = build_encoder({"name": "timm:resnet18", "trained": True, "crop": 0.9, "img_size": 96, "scales": [1]})
    encoder.encode_cameras([hand, left]).shape     # the middle 96 px of frames of 107 px -> (B, 2, 9, 512)
    Pixels(encoder).encode_cameras([hand, left])   # the frames themselves, uint8 (B, 2, 107 * 107, 3)

`s2robot.encoders.tuning.Whole` is the same with gradients and random crops. Source: Chi et al., 2023 (arXiv 2303.04137).
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
    """An encoder of a crop of each frame, with the weights of one camera and, in `copies`, of the further ones.

    Args:
        crop: share of each side of a frame that the model sees: its middle when acting.
        copies: one for each camera after the first; without them, all cameras have the same weights.

    Frames are brought to `frame_size` and rounded to uint8, as the training read them; a crop then has the size of the
    largest scale.
    """

    def __init__(self, model: nn.Module, crop: float, copies: Sequence[S2Encoder] = (), **how: Any) -> None:
        self.crop = crop  # before the base class plans a layout
        super().__init__(model, **how)
        self.copies = nn.ModuleList(copies)
        if copies:
            every = "".join([self.weights_sha256, *(copy.weights_sha256 for copy in copies)])
            self.weights_sha256 = hashlib.sha256(every.encode()).hexdigest()

    @property
    def image_size(self) -> int:
        """Side of the square frames to render, of which a crop has the size of the largest scale."""
        return round(super().image_size / self.crop)

    @property
    def num_parameters(self) -> int:
        return super().num_parameters * (1 + len(self.copies))

    def check_frames(self, sizes: Mapping[str, Size]) -> None:
        """Reject recorded frames that are smaller than what the model takes (UserError)."""
        for camera, (height, width) in sizes.items():
            if min(height, width) < super().image_size:
                raise UserError(
                    f"encoder.img_size: expected at most {min(height, width)} px for the largest of s2.scales, as camera "
                    f"'{camera}' has frames of {height} x {width} px, got {super().image_size}"
                )

    def window(self, height: int, width: int) -> Size:
        """Return (H, W) of the crop of frames of that shape."""
        high, wide = self.frame_size(height, width)
        return round(high * self.crop), round(wide * self.crop)

    def layout_of(self, height: int, width: int) -> Layout:
        return super().layout_of(*self.window(height, width))

    def fitted(self, images: Tensor | np.ndarray) -> Tensor:
        """Bring uint8 (B, H, W, 3) to `frame_size`, uint8 (B, h, w, 3)."""
        images = moved(tensor_of(images), self.scale.device)
        size = self.frame_size(*channels_first(images[:0]).shape[-2:])
        if tuple(images.shape[1:3]) == size:
            return images
        sized = (resize(channels_first(part), size) for part in images.split(16))
        return torch.cat([x.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1) for x in sized])

    def _levels(self, images: Tensor, layout: Layout) -> list[Tensor]:
        frames = self.fitted(images)
        return self.levels_of_crop(middle(frames, self.window(*frames.shape[1:3])), layout)

    def levels_of_crop(self, crops: Tensor, layout: Layout) -> list[Tensor]:
        """uint8 crops (B, h, w, 3) -> normalised levels (B, 3, height, width)."""
        return super()._levels(crops, layout)

    def encode_cameras(self, frames: Sequence[np.ndarray]) -> Tensor:
        if not self.copies:
            return super().encode_cameras(frames)
        each = zip([self, *self.copies], frames, strict=True)
        return stack_padded([encoder.encode(seen) for encoder, seen in each])


class Pixels(TrainedEncoder):
    """Gives the frames that a `TrainedEncoder` crops, uint8 (B, h * w, 3), so that the cache of features holds them."""

    stored = "uint8"

    def __init__(self, encoder: TrainedEncoder) -> None:
        nn.Module.__init__(self)
        for name in ("name", "sizes", "crop", "upsampled"):
            setattr(self, name, getattr(encoder, name))
        self.register_buffer("scale", torch.empty(0), persistent=False)  # for its device
        self.copies = nn.ModuleList()
        self.dim, self.fingerprint = 3, f"pixels {encoder.image_size}"

    def map_of(self, height: int, width: int) -> tuple[int, int]:
        return self.frame_size(height, width)

    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        return self.fitted(images).flatten(1, 2)


def middle(images: Tensor, size: Size) -> Tensor:
    """Cut the middle of (B, H, W, 3)."""
    top, left = ((n - m) // 2 for n, m in zip(images.shape[1:3], size, strict=True))
    return images[:, top : top + size[0], left : left + size[1]]


def anywhere(images: Tensor, size: Size) -> Tensor:
    """Cut a window at a random place out of each of (B, H, W, 3)."""
    places = []
    for whole, part in zip(images.shape[1:3], size, strict=True):
        first = torch.randint(whole - part + 1, (len(images), 1), device=images.device)
        places.append(first + torch.arange(part, device=images.device))  # (B, part)
    rows, columns = places
    every = torch.arange(len(images), device=images.device)[:, None, None]
    return images[every, rows[:, :, None], columns[:, None]]


def grouped(model: nn.Module) -> nn.Module:
    """Replace every batch norm by a group norm of 16 channels a group: averaged weights and small batches need no statistics."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                width = child.num_features
                norm: nn.Module = nn.GroupNorm(math.gcd(width, max(1, width // 16)), width)
                act = getattr(child, "act", None)  # timm's norm with an activation in it
                setattr(module, name, norm if act is None else nn.Sequential(norm, act))
    return model

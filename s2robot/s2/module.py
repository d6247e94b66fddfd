"""S2 on any vision model, for frames of any shape.

    s2 = S2(timm.create_model("vit_small_patch16_224", pretrained=True))
    s2(frames).shape                       # uint8 (B, 448, 448, 3) -> tokens (B, 196, 768)
    s2(camera).shape                       # uint8 (B, 480, 640, 3) -> tokens (B, 14 * 19, 768)
    S2(model, scales=(1, 2, 3), block=8, output="pooled")(frames).shape      # (B, 3 * 384)

Numerics are those of `s2robot.s2.reference.forward`, but each level comes from the frame's own pixels, antialiased.
`resize="upsample"` enlarges the small image instead, as in the paper's experiments, and adds no information.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from operator import index
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from s2robot.backbones.backbone import find_backbone
from s2robot.backbones.device import channels_first, tensor_of
from s2robot.backbones.inference import prepare, shared_copy
from s2robot.backbones.libraries import Overrides
from s2robot.core.errors import UserError, one_of
from s2robot.s2.engine import encode, pyramid
from s2robot.s2.tiling import Layout, Size, base_size, plan_levels


class S2(nn.Module):
    """A vision model applied at several sizes of a frame (Shi et al., arXiv 2403.13043).

        S2(vit)(frames)                                        # tokens (B, N, 2 * D)
        S2(cnn, output="map")(frames)                          # (B, 2 * D, rows, columns)
        S2(vit, sizes=((224, 304), (448, 608)))(frames)        # explicit sizes, (height, width) in pixels
        S2(function, tile=224, patch=16, num_prefix_tokens=1)  # any callable, with explicit facts

    Args:
        model: a timm, torchvision or Hugging Face model, a `Backbone`, or a callable (`find_backbone`).
        scales: multiples of the base size, smallest first; the result has the grid of the first. Default: (1, 2). At
            scale 1 the shorter side equals the tile's, and the longer one is rounded to whole patches.
        sizes: the levels in pixels, instead of scales: the frame's shorter side, or (height, width).
        output: "tokens" (B, N, D * levels), "map" (B, D * levels, rows, columns), or "pooled" (B, D * levels), the map's mean.
        resize: "native" resizes the frame to each level (exact area mean at whole multiples, else antialiased);
            "upsample" resizes it to the base size and enlarges that, bicubic, as in the paper's experiments.
        overlap: minimum overlap of neighbouring tiles in pixels; a larger one gives smoother seams and more tiles.
        frozen: use a copy that shares the model's weights, without gradients and always in evaluation mode.
        prefix: prepend the prefix tokens (CLS, registers), averaged over tiles.
        overrides: block, tile, patch, num_prefix_tokens, mean, std, processor: see `find_backbone`.

    Input: uint8 RGB (B, H, W, 3), or float RGB (B, 3, H, W) in 0 to 1, as a tensor or a numpy array, not normalised.
    Resizing and averaging use float32, also under autocast; the result has the dtype of the model's tokens. All tiles of
    all levels go through the model in one call. Without `frozen` the model is shared and its mode does not change.

    Attributes: dim (channels of the result), grid and num_tokens (for frames of the tile's shape; for other frames see
    `layout(height, width)`), backbone. Raises UserError for incompatible arguments or unsupported input.
    """

    def __init__(
        self,
        model: Any,
        scales: Sequence[float] | None = None,
        *,
        sizes: Sequence[int | Size] | None = None,
        output: str = "tokens",
        resize: str = "native",
        overlap: int = 0,
        frozen: bool = True,
        prefix: bool = False,
        **overrides: Unpack[Overrides],
    ) -> None:
        super().__init__()
        one_of("output", output, ("tokens", "map", "pooled"))
        one_of("resize", resize, ("native", "upsample"))
        if scales is not None and sizes is not None:
            raise UserError("sizes: expected either scales or sizes, got both")
        backbone = find_backbone(model, **overrides)
        self.scales = (1, 2) if scales is None else tuple(scales)
        self.sizes = None if sizes is None else tuple(sizes)
        self.output, self.resize, self.overlap, self.frozen = output, resize, overlap, frozen
        self.prefix = prefix and output == "tokens"
        self.backbone = shared_copy(backbone).eval() if frozen else backbone
        self.dim = backbone.dim * len(self.scales if self.sizes is None else self.sizes)
        self.grid = self.layout(*backbone.tile).grid
        front = backbone.num_prefix_tokens if self.prefix else 0
        self.num_tokens = 1 if output == "pooled" else self.grid[0] * self.grid[1] + front
        # (x - mean) / std in one multiplication and one addition
        inverse = 1 / torch.tensor(backbone.std, dtype=torch.float64)
        shift = -torch.tensor(backbone.mean, dtype=torch.float64) * inverse
        self.register_buffer("scale", inverse.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        self._range_seen = False

    def train(self, mode: bool = True) -> S2:
        """Set the mode; a frozen model stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def prepared(self, dtype: Any = "auto") -> S2:
        """Return a copy for inference, with the model in this device's fastest form; see `inference.prepare`.

        dtype: a torch dtype, or "auto": bfloat16 if the device supports it in hardware, else float32.
        """
        fast = shared_copy(self)
        fast.backbone, fast.frozen = prepare(self.backbone, dtype), True
        return fast.eval()

    def layout(self, height: int, width: int) -> Layout:
        """Return the tilings and the grid for frames of height x width pixels; UserError if they cannot be tiled."""
        model = self.backbone
        return plan_levels(height, width, model.tile, model.patch, self.scales, self.sizes, self.overlap)

    def forward(self, images: Tensor | np.ndarray) -> Tensor:
        """Map uint8 RGB (B, H, W, 3), or float RGB (B, 3, H, W) in 0 to 1, to features."""
        x = tensor_of(images, self.scale.device)
        if x.is_floating_point() and x.ndim == 4 and x.shape[1] == 3:
            self._check_range(x)
            x = x.float()
        else:
            x = channels_first(x) / 255
        # index() keeps the size static under torch.compile, which otherwise makes the second size symbolic
        layout = self.layout(index(x.shape[2]), index(x.shape[3]))
        front = self.backbone.num_prefix_tokens
        return encode(self.backbone, self._levels(x, layout), layout, front, self.output, self.prefix)

    def _levels(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """Resize (B, 3, H, W) to every level and normalise it, in the dtype of the model."""
        first = None
        if self.resize == "upsample":
            first = layout.levels[0].frame
            if self.sizes is None:
                model = self.backbone
                first = base_size(index(x.shape[2]), index(x.shape[3]), model.tile, model.patch)
        dtype = next((p.dtype for p in self.backbone.parameters() if p.is_floating_point()), torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            levels = pyramid(x, [level.frame for level in layout.levels], first, first is not None)
            return [(y * self.scale + self.shift).to(dtype) for y in levels]

    def _check_range(self, images: Tensor) -> None:
        """Warn if the first float images are in 0 to 255; later ones are not checked, to save time."""
        if self._range_seen or torch.compiler.is_compiling() or not images.numel():
            return
        self._range_seen = True
        if (maximum := float(images.detach().amax())) > 2:
            warnings.warn(
                f"S2 expects float images in 0 to 1, got a value of {maximum:g}; divide by 255 or pass uint8 (B, H, W, 3)",
                stacklevel=4,
            )

    def __repr__(self) -> str:
        return f"S2({self.backbone.extra_repr()}, {self.extra_repr()})"

    def extra_repr(self) -> str:
        levels = f"scales={self.scales}" if self.sizes is None else f"sizes={self.sizes}"
        return (
            f"{levels}, output={self.output!r}, resize={self.resize!r}, overlap={self.overlap}, "
            f"frozen={self.frozen}, dim={self.dim}, grid={self.grid}"
        )

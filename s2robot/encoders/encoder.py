"""Frozen encoders: images in, S2 tokens out.

    encoder = build_encoder({"name": "mvp-tiny", "sizes": [128, 256]})     # `s2robot.encoders.build`
    encoder.encode(images).shape           # uint8 (B, 256, 256, 3) -> float32 (B, 64, 384)
    encoder.fingerprint                    # changes with anything that changes a feature

    encoder.encode(wide).shape             # uint8 (B, 480, 640, 3) -> float32 (B, 88, 384): a map of 8 x 11

A frame keeps its shape: a size is its shorter side, the longer one is rounded to whole patches, and square tiles of the
model's own size, overlapping where they must, cover all of it. So nothing is cut off or squashed (but by half a patch),
whatever the model, and its position embedding is the one that it was trained with.

Own models: `S2Encoder(model, sizes)` takes whatever `s2robot.backbones.backbone.find_backbone` does. S2 with gradients,
maps: `s2robot.s2.module.S2`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.device import fitting, moved
from s2robot.backbones.facts import Given
from s2robot.backbones.inference import prepare
from s2robot.backbones.libraries import structure
from s2robot.backbones.vit import weights_sha256
from s2robot.common.errors import UserError
from s2robot.encoders.repeats import Repeats
from s2robot.s2.engine import Model, encode
from s2robot.s2.layout import Layout, Sizes, square
from s2robot.s2.pyramid import channels_first, pyramid, tensor_of

POOLS = ("tokens", "mean")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RESOLUTIONS = ("native", "upsampled")


class S2Encoder(nn.Module):
    """A frozen model applied at several image sizes.

    Args:
        model: a `Backbone`, or a model that `find_backbone` knows, or any module with its tile by hand.
        sizes: sides of a square frame in pixels (the shorter one of another), each a multiple of the tile, smallest
            first; (tile,) is plain encoding.
        pool: "tokens" for a grid of tokens, "mean" for their mean.
        name: for people.
        describe: a JSON-able mapping that tells the architecture, part of the fingerprint. Without it, that part is the
            model's layers, settings and source; a function has none that can be read, so its fingerprint needs this.
        dtype: "float32", or "bfloat16": faster where the CPU has avx512_bf16 or AMX, other features by 1e-2.
        frames_per_call: frames that go through the model at once; 4 by default on a CPU (its cache), else 64, or as many
            as the GPU's memory holds.
        resolution: of the larger sizes: "native", or "upsampled" from the first one, which adds no information.
        given: tile, num_prefix_tokens, mean, std and the like, where the model does not tell (`find_backbone`).

    The model itself is left as it is; what computes is a copy, `model`, made by `inference.prepare`.
    """

    def __init__(
        self,
        model: nn.Module,
        sizes: Sequence[int],
        pool: str = "tokens",
        *,
        name: str = "custom",
        describe: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        frames_per_call: int | None = None,
        resolution: str = "native",
        **given: Unpack[Given],
    ) -> None:
        super().__init__()
        for key, value, known in (
            ("pool", pool, POOLS),
            ("dtype", dtype, tuple(DTYPES)),
            ("resolution", resolution, RESOLUTIONS),
        ):
            if value not in known:
                raise UserError(f"encoder.{key}: found {value!r}, expected one of {', '.join(known)}")
        if frames_per_call is not None and not (
            hasattr(frames_per_call, "__index__") and frames_per_call >= 1
        ):
            raise UserError(
                f"frames_per_call: found {frames_per_call!r}, expected a whole number of at least 1"
            )
        backbone = model if isinstance(model, Backbone) else find_backbone(model, **given)
        self.sizes = tuple(int(size) for size in sizes)
        self.layout = _layout(backbone, self.sizes, name)
        self.tile, self.grid = backbone.tile[0], self.layout.grid[0]
        self._plan = Sizes(backbone.tile, backbone.patch, sizes=self.sizes)  # of frames that are not square
        self._layouts: dict[tuple[int, int], Layout] = {}
        self.upsampled = resolution == "upsampled" and len(self.sizes) > 1  # one size is the same either way
        self.num_prefix_tokens, self.dim = backbone.num_prefix_tokens, backbone.dim * len(self.sizes)
        self.pool, self.name, self.dtype, self.frames_per_call = pool, name, dtype, frames_per_call
        spec = getattr(backbone.model, "spec", None)
        self.describe = {"block": backbone.block, **(describe or {})} | (
            {"spec": asdict(spec)} if spec else {}
        )
        self.architecture = type(backbone.model).__name__
        # names that are told, by a spec or `describe`, stand for an architecture; of other models it is read
        self._structure = "" if spec or describe else structure(backbone.model)
        self.weights_sha256 = weights_sha256(backbone.model.state_dict())
        self.preprocessing = {"mean": list(backbone.mean), "std": list(backbone.std)}
        # (x / 255 - mean) / std in one multiplication and one addition
        deviation = torch.tensor(backbone.std, dtype=torch.float64)
        scale, shift = 1 / (255 * deviation), -torch.tensor(backbone.mean, dtype=torch.float64) / deviation
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        self.model = prepare(backbone, DTYPES[dtype])
        self.eval()

    def train(self, mode: bool = True) -> S2Encoder:
        """Stays in evaluation mode: a frozen encoder has no other."""
        return super().train(False)

    def _model(self, x: Tensor) -> Tensor:
        """Normalised tiles (n, 3, tile, tile) -> float32 tokens (n, P + N, D)."""
        return self.model(x.to(DTYPES[self.dtype])).float()

    @property
    def image_size(self) -> int:
        """Side of the square frames to render: the largest size that is not enlarged from another."""
        return self.sizes[0] if self.upsampled else self.sizes[-1]

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the frames to render for a camera of that shape: their shorter side is `image_size`."""
        side, short = self.image_size, min(height, width)
        return round(height * side / short), round(width * side / short)

    def layout_of(self, height: int, width: int) -> Layout:
        """How frames of height x width pixels are tiled.

        Raises UserError for a frame that the model's tiles cannot cover, or that is very long.
        """
        if height == width:
            return self.layout
        if (height, width) not in self._layouts:
            if self._plan.tile[0] % self._plan.patch:
                raise UserError(_rest(self.name, self._plan.tile[0], self._plan.patch))
            self._layouts[height, width] = self._plan.layout(height, width)
        return self._layouts[height, width]

    def map_of(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a frame of height x width pixels; (1, 1) for pool="mean"."""
        return (1, 1) if self.pool == "mean" else self.layout_of(height, width).grid

    @property
    def num_tokens(self) -> int:
        """Tokens of a square image: grid squared, or 1 for pool="mean"."""
        return 1 if self.pool == "mean" else self.grid**2

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def gflops_per_image(self) -> float:
        """Multiply-adds of one square image over all sizes, in 1e9: papers call it GFLOPs (ViT-B at 224: 17.5)."""
        return self.gflops_of(self.tile, self.tile)

    def gflops_of(self, height: int, width: int) -> float:
        """The same of an image of height x width pixels."""
        return self._gflops_per_tile * self.layout_of(height, width).tiles

    @cached_property
    def _gflops_per_tile(self) -> float:
        # fused and packed kernels are not counted; where a gradient is wanted, the plain ones compute
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self._model(torch.zeros(1, 3, self.tile, self.tile, device=self.scale.device, requires_grad=True))
        return counter.get_total_flops() / 2 / 1e9

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that a feature depends on: model, weights, preprocessing, sizes, pool, dtype.

        Raises UserError for a function, or a class whose source is not found, without `describe`: two of them would
        have one fingerprint, and a cache would take one's features for the other's.
        """
        if self._structure is None:
            raise UserError(
                f"describe: found none for {self.architecture}, whose code is not known, expected a mapping that "
                "changes with it, such as {'version': 1}"
            )
        parts: dict[str, Any] = {
            "architecture": self.describe,
            "module": self.architecture,
            "weights": self.weights_sha256,
            "preprocessing": self.preprocessing,
            "tile": self.tile,
            "sizes": self.sizes,
            "pool": self.pool,
            "dtype": self.dtype,
        }
        if self.upsampled:  # left out otherwise: native features are those of before there was a choice
            parts["resolution"] = "upsampled"
        if self._structure:
            parts["structure"] = self._structure
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """uint8 (B, H, W, 3) -> what the model sees, not normalised: float32 (B, 3, height, width) a size.

        The largest size comes from the images and the others from it, or all from the first if `upsampled`.
        """
        frames = channels_first(moved(images, self.scale.device))
        sizes = [level.frame for level in self.layout_of(*frames.shape[-2:]).levels]
        return pyramid(frames, sizes, sizes[0 if self.upsampled else -1], self.upsampled)

    def _levels(self, images: Tensor) -> list[Tensor]:
        """What the model takes of uint8 images (B, H, W, 3): normalised, (B, 3, height, width) a size."""
        # A processor takes them one by one: a frame in float32 stays in its cache from the first step to the last.
        parts = images.split(1) if self.scale.device.type == "cpu" else [images]
        made = [
            [x.mul_(self.scale).add_(self.shift).to(DTYPES[self.dtype]) for x in self.pyramid(part)]
            for part in parts
        ]
        return [torch.cat(level) if len(level) > 1 else level[0] for level in zip(*made, strict=True)]

    @property
    def frames_at_once(self) -> int:
        """Frames whose tiles go through the model in one call."""
        return self.frames_per_call or (4 if self.scale.device.type == "cpu" else 64)

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """uint8 RGB (B, H, W, 3) -> float32 tokens (B, N, dim), row by row, the CLS token left out.

        N is `num_tokens` for square frames, for others that of the map `map_of(H, W)`. Frames of `image_size` are used
        as they are, multiples of it averaged by area, others resized with antialiasing. Raises UserError for another
        type or shape.
        """
        at_once = self.frames_at_once

        model = Repeats(self._model) if self.scale.device.type == "cpu" else self._model

        def encoded(frames: Tensor) -> Tensor:
            return self._features(model, self._levels(frames), self.layout_of(*frames.shape[1:3]))

        images = tensor_of(images)
        outputs, fits = fitting(encoded, images, at_once)
        if fits < at_once:
            self.frames_per_call = fits  # the next call does not try again
        if not outputs:
            rows, columns = self.map_of(*channels_first(images).shape[-2:])
            return torch.empty(0, rows * columns, self.dim, device=self.scale.device)
        out = torch.cat(outputs)
        return out[:, None] if self.pool == "mean" else out

    forward = encode

    def _features(self, model: Model, levels: Sequence[Tensor], layout: Layout) -> Tensor:
        """Normalised levels (B, 3, height, width) each -> (B, N, dim), or (B, dim) for pool="mean"; model: as `_model`."""
        output = "pooled" if self.pool == "mean" else "tokens"
        return encode(model, levels, layout, self.num_prefix_tokens, output)


def _layout(backbone: Backbone, sizes: Sequence[int], name: str) -> Layout:
    """How frames of these sizes are tiled; UserError for a model or sizes that squares cannot be made of."""
    (tile, width), patch = backbone.tile, backbone.patch
    if tile != width:
        raise UserError(f"encoder {name}: found a tile of {backbone.tile} px, expected a square one")
    layout = square(sizes, tile, patch)
    if list(sizes) != sorted(set(sizes)):
        raise UserError(f"encoder.sizes: found {list(sizes)}, expected each once and smallest first")
    for size in sizes:
        if size % sizes[0]:  # its cells would not fall evenly into those of the base grid
            raise UserError(f"S2 size {size} is not a whole multiple of the first size {sizes[0]}")
    if (
        tile % patch and layout.tiles > 1
    ):  # the model's own rest is at the frame's edge, a tile's in its midst
        raise UserError(_rest(name, tile, patch))
    return layout


def _rest(name: str, tile: int, patch: int) -> str:
    return (
        f"encoder {name}: its tile of {tile} px is no whole number of patches of {patch} px, so tiles would lose "
        f"pixels between them; give a tile (encoder.img_size) of {tile // patch * patch}"
    )

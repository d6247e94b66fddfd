"""Frozen encoders: images in, S2 tokens out.

    encoder = build_encoder({"name": "mvp-tiny", "sizes": [128, 256]})     # `s2robot.encoders.build`
    encoder.encode(images).shape           # uint8 (B, 256, 256, 3) -> float32 (B, 64, 384)
    encoder.fingerprint                    # changes whenever the features change
    encoder.encode(camera).shape           # uint8 (B, 480, 640, 3) -> float32 (B, 88, 384): a map of 8 x 11

A frame keeps its aspect ratio: a size is its shorter side, the longer one is rounded to whole patches, and square tiles
of the model's own size cover it, overlapping if necessary, so the trained position embedding applies unchanged.

Your own model: `S2Encoder(model, sizes)` accepts what `s2robot.backbones.backbone.find_backbone` accepts. For S2 with
gradients or maps use `s2robot.s2.module.S2`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.backbones.backbone import find_backbone
from s2robot.backbones.device import channels_first, fitting, moved, tensor_of
from s2robot.backbones.inference import default_dtype, prepare
from s2robot.backbones.libraries import Overrides, check_tile, structure
from s2robot.backbones.weights import weights_sha256
from s2robot.core.errors import UserError, one_of
from s2robot.s2.engine import Model, encode, pyramid
from s2robot.s2.tiling import Layout, plan_levels, square


class S2Encoder(nn.Module):
    """A frozen model applied at several image sizes.

    Args:
        model: a `Backbone`, a model that `find_backbone` recognises, or any module with `tile` given.
        sizes: sides of a square frame in pixels (the shorter side of other frames), multiples of the tile, smallest
            first; (tile,) is plain encoding.
        pool: "tokens" for a grid of tokens, "mean" for their mean.
        name: for messages.
        describe: a JSON-able mapping that identifies the architecture in the fingerprint. Without it the fingerprint
            covers the model's layers, settings and source; a plain function has none, so it needs `describe`.
        dtype: "float32", or "bfloat16": twice as fast, features differ by 1e-2. A device that would emulate bfloat16
            computes in float32 instead; both have one fingerprint, since other CPU models also differ in bfloat16.
        frames_per_call: frames in one call of the model; default 4 on a CPU (to fit its cache), else 64, or as many as
            fit into the GPU's memory.
        resolution: how larger sizes are made: "native", or "upsampled" from the first one, which adds no information.
        grid_size: side of the square frame that determines the grid of the features; larger maps are averaged. Default:
            the smallest size.
        overrides: tile, num_prefix_tokens, mean, std etc., if the model does not provide them (`find_backbone`).

    The model passed in is not changed; `model` is a copy made by `inference.prepare`.
    """

    stored: str | None = None  # number format in a cache, if not the cache's default

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
        grid_size: int | None = None,
        **overrides: Unpack[Overrides],
    ) -> None:
        super().__init__()
        one_of("encoder.pool", pool, ("tokens", "mean"))
        one_of("encoder.dtype", dtype, ("float32", "bfloat16"))
        one_of("s2.resolution", resolution, ("native", "upsampled"))
        backbone = find_backbone(model, **overrides)
        self.sizes = tuple(int(size) for size in sizes)
        self.tile, self._patch = backbone.tile[0], backbone.patch
        self.layout = square(self.sizes, self.tile, self._patch)
        ordered = sorted(size for size in {*self.sizes} if size % self.sizes[0] == 0)
        # otherwise the cells would not align on one grid
        if backbone.tile[1] != self.tile or list(self.sizes) != ordered:
            raise UserError(
                "encoder.sizes: expected multiples of a square tile and of the first size, each once, smallest first, "
                f"got {list(sizes)} for a tile of {backbone.tile}"
            )
        if self.layout.tiles > 1:  # a remainder is harmless at the frame's edge, but not between tiles
            check_tile(backbone.tile, self._patch)
        self.grid_size = self.sizes[0] if grid_size is None else grid_size
        if not 0 < self.grid_size <= self.sizes[0] or self.sizes[0] % self.grid_size:
            raise UserError(f"s2.grid: expected a divisor of {self.sizes[0]} px, got {grid_size} px")
        self.layout = self._on_grid(self.layout)
        self.grid = self.layout.grid[0]
        self.upsampled = resolution == "upsampled" and len(self.sizes) > 1  # with one size both are the same
        self.num_prefix_tokens, self.dim = backbone.num_prefix_tokens, backbone.dim * len(self.sizes)
        self.pool, self.name, self.dtype, self.frames_per_call = pool, name, dtype, frames_per_call
        spec = getattr(backbone.model, "spec", None)
        self.describe = {"block": backbone.block, **(describe or {})} | (
            {"spec": asdict(spec)} if spec else {}
        )
        self.architecture = type(backbone.model).__name__
        # a spec or `describe` identifies the architecture; otherwise it is read from the model
        self._structure = "" if spec or describe else structure(backbone.model)
        self.weights_sha256 = weights_sha256(backbone.model.state_dict())
        self.preprocessing = {"mean": list(backbone.mean), "std": list(backbone.std)}
        # (x / 255 - mean) / std in one multiplication and one addition
        deviation = torch.tensor(backbone.std, dtype=torch.float64)
        scale, shift = 1 / (255 * deviation), -torch.tensor(backbone.mean, dtype=torch.float64) / deviation
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        self.computes_in = default_dtype(self.scale.device, dtype)
        self.model = prepare(backbone, self.computes_in)
        self.eval()

    def _apply(self, fn: Any, recurse: bool = True) -> S2Encoder:
        """Prepare the model again if the encoder moves to a device, or a machine, that computes in another dtype."""
        super()._apply(fn, recurse)
        if self.computes_in != (dtype := default_dtype(self.scale.device, self.dtype)):
            self.computes_in, self.model = dtype, prepare(self.model, dtype)
        return self

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        raise UserError("encoder: load weights into the model itself; this encoder's fingerprint covers them")

    def train(self, mode: bool = True) -> S2Encoder:
        """Stay in evaluation mode."""
        return super().train(False)

    def _model(self, x: Tensor) -> Tensor:
        """Normalised tiles (n, 3, tile, tile) -> float32 tokens (n, P + N, D)."""
        return self.model(x).float()

    @property
    def image_size(self) -> int:
        """Side of the square frames to render: the largest size that is not upsampled."""
        return self.sizes[0] if self.upsampled else self.sizes[-1]

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) of the frames to render for a camera of this shape; their shorter side is `image_size`."""
        side, short = self.image_size, min(height, width)
        return round(height * side / short), round(width * side / short)

    def layout_of(self, height: int, width: int) -> Layout:
        """Return the tiling of frames of height x width pixels; UserError if tiles cannot cover them."""
        if height == width:
            return self.layout
        levels = plan_levels(height, width, (self.tile, self.tile), self._patch, sizes=self.sizes)
        return self._on_grid(levels)

    def _on_grid(self, layout: Layout) -> Layout:
        """Return the layout with the grid of `grid_size`."""
        share = self.sizes[0] // self.grid_size
        return replace(layout, grid=(-(-layout.grid[0] // share), -(-layout.grid[1] // share)))

    def map_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of the tokens of a frame of height x width pixels; (1, 1) for pool="mean"."""
        return (1, 1) if self.pool == "mean" else self.layout_of(height, width).grid

    @property
    def num_tokens(self) -> int:
        """Tokens of a square image."""
        return math.prod(self.map_of(self.tile, self.tile))

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def gflops_per_image(self) -> float:
        """Multiply-adds of one square image over all sizes, in 1e9; called GFLOPs in papers (ViT-B at 224: 17.5)."""
        return self.gflops_of(self.tile, self.tile)

    def gflops_of(self, height: int, width: int) -> float:
        """Return the multiply-adds, in 1e9, of an image of height x width pixels."""
        return self._gflops_per_tile * self.layout_of(height, width).tiles

    @cached_property
    def _gflops_per_tile(self) -> float:
        # the counter misses fused and packed kernels; with gradients the plain ones run
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self._model(torch.zeros(1, 3, self.tile, self.tile, device=self.scale.device, requires_grad=True))
        return counter.get_total_flops() / 2 / 1e9

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that determines a feature: model, weights, preprocessing, sizes, pool, dtype.

        Raises UserError for a function, a class without source or an object among the settings, if there is no `describe`:
        two of them would share a fingerprint, and a cache would mix up their features.
        """
        if self._structure is None:
            what = f"a mapping that identifies {self.architecture}, such as {{'version': 1}}"
            raise UserError(f"describe: expected {what}, because its source or a setting is not readable")
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
        if self.upsampled:  # absent otherwise, for compatibility with older caches
            parts["resolution"] = "upsampled"
        if self.grid_size != self.sizes[0]:
            parts["grid"] = self.grid_size
        if self._structure:
            parts["structure"] = self._structure
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _levels(self, images: Tensor, layout: Layout) -> list[Tensor]:
        """uint8 images (B, H, W, 3) -> normalised levels (B, 3, height, width).

        The largest size comes from the images and the others from it, or all from the first if `upsampled`.
        """
        sizes, made = [level.frame for level in layout.levels], []
        # one frame at a time on a CPU, so that its float32 pixels stay in the cache
        for part in images.split(1) if self.scale.device.type == "cpu" else [images]:
            frames = channels_first(moved(part, self.scale.device))
            levels = pyramid(frames, sizes, sizes[0 if self.upsampled else -1], self.upsampled)
            made.append([x.mul_(self.scale).add_(self.shift).to(self.computes_in) for x in levels])
        return [torch.cat(level) if len(level) > 1 else level[0] for level in zip(*made, strict=True)]

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """Encode uint8 RGB (B, H, W, 3) to float32 tokens (B, N, dim), row by row, without the CLS token.

        N is `num_tokens` for square frames, else that of the map `map_of(H, W)`. Frames of `image_size` are used unchanged,
        multiples of it are averaged by area, others are resized with antialiasing. UserError for another type or shape.
        """
        images = tensor_of(images)
        height, width = channels_first(images[:1]).shape[-2:]
        if not len(images):
            rows, columns = self.map_of(height, width)
            return torch.empty(0, rows * columns, self.dim, device=self.scale.device)
        return self._encode(images, self.layout_of(height, width))

    def _encode(self, images: Tensor, layout: Layout) -> Tensor:
        """Encode one or more images, resized to a layout."""
        on_cpu = self.scale.device.type == "cpu"
        batch_size = self.frames_per_call or (4 if on_cpu else 64)
        model = TileCache(self._model) if on_cpu else self._model
        features = lambda x: self._features(model, self._levels(x, layout), layout)  # noqa: E731
        outputs, fitting_size = fitting(features, images, batch_size)
        if fitting_size < batch_size:
            self.frames_per_call = fitting_size  # the next call does not retry
        out = torch.cat(outputs)
        return out[:, None] if self.pool == "mean" else out

    forward = encode

    def encode_cameras(self, frames: Sequence[np.ndarray]) -> Tensor:
        """Encode one uint8 (B, H, W, 3) per camera into features (B, cameras, N, dim), padded where N differs."""
        return encode_cameras(self.encode, frames)

    def _features(self, model: Model, levels: Sequence[Tensor], layout: Layout) -> Tensor:
        """Normalised levels (B, 3, height, width) -> (B, N, dim), or (B, dim) for pool="mean"."""
        output = "pooled" if self.pool == "mean" else "tokens"
        return encode(model, levels, layout, self.num_prefix_tokens, output)


class TileCache:
    """A model that computes equal tiles once: rendered frames of a still camera repeat most of their tiles.

    Only bit-identical tiles are equal. A real camera's tiles never are; the lookup then costs about 1 % of the encoding.
    """

    def __init__(self, model: Model, size: int = 64) -> None:
        """size: number of cached tiles; the least recently used are dropped first."""
        self.model, self.size = model, size
        self._entries: dict[int, list[Tensor]] = {}  # sum of the bits -> tile and, once computed, its tokens

    def __call__(self, tiles: Tensor) -> Tensor:
        entries, new = [], []
        bits = tiles.flatten(1).view(torch.uint8)
        aligned = bits.shape[1] % 8 == 0 and bits.data_ptr() % 8 == 0
        sums = (bits.view(torch.int64) if aligned else bits).sum(1).tolist()
        for tile, key in zip(tiles, sums, strict=True):
            entry = self._entries.pop(key, None)
            if entry is None or not torch.equal(entry[0], tile):
                entry = [tile]
                new.append(entry)
            self._entries[key] = entry  # most recent last
            entries.append(entry)
        if new:
            try:
                computed = self.model(torch.stack([entry[0] for entry in new]))
            except BaseException:
                self._entries.clear()  # drop entries without tokens; a full GPU retries with fewer
                raise
            for entry, tokens in zip(new, computed, strict=True):
                entry.append(tokens)
        for key in list(self._entries)[: -self.size]:
            del self._entries[key]
        return torch.stack([tokens for _, tokens in entries])


def encode_cameras(encode: Callable[[np.ndarray], Any], frames: Sequence[np.ndarray]) -> Tensor:
    """Encode one uint8 (B, H, W, 3) per camera, each of its own size, into features (B, cameras, N, D).

    N is the largest token count of any camera; the others are padded with zeros. `PolicySpec.counts` stores each
    camera's own count.
    """
    if len({seen.shape for seen in frames}) == 1:
        together = np.stack(frames, 1)  # (B, C, H, W, 3)
        tokens = torch.as_tensor(encode(together.reshape(-1, *together.shape[2:])))
        return tokens.reshape(*together.shape[:2], *tokens.shape[1:])
    return stack_padded([torch.as_tensor(encode(seen)) for seen in frames])


def stack_padded(tokens: Sequence[Tensor]) -> Tensor:
    """Stack tokens (B, N_c, D) of each camera as (B, cameras, N, D), padded with zeros."""
    longest = max(x.shape[1] for x in tokens)
    return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in tokens], 1)


def token_maps(encoder: Any, sizes: Mapping[str, tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the rows and columns of each camera's token map, from (H, W) of its frames."""
    return [encoder.map_of(*size) for size in sizes.values()]

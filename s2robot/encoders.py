"""Frozen encoders: images in, S2 tokens out.

    encoder = build_encoder({"name": "mvp-tiny", "sizes": [128, 256]})
    encoder.encode(images).shape           # uint8 (B, 256, 256, 3) -> float32 (B, 64, 384)
    encoder.fingerprint                    # changes with anything that changes a feature

Own backbones: `S2Encoder(module, sizes, tile=...)` takes any module that maps normalised images
(B, 3, tile, tile) to tokens (B, prefix + g * g, D).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.errors import UserError
from s2robot.s2 import check_sizes, pyramid, s2_tokens, token_grid
from s2robot.vit import PUBLISHED, MVPViT, load_encoder, load_mvp, load_strict, read_torch, weights_sha256

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MVP_TINY = Path(__file__).parent / "weights" / "mvp-tiny.safetensors"
POOLS = ("tokens", "mean")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEYS = ("name", "checkpoint", "sizes", "scales", "pool", "dtype", "block", "img_size", "check_md5")


class S2Encoder(nn.Module):
    """A frozen model applied at several image sizes.

    Args:
        vit: normalised images (B, 3, tile, tile) -> tokens (B, num_prefix_tokens + g * g, D).
        sizes: image sides in pixels, each a multiple of the tile, smallest first; (tile,) is plain encoding.
        pool: "tokens" for a grid of tokens, "mean" for their mean.
        tile, num_prefix_tokens: read from an MVPViT, needed for other modules.
        mean, std: of RGB in 0 to 1, as the model was trained with.
        name: for people; part of the fingerprint is `describe` (architecture), a JSON-able mapping.
        dtype: "float32", or "bfloat16": faster where the CPU has avx512_bf16 or AMX, other features by 1e-2.
        frames_per_call: frames that go through the model at once; 4 by default on a CPU (its cache), else 64.
    """

    def __init__(
        self,
        vit: nn.Module,
        sizes: Sequence[int],
        pool: str = "tokens",
        *,
        tile: int | None = None,
        num_prefix_tokens: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        name: str = "custom",
        describe: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        frames_per_call: int | None = None,
    ) -> None:
        super().__init__()
        spec = vit.spec if isinstance(vit, MVPViT) else None
        if tile is None and spec is not None:
            tile = spec.img_size
        if tile is None:
            raise UserError(f"encoder {name}: tile (the image side the model was made for) is not given")
        if pool not in POOLS:
            raise UserError(f"encoder.pool: found {pool!r}, expected one of {', '.join(POOLS)}")
        if dtype not in DTYPES:
            raise UserError(f"encoder.dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
        self.tile = int(tile)
        self.sizes = tuple(int(size) for size in sizes)
        check_sizes(self.sizes, self.tile)
        if list(self.sizes) != sorted(set(self.sizes)):
            raise UserError(f"encoder.sizes: found {list(self.sizes)}, expected each once and smallest first")
        for size in self.sizes:
            if size % self.sizes[0]:  # its cells would not fall evenly into those of the base grid
                raise UserError(f"S2 size {size} is not a whole multiple of the first size {self.sizes[0]}")
        if num_prefix_tokens is None:
            num_prefix_tokens = getattr(vit, "num_prefix_tokens", 0)
        self.num_prefix_tokens = int(num_prefix_tokens)
        self.pool, self.name, self.dtype, self.frames_per_call = pool, name, dtype, frames_per_call
        self.describe = dict(describe or {}) | ({"spec": asdict(spec)} if spec is not None else {})
        self.weights_sha256 = weights_sha256(vit.state_dict())
        self.preprocessing = {"mean": list(mean), "std": list(std)}
        # (x / 255 - mean) / std in one multiplication and one addition
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        self.vit = vit.to(DTYPES[dtype]).requires_grad_(False)
        self.eval()
        with torch.inference_mode():
            out = self._model(torch.zeros(1, 3, self.tile, self.tile, device=self.scale.device))
        self.grid = token_grid(out.shape[1], self.num_prefix_tokens) * (self.sizes[0] // self.tile)
        self.dim = out.shape[2] * len(self.sizes)

    def train(self, mode: bool = True) -> S2Encoder:
        """Stays in evaluation mode: a frozen encoder has no other."""
        return super().train(False)

    def _model(self, x: Tensor) -> Tensor:
        return self.vit(x.to(DTYPES[self.dtype]))

    @property
    def image_size(self) -> int:
        """Side of the frames to render: the largest size."""
        return self.sizes[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens an image: grid squared, or 1 for pool="mean"."""
        return 1 if self.pool == "mean" else self.grid**2

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.vit.parameters())

    @cached_property
    def gflops_per_image(self) -> float:
        """Multiply-adds of one image over all sizes, in 1e9: papers call it GFLOPs (ViT-B at 224: 17.5)."""
        # the fused attention kernel of the CPU is not counted, the plain one is
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self._model(torch.zeros(1, 3, self.tile, self.tile, device=self.scale.device))
        tiles = sum((size // self.tile) ** 2 for size in self.sizes)
        return counter.get_total_flops() / 2 * tiles / 1e9

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that a feature depends on: model, weights, preprocessing, sizes, pool, dtype."""
        parts = {
            "architecture": self.describe,
            "module": type(self.vit).__name__,
            "weights": self.weights_sha256,
            "preprocessing": self.preprocessing,
            "tile": self.tile,
            "sizes": self.sizes,
            "pool": self.pool,
            "dtype": self.dtype,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray) -> Tensor:
        """uint8 RGB (B, H, H, 3) -> float32 tokens (B, num_tokens, dim), the CLS token left out.

        Frames of `image_size` are used as they are, multiples of it averaged by area, others resized with
        antialiasing. Raises UserError for another type or shape.
        """
        images = torch.as_tensor(images)
        outputs = []
        batch = self.frames_per_call or (4 if self.scale.device.type == "cpu" else 64)
        for frames in images.split(batch):
            levels = [x * self.scale + self.shift for x in pyramid(frames.to(self.scale.device), self.sizes)]
            outputs.append(s2_tokens(self._model, levels, self.tile, self.num_prefix_tokens, self.pool))
        if not outputs:
            return torch.empty(0, self.num_tokens, self.dim, device=self.scale.device)
        return torch.cat(outputs).float()

    forward = encode


class Intermediate(nn.Module):
    """A timm vision transformer that gives all its tokens, normed, after some block (None: the last)."""

    def __init__(self, vit: nn.Module, block: int | None) -> None:
        super().__init__()
        depth = len(vit.blocks)
        if block is not None and not 1 <= block <= depth:
            raise UserError(f"encoder.block: found {block}, expected 1 to {depth}")
        self.vit = vit
        self.num_prefix_tokens = vit.num_prefix_tokens
        if block is not None:
            vit.blocks = vit.blocks[:block]  # the rest would only cost memory

    def forward(self, x: Tensor) -> Tensor:
        return self.vit.forward_features(x)


def _timm(name: str, checkpoint: str | Path | None, img_size: int | None) -> nn.Module:
    """A timm vision transformer with weights from a local .safetensors or .pth file."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(
            f"encoder timm:{name}: timm has no such model" + (f"; nearest: {near[0]}" if near else "")
        )
    if checkpoint is None:
        raise UserError(f"encoder timm:{name}: give its weights file as encoder.checkpoint")
    model = timm.create_model(name, pretrained=False, num_classes=0)
    if not all(hasattr(model, a) for a in ("blocks", "num_prefix_tokens", "patch_embed", "forward_features")):
        raise UserError(f"encoder timm:{name}: {type(model).__name__} is not a vision transformer")
    path = Path(checkpoint)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    else:
        state = read_torch(path)
    head = model.default_cfg.get("classifier") or "head"
    state = {k: v for k, v in state.items() if k not in (f"{head}.weight", f"{head}.bias")}
    load_strict(model, state, str(path))
    if img_size is not None:
        model.set_input_size(img_size=img_size)  # resamples the position table
    return model


def build_encoder(cfg: Mapping[str, Any]) -> S2Encoder:
    """The encoder that a config describes.

    Keys: name ("mvp-tiny", a published MVP checkpoint or "timm:<model>"), checkpoint (path; null for the
    mvp-tiny that ships), sizes in pixels or scales as multiples of the tile (default scales 1 and 2), pool,
    dtype, block (null = last), img_size (timm only: the tile, if it is not the model's own), check_md5.
    Raises UserError naming the key, what was found and what was expected.
    """
    name, checkpoint = str(cfg["name"]), cfg.get("checkpoint")
    for key in cfg:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            raise UserError(f"encoder.{key}: unknown key" + (f"; nearest: {near[0]}" if near else ""))
    known = ["mvp-tiny", *PUBLISHED]
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    describe: dict[str, Any] = {}
    vit: nn.Module
    if cfg.get("img_size") and not name.startswith("timm:"):
        raise UserError(f"encoder.img_size: {name} has its own; the key is for timm models")
    if name.startswith("timm:"):
        vit = _timm(name[5:], checkpoint, cfg.get("img_size"))
        mean, std = vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"]
        tile = vit.patch_embed.img_size[0]
        describe = {"timm": name[5:]}
    elif name == "mvp-tiny":
        if checkpoint is None and not MVP_TINY.is_file():
            raise UserError("encoder mvp-tiny: no weights in the package; `s2robot pretrain` makes them")
        vit, _ = load_encoder(checkpoint or MVP_TINY)
        tile = vit.spec.img_size
    elif name in PUBLISHED:
        if checkpoint is None:
            raise UserError(f"encoder {name}: give the file {PUBLISHED[name].file} as encoder.checkpoint")
        vit, _ = load_mvp(name, checkpoint, check_md5=cfg.get("check_md5", True))
        tile = vit.spec.img_size
    else:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise UserError(
            f"encoder.name: found {name!r}, expected one of {', '.join(known)} or timm:<model>"
            + (f"; nearest: {near[0]}" if near else "")
        )
    block, sizes, scales = cfg.get("block"), cfg.get("sizes"), cfg.get("scales")
    if sizes and scales:
        raise UserError(f"encoder: give sizes {list(sizes)} or scales {list(scales)}, not both")
    sizes = sizes or [round(scale * tile) for scale in scales or (1, 2)]
    if hasattr(vit, "spec"):
        describe = {"spec": asdict(vit.spec)}
    return S2Encoder(
        Intermediate(vit, block),
        sizes,
        cfg.get("pool") or "tokens",
        tile=tile,
        mean=mean,
        std=std,
        name=name,
        describe={**describe, "block": block},
        dtype=cfg.get("dtype") or "float32",
    )

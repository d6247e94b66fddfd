"""Frozen encoders: images in, S2 tokens out.

    encoder = build_encoder({"name": "mvp-tiny", "sizes": [128, 256]})
    encoder.encode(images).shape           # uint8 (B, 256, 256, 3) -> float32 (B, 64, 384)
    encoder.fingerprint                    # changes with anything that changes a feature

Own models: `S2Encoder(model, sizes)` takes whatever `s2robot.backbones.backbone.find_backbone` does. S2 with gradients,
frames that are not square, maps: `s2robot.s2.module.S2`.
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

from s2robot.backbones import mvp
from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.inference import prepare
from s2robot.backbones.vit import (
    PUBLISHED,
    MVPViT,
    load_encoder,
    load_mvp,
    load_strict,
    read_torch,
    weights_sha256,
)
from s2robot.common.errors import UserError
from s2robot.common.paths import weights_dir
from s2robot.s2.reference import check_sizes, pyramid, s2_tokens

OURS = ("mvp-tiny", "mvp-tiny-s2", "mvp-small")  # made by `s2robot pretrain`
POOLS = ("tokens", "mean")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RESOLUTIONS = ("native", "upsampled")
KEYS = (
    "name", "checkpoint", "sizes", "scales", "resolution", "pool", "dtype", "block", "img_size", "check_md5"
)  # fmt: skip


class S2Encoder(nn.Module):
    """A frozen model applied at several image sizes.

    Args:
        model: a `Backbone`, or a model that `find_backbone` knows, or any module with its tile by hand.
        sizes: image sides in pixels, each a multiple of the tile, smallest first; (tile,) is plain encoding.
        pool: "tokens" for a grid of tokens, "mean" for their mean.
        tile, num_prefix_tokens, mean, std: where the model does not tell.
        name: for people; part of the fingerprint is `describe` (architecture), a JSON-able mapping.
        dtype: "float32", or "bfloat16": faster where the CPU has avx512_bf16 or AMX, other features by 1e-2.
        frames_per_call: frames that go through the model at once; 4 by default on a CPU (its cache), else 64.
        resolution: of the larger sizes: "native", or "upsampled" from the first one, which adds no information.

    The model itself is left as it is; what computes is a copy, `model`, made by `inference.prepare`.
    """

    def __init__(
        self,
        model: nn.Module,
        sizes: Sequence[int],
        pool: str = "tokens",
        *,
        tile: int | None = None,
        num_prefix_tokens: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str = "custom",
        describe: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        frames_per_call: int | None = None,
        resolution: str = "native",
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"encoder.pool: found {pool!r}, expected one of {', '.join(POOLS)}")
        if dtype not in DTYPES:
            raise UserError(f"encoder.dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
        if resolution not in RESOLUTIONS:
            raise UserError(
                f"encoder.resolution: found {resolution!r}, expected one of {', '.join(RESOLUTIONS)}"
            )
        backbone = model
        if not isinstance(backbone, Backbone):
            backbone = find_backbone(
                model, tile=tile, num_prefix_tokens=num_prefix_tokens, mean=mean, std=std
            )
        if backbone.tile[0] != backbone.tile[1]:
            raise UserError(f"encoder {name}: found a tile of {backbone.tile} px, expected a square one")
        self.tile = backbone.tile[0]
        self.sizes = tuple(int(size) for size in sizes)
        check_sizes(self.sizes, self.tile)
        if list(self.sizes) != sorted(set(self.sizes)):
            raise UserError(f"encoder.sizes: found {list(self.sizes)}, expected each once and smallest first")
        for size in self.sizes:
            if size % self.sizes[0]:  # its cells would not fall evenly into those of the base grid
                raise UserError(f"S2 size {size} is not a whole multiple of the first size {self.sizes[0]}")
        self.upsampled = resolution == "upsampled" and len(self.sizes) > 1  # one size is the same either way
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.pool, self.name, self.dtype, self.frames_per_call = pool, name, dtype, frames_per_call
        spec = getattr(backbone.model, "spec", None)
        self.describe = {"block": backbone.block, **(describe or {})} | (
            {"spec": asdict(spec)} if spec else {}
        )
        self.architecture = type(backbone.model).__name__
        self.weights_sha256 = weights_sha256(backbone.model.state_dict())
        self.preprocessing = {"mean": list(backbone.mean), "std": list(backbone.std)}
        # (x / 255 - mean) / std in one multiplication and one addition
        deviation = torch.tensor(backbone.std, dtype=torch.float64)
        scale, shift = 1 / (255 * deviation), -torch.tensor(backbone.mean, dtype=torch.float64) / deviation
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        self.model = prepare(backbone, DTYPES[dtype])
        self.eval()
        self.grid = self.sizes[0] // backbone.patch
        self.dim = backbone.dim * len(self.sizes)

    def train(self, mode: bool = True) -> S2Encoder:
        """Stays in evaluation mode: a frozen encoder has no other."""
        return super().train(False)

    def _model(self, x: Tensor) -> Tensor:
        return self.model(x.to(DTYPES[self.dtype]))

    @property
    def image_size(self) -> int:
        """Side of the frames to render: the largest size that is not enlarged from another."""
        return self.sizes[0] if self.upsampled else self.sizes[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens an image: grid squared, or 1 for pool="mean"."""
        return 1 if self.pool == "mean" else self.grid**2

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def gflops_per_image(self) -> float:
        """Multiply-adds of one image over all sizes, in 1e9: papers call it GFLOPs (ViT-B at 224: 17.5)."""
        # fused and packed kernels are not counted; where a gradient is wanted, the plain ones compute
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self._model(torch.zeros(1, 3, self.tile, self.tile, device=self.scale.device, requires_grad=True))
        tiles = sum((size // self.tile) ** 2 for size in self.sizes)
        return counter.get_total_flops() / 2 * tiles / 1e9

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that a feature depends on: model, weights, preprocessing, sizes, pool, dtype."""
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
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """uint8 (B, H, H, 3) -> what the model sees, not normalised: float32 (B, 3, size, size) a size."""
        return pyramid(images.to(self.scale.device), self.sizes, self.upsampled)

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
            levels = [x * self.scale + self.shift for x in self.pyramid(frames)]
            outputs.append(s2_tokens(self._model, levels, self.tile, self.num_prefix_tokens, self.pool))
        if not outputs:
            return torch.empty(0, self.num_tokens, self.dim, device=self.scale.device)
        return torch.cat(outputs).float()

    forward = encode


def _timm(name: str, checkpoint: str | Path | None) -> nn.Module:
    """A timm model with weights from a local .safetensors or .pth file."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(
            f"encoder timm:{name}: timm has no such model" + (f"; nearest: {near[0]}" if near else "")
        )
    if checkpoint is None:
        raise UserError(f"encoder timm:{name}: give its weights file as encoder.checkpoint")
    model = timm.create_model(name, pretrained=False, num_classes=0)
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
    heads = (head,) if isinstance(head, str) else tuple(head)
    dropped = {f"{part}.{kind}" for part in heads for kind in ("weight", "bias")}
    load_strict(model, {k: v for k, v in state.items() if k not in dropped}, str(path))
    return model


def _own(name: str, checkpoint: str | Path | None) -> MVPViT:
    """An encoder that `s2robot pretrain` made, from a file or from the package."""
    shipped = weights_dir() / f"{name}.safetensors"
    if checkpoint is None and not shipped.is_file():
        raise UserError(
            f"encoder {name}: found no {shipped}; take it from the repository (an installed wheel leaves the largest "
            f"weights out) or make it with `s2robot pretrain pretrain={name}`, and name it as encoder.checkpoint"
        )
    return load_encoder(checkpoint or shipped)[0]


def build_encoder(cfg: Mapping[str, Any]) -> S2Encoder:
    """The encoder that a config describes.

    Keys: name ("mvp-tiny", "mvp-tiny-s2", "mvp-small", a published MVP checkpoint or "timm:<model>"),
    checkpoint (path; null for what ships, and for MVP's files, which are downloaded to the cache), sizes in
    pixels or scales as multiples of the tile (default scales 1 and 2), resolution of the larger ones (native
    or upsampled), pool, dtype, block (null = last), img_size (timm only: the tile, if it is not the model's
    own), check_md5.
    Raises UserError naming the key, what was found and what was expected.
    """
    name, checkpoint = str(cfg["name"]), cfg.get("checkpoint")
    for key in cfg:
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, n=1)
            raise UserError(f"encoder.{key}: unknown key" + (f"; nearest: {near[0]}" if near else ""))
    known = [*OURS, *PUBLISHED]
    describe: dict[str, Any] = {}
    model: nn.Module
    if cfg.get("img_size") and not name.startswith("timm:"):
        raise UserError(f"encoder.img_size: {name} has its own; the key is for timm models")
    if name.startswith("timm:"):
        model, describe = _timm(name[5:], checkpoint), {"timm": name[5:]}
    elif name in OURS:
        model = _own(name, checkpoint)
    elif name in PUBLISHED:
        check = cfg.get("check_md5", True)
        path = checkpoint or mvp.fetch(name, check_md5=check)
        model, _ = load_mvp(name, path, check_md5=check and checkpoint is not None)  # fetch checks its own
    else:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise UserError(
            f"encoder.name: found {name!r}, expected one of {', '.join(known)} or timm:<model>"
            + (f"; nearest: {near[0]}" if near else "")
        )
    try:
        backbone = find_backbone(model, tile=cfg.get("img_size"), block=cfg.get("block"))
    except UserError as error:
        raise UserError(f"encoder {name}: {error}") from error
    sizes, scales = cfg.get("sizes"), cfg.get("scales")
    if sizes and scales:
        raise UserError(f"encoder: give sizes {list(sizes)} or scales {list(scales)}, not both")
    return S2Encoder(
        backbone,
        sizes or [round(scale * backbone.tile[0]) for scale in scales or (1, 2)],
        cfg.get("pool") or "tokens",
        name=name,
        describe=describe,
        dtype=cfg.get("dtype") or "float32",
        resolution=cfg.get("resolution") or "native",
    )

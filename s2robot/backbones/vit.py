"""MVP's vision transformers and their weights files.

    vit = MVPViT(ViTSpec(img_size=128, patch_size=16, dim=192, depth=6, heads=6))
    vit(images).shape                      # (B, 1 + 64, 192), the CLS token first
    vit, recipe = load_encoder("mvp-tiny.safetensors")

The architecture is timm's VisionTransformer as MVP uses it (https://github.com/ir413/mvp): LayerNorm eps 1e-6 and a
fixed sin-cos position table. MVP's ViT-S has 12 heads, timm's has 6. The weights fit both, but the features differ, so
the specs are explicit here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import lcm
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from s2robot.backbones.weights import load_strict, weights_sha256
from s2robot.core.errors import reported
from s2robot.core.files import replacing
from s2robot.core.settings import invalid

RECIPE_KEY = "s2robot"  # the key of the recipe (JSON) in a safetensors header


@dataclass(frozen=True)
class ViTSpec:
    """Sizes of a vision transformer; images are img_size x img_size pixels."""

    img_size: int
    patch_size: int
    dim: int
    depth: int
    heads: int

    def __post_init__(self) -> None:
        positive = ("patch_size", 1), ("depth", 1), ("heads", 1)
        for key, divisor in (*positive, ("img_size", "patch_size"), ("dim", "heads")):
            step = getattr(self, divisor) if isinstance(divisor, str) else divisor
            step = lcm(step, 4) if key == "dim" else step  # for the position table
            value = getattr(self, key)
            if type(value) is not int or value < 1 or value % step:
                raise invalid(key, f"a multiple of {step}", value)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.img_size // self.patch_size


def sincos_2d(dim: int, grid: int) -> Tensor:
    """Return MAE's fixed position table, (1, 1 + grid * grid, dim) float32; the CLS row comes first and is zero.

    As in MAE, the first half of the channels encodes the column and the second half the row.
    """
    omega = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))  # (dim / 4,)
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    angles = [position.reshape(-1, 1) * omega for position in (column, row)]  # (N, dim / 4) each
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1)  # (N, dim)
    return torch.cat([torch.zeros(1, dim), table]).float()[None]


class MVPViT(VisionTransformer):
    """timm's vision transformer with MVP's settings; its state dict has timm's (and MAE's) keys.

    Maps normalised images (B, 3, H, W) to tokens (B, 1 + N, D) after the final norm, CLS first.
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__(
            img_size=spec.img_size, patch_size=spec.patch_size, embed_dim=spec.dim, depth=spec.depth, num_heads=spec.heads,
            mlp_ratio=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6), num_classes=0, global_pool="",
        )  # fmt: skip
        self.spec = spec
        self.pos_embed.data.copy_(sincos_2d(spec.dim, spec.grid))
        self.pos_embed.requires_grad_(False)


def save_encoder(
    vit: MVPViT, path: str | Path, recipe: Mapping[str, object], dtype: torch.dtype = torch.float32
) -> str:
    """Write weights and recipe to one safetensors file, atomically; returns the weights' sha256."""
    state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in vit.state_dict().items()}
    sha256 = weights_sha256(state)
    header = {**recipe, "spec": asdict(vit.spec), "sha256": sha256}
    with replacing(Path(path)) as part:
        part.write_bytes(save(state, metadata={RECIPE_KEY: json.dumps(header, sort_keys=True)}))
    return sha256


def load_encoder(path: str | Path) -> tuple[MVPViT, dict]:
    """Load an encoder written by `save_encoder`, and its recipe; the weights' sha256 is checked."""
    with reported(f"{path}: expected an encoder file written by `s2robot pretrain`, got"):
        with safe_open(path, framework="pt") as file:
            recipe = json.loads((file.metadata() or {})[RECIPE_KEY])
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
        vit = MVPViT(ViTSpec(**recipe["spec"]))
        if (found := weights_sha256(state)) != recipe["sha256"]:
            raise ValueError(f"weights with sha256 {found} instead of the recipe's {recipe['sha256']}")
    load_strict(vit, state, str(path))
    return vit, recipe

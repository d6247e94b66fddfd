"""The settings of a training, read once from configs/train and checked there.

settings = read(TrainSettings, cfg.train, "train")         # s2robot.common.settings.read
TrainSettings(steps=500).batch_size                        # 64
"""

import math
from dataclasses import dataclass
from typing import Any

from s2robot.common.errors import UserError

INFINITY = math.inf


def check_ranges(settings: Any, where: str, **ranges: tuple[float, float]) -> None:
    """Refuse values outside of [low, high]; None, which leaves a choice to the program, is in every range.

    Raises:
        UserError: names the key, what was found and what was expected.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is None or (low <= value <= high and math.isfinite(value)):
            continue
        expected = f"{low:g} or more" if high == INFINITY else f"a value from {low:g} to {high:g}"
        raise UserError(f"{where}.{name}: found {value}, expected {expected}")


def check_positive(settings: Any, where: str, *names: str) -> None:
    """Refuse values that are not above zero and finite."""
    for name in names:
        value = getattr(settings, name)
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"{where}.{name}: found {value}, expected a number above 0")


@dataclass(frozen=True)
class TrainSettings:
    """configs/train/default.yaml says what each is."""

    steps: int = 2000
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    grad_clip: float | None = 1.0
    ema: float = 0.995
    validation: float = 0.0
    seed: int = 0
    resume: bool = True
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

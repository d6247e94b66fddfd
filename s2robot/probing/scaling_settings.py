"""What `s2robot scaling` compares: its settings, its arms, and what one fitted head leaves."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.probing.heads import Classify, Depth, HeadSettings, Segment
from s2robot.probing.pictures import Pictures

TASKS: dict[str, Any] = {"classify": Classify, "segment": Segment, "depth": Depth}
RESIZES = {"upsample": "upsampled", "native": "native"}  # here: encoder.resolution


@dataclass(frozen=True)
class HeadKinds:
    """Which heads each task has; configs/scaling/default.yaml says what they are."""

    classify: tuple[str, ...] = ("linear",)
    segment: tuple[str, ...] = ("linear", "conv")
    depth: tuple[str, ...] = ("linear", "conv")

    def __post_init__(self) -> None:
        for task, made in TASKS.items():
            if unknown := [kind for kind in getattr(self, task) if kind not in made.heads]:
                known = ", ".join(made.heads)
                raise UserError(f"scaling.heads.{task}: found '{unknown[0]}', expected some of {known}")


@dataclass(frozen=True)
class ScalingSettings:
    """configs/scaling/default.yaml says what each is."""

    scales: tuple[Any, ...] = ((1,), (1, 2), (1, 2, 3))
    resize: tuple[str, ...] = ("upsample", "native")
    tasks: tuple[str, ...] = ("classify", "segment", "depth")
    heads: HeadKinds = field(default_factory=HeadKinds)
    head: HeadSettings = field(default_factory=HeadSettings)
    data: str | None = None
    skip_unreadable: bool = False
    labels: int | None = None
    ignore: int | None = 255
    metre: float = 0.001
    points: int = 96
    held_out: float = 0.3
    validation: float = 0.2
    seeds: tuple[int, ...] = (0, 1, 2)
    resamples: int = 1000
    examples: int = 6
    families: tuple[Any, ...] = (("tiny", "small"),)
    cache: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "scaling",
            points=(8, INFINITY),
            held_out=(0.01, 0.99),
            validation=(0, 0.9),
            resamples=(100, INFINITY),
            examples=(0, 100),
        )
        for name, known in (("tasks", TASKS), ("resize", RESIZES)):
            found = getattr(self, name)
            if not found or set(found) - set(known):
                raise UserError(f"scaling.{name}: found {list(found)}, expected some of {', '.join(known)}")
        if not all(isinstance(chosen, tuple) for chosen in (*self.scales, *self.families)):
            raise UserError("scaling: scales and families are lists of lists, such as [[1], [1, 2]]")
        if not self.seeds or not self.scales or not all(self.scales):
            raise UserError("scaling: found no seeds or an empty set of scales, expected one or more")
        least = min(self.all_scales)
        if any(least not in chosen for chosen in self.scales):
            raise UserError(
                f"scaling.scales: found {[*map(list, self.scales)]}, expected {least:g} in each set"
            )

    @property
    def all_scales(self) -> tuple[float, ...]:
        return tuple(sorted({scale for chosen in self.scales for scale in chosen}))


@dataclass(frozen=True)
class Arm:
    """A model with a set of scales, on a task with a head."""

    model: str
    scales: tuple[float, ...]
    resize: str
    task: str
    head: str

    @property
    def label(self) -> str:
        return f"{self.model} {'+'.join(f'{scale:g}' for scale in self.scales)}"

    @property
    def panel(self) -> tuple[str, str, str]:
        """What arms have in common that can be compared."""
        return self.task, self.head, self.resize


@dataclass(frozen=True)
class Result:
    """One head of an arm: tallies (n, width) of the held-out pictures `rows` (n,)."""

    rows: np.ndarray
    tallies: np.ndarray
    train_loss: float
    step: int


@dataclass(frozen=True)
class Outcome:
    """What scaling.json holds, and what it was made of."""

    report: dict[str, Any]
    results: dict[Arm, list[Result]]
    pictures: Pictures

"""The settings of `s2robot compare`; configs/compare.yaml and configs/experiment/default.yaml document each value."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, field_validator

from s2robot.core.settings import Different, Settings, from_yaml
from s2robot.overrides import key_of

EXPERIMENT = "experiment/default"
# config groups that each verb of a comparison reads
READS = {
    "record": ("task", "robot", "env", "recording"),
    "encode": ("task", "robot", "env", "demos", "encoder", "s2", "features"),
    "train": ("preset", "task", "robot", "env", "demos", "encoder", "s2", "features", "policy", "train"),
    "evaluate": ("task", "robot", "env", "demos", "evaluate"),
}
GROUPS = tuple(dict.fromkeys(group for groups in READS.values() for group in groups))
# settings that must be equal for all arms to be comparable
_COMMON = ("task", "robot", "demos", "recording", "train.seed", "evaluate.seed", "evaluate.episodes")


def group_of(override: str) -> str:
    """Return the config group of an override: `train` for `train.seed=0`."""
    return re.split(r"[./]", key_of(override))[0]


class Arm(Settings):
    """One side of a comparison: overrides of `s2robot train` and `s2robot evaluate`, as a list or one string."""

    name: Annotated[str, StringConstraints(pattern=r"^[\w.+-]+$")]  # also its folder
    label: str  # for display
    overrides: tuple[str, ...] = ()

    @field_validator("overrides", mode="before")
    @classmethod
    def _as_typed(cls, overrides: Any) -> Any:
        return tuple(shlex.split(overrides)) if isinstance(overrides, str) else overrides

    @field_validator("overrides")
    @classmethod
    def _differ_between_arms(cls, overrides: tuple[str, ...]) -> tuple[str, ...]:
        for override in overrides:
            key = key_of(override)
            if f"{key}.".startswith(tuple(f"{common}." for common in _COMMON)):
                raise ValueError(f"expected the same {key} for all arms, got {override}")
            if group_of(override) not in GROUPS:
                raise ValueError(f"expected overrides of {', '.join(GROUPS)}, got {override}")
        return overrides


class Power(Settings, at="experiment.power", file=EXPERIMENT):
    """The gap that the planned positions should detect, and the assumptions behind it."""

    gap: float = from_yaml(gt=0, lt=1)
    power: float = from_yaml(gt=0, lt=1)
    base: float = from_yaml(ge=0, lt=1)
    correlation: float = from_yaml(gt=-1, lt=1)
    seed_sd: float = from_yaml(ge=0, lt=0.5)
    alpha: float = from_yaml(gt=0, lt=1)
    strict: bool = from_yaml()

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "gap", self.gap + self.base <= 1, f"<= {1 - self.base:g} with base={self.base:g}"


class Stopping(Settings, at="experiment.stopping", file=EXPERIMENT):
    """Interim analyses of a running comparison."""

    enabled: bool = from_yaml()
    batch: int = from_yaml(ge=1)
    alpha: float = from_yaml(gt=0, le=0.5)


class Axis(Settings):
    """One setting and its values. `record`: new demos for each value; `train`: new policies for each value."""

    label: str
    key: str
    values: Annotated[tuple[Any, ...], Different, Field(min_length=1)]
    unit: str | None = None
    record: bool = False
    train: bool = False


class Published(Settings):
    name: str
    result: str
    conditions: str = ""


class Experiment(Settings, at="experiment", file=EXPERIMENT):
    title: str = from_yaml()
    question: str = from_yaml()
    overrides: tuple[str, ...] = from_yaml()  # for all arms
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Different] = from_yaml(min_length=1)
    record: bool = from_yaml()
    default_axes: Annotated[tuple[str, ...], Different] = from_yaml()
    measure: str | None = from_yaml()
    published: tuple[Published, ...] = from_yaml()
    videos: int = from_yaml(ge=0)
    power: Power = from_yaml()
    stopping: Stopping = from_yaml()
    arms: dict[str, Arm] = from_yaml()
    # None: every pair of arms
    pairs: Annotated[tuple[tuple[str, str], ...], Different, Field(min_length=1)] | None = from_yaml()
    axis_episodes: int | None = from_yaml(ge=1)
    axes: dict[str, Axis] = from_yaml()

    @field_validator("axes", "arms", mode="before")
    @classmethod
    def _without_removed(cls, found: Any, info: Any) -> Any:
        """`experiment.axes.light=null` removes an axis of the file; an arm's value may be just its overrides."""
        if not isinstance(found, dict):
            return found
        found = {name: value for name, value in found.items() if value is not None}
        if info.field_name == "axes":
            return found
        own = {n: value if isinstance(value, dict) else {"overrides": value} for n, value in found.items()}
        return {name: {"label": name, **value, "name": name} for name, value in own.items()}


class Compare(Settings, file="compare"):
    """The settings that `compare` itself reads; other overrides are passed to the stages unchanged."""

    out: Path = Field(alias="run_dir")  # relative if it is below the working directory
    record: bool | None = from_yaml()
    arms: Annotated[tuple[str, ...], Different, Field(min_length=1)] | None = from_yaml()  # None: all
    axes: Annotated[tuple[str, ...], Different, Field(min_length=1)] | None = from_yaml()
    jobs: int | None = from_yaml(ge=1)
    threads: int | None = from_yaml(ge=1)
    experiment: Experiment = from_yaml()

    @field_validator("out")
    @classmethod
    def _relative_below_here(cls, out: Path) -> Path:
        """Keep the commands of the stages portable to other machines."""
        below = out.is_absolute() and out.is_relative_to(Path.cwd())
        return out.relative_to(Path.cwd()) if below else out

    @property
    def records(self) -> bool:
        return self.experiment.record if self.record is None else self.record

    def rules(self) -> Iterator[tuple[Any, ...]]:
        arms, axes = self.experiment.arms, self.experiment.axes
        chosen: list[tuple[str, Any, Any]] = [("axes", self.axes, axes), ("arms", self.arms, arms)]
        chosen.append(("experiment.default_axes", self.experiment.default_axes, axes))
        chosen += [("experiment.pairs", pair, arms) for pair in self.experiment.pairs or ()]
        for key, names, known in chosen:
            for name in names or ():
                yield key, name in known, f"some of {', '.join(known)}", name
        pairs = self.experiment.pairs or ()
        once = len({frozenset(pair) for pair in pairs if pair[0] != pair[1]}) == len(pairs)
        yield "experiment.pairs", once, "two different arms in each pair, and each pair once", pairs

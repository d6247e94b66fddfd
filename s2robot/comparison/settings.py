"""The settings of `s2robot compare`; configs/compare.yaml and configs/experiment/default.yaml document each value.

settings = read_compare(cfg)
settings.experiment.axes["demos"].values      # (15, 30, 60, 120)
"""

from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import AfterValidator, Field, field_validator, model_validator

from s2robot.comparison.arms import Arm
from s2robot.core.settings import Settings, from_yaml, invalid, read_some

EXPERIMENT = "experiment/default"


def _all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError(f"expected one or more different values, got {list(values)}")
    return values


Different = AfterValidator(_all_different)


class Power(Settings, at="experiment.power", file=EXPERIMENT):
    """What the planned positions should see; see `power.Design`."""

    gap: float = from_yaml(gt=0, lt=1)
    power: float = from_yaml(gt=0, lt=1)
    base: float = from_yaml(ge=0, lt=1)
    correlation: float = from_yaml(gt=-1, lt=1)
    seed_sd: float = from_yaml(ge=0, lt=0.5)
    alpha: float = from_yaml(gt=0, lt=1)
    strict: bool = from_yaml()

    @model_validator(mode="after")
    def _gap_fits_above_the_base(self) -> "Power":
        if self.gap > 1 - self.base:
            raise invalid("gap", f"<= {1 - self.base:g} with base={self.base:g}", self.gap)
        return self


class Stopping(Settings, at="experiment.stopping", file=EXPERIMENT):
    """Interim looks at the running comparison."""

    enabled: bool = from_yaml()
    batch: int = from_yaml(ge=1)
    alpha: float = from_yaml(gt=0, le=0.5)


class Axis(Settings):
    """One setting and its values. `record`: new demos at each; `train`: new policies at each."""

    label: str
    key: str
    values: Annotated[tuple[Any, ...], Different]
    unit: str | None = None
    record: bool = False
    train: bool = False


class Experiment(Settings, at="experiment", file=EXPERIMENT):
    """Which question, by which arms."""

    title: str = from_yaml()
    question: str = from_yaml()
    overrides: tuple[str, ...] = from_yaml()  # of all arms
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Different] = from_yaml()
    videos: int = from_yaml(ge=0)
    power: Power = from_yaml()
    stopping: Stopping = from_yaml()
    arms: dict[str, Arm] = from_yaml()
    pairs: tuple[tuple[str, str], ...] | None = from_yaml()  # None: every two arms
    axis_episodes: int | None = from_yaml(ge=1)
    axes: dict[str, Axis] = from_yaml()

    @field_validator("axes", "arms", mode="before")
    @classmethod
    def _without_removed(cls, found: Any, info: Any) -> Any:
        """`experiment.axes.light=null` removes an axis of the file; an arm may be given by its overrides alone."""
        if not isinstance(found, dict):
            return found
        found = {name: value for name, value in found.items() if value is not None}
        if info.field_name == "axes":
            return found
        own = {n: value if isinstance(value, dict) else {"overrides": value} for n, value in found.items()}
        return {name: {"label": name, **value, "name": name} for name, value in own.items()}

    @model_validator(mode="after")
    def _pairs_are_of_arms(self) -> "Experiment":
        for a, b in self.pairs or ():
            if a == b or not {a, b} <= {*self.arms}:
                raise invalid("pairs", f"two different arms of {', '.join(self.arms)}", [a, b])
        return self


class Compare(Settings, file="compare"):
    """The settings that `compare` itself reads; the others reach the stages as they were typed."""

    out: Path = Field(alias="run_dir")  # relative to the working directory if it lies below it
    record: bool = from_yaml()
    arms: Annotated[tuple[str, ...], Different, Field(min_length=2)] | None = from_yaml()  # None: all
    axes: Annotated[tuple[str, ...], Different] | None = from_yaml()
    jobs: int | None = from_yaml(ge=1)
    threads: int | None = from_yaml(ge=1)
    experiment: Experiment = from_yaml()

    @field_validator("out")
    @classmethod
    def _relative_below_here(cls, out: Path) -> Path:
        """The commands of the stages should work on another machine too."""
        below = out.is_absolute() and out.is_relative_to(Path.cwd())
        return out.relative_to(Path.cwd()) if below else out

    @model_validator(mode="after")
    def _axes_and_arms_exist(self) -> "Compare":
        for key, known in (("axes", self.experiment.axes), ("arms", self.experiment.arms)):
            for name in getattr(self, key) or ():
                if name not in known:
                    raise invalid(key, f"some of {', '.join(known)}", name)
        return self

    @property
    def chosen(self) -> tuple[Arm, ...]:
        """The arms that run, in their order."""
        return tuple(self.experiment.arms[name] for name in self.arms or self.experiment.arms)


def read_compare(cfg: DictConfig) -> Compare:
    """Return the settings of a composed config; UserError names the first wrong key."""
    return read_some(Compare, cfg, "")

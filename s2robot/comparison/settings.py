"""What `s2robot compare` is told: configs/compare.yaml and its experiment, read once.

settings = read_compare(cfg)
settings.experiment.axes["demos"].values      # (15, 30, 60, 120)

What each value is stands beside it in configs/compare.yaml and configs/experiment/default.yaml.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.common.settings import read


@dataclass(frozen=True)
class Power:
    """What the planned positions should see; see `power.Design`."""

    gap: float
    power: float
    base: float
    correlation: float
    seed_sd: float
    alpha: float
    strict: bool

    def __post_init__(self) -> None:
        inside = (1e-9, 1 - 1e-9)
        check_ranges(self, "experiment.power", base=(0, inside[1]), power=inside, alpha=inside)
        check_ranges(self, "experiment.power", gap=(1e-9, 1 - self.base))


@dataclass(frozen=True)
class Stopping:
    """Looks at the running comparison."""

    enabled: bool
    batch: int
    alpha: float

    def __post_init__(self) -> None:
        check_ranges(self, "experiment.stopping", alpha=(1e-9, 0.5))
        if self.batch < 1:
            raise UserError(f"experiment.stopping.batch: found {self.batch}, expected 1 or more positions")


@dataclass(frozen=True)
class Axis:
    """One setting and its values. `record`: demos anew at each; `train`: policies anew at each."""

    label: str
    key: str
    values: tuple[Any, ...]
    unit: str | None = None
    record: bool = False
    train: bool = False

    def __post_init__(self) -> None:
        if not self.values or any(value in self.values[:i] for i, value in enumerate(self.values)):
            found = list(self.values)
            raise UserError(
                f"experiment.axes: {self.label}: found values {found}, expected one or more different ones"
            )


@dataclass(frozen=True)
class _Experiment:
    """The node's plain values; what has a class of its own is read by itself."""

    title: str
    question: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    videos: int
    power: dict[str, Any]
    stopping: dict[str, Any]
    arms: dict[str, Any]
    pairs: Any = None
    axis_episodes: int | None = None
    axes: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if min(self.seeds, default=0) < 0:
            raise UserError(f"experiment.seeds: found {list(self.seeds)}, expected numbers of 0 or more")
        check_ranges(self, "experiment", videos=(0, INFINITY), axis_episodes=(1, INFINITY))


@dataclass(frozen=True)
class Experiment:
    """Which question, by which arms; `arms` as they were given, see `arms.choose_arms`."""

    title: str
    question: str
    overrides: tuple[str, ...]  # of all arms
    seeds: tuple[int, ...]  # of training
    videos: int
    power: Power
    stopping: Stopping
    arms: Mapping[str, Any]
    pairs: tuple[tuple[str, str], ...] | None  # None: every two
    axis_episodes: int | None
    axes: Mapping[str, Axis]


@dataclass(frozen=True)
class _Compare:
    run_dir: str
    record: bool
    arms: tuple[str, ...] | None = None
    axes: tuple[str, ...] | None = None
    jobs: int | None = None
    threads: int | None = None
    information_run: str | None = None
    readout_run: str | None = None

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            if (found := getattr(self, name)) is not None and found < 1:
                raise UserError(f"{name}: found {found}, expected 1 or more, or null")
        for name in ("information_run", "readout_run"):  # read when all runs are done
            if (found := getattr(self, name)) is not None and not Path(found).is_dir():
                raise UserError(
                    f"{name}: found {found}, which is no folder, expected the run folder of that verb"
                )


@dataclass(frozen=True)
class Compare:
    """All that is compare's own; what goes to the stages goes there as it was typed."""

    out: Path  # relative to the working directory where it lies below it
    record: bool
    arms: tuple[str, ...] | None  # None: all of the experiment
    axes: tuple[str, ...]
    jobs: int | None
    threads: int | None
    information_run: Path | None
    readout_run: Path | None
    experiment: Experiment


def read_compare(cfg: DictConfig) -> Compare:
    """Raises UserError that names the key, for a value of another kind and an axis or pair that is not there."""
    given = read(_Compare, {key: cfg[key] for key in _Compare.__dataclass_fields__}, "")
    experiment = read_experiment(cfg.experiment)
    for name in given.axes or ():
        if name not in experiment.axes:
            raise UserError(f"axes: found '{name}', expected some of {', '.join(experiment.axes)}")
        if list(given.axes or ()).count(name) > 1:
            raise UserError(f"axes: found '{name}' twice, expected every axis once")
    out = Path(given.run_dir)
    if out.is_absolute() and out.is_relative_to(Path.cwd()):  # commands that work on another machine too
        out = out.relative_to(Path.cwd())
    return Compare(
        out=out, record=given.record, arms=given.arms, axes=given.axes or (), jobs=given.jobs,
        threads=given.threads, information_run=_path(given.information_run),
        readout_run=_path(given.readout_run), experiment=experiment,
    )  # fmt: skip


def read_experiment(node: DictConfig) -> Experiment:
    """The node `experiment`."""
    given = read(_Experiment, node, "experiment")
    if not given.seeds or len(set(given.seeds)) != len(given.seeds):
        raise UserError(
            f"experiment.seeds: found {list(given.seeds)}, expected one or more different numbers"
        )
    known = [name for name, arm in given.arms.items() if arm is not None]
    axes = given.axes or {}
    return Experiment(
        title=given.title, question=given.question, overrides=given.overrides, seeds=given.seeds,
        videos=given.videos, power=read(Power, given.power, "experiment.power"),
        stopping=read(Stopping, given.stopping, "experiment.stopping"), arms=given.arms,
        pairs=_pairs(given.pairs, known), axis_episodes=given.axis_episodes,
        axes={name: read(Axis, axes[name], f"experiment.axes.{name}") for name in axes if axes[name] is not None},
    )  # fmt: skip


def _pairs(given: Any, known: list[str]) -> tuple[tuple[str, str], ...] | None:
    if given is None:
        return None
    pairs = []
    if not isinstance(given, list):
        raise UserError(
            f"experiment.pairs: found {given}, expected a list of two arms each, such as [[base-s2,base]]"
        )
    for pair in given:
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(f"experiment.pairs: found {pair}, expected two arms, such as [base-s2,base]")
        for name in map(str, pair):
            if name not in known:
                raise UserError(f"experiment.pairs: found '{name}', expected some of {', '.join(known)}")
        if pair[0] == pair[1]:
            raise UserError(f"experiment.pairs: found {pair}, expected two different arms")
        pairs.append((str(pair[0]), str(pair[1])))
    return tuple(pairs)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)

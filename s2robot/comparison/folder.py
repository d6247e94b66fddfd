"""A comparison's run directory: compare.json and, joined with it, the episodes of every arm.

comparison = read_comparison(Path("runs/compare"))
comparison.facts.pairs[0].difference  # compare.json, each value by its key there
comparison.solved["base-s2"].mean(0)  # share of the training seeds that succeeded, by position (N,)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from s2robot.common.errors import UserError
from s2robot.common.files import read_json
from s2robot.comparison.paired import holm, outcomes_of
from s2robot.core.settings import Stored, invalid, read
from s2robot.evaluation.records import Known, known_of, read_records, read_summary


def _relative(path: str) -> str:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"expected a path inside the run directory, got {path!r}")
    return path


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Inside = Annotated[Text, AfterValidator(_relative)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
Count = Annotated[int, Field(ge=0)]
Cost = Annotated[float, Field(gt=0)] | None
Named = Text | Annotated[dict[str, Any], Field(min_length=1)]  # a name, or settings


class Run(Stored):
    """A training seed of an arm."""

    seed: int
    episodes: Count
    successes: Count
    run: Inside


class Arm(Stored):
    """What was compared, and its success."""

    name: Text
    label: Text
    encoder: Named
    scales: tuple[float, ...]
    policy: Named
    success: Fraction
    low: Fraction
    high: Fraction
    gflops_per_frame: Cost
    parameters: Cost
    ms_per_action: Cost
    seeds: Annotated[tuple[Run, ...], Field(min_length=1)]
    interval: Any = None


class McNemar(Stored):
    """The test of that name on the cases of a pair."""

    wins: Count
    losses: Count
    p: Fraction


class Pair(Stored):
    """Arm `a` minus arm `b`."""

    a: Text
    b: Text
    difference: Difference
    low: Difference
    high: Difference
    p: Fraction
    episodes: Count
    scope: Text
    method: Text
    mcnemar: McNemar
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    p_holm: Fraction = 1.0  # over all pairs, computed from their p when the file is read


class Point(Stored):
    """An arm's success at a value of an axis."""

    value: Any
    success: Fraction
    low: Fraction
    high: Fraction
    episodes: Count
    successes: Count


class Axis(Stored):
    """A setting that was varied."""

    name: Text
    label: Text
    unit: str | None
    default: Any
    values: tuple[Any, ...]  # numbers or names
    arms: dict[str, tuple[Point, ...]]


class Gap(Stored):
    """Positions that it takes to see a gap; null where no number is enough."""

    gap: Fraction
    needed: Count | None


class Power(Gap):
    """The power calculation before the run."""

    power: Fraction
    planned: Count
    table: tuple[Gap, ...]


class Stopping(Stored):
    """The sequential analysis: the looks, or their number."""

    method: Text
    looks: Count | tuple[Any, ...]
    stopped_at: Count | None
    reason: Text | None


class Information(Stored):
    """A table as `s2robot probe probe=information` writes it."""

    columns: tuple[Text, ...]
    rows: tuple[tuple[Any, ...], ...]

    @model_validator(mode="after")
    def _one_cell_a_column(self) -> "Information":
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise invalid(f"rows[{i}]", f"{len(self.columns)} cells", list(row))
        return self


class Video(Stored):
    """An episode of two arms side by side."""

    title: Text
    path: Inside
    position: int
    a: Text
    b: Text


class Positions(Stored):
    """Positions that were asked for."""

    seed: int
    episodes: Count


class Facts(Stored):
    """compare.json; what was left out is empty."""

    title: Text
    question: Text
    positions: Positions
    versions: dict[str, Any]
    command: Text
    commands: tuple[Text, ...]
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    pairs: tuple[Pair, ...]
    axes: tuple[Axis, ...] = ()
    videos: tuple[Video, ...] = ()
    power: Power | None = None
    stopping: Stopping | None = None
    information: Information | None = None
    readout: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _names_are_of_arms(self) -> "Facts":
        names = [arm.name for arm in self.arms]
        _once(names, "arms", "name")
        for i, arm in enumerate(self.arms):
            _once([run.seed for run in arm.seeds], f"arms[{i}].seeds", "seed")
        known = f"one of the arms {', '.join(names)}"
        for key in ("pairs", "videos"):
            for i, row in enumerate(getattr(self, key)):
                for name in ("a", "b"):
                    if (found := getattr(row, name)) not in names:
                        raise invalid(f"{key}[{i}].{name}", known, found)
        for i, axis in enumerate(self.axes):
            for name, points in axis.arms.items():
                if name not in names:
                    raise invalid(f"axes[{i}].arms", known, name)
                for j, point in enumerate(points):
                    if point.value not in axis.values:
                        raise invalid(
                            f"axes[{i}].arms.{name}[{j}].value", f"one of {axis.values}", point.value
                        )
        return self


def _once(names: Sequence[Any], where: str, key: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise invalid(where, f"every {key} once", name)


@dataclass(frozen=True)
class Comparison:
    """What `s2robot compare` found; arms and pairs keep the order of compare.json."""

    facts: Facts
    positions: np.ndarray  # seeds of the positions, rising (N,)
    records: list[dict[str, Any]]  # of one evaluation: where each position's episode began (N,)
    solved: dict[str, np.ndarray]  # arm -> bool (training seeds, N)
    known: Known  # the task
    about: dict[str, Any]  # the summary of that evaluation

    def label(self, arm: str) -> str:
        return next(row.label for row in self.facts.arms if row.name == arm)


def read_comparison(run_dir: Path) -> Comparison:
    """Read `compare.json` and the arms' `episodes.jsonl`, and check them against each other.

    Raises UserError that names file, key, what was found and what was expected: for a missing or broken file or
    key, an unknown arm or position, and episodes that are not those that compare.json counted.
    """
    path = run_dir / "compare.json"
    facts = read(Facts, read_json(path), f"{path}: ")
    adjusted = zip(facts.pairs, holm([pair.p for pair in facts.pairs]), strict=True)
    pairs = tuple(pair.model_copy(update={"p_holm": p}) for pair, p in adjusted)
    return _joined(facts.model_copy(update={"pairs": pairs}), run_dir)


def _joined(facts: Facts, run_dir: Path) -> Comparison:
    records: dict[str, dict[int, list[dict[str, Any]]]] = {}
    about = _summary(run_dir / facts.arms[0].seeds[0].run) if facts.arms[0].seeds else {}
    known = known_of(about)
    for i, arm in enumerate(facts.arms):
        records[arm.name] = {}
        for j, run in enumerate(arm.seeds):
            file = run_dir / run.run / "episodes.jsonl"
            tried = read_records(file, known)  # an axis may have tried more positions
            found = [record for record in tried if record["episode"] < facts.positions.episodes]
            records[arm.name][run.seed] = found
            counted = (len(found), sum(record["success"] for record in found))
            if counted != (run.episodes, run.successes):
                raise UserError(
                    f"{file}: found {counted[0]} episodes with {counted[1]} successes, expected {run.episodes} "
                    f"with {run.successes} (compare.json: arms[{i}].seeds[{j}])"
                )
    solved = outcomes_of(records)
    first = next(iter(next(iter(records.values())).values()))
    began = {record["seed"]: record for record in first}
    for i, pair in enumerate(facts.pairs):
        for key in ("only_a", "only_b"):
            if unknown := sorted(set(getattr(pair, key)) - began.keys()):
                raise UserError(
                    f"{run_dir / 'compare.json'}: pairs[{i}]: {key!r} holds position {unknown[0]}, "
                    f"expected those of the episodes ({min(began)} to {max(began)})"
                )
    positions = sorted(began)
    return Comparison(facts, np.array(positions), [began[p] for p in positions], solved, known, about)


def _summary(run: Path) -> dict[str, Any]:
    """What an evaluation says of its task; comparisons of before hold none and are of the first task."""
    path = run / "summary.json"
    return read_summary(path) if path.exists() else {}

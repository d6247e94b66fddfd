"""A comparison's run folder, checked: compare.json and, joined with it, the episodes of every arm.

comparison = read_comparison(Path("runs/compare"))
comparison.facts.pairs[0].difference  # compare.json, each value as its key there
comparison.solved["base-s2"].mean(0)  # share of the training seeds that succeeded, by position (N,)
"""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np

from s2robot.common.errors import UserError
from s2robot.common.files import read_json
from s2robot.comparison.paired import outcomes_of
from s2robot.evaluation.records import (
    Known,
    check,
    is_fraction,
    is_int,
    is_number,
    known_of,
    read_records,
    read_summary,
)

T = TypeVar("T")
Rule = tuple[Callable[[Any], bool], str]  # what is valid, the same in words


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_list_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, list) and all(valid(item) for item in v)


def _is_count(value: Any) -> bool:
    return is_int(value) and value >= 0


def _is_cost(value: Any) -> bool:
    return value is None or (is_number(value) and value > 0)


def _is_difference(value: Any) -> bool:
    return is_number(value) and -1 <= value <= 1


def _is_inside(value: Any) -> bool:
    return (
        _is_text(value) and not PurePosixPath(value).is_absolute() and ".." not in PurePosixPath(value).parts
    )


Text = Annotated[str, (_is_text, "text")]
Fraction = Annotated[float, (is_fraction, "a fraction in 0..1")]
Difference = Annotated[float, (_is_difference, "a difference of fractions in -1..1")]
Whole = Annotated[int, (is_int, "a whole number")]
Count = Annotated[int, (_is_count, "a whole number, 0 or more")]
Cost = Annotated[float | None, (_is_cost, "a number above 0 or null")]
Inside = Annotated[str, (_is_inside, "a path inside the run folder, relative to it")]
Seeds = Annotated[list[int], (_is_list_of(is_int), "a list of position seeds")]
Texts = Annotated[list[str], (_is_list_of(_is_text), "a list of texts")]
Named = Annotated[
    Any, (lambda v: _is_text(v) or (isinstance(v, dict) and v != {}), "text or an object of settings")
]
Needed = Annotated[
    int | None, (lambda v: v is None or _is_count(v), "a whole number, or null where no number is enough")
]
Free = Annotated[Any, (lambda v: True, "any value")]
SOME: Rule = (lambda v: isinstance(v, list) and v != [], "a list of objects with at least 1")


@dataclass(frozen=True)
class Run:
    """A training seed of an arm."""

    seed: Whole
    episodes: Count
    successes: Count
    run: Inside


@dataclass(frozen=True)
class Arm:
    """What was compared, and its success."""

    name: Text
    label: Text
    encoder: Named
    scales: Annotated[list[float], (_is_list_of(is_number), "a list of numbers")]
    policy: Named
    success: Fraction
    low: Fraction
    high: Fraction
    gflops_per_frame: Cost
    parameters: Cost
    ms_per_action: Cost
    seeds: Annotated[tuple[Run, ...], SOME]
    interval: Free = None


@dataclass(frozen=True)
class McNemar:
    """The test of that name on the cases of a pair."""

    wins: Count
    losses: Count
    p: Fraction


@dataclass(frozen=True)
class Pair:
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
    only_a: Seeds
    only_b: Seeds


@dataclass(frozen=True)
class Point:
    """An arm's success at a value of an axis."""

    value: Free
    success: Fraction
    low: Fraction
    high: Fraction
    episodes: Count
    successes: Count


@dataclass(frozen=True)
class Axis:
    """A setting that was varied."""

    name: Text
    label: Text
    unit: Annotated[str | None, (lambda v: v is None or isinstance(v, str), "text or null")]
    default: Annotated[
        Any, (lambda v: v is None or isinstance(v, (str, int, float)), "a value of the axis or null")
    ]
    values: Annotated[
        list[Any], (_is_list_of(lambda v: _is_text(v) or is_number(v)), "a list of numbers or names")
    ]
    arms: dict[str, tuple[Point, ...]]


@dataclass(frozen=True)
class Gap:
    """Positions that it takes to see a gap."""

    gap: Fraction
    needed: Needed


@dataclass(frozen=True)
class Power(Gap):
    """The power calculation before the run."""

    power: Fraction
    planned: Count
    table: tuple[Gap, ...]


@dataclass(frozen=True)
class Stopping:
    """The sequential analysis."""

    method: Text
    looks: Annotated[
        Any, (lambda v: _is_count(v) or isinstance(v, list), "the number of looks, or a list of them")
    ]
    stopped_at: Annotated[int | None, (lambda v: v is None or _is_count(v), "a number of positions or null")]
    reason: Annotated[str | None, (lambda v: v is None or _is_text(v), "text or null")]


@dataclass(frozen=True)
class Information:
    """A table as `s2robot information` writes it."""

    columns: Texts
    rows: Annotated[list[Any], (lambda v: isinstance(v, list), "a list of rows")]


@dataclass(frozen=True)
class Video:
    """An episode of two arms side by side."""

    title: Text
    path: Inside
    position: Whole
    a: Text
    b: Text


@dataclass(frozen=True)
class Positions:
    """Positions that were asked for."""

    seed: Whole
    episodes: Count


@dataclass(frozen=True)
class Facts:
    """compare.json; what was left out is empty."""

    title: Text
    question: Text
    positions: Positions
    versions: Annotated[dict[str, Any], (lambda v: isinstance(v, dict), "an object, version by name")]
    command: Text
    commands: Texts
    arms: Annotated[tuple[Arm, ...], SOME]
    pairs: tuple[Pair, ...]
    axes: tuple[Axis, ...] = ()
    videos: tuple[Video, ...] = ()
    power: Power | None = None
    stopping: Stopping | None = None
    information: Information | None = None
    readout: Annotated[
        dict[str, Any] | None,
        (lambda v: v is None or isinstance(v, dict), "what `s2robot readout` writes, or null"),
    ] = None


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
    facts, where = _read(Facts, read_json(path), f"{path}", ": "), f"{path}: "
    names = [arm.name for arm in facts.arms]
    _once(names, "name", f"{where}arms")
    for i, arm in enumerate(facts.arms):
        _once([run.seed for run in arm.seeds], "seed", f"{where}arms[{i}].seeds")
    known = f"one of the arms {', '.join(names)}"
    for key in ("pairs", "videos"):
        for i, row in enumerate(getattr(facts, key)):
            for name in ("a", "b"):
                check(vars(row), name, names.__contains__, known, f"{where}{key}[{i}]")
    for i, axis in enumerate(facts.axes):
        for name, points in axis.arms.items():
            if name not in names:
                raise UserError(f"{where}axes[{i}].arms: found {name!r}, expected {known}")
            for j, point in enumerate(points):
                place = f"{where}axes[{i}].arms.{name}[{j}]"
                check(vars(point), "value", axis.values.__contains__, f"one of {axis.values}", place)
    if facts.information is not None:
        _cells(facts.information, f"{where}information")
    return _joined(facts, run_dir)


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


def _read(kind: type[T], found: Any, where: str, joint: str = ".") -> T:
    """An object of JSON as a dataclass whose types have rules; `joint` stands between `where` and a key."""
    if not isinstance(found, dict):
        raise UserError(f"{where}: found {type(found).__name__}, expected an object")
    hints, values = get_type_hints(kind, include_extras=True), {}
    for key in fields(kind):  # type: ignore[arg-type]  # a dataclass
        if key.name in found or key.default is MISSING:
            check(found, key.name, *_rule(hints[key.name]), where)
            values[key.name] = _made(hints[key.name], found[key.name], f"{where}{joint}{key.name}")
    return kind(**values)


def _rule(hint: Any) -> Rule:
    if get_origin(hint) is Annotated:
        return hint.__metadata__[0]
    if get_origin(hint) is tuple:
        return lambda v: isinstance(v, list), "a list of objects"
    return lambda v: isinstance(v, dict) or (v is None and isinstance(hint, UnionType)), "an object"


def _made(hint: Any, value: Any, where: str) -> Any:
    """A value that keeps the rule of its type, with the objects in it as dataclasses."""
    inner = get_args(hint)
    if is_dataclass(hint):
        return _read(cast(type, hint), value, where)
    if get_origin(hint) is Annotated or (isinstance(hint, UnionType) and value is not None):
        return _made(inner[0], value, where)
    if get_origin(hint) is tuple:
        return tuple(_made(inner[0], row, f"{where}[{i}]") for i, row in enumerate(value))
    if get_origin(hint) is dict and get_origin(inner[1]) is tuple:
        for name in value:
            check(value, name, *_rule(inner[1]), where)
        return {name: _made(inner[1], rows, f"{where}.{name}") for name, rows in value.items()}
    return value


def _once(names: Sequence[Any], key: str, where: str) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{where}: {key} {name!r} stands there twice, expected every {key} once")


def _cells(table: Information, where: str) -> None:
    for i, row in enumerate(table.rows):
        if not isinstance(row, list) or len(row) != len(table.columns):
            found = f"{len(row)} cells" if isinstance(row, list) else type(row).__name__
            raise UserError(f"{where}: rows[{i}]: found {found}, expected {len(table.columns)}, one a column")

"""A comparison's run folder, checked: compare.json and, joined with it, the episodes of every arm.

comparison = read_comparison(Path("runs/compare"))
comparison.facts["pairs"][0]["difference"]  # compare.json as it stands
comparison.solved["base-s2"].mean(0)        # share of the training seeds that lifted the cube, by position (N,)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.comparison.paired import outcomes_of
from s2robot.evaluation.records import check, is_fraction, is_int, is_number, read_json, read_records

Rule = tuple[str, Callable[[Any], bool], str]  # key, what is valid, the same in words


@dataclass(frozen=True)
class Comparison:
    """What `s2robot compare` found; arms and pairs keep the order of compare.json."""

    facts: dict[str, Any]  # compare.json; every key is there, those that were left out are empty
    positions: np.ndarray  # seeds of the cube positions, rising (N,)
    cubes: np.ndarray  # where the cube lay: x (m), y (m) (N, 2)
    solved: dict[str, np.ndarray]  # arm -> bool (training seeds, N)

    def label(self, arm: str) -> str:
        return next(row["label"] for row in self.facts["arms"] if row["name"] == arm)


def read_comparison(run_dir: Path) -> Comparison:
    """Read `compare.json` and the arms' `episodes.jsonl`, and check them against each other.

    Raises UserError that names file, key, what was found and what was expected: for a missing or broken file or
    key, an unknown arm or position, and episodes that are not those that compare.json counted.
    """
    path = run_dir / "compare.json"
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"{path}: found {type(facts).__name__}, expected an object")
    facts = {
        **dict.fromkeys(("power", "stopping", "information", "readout")),
        "axes": [],
        "videos": [],
        **facts,
    }
    where = str(path)
    _object(facts, _TOP, where)
    _object(facts["positions"], _POSITIONS, f"{where}: positions")
    names = _names(_rows(facts, "arms", _ARM, where, least=1), "name", f"{where}: arms")
    for i, arm in enumerate(facts["arms"]):
        _names(
            _rows(arm, "seeds", _SEED, f"{where}: arms[{i}]", least=1), "seed", f"{where}: arms[{i}].seeds"
        )
    known: Rule = ("", lambda v: v in names, f"one of the arms {', '.join(names)}")
    for i, pair in enumerate(_rows(facts, "pairs", _PAIR, where)):
        _object(pair, (("a", *known[1:]), ("b", *known[1:])), f"{where}: pairs[{i}]")
        _object(pair["mcnemar"], _MCNEMAR, f"{where}: pairs[{i}].mcnemar")
    for i, axis in enumerate(_rows(facts, "axes", _AXIS, where)):
        place = f"{where}: axes[{i}].arms"
        valid: Rule = ("value", axis["values"].__contains__, f"one of {axis['values']}")
        for arm in axis["arms"]:
            if arm not in names:
                raise UserError(f"{place}: found {arm!r}, expected {known[2]}")
            _rows(axis["arms"], arm, (valid, *_POINT), place)
    for key, rules in (("power", _POWER), ("stopping", _STOPPING), ("information", _INFORMATION)):
        if facts[key] is not None:
            _object(facts[key], rules, f"{where}: {key}")
    if facts["power"] is not None:
        _rows(facts["power"], "table", _NEEDED, f"{where}: power")
    if facts["information"] is not None:
        _cells(facts["information"], f"{where}: information")
    _rows(facts, "videos", (*_VIDEO, ("a", *known[1:]), ("b", *known[1:])), where)
    return _joined(facts, run_dir)


def _joined(facts: dict[str, Any], run_dir: Path) -> Comparison:
    records: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for i, arm in enumerate(facts["arms"]):
        records[arm["name"]] = {}
        for j, run in enumerate(arm["seeds"]):
            file = run_dir / run["run"] / "episodes.jsonl"
            found = records[arm["name"]][run["seed"]] = read_records(file)
            counted = (len(found), sum(record["success"] for record in found))
            if counted != (run["episodes"], run["successes"]):
                raise UserError(
                    f"{file}: found {counted[0]} episodes with {counted[1]} successes, expected {run['episodes']} "
                    f"with {run['successes']} (compare.json: arms[{i}].seeds[{j}])"
                )
    solved = outcomes_of(records)
    first = next(iter(next(iter(records.values())).values()))
    cubes = {record["seed"]: record["cube_xy"] for record in first}
    for i, pair in enumerate(facts["pairs"]):
        for key in ("only_a", "only_b"):
            if unknown := sorted(set(pair[key]) - cubes.keys()):
                raise UserError(
                    f"{run_dir / 'compare.json'}: pairs[{i}]: {key!r} holds position {unknown[0]}, "
                    f"expected those of the episodes ({min(cubes)} to {max(cubes)})"
                )
    positions = sorted(cubes)
    return Comparison(
        facts, np.array(positions), np.array([cubes[p] for p in positions], dtype=float), solved
    )


def _object(found: Any, rules: Sequence[Rule], where: str) -> None:
    if not isinstance(found, dict):
        raise UserError(f"{where}: found {type(found).__name__}, expected an object")
    for key, valid, expected in rules:
        check(found, key, valid, expected, where)


def _rows(found: Mapping[str, Any], key: str, rules: Sequence[Rule], where: str, least: int = 0) -> list[Any]:
    enough = "" if not least else f" with at least {least}"
    check(found, key, lambda v: isinstance(v, list) and len(v) >= least, f"a list of objects{enough}", where)
    for i, row in enumerate(found[key]):
        _object(row, rules, f"{where}: {key}[{i}]")
    return found[key]


def _names(rows: Sequence[Mapping[str, Any]], key: str, where: str) -> list[Any]:
    names = [row[key] for row in rows]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UserError(f"{where}: {key} {name!r} stands there twice, expected every {key} once")
    return names


def _cells(table: Mapping[str, Any], where: str) -> None:
    for i, row in enumerate(table["rows"]):
        if not isinstance(row, list) or len(row) != len(table["columns"]):
            found = f"{len(row)} cells" if isinstance(row, list) else type(row).__name__
            raise UserError(
                f"{where}: rows[{i}]: found {found}, expected {len(table['columns'])}, one a column"
            )


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


_FRACTION = (is_fraction, "a fraction in 0..1")
_DIFFERENCE = (_is_difference, "a difference of fractions in -1..1")
_COUNT = (_is_count, "a whole number, 0 or more")
_COST = (_is_cost, "a number above 0 or null")
_INSIDE = (_is_inside, "a path inside the run folder, relative to it")
_TEXT = (_is_text, "text")
_SEEDS = (_is_list_of(is_int), "a list of position seeds")
_NAME = (lambda v: _is_text(v) or (isinstance(v, dict) and v != {}), "text or an object of settings")
_RESULT = (("success", *_FRACTION), ("low", *_FRACTION), ("high", *_FRACTION))
_COUNTS = (("episodes", *_COUNT), ("successes", *_COUNT))
_TOP: Sequence[Rule] = (
    ("title", *_TEXT),
    ("question", *_TEXT),
    ("positions", lambda v: isinstance(v, dict), "an object with 'seed' and 'episodes'"),
    ("versions", lambda v: isinstance(v, dict), "an object, version by name"),
    ("command", *_TEXT),
    ("commands", _is_list_of(_is_text), "a list of commands"),
    ("readout", lambda v: v is None or isinstance(v, dict), "what `s2robot readout` writes, or null"),
)
_POSITIONS: Sequence[Rule] = (("seed", is_int, "a whole number"), ("episodes", *_COUNT))
_ARM: Sequence[Rule] = (
    ("name", *_TEXT),
    ("label", *_TEXT),
    ("encoder", *_NAME),
    ("scales", _is_list_of(is_number), "a list of numbers"),
    ("policy", *_NAME),
    *_RESULT,
    ("gflops_per_frame", *_COST),
    ("parameters", *_COST),
    ("ms_per_action", *_COST),
)
_SEED: Sequence[Rule] = (("seed", is_int, "a whole number"), *_COUNTS, ("run", *_INSIDE))
_PAIR: Sequence[Rule] = (
    ("difference", *_DIFFERENCE),
    ("low", *_DIFFERENCE),
    ("high", *_DIFFERENCE),
    ("p", *_FRACTION),
    ("episodes", *_COUNT),
    ("scope", *_TEXT),
    ("method", *_TEXT),
    ("mcnemar", lambda v: isinstance(v, dict), "an object with 'wins', 'losses' and 'p'"),
    ("only_a", *_SEEDS),
    ("only_b", *_SEEDS),
)
_MCNEMAR: Sequence[Rule] = (("wins", *_COUNT), ("losses", *_COUNT), ("p", *_FRACTION))
_AXIS: Sequence[Rule] = (
    ("name", *_TEXT),
    ("label", *_TEXT),
    ("unit", lambda v: v is None or isinstance(v, str), "text or null"),
    ("default", lambda v: v is None or isinstance(v, (str, int, float)), "a value of the axis or null"),
    ("values", _is_list_of(lambda v: _is_text(v) or is_number(v)), "a list of numbers or names"),
    ("arms", lambda v: isinstance(v, dict), "an object, a list of points by arm"),
)
_POINT: Sequence[Rule] = (*_RESULT, *_COUNTS)
_NEEDED: Sequence[Rule] = (
    ("gap", *_FRACTION),
    ("needed", lambda v: v is None or _is_count(v), "a whole number, or null where no number is enough"),
)
_POWER: Sequence[Rule] = (*_NEEDED, ("power", *_FRACTION), ("planned", *_COUNT))
_STOPPING: Sequence[Rule] = (
    ("method", *_TEXT),
    ("looks", lambda v: _is_count(v) or isinstance(v, list), "the number of looks, or a list of them"),
    ("stopped_at", lambda v: v is None or _is_count(v), "a number of positions or null"),
    ("reason", lambda v: v is None or _is_text(v), "text or null"),
)
_INFORMATION: Sequence[Rule] = (
    ("columns", _is_list_of(_is_text), "a list of headings"),
    ("rows", lambda v: isinstance(v, list), "a list of rows"),
)
_VIDEO: Sequence[Rule] = (("title", *_TEXT), ("path", *_INSIDE), ("position", is_int, "a position's seed"))

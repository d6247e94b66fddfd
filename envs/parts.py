"""What the numbers of an action or a state are, as plain JSON: lists of parts that a task declares and a dataset keeps.

    parts = [{"name": "position", "size": 3, "kind": "delta"}, {"name": "gripper", "size": 1, "kind": "binary"}]
    check_parts(parts, 4, "action_parts")
    check_values(parts, actions, "episode 3: action")

`s2robot.policies.parts` says what each key means and is what a policy works with; here is what worlds and datasets need.
None stands for an arm's joints and its gripper (`usual`), as in all datasets before there were parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError

KINDS = ("delta", "absolute", "rotation", "binary")
FORMS = {"axis_angle": 3, "rot6d": 6}
KEYS = ("name", "size", "kind", "low", "high", "names", "form", "relative")
FLAT = 1e-4  # sine of the angle between two columns of a rot6d, and a column's length, that span no frame
MAX_DELTA = 0.25  # rad a step and joint, of the usual parts where a dataset names no other
BEYOND = 1e-5  # of a limit's range: what float32 and clipping round

Plain = Sequence[Mapping[str, Any]]


def usual(key: str, joints: int) -> list[dict[str, Any]]:
    """What no `action_parts` or `proprio_parts` (the key) mean, for an arm of so many joints."""
    action = key == "action_parts"
    last = {"name": "gripper" if action else "opening", "size": 1, "kind": "binary" if action else "absolute"}
    return [{"name": "joints", "size": joints, "kind": "delta" if action else "absolute"}, last]


def size_of(parts: Plain) -> int:
    """Numbers that they take together."""
    return sum(part["size"] for part in parts)


def words(parts: Plain) -> str:
    """The parts in a message."""
    return ", ".join(f"{part['name']} ({part['size']} {part['kind']})" for part in parts)


def same(one: Plain, other: Plain) -> bool:
    """Whether both mean the same numbers, whatever they are called and where their limits are."""
    return [_meaning(part) for part in one] == [_meaning(part) for part in other]


def _meaning(part: Mapping[str, Any]) -> tuple:
    values = _limits(part) if part["kind"] == "binary" else None  # two of them, not a range
    return part["size"], part["kind"], part.get("form"), bool(part.get("relative")), values


def number_names(parts: Plain) -> list[str]:
    """A name for each number."""
    names: list[str] = []
    for part in parts:
        single = (
            [part["name"]] if part["size"] == 1 else [f"{part['name']} {i + 1}" for i in range(part["size"])]
        )
        names += part.get("names") or single
    return names


def check_parts(parts: Any, where: str, size: int | None = None) -> None:
    """Refuse what are no parts, or not of `size` numbers together.

    Raises:
        EnvError: names `where`, what was found and what was expected.
    """
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise EnvError(f"{where}: found {parts!r}, expected a list of parts")
    for part in parts:
        if problem := _problem(part):
            raise EnvError(f"{where}: part '{part.get('name')}': {problem}")
    names = [part["name"] for part in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise EnvError(f"{where}: found two parts of the name '{twice}', expected different names")
    if size is not None and size_of(parts) != size:
        raise EnvError(f"{where}: {words(parts)} are {size_of(parts)} numbers together, expected {size}")


def check_values(parts: Plain, values: np.ndarray, where: str) -> None:
    """Refuse values (..., A) that their parts exclude: beyond limits, or a rotation that is none.

    Raises:
        EnvError: names `where`, the part, the step, what was found and what was expected.
    """
    at = 0
    for part in parts:
        x = values[..., at : at + part["size"]]
        at += part["size"]
        if part.get("form") == "rot6d":
            _first(_no_rotation(x), x, where, part, "a rotation: two columns that are not parallel")
        if part.get("low") is None and part["kind"] != "binary":
            continue
        low, high = map(np.asarray, _limits(part))
        room = BEYOND * (high - low)
        beyond = ((x < low - room) | (x > high + room)).any(-1)
        _first(beyond, x, where, part, f"its limits, {_numbers(low)} to {_numbers(high)}")


def _problem(part: Mapping[str, Any]) -> str:
    """What is wrong with a part; empty where nothing is."""
    if unknown := [key for key in part if key not in KEYS]:
        return f"unknown key '{unknown[0]}', expected some of {', '.join(KEYS)}"
    name, size, kind = part.get("name"), part.get("size"), part.get("kind")
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name, re.ASCII):
        return "expected a name of letters, digits and _"
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        return f"size is {size!r}, expected a whole number from 1 on"
    if kind not in KINDS:
        return f"kind is {kind!r}, expected one of {', '.join(KINDS)}"
    form = part.get("form")
    if kind == "rotation" and FORMS.get(str(form)) != size:
        return f"form is {form!r} with {size} numbers, expected axis_angle with 3 or rot6d with 6"
    if kind != "rotation" and (form or part.get("relative")):
        return f"form and relative are of rotations, its kind is {kind}"
    low, high = part.get("low"), part.get("high")
    for key in ("low", "high", "names"):
        if (given := part.get(key)) is not None and (not isinstance(given, list) or len(given) != size):
            return f"{key} is {given!r}, expected a list of {size}"
    if (low is None) != (high is None):
        return "found one of low and high, expected both or none"
    if low and high and not all(a < b for a, b in zip(low, high, strict=True)):
        return f"low is {low}, expected less than high {high}"
    return ""


def _limits(part: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Low and high of each number; 0 and 1 where none are given."""
    return part.get("low") or [0.0] * part["size"], part.get("high") or [1.0] * part["size"]


def _no_rotation(x: np.ndarray) -> np.ndarray:
    """Which rot6d (..., 6) span no frame.  # (...)"""
    first, second = x[..., :3].astype(np.float64), x[..., 3:].astype(np.float64)
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    across = np.linalg.norm(np.cross(first, second), axis=-1)
    return (np.minimum(*lengths) < FLAT) | (across < FLAT * lengths[0] * lengths[1])


def _first(bad: np.ndarray, x: np.ndarray, where: str, part: Mapping[str, Any], expected: str) -> None:
    """EnvError of the first step that is bad, if one is."""
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        raise EnvError(
            f"{where}: part '{part['name']}' of step {place[0]} is {_numbers(x[place])}, expected {expected}"
        )


def _numbers(values: np.ndarray) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values)}]" if len(values) > 1 else f"{values[0]:.4g}"

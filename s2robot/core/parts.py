"""What the numbers of an action or a state are: an ordered list of parts, stored as plain JSON.

    given = [{"name": "position", "size": 3, "kind": "delta"}, {"name": "gripper", "size": 1, "kind": "binary"}]
    parts = read_parts(given, "action_parts", 4)
    check_values(parts, actions, "episode 3: action")

`delta`: steps that add up. `absolute`: a value. `rotation`: `form` axis_angle (rad) or rot6d, about the axes of the base;
`relative`: from step to step, composed as deltas are added. `binary`: one of two values, `low` and `high` (0 and 1 by
default). Where a dataset or a policy has no parts, it has an arm's joints and its gripper (:func:`default_parts`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, read

FORMS = {"axis_angle": 3, "rot6d": 6}  # of a rotation -> its numbers
FLAT = 1e-4  # sine of the angle between the columns of a rot6d, and a column's length, that span no frame
MAX_DELTA = 0.25  # rad a step and joint, of the default parts where a dataset names no other
BEYOND = 1e-5  # of a limit's range: what float32 and clipping round


class Part(Settings):
    """One part of an action or a state."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    size: int = Field(ge=1)  # numbers that it takes in the action or state
    kind: Literal["delta", "absolute", "rotation", "binary"]
    low: tuple[float, ...] | None = None  # of each number
    high: tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None  # of the numbers
    form: Literal["axis_angle", "rot6d"] | None = None  # of a rotation
    relative: bool = False  # a rotation from step to step

    def rules(self) -> Iterator[tuple[Any, ...]]:
        rotates = FORMS.get(str(self.form)) == self.size
        fits = rotates if self.kind == "rotation" else not (self.form or self.relative)
        yield "form", fits, "axis_angle with 3 numbers or rot6d with 6, of a rotation alone"
        for key in ("low", "high", "names"):
            given = getattr(self, key)
            yield key, given is None or len(given) == self.size, f"{self.size} values"
        missing = "low" if self.low is None else "high"
        yield missing, (self.low is None) == (self.high is None), "a value beside the other limit"
        # never `limits`, which makes arrays of a size that a file may have made up
        rising = all(a < b for a, b in zip(self.low or (), self.high or (), strict=True))
        yield "low", rising, f"less than high {list(self.high or ())}"

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high of each number; 0 and 1 by default.  # float64 (size,) each"""
        return np.array(self.low or [0.0] * self.size), np.array(self.high or [1.0] * self.size)

    @property
    def width(self) -> int:
        """Numbers that it takes inside a policy, where a rotation is rot6d."""
        return 6 if self.kind == "rotation" else self.size

    @property
    def label(self) -> str:
        """Its name in the metrics of a training."""
        return "joint" if self.name == "joints" else self.name

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What two parts that mean the same numbers share: limits and names may differ."""
        values = tuple(map(tuple, self.limits)) if self.kind == "binary" else None  # two values, not a range
        return self.size, self.kind, self.form, self.relative, values

    def __str__(self) -> str:
        how = "".join((" relative" if self.relative else "", f" {self.form}" if self.form else ""))
        return f"{self.name} ({self.size}{how} {self.kind})"


def read_parts(given: Any, where: str, size: int | None = None) -> tuple[Part, ...]:
    """Read parts from plain JSON dicts; UserError names `where` and the part, also if they are not `size` numbers together."""
    parts: tuple[Part, ...] = read(Annotated[tuple[Part, ...], Field(min_length=1)], given, where)
    names = [part.name for part in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: expected different names, got two parts of the name '{twice}'")
    if size is not None and size_of(parts) != size:
        raise UserError(f"{where}: expected {size} numbers together, got {size_of(parts)}: {words(parts)}")
    return parts


def default_parts(key: str, joints: int, gripper: str | None = "binary") -> tuple[Part, ...]:
    """Return the default `action_parts` or `proprio_parts` (the key): those of an arm with that many joints, and its gripper.

    gripper: "binary"; "continuous", whose action is the opening; None.
    """
    action = key == "action_parts"
    first = [Part(name="joints", size=joints, kind="delta" if action else "absolute")] if joints else []
    name, kind = ("gripper", "binary") if action else ("opening", "absolute")
    if gripper is None:
        return tuple(first)
    kind = kind if gripper == "binary" else "absolute"
    return (*first, Part(name=name, size=1, kind=kind))  # type: ignore[arg-type]  # a Literal


def parts_of(about: Mapping[str, Any], key: str) -> tuple[Part, ...]:
    """The parts of `action` or `proprio` (the key) of a dataset, a world or a contract; by default its arm's."""
    given = about.get(name := f"{key}_parts")
    return default_parts(name, len(about["joint_names"])) if given is None else read_parts(given, name)


def plain(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """What :func:`read_parts` reads, JSON types."""
    return [part.model_dump(mode="json", exclude_defaults=True) for part in parts]


def size_of(parts: Sequence[Part]) -> int:
    return sum(part.size for part in parts)


def moves(parts: Sequence[Part]) -> np.ndarray:
    """Return which numbers are steps, of which zero means to stay.  # bool (A,)"""
    return np.repeat([part.kind == "delta" or part.relative for part in parts], [part.size for part in parts])


def same_parts(one: Sequence[Part], other: Sequence[Part]) -> bool:
    """Whether both mean the same numbers, whatever they are called and where their limits are."""
    return [part.meaning for part in one] == [part.meaning for part in other]


def words(parts: Sequence[Part]) -> str:
    return ", ".join(map(str, parts))


def number_names(parts: Sequence[Part]) -> list[str]:
    names: list[str] = []
    for part in parts:
        numbered = [f"{part.name} {i + 1}" for i in range(part.size)]
        names += part.names or ([part.name] if part.size == 1 else numbered)
    return names


def slices(parts: Sequence[Part]) -> list[slice]:
    ends = np.cumsum([part.size for part in parts]).tolist()
    return [slice(end - part.size, end) for part, end in zip(parts, ends, strict=True)]


def check_values(parts: Sequence[Part], values: np.ndarray, where: str, limits: bool = True) -> None:
    """Raise UserError for values (T, ..., A) that are invalid rotations or, with `limits`, out of range."""
    for part, at in zip(parts, slices(parts), strict=True):
        x = values[..., at]
        if part.form == "rot6d":
            _check(_no_rotation(x), x, where, part, "a rotation: two columns that are not parallel")
        if limits and (part.low is not None or part.kind == "binary"):
            low, high = part.limits
            room = BEYOND * (high - low)
            beyond = ((x < low - room) | (x > high + room)).any(-1)
            _check(beyond, x, where, part, f"its limits, {_numbers(low)} to {_numbers(high)}")


def _no_rotation(x: np.ndarray) -> np.ndarray:
    """Which rot6d (..., 6) span no frame.  # (...)"""
    first, second = x[..., :3].astype(np.float64), x[..., 3:].astype(np.float64)
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    across = np.linalg.norm(np.cross(first, second), axis=-1)
    return (np.minimum(*lengths) < FLAT) | (across < FLAT * lengths[0] * lengths[1])


def _check(bad: np.ndarray, x: np.ndarray, where: str, part: Part, expected: str) -> None:
    if bad.any():
        place = np.unravel_index(int(bad.argmax()), bad.shape)
        found = f"part '{part.name}' of step {place[0]} is {_numbers(x[place])}"
        raise UserError(f"{where}: {found}, expected {expected}")


def _numbers(values: np.ndarray) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values)}]" if len(values) > 1 else f"{values[0]:.4g}"

"""The layout of an action or state: an ordered list of parts, stored as plain JSON.

    stored = [{"name": "position", "size": 3, "kind": "delta"}, {"name": "gripper", "size": 1, "kind": "binary"}]
    parts = read_parts(stored, "action_parts", 4)
    check_values(parts, actions, "episode 3: action")

`delta`: increments, which add up. `absolute`: a value. `rotation`: `form` axis_angle (rad) or rot6d, about the axes of the
base; `relative`: from step to step, composed as deltas are added. `binary`: one of two values, `low` and `high` (0 and 1
by default). The default parts are an arm's joints and its gripper (:func:`default_parts`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, Stored, read

FORMS = {"axis_angle": 3, "rot6d": 6}  # form of a rotation -> its size
FLAT = 1e-4  # minimum length of a rot6d column, and minimum sine of the angle between the two
MAX_DELTA = 0.25  # default limit of joint increments (rad per step)
BEYOND = 1e-5  # tolerance at limits, as a share of their range: rounding by float32 and clipping


class Part(Settings):
    """One part of an action or a state."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    size: int = Field(ge=1)  # number of dimensions in the action or state
    kind: Literal["delta", "absolute", "rotation", "binary"]
    low: tuple[float, ...] | None = None  # per dimension
    high: tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None  # of the dimensions
    form: Literal["axis_angle", "rot6d"] | None = None  # of a rotation
    relative: bool = False  # a rotation from step to step

    def rules(self) -> Iterator[tuple[Any, ...]]:
        rotates = FORMS.get(str(self.form)) == self.size
        fits = rotates if self.kind == "rotation" else not (self.form or self.relative)
        yield "form", fits, "axis_angle with 3 numbers or rot6d with 6, only for a rotation"
        for key in ("low", "high", "names"):
            value = getattr(self, key)
            yield key, value is None or len(value) == self.size, f"{self.size} values"
        missing = "low" if self.low is None else "high"
        yield missing, (self.low is None) == (self.high is None), "values for both limits"
        # do not use `limits` here: it allocates arrays of `size`, which a hostile file can set
        ordered = all(a < b for a, b in zip(self.low or (), self.high or (), strict=True))
        yield "low", ordered, f"less than high {list(self.high or ())}"

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Low and high of each dimension; 0 and 1 by default.  # float64 (size,) each"""
        return np.array(self.low or [0.0] * self.size), np.array(self.high or [1.0] * self.size)

    @property
    def width(self) -> int:
        """Number of dimensions inside a policy, which represents rotations as rot6d."""
        return 6 if self.kind == "rotation" else self.size

    @property
    def label(self) -> str:
        """Name in training metrics."""
        return "joint" if self.name == "joints" else self.name

    @property
    def meaning(self) -> tuple[Any, ...]:
        """Key that is equal for parts with the same meaning; limits and names may differ."""
        values = tuple(map(tuple, self.limits)) if self.kind == "binary" else None  # two values, not a range
        return self.size, self.kind, self.form, self.relative, values

    def __str__(self) -> str:
        form = "".join((" relative" if self.relative else "", f" {self.form}" if self.form else ""))
        return f"{self.name} ({self.size}{form} {self.kind})"


class _Encoder(Stored, extra="allow"):
    fingerprint: str


class Contract(Stored, extra="allow"):
    """What a checkpoint states about its encoder, robot and demonstrations; other keys are kept unchanged."""

    encoder: _Encoder
    cameras: list[str]
    robot: str
    joint_names: list[str]
    action_frame: str
    rate_hz: float = Field(gt=0)
    dataset: dict[str, Any]
    camera_geometry: dict[str, dict[str, Any]] | None = None
    env_config: dict[str, Any] | None = None
    training: dict[str, Any] | None = None


def read_parts(stored: Any, where: str, size: int | None = None) -> tuple[Part, ...]:
    """Read parts from plain JSON dicts. UserError, with `where` and the part, also if their sizes do not add up to `size`."""
    parts: tuple[Part, ...] = read(Annotated[tuple[Part, ...], Field(min_length=1)], stored, where)
    names = [part.name for part in parts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: expected different names, got two parts named '{twice}'")
    if size is not None and size_of(parts) != size:
        raise UserError(f"{where}: expected {size} numbers in total, got {size_of(parts)}: {words(parts)}")
    return parts


def default_parts(key: str, joints: int, gripper: str | None = "binary") -> tuple[Part, ...]:
    """Return the default `action_parts` or `proprio_parts` (the key) of an arm with ``joints`` joints and a gripper.

    gripper: "binary"; "continuous" (the action is the opening); None.
    """
    action = key == "action_parts"
    first = [Part(name="joints", size=joints, kind="delta" if action else "absolute")] if joints else []
    if gripper is None:
        return tuple(first)
    kind: Any = "binary" if action and gripper == "binary" else "absolute"
    return (*first, Part(name="gripper" if action else "opening", size=1, kind=kind))


def parts_of(about: Mapping[str, Any], key: str) -> tuple[Part, ...]:
    """Return the parts of `action` or `proprio` (the key) of a dataset, a world or a contract; by default its arm's."""
    stored = about.get(name := f"{key}_parts")
    return default_parts(name, len(about["joint_names"])) if stored is None else read_parts(stored, name)


def plain(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the input of :func:`read_parts`, JSON types."""
    return [part.model_dump(mode="json", exclude_defaults=True) for part in parts]


def size_of(parts: Sequence[Part]) -> int:
    return sum(part.size for part in parts)


def moves(parts: Sequence[Part]) -> np.ndarray:
    """Return which dimensions are increments, where zero means no motion.  # bool (A,)"""
    return np.repeat([part.kind == "delta" or part.relative for part in parts], [part.size for part in parts])


def same_parts(one: Sequence[Part], other: Sequence[Part]) -> bool:
    """Return whether both have the same meaning; names and limits may differ."""
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
            _check(_no_rotation(x), x, where, part, "a rotation with two columns that are not parallel")
        if limits and (part.low is not None or part.kind == "binary"):
            low, high = part.limits
            tolerance = BEYOND * (high - low)
            outside = ((x < low - tolerance) | (x > high + tolerance)).any(-1)
            _check(outside, x, where, part, f"values from {_numbers(low)} to {_numbers(high)}")


def _no_rotation(x: np.ndarray) -> np.ndarray:
    """Return which rot6d (..., 6) do not define a frame.  # (...)"""
    first, second = x[..., :3].astype(np.float64), x[..., 3:].astype(np.float64)
    lengths = np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)
    cross = np.linalg.norm(np.cross(first, second), axis=-1)
    return (np.minimum(*lengths) < FLAT) | (cross < FLAT * lengths[0] * lengths[1])


def _check(bad: np.ndarray, x: np.ndarray, where: str, part: Part, expected: str) -> None:
    if bad.any():
        index = np.unravel_index(int(bad.argmax()), bad.shape)
        key = f"part '{part.name}' of step {index[0]}"
        raise UserError(f"{where}: {key}: expected {expected}, got {_numbers(x[index])}")


def _numbers(values: np.ndarray) -> str:
    return f"[{', '.join(f'{v:.4g}' for v in values)}]" if len(values) > 1 else f"{values[0]:.4g}"

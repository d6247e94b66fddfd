"""What the numbers of an action or a state are: an ordered list of parts, each with its kind.

    parts = Parts.read([{"name": "position", "size": 3, "kind": "delta"},
                        {"name": "turn", "size": 3, "kind": "rotation", "form": "axis_angle", "relative": True},
                        {"name": "gripper", "size": 1, "kind": "binary"}], 7, "action_parts")
    parts.size, parts.width           # 7 numbers outside, 10 inside: a rotation is rot6d there
    parts.inner(actions)              # (..., 7) -> (..., 10)
    parts.outer(parts.inner(x))       # x

`s2robot.core.parts` describes the kinds. Inside, binary numbers are 0 and 1. Two arms, or two grippers, are more parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2robot.core.parts import Part, default_parts, read_parts, size_of, slices, words
from s2robot.policies import rotations

Change = Callable[[Tensor], Tensor]


class Slot(NamedTuple):
    """Where a part lies inside, for a head."""

    label: str
    start: int
    width: int
    binary: bool

    @property
    def at(self) -> slice:
        return slice(self.start, self.start + self.width)


@dataclass(frozen=True)
class Parts:
    """All parts of an action or a state, in their order."""

    parts: tuple[Part, ...]

    @classmethod
    def read(
        cls, given: Sequence[Mapping[str, Any]] | None, size: int, where: str, default: str = "action"
    ) -> Parts:
        """Read plain JSON dicts that add up to `size` numbers (UserError names `where`, the part and what is wrong).

        None means an arm's joints and its gripper, as `default` (action or proprio) has them.
        """
        usual = given is None
        return cls(default_parts(f"{default}_parts", size - 1) if usual else read_parts(given, where, size))

    def __str__(self) -> str:
        return words(self.parts)

    @cached_property
    def size(self) -> int:
        """Numbers outside, A or P."""
        return size_of(self.parts)

    @cached_property
    def width(self) -> int:
        """Numbers inside, where a rotation has six."""
        return sum(part.width for part in self.parts)

    @cached_property
    def outside(self) -> tuple[tuple[Part, slice], ...]:
        """Each part and where it lies in an action or state."""
        return tuple(zip(self.parts, slices(self.parts), strict=True))

    @cached_property
    def inside(self) -> tuple[tuple[Part, slice], ...]:
        """Each part and where it lies inside."""
        ends = accumulate(part.width for part in self.parts)
        return tuple((p, slice(end - p.width, end)) for p, end in zip(self.parts, ends, strict=True))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The same, as heads need it."""
        return tuple(Slot(p.label, at.start, p.width, p.kind == "binary") for p, at in self.inside)

    @cached_property
    def _plain(self) -> bool:
        """Whether inside and outside are the same numbers."""
        return not any(p.kind == "rotation" or (p.kind == "binary" and p.low) for p in self.parts)

    def zeros(self) -> Tensor:
        """Zeros (A,), and rotations that turn nothing."""
        still = {"rot6d": [1.0, 0, 0, 0, 1, 0]}
        return torch.tensor([v for part in self.parts for v in still.get(str(part.form), [0.0] * part.size)])

    def inner(self, values: Tensor) -> Tensor:
        """(..., A) -> (..., W): rotations as rot6d, binary numbers as 0 and 1."""
        return self._each(values, self.outside, _inner)

    def outer(self, values: Tensor) -> Tensor:
        """Invert `inner`; a binary number between its values stays between."""
        return self._each(values, self.inside, _outer)

    def _each(
        self, values: Tensor, places: Sequence[tuple[Part, slice]], change: Callable[[Part, Tensor], Tensor]
    ) -> Tensor:
        if self._plain:
            return values
        return torch.cat([change(part, values[..., at]) for part, at in places], -1)

    def targets(self, actions: Tensor, cumulative: bool) -> Tensor:
        """Chunks (..., K, A) -> what is predicted of them, (..., K, W).

        `cumulative`: deltas as their sums and relative rotations as their products, from the first step on.
        """
        sums = lambda x: x.cumsum(-2)  # noqa: E731
        return self._over_steps(self.inner(actions), cumulative, sums, rotations.composed)

    def actions(self, targets: Tensor, cumulative: bool) -> Tensor:
        """Invert `targets`, but stay inside; rotations are made proper.  # (..., K, W)"""
        steps = lambda x: torch.diff(x, dim=-2, prepend=torch.zeros_like(x[..., :1, :]))  # noqa: E731
        return self._over_steps(targets, cumulative, steps, rotations.between)

    def _over_steps(self, chunk: Tensor, cumulative: bool, deltas: Change, turns: Change) -> Tensor:
        if not cumulative and self._plain:
            return chunk
        pieces = []
        for part, at in self.inside:
            x = chunk[..., at]
            if part.kind == "delta" and cumulative:
                x = deltas(x)
            elif part.kind == "rotation":
                turned = rotations.matrices(x, "rot6d")
                x = rotations.numbers(turns(turned) if part.relative and cumulative else turned, "rot6d")
            pieces.append(x)
        return torch.cat(pieces, -1)

    def clip(self, actions: Tensor, binary: bool = True) -> Tensor:
        """Actions (..., A) within their limits; `binary`: each binary number one of its two values."""
        pieces = []
        for part, at in self.outside:
            x = actions[..., at]
            low, high = _limits(part, x)
            if part.kind == "binary" and binary:
                x = torch.where(x > (low + high) / 2, high, low)
            elif part.low and part.form != "rot6d":
                x = torch.minimum(torch.maximum(x, low), high)
            pieces.append(x)
        return torch.cat(pieces, -1)

    def errors(self, found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        """How far actions (..., A) are from others, by part.  # (...) each

        `<part>_error`: mean absolute difference in the part's own unit, of a rotation the angle in rad;
        `<part>_accuracy` of a binary one: 1 where it is the same (the share of them, where it has several numbers).
        """
        errors = {}
        for part, at in self.outside:
            a, b = found[..., at], wanted[..., at]
            if part.kind == "binary":
                middle = sum(_limits(part, a)) / 2
                errors[f"{part.label}_accuracy"] = ((a > middle) == (b > middle)).float().mean(-1)
            elif part.kind == "rotation":
                errors[f"{part.label}_error"] = rotations.angle(
                    *(rotations.matrices(x, str(part.form)) for x in (a, b))
                )
            else:
                errors[f"{part.label}_error"] = (a - b).abs().mean(-1)
        return errors

    def reached(self, steps: Tensor) -> Tensor:
        """Where steps (M, ..., K, A) lead, except for binary parts, to measure how far M plans are apart.

        The sum of deltas, the last absolute value, and of rotations the turn from the first plan's end to each, as
        axis-angle: ends themselves would flip their axis at half a turn. Each in its unit.  # (M, ..., numbers)
        """
        ends = [steps[..., 0, :0]]
        for part, at in self.outside:
            x = steps[..., at]
            if part.kind == "delta":
                ends.append(x.sum(-2))
            elif part.kind == "absolute":
                ends.append(x[..., -1, :])
            elif part.kind == "rotation":
                turned = rotations.matrices(x, str(part.form))
                end = (rotations.composed(turned) if part.relative else turned)[..., -1, :, :]
                since = rotations.compose(end, end[:1].transpose(-1, -2))
                ends.append(rotations.numbers(since, "axis_angle"))
        return torch.cat(ends, -1)


def _limits(part: Part, like: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high (size,); 0 and 1 where a binary part has none."""
    low, high = part.low or (0.0,) * part.size, part.high or (1.0,) * part.size
    # filled on the device: a GPU would have to be waited for to copy a list to it
    made = [torch.stack([like.new_full((), value) for value in values]) for values in (low, high)]
    return made[0], made[1]


def _inner(part: Part, x: Tensor) -> Tensor:
    if part.kind == "rotation" and part.form != "rot6d":
        return rotations.numbers(rotations.matrices(x, str(part.form)), "rot6d")
    if part.kind == "binary" and part.low:
        low, high = _limits(part, x)
        return (x - low) / (high - low)
    return x


def _outer(part: Part, x: Tensor) -> Tensor:
    if part.kind == "rotation":
        return rotations.numbers(rotations.matrices(x, "rot6d"), str(part.form))
    if part.kind == "binary" and part.low:
        low, high = _limits(part, x)
        return low + x * (high - low)
    return x

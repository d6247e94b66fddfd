"""What the numbers of an action or a state are: an ordered list of parts, each with its kind.

    parts = Parts.read([{"name": "position", "size": 3, "kind": "delta"},
                        {"name": "turn", "size": 3, "kind": "rotation", "form": "axis_angle", "relative": True},
                        {"name": "gripper", "size": 1, "kind": "binary"}], 7, "action_parts")
    parts.size, parts.width           # 7 numbers outside, 10 inside: a rotation is rot6d there
    parts.inner(actions)              # (..., 7) -> (..., 10)
    parts.outer(parts.inner(x))       # x

`delta`: steps that add up. `absolute`: a value. `rotation`: `form` axis_angle (rad) or rot6d, turned about the axes of the
base; `relative`: from step to step, and then turns are composed as deltas are added. `binary`: one of two values, `low`
and `high` (0 and 1 without them); inside 0 and 1. Two arms, or two grippers, are more parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from s2robot.core.errors import UserError
from s2robot.core.parts import BEYOND, Part, default_parts, read_parts
from s2robot.policies import rotations
from s2robot.policies.errors import PolicyError


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
        """From plain JSON dicts; None means an arm's joints and its gripper, as `default` (action or proprio) has them.

        size: numbers that they have to add up to.

        Raises:
            PolicyError: names `where`, the part, what was found and what was expected.
        """
        try:
            return cls(
                default_parts(f"{default}_parts", size - 1)
                if given is None
                else read_parts(given, where, size)
            )
        except UserError as error:
            raise PolicyError(str(error)) from None

    def __str__(self) -> str:
        return ", ".join(map(str, self.parts))

    @cached_property
    def size(self) -> int:
        """Numbers outside, A or P."""
        return sum(part.size for part in self.parts)

    @cached_property
    def width(self) -> int:
        """Numbers inside, where a rotation has six."""
        return sum(part.width for part in self.parts)

    @cached_property
    def outside(self) -> tuple[tuple[Part, slice], ...]:
        """Each part and where it lies in an action or state."""
        return tuple(zip(self.parts, _slices(part.size for part in self.parts), strict=True))

    @cached_property
    def inside(self) -> tuple[tuple[Part, slice], ...]:
        """Each part and where it lies inside."""
        return tuple(zip(self.parts, _slices(part.width for part in self.parts), strict=True))

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The same, as heads need it."""
        return tuple(Slot(p.label, at.start, p.width, p.kind == "binary") for p, at in self.inside)

    @cached_property
    def _plain(self) -> bool:
        """Whether inside and outside are the same numbers."""
        return all(
            part.kind != "rotation" and not (part.kind == "binary" and part.low) for part in self.parts
        )

    def zeros(self) -> Tensor:
        """Zeros (A,), and rotations that turn nothing."""
        still = {"rot6d": [1.0, 0, 0, 0, 1, 0]}
        return torch.tensor([v for part in self.parts for v in still.get(str(part.form), [0.0] * part.size)])

    def inner(self, values: Tensor) -> Tensor:
        """(..., A) -> (..., W): rotations as rot6d, binary numbers as 0 and 1."""
        if self._plain:
            return values
        return torch.cat([_inner(part, values[..., at]) for part, at in self.outside], -1)

    def outer(self, values: Tensor) -> Tensor:
        """Back from `inner`; a binary number between its values stays between."""
        if self._plain:
            return values
        return torch.cat([_outer(part, values[..., at]) for part, at in self.inside], -1)

    def targets(self, actions: Tensor, cumulative: bool) -> Tensor:
        """Chunks (..., K, A) -> what is predicted of them, (..., K, W).

        `cumulative`: deltas as their sums and relative rotations as their products, from the first step on.
        """
        return self._over_steps(self.inner(actions), cumulative, _since)

    def actions(self, targets: Tensor, cumulative: bool) -> Tensor:
        """Back from `targets`: inside still, rotations made proper.  # (..., K, W)"""
        return self._over_steps(targets, cumulative, _each)

    def _over_steps(self, chunk: Tensor, cumulative: bool, change: Any) -> Tensor:
        if not cumulative and self._plain:
            return chunk
        return torch.cat([change(part, chunk[..., at], cumulative) for part, at in self.inside], -1)

    def harden(self, actions: Tensor, binary: bool = True) -> Tensor:
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
                form = str(part.form)
                turned = (rotations.matrices(x, form) for x in (a, b))
                errors[f"{part.label}_error"] = rotations.angle(*turned)
            else:
                errors[f"{part.label}_error"] = (a - b).abs().mean(-1)
        return errors

    def reached(self, steps: Tensor) -> Tensor:
        """Where steps (M, ..., K, A) lead, of all that is not binary, to tell how far M plans are apart.  # (M, ..., numbers)

        The sum of deltas, the last absolute value, and of rotations the turn from the first plan's end to each, as
        axis-angle: ends themselves would flip their axis at half a turn. Each in its unit.
        """
        ends = []
        for part, at in self.outside:
            x = steps[..., at]
            if part.kind == "delta":
                ends.append(x.sum(-2))
            elif part.kind == "absolute":
                ends.append(x[..., -1, :])
            elif part.kind == "rotation":
                turned = rotations.matrices(x, str(part.form))
                end = (rotations.composed(turned) if part.relative else turned)[..., -1, :, :]
                ends.append(
                    rotations.numbers(rotations.compose(end, end[:1].transpose(-1, -2)), "axis_angle")
                )
        return torch.cat(ends, -1) if ends else steps[..., 0, :0]

    def check(self, values: Tensor, where: str) -> None:
        """Refuse values (N, A) that their parts exclude: beyond limits, or a rotation that is none.

        Raises:
            PolicyError: names `where`, the part, the step, what was found and what was expected.
        """
        self.check_rotations(values, where)
        for part, at in self.outside:
            x = values[:, at]
            if part.low is None:
                continue
            low, high = _limits(part, x)
            room = BEYOND * (high - low)
            beyond = (x < low - room) | (x > high + room)
            if beyond.any():
                step, i = divmod(int(beyond.flatten().int().argmax()), part.size)
                number = part.names[i] if part.names else f"{part.name}[{i}]"
                raise PolicyError(
                    f"{where}: {number} of step {step} is {x[step, i]:.4g}, the limits of part '{part.name}' are "
                    f"{low[i]:g} to {high[i]:g}"
                )

    def check_rotations(self, values: Tensor, where: str) -> None:
        """Refuse values (N, A) with a rotation that is none (PolicyError)."""
        for part, at in self.outside:
            x = values[:, at]
            if part.kind == "rotation" and (bad := rotations.broken(x, str(part.form))).any():
                step = int(bad.int().argmax())
                found = ", ".join(f"{v:.3g}" for v in x[step].tolist())
                raise PolicyError(
                    f"{where}: '{part.name}' of step {step} is [{found}], which is no rotation: expected finite "
                    + ("numbers" if part.form == "axis_angle" else "columns that are not parallel")
                )


def _slices(widths: Iterable[int]) -> list[slice]:
    ends, total = [], 0
    for width in widths:
        ends.append(slice(total, total + width))
        total += width
    return ends


def _limits(part: Part, like: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high (size,); 0 and 1 where a binary part has none."""
    low, high = part.low or (0.0,) * part.size, part.high or (1.0,) * part.size
    # filled where it is wanted: a GPU would have to be waited for to copy a list to it
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


def _since(part: Part, x: Tensor, cumulative: bool) -> Tensor:
    """Inner steps (..., K, W) as targets."""
    if part.kind == "delta" and cumulative:
        return x.cumsum(-2)
    if part.kind == "rotation":
        turned = rotations.matrices(x, "rot6d")
        return rotations.numbers(
            rotations.composed(turned) if part.relative and cumulative else turned, "rot6d"
        )
    return x


def _each(part: Part, x: Tensor, cumulative: bool) -> Tensor:
    """Targets (..., K, W) as inner steps."""
    if part.kind == "delta" and cumulative:
        return torch.diff(x, dim=-2, prepend=torch.zeros_like(x[..., :1, :]))
    if part.kind == "rotation":
        turned = rotations.matrices(x, "rot6d")
        return rotations.numbers(
            rotations.between(turned) if part.relative and cumulative else turned, "rot6d"
        )
    return x

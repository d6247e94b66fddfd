"""Describe the numbers of an action or a state as an ordered list of parts, each with its kind.

    parts = Parts.read([{"name": "position", "size": 3, "kind": "delta"},
                        {"name": "turn", "size": 3, "kind": "rotation", "form": "axis_angle", "relative": True},
                        {"name": "gripper", "size": 1, "kind": "binary"}], 7, "action_parts")
    parts.size, parts.width           # 7 outer numbers, 10 inner ones: inside the policy, a rotation is rot6d
    parts.inner(actions)              # (..., 7) -> (..., 10)
    parts.outer(parts.inner(x))       # x

`s2robot.core.parts` documents the kinds. Inner values are those inside the policy, where binary values are 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from s2robot.core.parts import Part, default_parts, read_parts, size_of, slices, words
from s2robot.policies import rotations

Change = Callable[[Tensor], Tensor]
Layout = Sequence[tuple[Part, slice]]  # each part and where its numbers are


@dataclass(frozen=True)
class Parts:
    """All parts of an action or a state, in order."""

    parts: tuple[Part, ...]

    @classmethod
    def read(
        cls, raw: Sequence[Mapping[str, Any]] | None, size: int, where: str, default: str = "action"
    ) -> Parts:
        """Read plain JSON dicts that total `size` numbers (UserError names `where`, the part and the fault).

        None means the default of an arm's joints and gripper, for `default` action or proprio.
        """
        return cls(
            default_parts(f"{default}_parts", size - 1) if raw is None else read_parts(raw, where, size)
        )

    def __str__(self) -> str:
        return words(self.parts)

    @cached_property
    def size(self) -> int:
        """Count of outer numbers, A or P."""
        return size_of(self.parts)

    @cached_property
    def width(self) -> int:
        """Count of inner numbers, W; a rotation has six."""
        return sum(part.width for part in self.parts)

    @cached_property
    def outside(self) -> Layout:
        """Each part and its slice of outer values."""
        return tuple(zip(self.parts, slices(self.parts), strict=True))

    @cached_property
    def inside(self) -> Layout:
        """Each part and its slice of inner values."""
        ends = accumulate(part.width for part in self.parts)
        return tuple((p, slice(end - p.width, end)) for p, end in zip(self.parts, ends, strict=True))

    @cached_property
    def _plain(self) -> bool:
        """Whether inner and outer values are equal."""
        return not any(p.kind == "rotation" or (p.kind == "binary" and p.low) for p in self.parts)

    def inner(self, values: Tensor) -> Tensor:
        """Convert outer to inner values, (..., A) -> (..., W): rotations as rot6d, binary values as 0 and 1."""
        return self._each(values, self.outside, _inner)

    def outer(self, values: Tensor) -> Tensor:
        """Invert `inner`; intermediate binary values stay intermediate."""
        return self._each(values, self.inside, _outer)

    def _each(self, values: Tensor, layout: Layout, change: Callable[[Part, Tensor], Tensor]) -> Tensor:
        if self._plain:
            return values
        return torch.cat([change(part, values[..., at]) for part, at in layout], -1)

    def targets(self, actions: Tensor, cumulative: bool) -> Tensor:
        """Convert chunks (..., K, A) to prediction targets (..., K, W).

        `cumulative`: deltas as sums and relative rotations as products, from the first step on.
        """
        return self._over_steps(self.inner(actions), cumulative, lambda x: x.cumsum(-2), rotations.composed)

    def actions(self, targets: Tensor, cumulative: bool) -> Tensor:
        """Invert `targets` up to inner values; rotations are orthonormalised.  # (..., K, W)"""
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
        """Clip actions (..., A) to their limits; `binary`: also round each binary value to one of its two values."""
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

    def errors(self, actions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the errors of actions (..., A) against targets (..., A) by part.  # (...) each

        `<part>_error`: mean absolute difference in the unit of the part, or the angle between rotations in rad;
        `<part>_accuracy` of a binary part: 1 if equal (the mean over its numbers).
        """
        errors = {}
        for part, at in self.outside:
            a, b = actions[..., at], targets[..., at]
            if part.kind == "binary":
                middle = sum(_limits(part, a)) / 2
                errors[f"{part.label}_accuracy"] = ((a > middle) == (b > middle)).float().mean(-1)
            elif part.kind == "rotation":
                turned = (rotations.matrices(x, str(part.form)) for x in (a, b))
                errors[f"{part.label}_error"] = rotations.angle(*turned)
            else:
                errors[f"{part.label}_error"] = (a - b).abs().mean(-1)
        return errors

    def reached(self, steps: Tensor) -> Tensor:
        """Return the end points of plans (M, ..., K, A), without binary parts, to measure their spread.

        That is the sum of deltas and the last absolute value. For rotations, it is the turn from the first plan's end to
        each, as axis-angle, because the axis of an end flips at half a turn. In their units.  # (M, ..., numbers)
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
    """Return low and high (size,); 0 and 1 for a part without limits."""
    low, high = part.low or (0.0,) * part.size, part.high or (1.0,) * part.size
    # fill on the device, because copying a list to a GPU would synchronise
    limits = [torch.stack([like.new_full((), value) for value in values]) for values in (low, high)]
    return limits[0], limits[1]


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

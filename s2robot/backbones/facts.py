"""What S2 has to know of a vision model: the facts, told by its library, given by hand or found by a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from s2robot.common.errors import UserError

Size = tuple[int, int]  # height and width in pixels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Given(TypedDict, total=False):
    """The facts that may be given by hand, as keywords of `find_backbone`, `S2` and `S2Encoder`; None is not given."""

    tile: int | Size | None
    patch: int | None
    num_prefix_tokens: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    block: int | None
    processor: Any  # a Hugging Face image processor


@dataclass(frozen=True)
class Facts:
    """What is known of a vision model; None is not known, or still to be found.

    Attributes:
        name: for people.
        tile: (height, width) in pixels that the model was made for.
        patch: side in pixels of the square that a token stands for (the stride).
        num_prefix_tokens: CLS, distillation and register tokens at the front, P.
        dim: channels of a token, D.
        mean, std: of RGB in 0 to 1, as the model was trained with.
        depth: how many blocks `block` can count in the model as it came.
        block: the block after which the tokens are taken; None for the model's own end.
        channels_last: of maps, (B, rows, columns, D).
        any_size: images of other sizes, whole multiples of the patch, are taken too.
    """

    name: str = "model"
    tile: Size | None = None
    patch: int | None = None
    num_prefix_tokens: int | None = None
    dim: int | None = None
    mean: Sequence[float] | None = IMAGENET[0]
    std: Sequence[float] | None = IMAGENET[1]
    depth: int | None = None
    block: int | None = None
    channels_last: bool | None = None
    any_size: bool = False

    def corrected(self, given: Given) -> Facts:
        """With what was given by hand in place of what was told."""
        processor = given.get("processor")
        processor = getattr(processor, "image_processor", processor)
        told = {} if processor is None else {"mean": processor.image_mean, "std": processor.image_std}
        told |= {k: v for k, v in given.items() if v is not None and k != "processor"}
        if "tile" in told:
            told["tile"] = pair(told["tile"], "tile")
        for name, least in (("patch", 1), ("num_prefix_tokens", 0)):
            if name in told and not (hasattr(told[name], "__index__") and told[name] >= least):
                raise UserError(f"{name}: found {told[name]!r}, expected a whole number of at least {least}")
        return replace(self, **told)


def pair(size: Any, what: str) -> Size:
    """A side or (height, width) as (height, width); UserError, naming `what`, unless both are whole and at least 1."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(hasattr(side, "__index__") and side >= 1 for side in sides):
        raise UserError(
            f"{what}: found {size!r}, expected a positive whole number of pixels or (height, width)"
        )
    return int(sides[0]), int(sides[1])

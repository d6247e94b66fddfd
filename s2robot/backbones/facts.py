"""The facts that S2 needs about a vision model, from its library, from the user or from a dry run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from s2robot.core.errors import UserError

Size = tuple[int, int]  # height and width in pixels

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Given(TypedDict, total=False):
    """Facts that the user may give as keywords of `find_backbone`, `S2` and `S2Encoder`; None means not given."""

    tile: int | Size | None
    patch: int | None
    num_prefix_tokens: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    block: int | None
    processor: Any  # a Hugging Face image processor


@dataclass(frozen=True)
class Facts:
    """The facts of a vision model; None means unknown.

    Attributes:
        name: for messages.
        tile: (height, width) in pixels that the model was made for.
        patch: side in pixels of a token's square (the stride).
        num_prefix_tokens: CLS, distillation and register tokens at the front, P.
        dim: channels of a token, D.
        mean, std: of RGB in 0 to 1, as the model was trained with.
        depth: the number of blocks that `block` can select.
        block: the block after which the tokens are taken; None for the model's end.
        channels_last: of maps, (B, rows, columns, D).
        any_size: whether the model accepts other sizes, in multiples of the patch.
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
        """Return these facts with those of the user in their place."""
        processor = given.get("processor")
        processor = getattr(processor, "image_processor", processor)
        new = {} if processor is None else {"mean": processor.image_mean, "std": processor.image_std}
        new |= {k: v for k, v in given.items() if v is not None and k != "processor"}
        if "tile" in new:
            new["tile"] = pair(new["tile"], "tile")
        for name, least in (("patch", 1), ("num_prefix_tokens", 0)):
            if name in new and not (hasattr(new[name], "__index__") and new[name] >= least):
                raise UserError(f"{name}: expected an integer >= {least}, got {new[name]!r}")
        return replace(self, **new)


def pair(size: Any, what: str) -> Size:
    """Return a side or (height, width) as (height, width); UserError, naming `what`, unless both are integers >= 1."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(hasattr(side, "__index__") and side >= 1 for side in sides):
        raise UserError(f"{what}: expected pixels >= 1, an integer or (height, width), got {size!r}")
    return int(sides[0]), int(sides[1])

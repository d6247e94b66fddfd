"""S2, scaling on scales (Shi et al., arXiv 2403.13043), with the arguments and results of the authors' package.

    forward(model, images, scales=[1, 2]).shape              # (B, N, 2 * D)

It replaces `s2wrapper.forward` of bfshi/scaling_on_scales; tiling and merging are those of `s2robot.s2.module.S2`,
which takes frames of any shape.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from s2robot.backbones.libraries import features
from s2robot.core.errors import UserError
from s2robot.s2.engine import as_map, bicubic, finish
from s2robot.s2.tiling import plan_tiles


def forward(
    model: Callable[[Tensor], Any],
    input: Tensor,
    scales: Sequence[float] | None = None,
    img_sizes: Sequence[int] | None = None,
    max_split_size: int | None = None,
    resize_output_to_idx: int = 0,
    num_prefix_token: int = 0,
    output_shape: str = "bnc",
    split_forward: bool = False,
) -> Tensor:
    """Return S2 features, with the arguments, argument order and results of `s2wrapper.forward`.

    Args:
        model: tiles (n, C, side, side) -> tokens (n, num_prefix_token + N, D), a map (n, D, h, w), or an object that
            contains them (`s2robot.backbones.libraries.features`).
        input: (B, C, side, side), normalised for the model.
        scales: multiples of the input's size, rounded down to whole pixels; ignored if `img_sizes` is given.
        img_sizes: sides in pixels, each cut into equal tiles of at most `max_split_size` (default: the input's side).
        resize_output_to_idx: the level that determines the grid of the result.
        num_prefix_token: CLS and register tokens at the front; their mean over tiles comes first in the result.
        output_shape: "bnc" for tokens (B, N, D), "bchw" for maps; applies to the model and the result.
        split_forward: call the model once per tile instead of once per level, to save memory.

    Resizing is bicubic in float32 without antialiasing. Integer images stay integers and saturate.
    """
    side = input.shape[-1]
    sizes = img_sizes or [int(side * scale) for scale in scales or ()]
    counts = [math.ceil(size / (max_split_size or side)) for size in sizes]
    equal = sizes and all(size % count == 0 for size, count in zip(sizes, counts, strict=True))
    if input.ndim != 4 or input.shape[2] != side or not equal:
        got = f"{tuple(input.shape)} and {sizes} (S2 accepts any frame)"
        raise UserError(
            f"input, scales: expected (B, C, side, side) and sizes that equal tiles cover, got {got}"
        )
    maps, fronts = [], []
    for size, count in zip(sizes, counts, strict=True):
        plan = plan_tiles((size, size), (size // count, size // count))
        tiles = plan.split(bicubic(input, plan.frame))
        parts = tiles.split(len(input)) if split_forward else [tiles]
        out = torch.cat([features(model(part), num_prefix_token) for part in parts])
        if output_shape == "bnc":
            fronts.append(out[:, :num_prefix_token].unflatten(0, (plan.count, -1)).mean(dim=0))
            cells = math.isqrt(out.shape[1] - num_prefix_token)
            out = as_map(out[:, num_prefix_token:], (cells, cells))
        maps.append(plan.merge(out))
    grid = maps[resize_output_to_idx].shape[-2:]
    return finish(
        maps, grid, "map" if output_shape == "bchw" else "tokens", fronts if num_prefix_token else ()
    )

"""Tensors on their way to a device, and batches that its memory holds.

moved(images, torch.device("cuda"))                  # through pinned memory, without waiting
outputs, most = fitting(encode, images, 64)          # 64 images a call, fewer where the memory is full
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s2robot.common.errors import UserError


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU through pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fitting(call: Callable[[Tensor], Tensor], rows: Tensor, at_once: int) -> tuple[list[Tensor], int]:
    """`call` on the rows (B, ...), so many at once; half as many from where a GPU's memory is full.

    Returns:
        What the calls gave, and how many rows the last of them were allowed.

    Raises:
        UserError: a single row is too much.
    """
    outputs: list[Tensor] = []
    begin = 0
    while begin < len(rows):
        out = _tried(call, rows[begin : begin + at_once])
        if out is None:
            if at_once == 1:
                raise UserError(
                    f"the GPU's memory does not hold one frame of {tuple(rows.shape[1:])}; smaller encoder.sizes or a "
                    "smaller encoder will do, or features.device=cpu"
                )
            at_once = (at_once + 1) // 2
            continue
        outputs.append(out)
        begin += at_once
    return outputs, at_once


def _tried(call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor | None:
    try:
        return call(rows)
    except torch.cuda.OutOfMemoryError:
        pass  # what the failed call held is let go of with its traceback, here
    torch.cuda.empty_cache()
    return None

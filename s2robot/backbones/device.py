"""Move tensors to a device, and find the batch size that fits its memory.

moved(images, torch.device("cuda"))                  # through pinned memory, without waiting
outputs, most = fitting(encode, images, 64)          # 64 images a call, fewer if the memory is full
"""

from collections.abc import Callable

import torch
from torch import Tensor

from s2robot.core.errors import UserError


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device; to a GPU asynchronously, through pinned memory."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fitting(call: Callable[[Tensor], Tensor], rows: Tensor, at_once: int) -> tuple[list[Tensor], int]:
    """Call a function on the rows (B, ...) in batches; halve the batch when a GPU's memory is full.

    Returns the outputs and the last batch size. Raises UserError if a single row does not fit.
    """
    outputs: list[Tensor] = []
    begin = 0
    while begin < len(rows):
        out = _tried(call, rows[begin : begin + at_once])
        if out is None:
            if at_once == 1:
                raise UserError(
                    f"the GPU's memory is too small for one frame of {tuple(rows.shape[1:])}; use smaller "
                    "encoder.sizes, a smaller encoder, or features.device=cpu"
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
        pass  # leaving this block releases the memory that the traceback holds
    torch.cuda.empty_cache()
    return None

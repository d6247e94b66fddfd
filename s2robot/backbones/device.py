"""Move images to a device, and find the batch size that fits its memory.

channels_first(tensor_of(frames))                    # uint8 (B, H, W, 3) -> float32 (B, 3, H, W)
moved(images, torch.device("cuda"))                  # through pinned memory, without waiting
outputs, size = fitting(encode, images, 64)          # 64 images per call, fewer if the memory is full
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2robot.core.errors import UserError


def tensor_of(images: Any, device: torch.device | None = None) -> Tensor:
    """Return a tensor unchanged; convert anything else to a tensor on the device."""
    if isinstance(images, Tensor):
        return images
    return torch.as_tensor(np.ascontiguousarray(images), device=device)  # torch rejects flipped views


def channels_first(images: Tensor) -> Tensor:
    """Convert uint8 RGB (B, H, W, 3) to float32 (B, 3, H, W), 0 to 255; UserError for another type or shape."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(
            f"images: expected uint8 (B, H, W, 3) (S2 also accepts float (B, 3, H, W) in 0 to 1), got {images.dtype} "
            f"{tuple(images.shape)}"
        )
    return images.permute(0, 3, 1, 2).contiguous().float()  # permuted as bytes, which is faster


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device; to a GPU asynchronously, through pinned memory."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fitting(call: Callable[[Tensor], Tensor], rows: Tensor, batch_size: int) -> tuple[list[Tensor], int]:
    """Call a function on the rows (B, ...) in batches; halve the batch when a GPU's memory is full.

    Returns the outputs and the last batch size. Raises UserError if a single row does not fit.
    """
    outputs: list[Tensor] = []
    start = 0
    while start < len(rows):
        try:
            outputs.append(call(rows[start : start + batch_size]))
            start += batch_size
            continue
        except torch.cuda.OutOfMemoryError as error:
            if batch_size == 1:
                raise UserError(
                    f"the GPU's memory is too small for one frame of {tuple(rows.shape[1:])}; use smaller "
                    "s2.scales, a smaller encoder, or features.device=cpu"
                ) from error
        torch.cuda.empty_cache()  # outside the except block, whose traceback holds memory
        batch_size = (batch_size + 1) // 2
    return outputs, batch_size

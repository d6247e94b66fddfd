"""Encode the frames of several cameras, each of its own size, into one array.

    encode_cameras(encoder.encode, [hand, top]).shape     # uint8 (B, 64, 64, 3) and (B, 48, 64, 3) -> (B, 2, N, D)

N is the token count of the camera that has the most; the others are padded with zeros. `PolicySpec.counts` stores each
camera's own count. `S2Encoder.encode_cameras` is this for any encoder, also for one with weights of its own for each camera.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Encode = Callable[[np.ndarray], Any]  # uint8 (B, H, W, 3) -> (B, N, D)


def encode_cameras(encode: Encode, frames: Sequence[np.ndarray]) -> Tensor:
    """Encode one uint8 (B, H, W, 3) a camera into features (B, cameras, N, D)."""
    if len({seen.shape for seen in frames}) == 1:
        together = np.stack(frames, 1)  # (B, C, H, W, 3)
        tokens = torch.as_tensor(encode(together.reshape(-1, *together.shape[2:])))
        return tokens.reshape(*together.shape[:2], *tokens.shape[1:])
    return stack_padded([torch.as_tensor(encode(seen)) for seen in frames])


def stack_padded(tokens: Sequence[Tensor]) -> Tensor:
    """Stack tokens (B, N_c, D) of each camera as (B, cameras, N, D), padded with zeros."""
    most = max(x.shape[1] for x in tokens)
    return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, most - x.shape[1])) for x in tokens], 1)


def token_maps(encoder: Any, sizes: Mapping[str, tuple[int, int]]) -> list[tuple[int, int]]:
    """Return rows and columns of each camera's token map, from (H, W) of its frames."""
    return [encoder.map_of(*size) for size in sizes.values()]

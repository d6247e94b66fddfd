"""Normalisation of states and actions: part of the policy's tensors, so it travels in its checkpoint.

    normaliser = Normaliser("standard", proprio_dim=8, action_dim=8, chunk=8)
    normaliser.fit(proprio, actions, chunks)
    normaliser.proprio.inverse(normaliser.proprio(x))      # x

Three scalers: `proprio`, `action` (a past action as input) and `target` (what the network predicts, one
scale per step of the chunk). The gripper, last in the action, is left as it is: 0 open .. 1 closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from s2robot.policies.errors import PolicyError

MODES = ("standard", "minmax")
# A dimension that hardly moves in the demos is divided by the floor instead of its own spread, so that a
# constant one becomes 0 and sensor noise is not blown up. 0.01 rad of a joint, 0.001 rad a step of a delta.
PROPRIO_FLOOR = 1e-2
ACTION_FLOOR = 1e-3
FEATURE_FLOOR = 1e-3


class Scaler(nn.Module):
    """x -> (x - offset) / scale and back; identity until fitted. Shapes broadcast from the right."""

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("offset", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.offset) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset

    @torch.no_grad()
    def set(self, offset: np.ndarray, scale: np.ndarray) -> None:
        self.offset.copy_(torch.from_numpy(np.asarray(offset, np.float32)))
        self.scale.copy_(torch.from_numpy(np.asarray(scale, np.float32)))


class Normaliser(nn.Module):
    """The scalers of a policy. mode "standard": mean/std; "minmax": the range becomes -1..1."""

    def __init__(self, mode: str, proprio_dim: int, action_dim: int, chunk: int, cumulative: bool = False):
        super().__init__()
        if mode not in MODES:
            raise PolicyError(f"normalise is '{mode}', expected one of {', '.join(MODES)}")
        self.mode, self.chunk, self.cumulative = mode, chunk, cumulative
        self.proprio = Scaler(proprio_dim)
        self.action = Scaler(action_dim)
        self.target = Scaler(chunk, action_dim)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(
        self, proprio: ArrayLike, actions: ArrayLike, chunks: ArrayLike, chunk_pad: ArrayLike | None = None
    ) -> None:
        """Set all scales from training data.

        proprio (M, P): states that are learned from; actions (N, A): those that a context may hold; chunks
        (W, K, A): the actions to imitate, chunk_pad (W, K) True where one is beyond its end. Raises PolicyError
        for a wrong shape or for values that are not finite.
        """
        p = _table(proprio, "proprio", self.proprio.offset.shape[0])
        a = _table(actions, "actions", self.action.offset.shape[0])
        wanted = np.asarray(chunks, np.float64)
        if wanted.ndim != 3 or wanted.shape[1] != self.chunk or not len(wanted):
            raise PolicyError(
                f"normaliser: chunks have shape {wanted.shape}, expected (windows, {self.chunk}, {a.shape[1]})"
            )
        pad = np.zeros(wanted.shape[:2], bool) if chunk_pad is None else np.asarray(chunk_pad, bool)
        _table(wanted[~pad], "chunks", a.shape[1])
        self.proprio.set(*self._spread(p, PROPRIO_FLOOR))
        offset, scale = self._spread(a, ACTION_FLOOR)
        offset[-1], scale[-1] = 0.0, 1.0
        self.action.set(offset, scale)
        targets = (
            wanted.cumsum(1) if self.cumulative else wanted
        )  # what is beyond an end comes after all that counts
        offsets, scales = np.tile(offset, (self.chunk, 1)), np.tile(scale, (self.chunk, 1))  # (K, A)
        for step in range(self.chunk):
            if (~pad[:, step]).any():  # else as the step before: no episode is that long
                offsets[step:], scales[step:] = self._spread(targets[~pad[:, step], step], ACTION_FLOOR)
        offsets[:, -1], scales[:, -1] = 0.0, 1.0
        self.target.set(offsets, scales)
        self.fitted.fill_(True)

    def _spread(self, x: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
        if self.mode == "standard":
            return x.mean(0), np.maximum(x.std(0), floor)
        low, high = x.min(0), x.max(0)
        return (high + low) / 2, np.maximum((high - low) / 2, floor)


def channel_moments(
    features: ArrayLike,
    frames: int = 4096,
    rows: np.ndarray | None = None,
    tokens: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std (C, D) of every channel of every camera, over tokens and up to `frames` spread-out frames.

    features (M, C, N, D): an array, a memory map or a zarr array, of which only those frames are read.
    rows: the frames that count, as numbers; all without it.
    tokens: how many of each camera's N are its own, the first ones; all without it.
    """
    count = len(features if rows is None else rows)  # type: ignore[arg-type]
    total = square = None
    seen: Any = 0
    block = 64
    for begin in range(0, count, block * max(1, -(-count // max(frames, block)))):
        part = slice(begin, begin + block)
        x = np.array(features[part if rows is None else rows[part]], np.float64)  # type: ignore[index]
        own = np.full(x.shape[1], x.shape[2]) if tokens is None else np.asarray(tokens)  # (C,)
        for camera, count_of_it in enumerate(own):
            x[:, camera, count_of_it:] = 0
        with np.errstate(invalid="ignore"):  # infinity is told below, in one line
            sums, squares = x.sum((0, 2)), (x * x).sum((0, 2))  # (C, D)
        total, square = (sums, squares) if total is None else (total + sums, square + squares)
        seen = seen + len(x) * own[:, None]  # (C, 1)
    if total is None or square is None or not np.isfinite(square).all():
        raise PolicyError(f"features: {count} frames with values that are not finite, or no frame at all")
    mean = total / seen
    std = np.sqrt(np.maximum(square / seen - mean**2, 0))
    return mean.astype(np.float32), np.maximum(std, FEATURE_FLOOR).astype(np.float32)


def _table(values: ArrayLike, name: str, width: int) -> np.ndarray:
    x = np.asarray(values, np.float64)
    if x.ndim != 2 or x.shape[1] != width or len(x) == 0:
        raise PolicyError(f"normaliser: {name} has shape {x.shape}, expected (steps, {width})")
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise PolicyError(
            f"normaliser: {name} holds NaN or infinity in {bad.sum()} of {len(x)} steps, "
            f"first in step {bad.argmax()}"
        )
    return x

"""Normalise states and actions; the statistics are tensors of the policy, stored in its checkpoint.

    normaliser = Normaliser("standard", Parts.read(None, 8, "", "proprio"), Parts.read(None, 8, ""), chunk=8)
    normaliser.fit(proprio, actions, chunks)
    normaliser.proprio.inverse(normaliser.proprio(x))      # x

There are three scalers: `proprio`, `action` (past actions as input) and `target` (the network's output, with one
scale per step of the chunk). Binary parts are not scaled: they are 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from s2robot.core.errors import UserError
from s2robot.policies.parts import Parts

Mode = Literal["standard", "minmax", "quantile"]
# A dimension that hardly moves in the demos is divided by the floor instead of its spread, so that constants become 0
# and sensor noise is not amplified. 0.01 rad for a joint, 0.001 rad per step for a delta.
PROPRIO_FLOOR = 1e-2
ACTION_FLOOR = 1e-3
FEATURE_FLOOR = 1e-3
Weights = tuple[np.ndarray, np.ndarray, np.ndarray]  # sampling weights of states, actions and chunks


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
    """The scalers of a policy, for the network's representation of numbers (see `Parts`).

    mode: "standard": mean and standard deviation; "minmax": the range becomes -1..1; "quantile": the range from the
    1 % to the 99 % quantile does, which ignores outliers. modes: overrides per part, by name. Each of the six numbers of
    a rotation has its own scale, because a hand turns far about the vertical but a tilt of a degree matters. Binary
    values are 0 and 1.
    """

    def __init__(
        self, mode: str, proprio: Parts, action: Parts, chunk: int, cumulative: bool = False,
        modes: Mapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__()
        self.mode, self.modes, self.chunk, self.cumulative = mode, dict(modes or {}), chunk, cumulative
        self.parts = {"proprio": proprio, "action": action}
        self.proprio = Scaler(proprio.width)
        self.action = Scaler(action.width)
        self.target = Scaler(chunk, action.width)
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def fit(
        self, proprio: np.ndarray, actions: np.ndarray, chunks: np.ndarray, chunk_pad: np.ndarray | None = None,
        weights: Weights | None = None, starts: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Set all scales from training data that has been validated.

        Args:
            proprio: states (M, P).
            actions: actions that a context can contain (N, A).
            chunks: actions to imitate (W, K, A).
            chunk_pad: True beyond the end of an episode (W, K).
            weights: of each state, action and chunk, (M,), (N,) and (W,).
            starts: values that targets are relative to (W, inner width).
        """
        proprio_weights, action_weights, chunk_weights = weights or (None, None, None)
        self.proprio.set(*self._spread(self._inner("proprio", proprio), "proprio", proprio_weights))
        offset, scale = self._spread(self._inner("action", actions), "action", action_weights)
        self.action.set(offset, scale)
        targets, pad = self._targets(chunks, starts), _pad(chunks, chunk_pad)
        offsets, scales = np.tile(offset, (self.chunk, 1)), np.tile(scale, (self.chunk, 1))  # (K, W)
        for step in range(self.chunk):
            real = ~pad[:, step]
            share = np.average(real, weights=chunk_weights)  # of the drawn windows
            # else too few episodes are that long for a scale, and the previous step's values remain
            if (real.sum() >= 2 and share >= 0.01) or (step == 0 and real.any()):
                own = None if chunk_weights is None else chunk_weights[real]
                offsets[step:], scales[step:] = self._spread(targets[real, step], "action", own)
        self.target.set(offsets, scales)
        self.fitted.fill_(True)

    def range_of(
        self, chunks: np.ndarray, chunk_pad: np.ndarray | None, starts: np.ndarray | None
    ) -> tuple[Tensor, Tensor]:
        """Return the min and max normalised target at each step; steps beyond all episodes repeat the previous one.

        Shapes: (K, W) each.
        """
        pad = torch.from_numpy(_pad(chunks, chunk_pad))
        targets = self.target(torch.from_numpy(self._targets(chunks, starts)).float())
        low = targets.masked_fill(pad[..., None], math.inf).amin(0)
        high = targets.masked_fill(pad[..., None], -math.inf).amax(0)
        for step in range(1, self.chunk):
            if pad[:, step].all():
                low[step], high[step] = low[step - 1], high[step - 1]
        return low, high

    def _inner(self, key: str, values: np.ndarray) -> np.ndarray:
        return self.parts[key].inner(torch.from_numpy(np.ascontiguousarray(values, np.float64))).numpy()

    def _targets(self, chunks: np.ndarray, starts: np.ndarray | None) -> np.ndarray:
        """Convert chunks (W, K, A) to targets in real units, relative to the starts.  # (W, K, inner width)"""
        actions = torch.from_numpy(np.ascontiguousarray(chunks, np.float64))
        targets = self.parts["action"].targets(actions, self.cumulative).numpy()
        return targets if starts is None else targets - starts[:, None]

    def _spread(self, x: np.ndarray, key: str, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the offset and scale of each column of x (N, W); `weights` (N,) are those of its rows."""
        floor = PROPRIO_FLOOR if key == "proprio" else ACTION_FLOOR
        offset, scale = _moments(x, self.mode, weights, floor)
        for part, at in self.parts[key].inside:
            if part.kind == "binary":
                offset[at], scale[at] = 0.0, 1.0
                continue
            if (mode := self.modes.get(part.name, self.mode)) != self.mode:
                offset[at], scale[at] = _moments(x[:, at], mode, weights, floor)
            scale[at] = np.maximum(scale[at], floor)
        return offset, scale


def _pad(chunks: np.ndarray, chunk_pad: np.ndarray | None) -> np.ndarray:
    return np.zeros(chunks.shape[:2], bool) if chunk_pad is None else np.asarray(chunk_pad, bool)


def _moments(
    x: np.ndarray, mode: str, weights: np.ndarray | None, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre and half width of each column of x (N, W); `weights` (N,) are those of its rows."""
    if mode == "standard":
        if weights is None:
            return x.mean(0), x.std(0)
        mean = np.average(x, 0, weights)
        return mean, np.sqrt(np.average((x - mean) ** 2, 0, weights))
    if mode == "minmax":
        low, high = x.min(0), x.max(0)
    elif weights is None:
        low, high = np.quantile(x, (0.01, 0.99), axis=0)
    else:
        low, high = _quantiles(x, (0.01, 0.99), weights)
    offset, scale = (high + low) / 2, (high - low) / 2
    if mode == "quantile" and (narrow := scale < floor).any():  # constant apart from outliers
        offset[narrow], scale[narrow] = _moments(x[:, narrow], "standard", weights, floor)
    return offset, scale


def _quantiles(x: np.ndarray, shares: Sequence[float], weights: np.ndarray) -> list[np.ndarray]:
    """Return weighted quantiles (W,) of the columns of x (N, W), one array per share; weights (N,)."""
    order = np.argsort(x, axis=0, kind="stable")
    below = np.cumsum(weights[order], axis=0)  # (N, W)
    below /= below[-1]
    rows = [(below < share - 1e-12).sum(0) for share in shares]
    return [x[order[row, np.arange(x.shape[1])], np.arange(x.shape[1])] for row in rows]


def channel_moments(
    features: Any, frames: int = 4096, rows: np.ndarray | None = None, tokens: Sequence[int] | None = None,
    pooled: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the mean and std (C, D) per channel and camera, over tokens and up to `frames` evenly spaced frames.

    features (M, C, N, D): an array, memory map or zarr array, from which only those frames are read.
    rows: indices of the frames to use; by default all.
    tokens: count of valid tokens per camera, the first of the N; by default all.
    pooled: of each frame's mean over its tokens, which varies less than the tokens.
    UserError: no frames, or values that are not finite, as half precision can produce.
    """
    count = len(features if rows is None else rows)
    total = square = seen = np.zeros(())
    block = 64
    for begin in range(0, count, block * max(1, -(-count // max(frames, block)))):
        part = slice(begin, begin + block)
        x = np.array(features[part if rows is None else rows[part]], np.float64)
        counts = np.full(x.shape[1], x.shape[2]) if tokens is None else np.asarray(tokens)  # (C,)
        for camera, token_count in enumerate(counts):
            x[:, camera, token_count:] = 0
        with np.errstate(invalid="ignore"):  # infinity is reported below
            if pooled:
                x, counts = x.sum(2, keepdims=True) / counts[:, None, None], np.ones_like(counts)
            total, square = total + x.sum((0, 2)), square + (x * x).sum((0, 2))  # (C, D)
        seen = seen + len(x) * counts[:, None]  # (C, 1)
    if not count or not np.isfinite(square).all():
        raise UserError(f"features: expected frames of finite values, got {count} frames")
    return _mean_and_std(total / seen, square / seen)


def mixed_moments(
    moments: Sequence[tuple[np.ndarray, np.ndarray]], shares: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and std of a mix from those of its parts and their shares, which sum to 1."""
    parts = [
        (share, m.astype(np.float64), s.astype(np.float64))
        for share, (m, s) in zip(shares, moments, strict=True)
    ]
    return _mean_and_std(sum(p * m for p, m, _ in parts), sum(p * (m**2 + s**2) for p, m, s in parts))


def _mean_and_std(mean: Any, square: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std in float32, from the means of values and of their squares."""
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return np.asarray(mean, np.float32), np.maximum(std, FEATURE_FLOOR).astype(np.float32)

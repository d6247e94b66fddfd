"""Denoisers of heads that refine a chunk: noisy chunk (B, K, A), time (B,) in 0..1, context (B, H) -> (B, K, A)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml
from s2robot.policies.heads.head import Head, HeadSizes, Pending, signed

Change = Callable[[Tensor], Tensor]
GUIDANCE = 5.0  # maximum weight of guidance by pending actions, as in the paper


class DenoiserSettings(Settings, at="policy.head"):
    denoiser: Literal["mlp", "unet"] = from_yaml()
    width: int = from_yaml(ge=1)
    layers: int = from_yaml(ge=1)
    dropout: float = from_yaml(ge=0, lt=1)


class DenoisingHead(Head):
    """Base class of the heads with a denoiser; chunks are (K, A)."""

    continues = True

    def __init__(self, settings: DenoiserSettings, sizes: HeadSizes):
        super().__init__()
        self.settings, self.slots = settings, sizes.slots
        self.shape = (sizes.chunk, sizes.action_dim)
        net = MlpDenoiser if settings.denoiser == "mlp" else UnetDenoiser
        self.net = net(settings, sizes.context, *self.shape)

    def guided(self, clean: Change, noisy: Tensor, time: Tensor, pending: Pending) -> Tensor:
        """Estimate the chunk (B, K, A) from `noisy` = time · chunk + (1 - time) · noise with `clean`; insert `pending`.

        The gradient of the distance to the pending actions also adjusts the following steps: pseudoinverse guidance,
        equations 2 to 4 of real-time chunking (arXiv 2506.07339).
        """
        chunk, gradient = torch.func.vjp(clean, noisy)
        left = 1 - time
        strength = torch.minimum(GUIDANCE * left, (time.square() + left.square()) / time)
        gap = pending[1][:, None] * (signed(pending[0], self.slots) - chunk)
        return self.insert(chunk + strength * gradient(gap)[0], pending)

    def insert(self, chunk: Tensor, pending: Pending | None) -> Tensor:
        """Return a chunk (B, K, A) with the fixed pending actions inserted."""
        if pending is None:
            return chunk
        return torch.where(pending[1][:, None] == 1, signed(pending[0], self.slots), chunk)


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time in 0..1, distinct at both ends, then two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("rates", math.pi * 2.0 ** torch.arange(8), persistent=False)
        self.layers = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        angles = time[..., None] * self.rates  # (B, 8)
        return self.layers(torch.cat([angles.sin(), angles.cos()], -1))


class ResidualBlock(nn.Module):
    """A pre-norm MLP whose norm is scaled and shifted by the condition (FiLM)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Dropout(dropout))
        self.outer = nn.Linear(2 * width, width)
        nn.init.zeros_(self.outer.weight)  # every block starts as the identity
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition).chunk(2, -1)
        return x + self.outer(self.inner(self.norm(x) * (1 + scale) + shift))


class MlpDenoiser(nn.Module):
    """Residual blocks on the flattened chunk, conditioned on the context and the time."""

    def __init__(self, settings: DenoiserSettings, context: int, chunk: int, action_dim: int):
        super().__init__()
        width = settings.width
        self.time = TimeEmbedding(width)
        self.context = nn.Linear(context, width)
        self.into = nn.Linear(chunk * action_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, settings.dropout) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, chunk * action_dim)

    def forward(self, noisy: Tensor, time: Tensor, context: Tensor) -> Tensor:
        condition = F.silu(self.time(time) + self.context(context))  # (B, W)
        x = self.into(noisy.flatten(-2)) + condition
        for block in self.blocks:
            x = block(x, condition)
        return self.out(self.norm(x)).view(noisy.shape).float()


class ConvBlock(nn.Module):
    """Two convolutions along the chunk, each with a group norm; the condition scales and shifts between them."""

    def __init__(self, into: int, out: int, condition: int, dropout: float):
        super().__init__()
        groups = math.gcd(8, out)
        self.first = nn.Conv1d(into, out, 3, padding=1)
        self.second = nn.Conv1d(out, out, 3, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(groups, out), nn.GroupNorm(groups, out)
        self.film = nn.Linear(condition, 2 * out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv1d(into, out, 1) if into != out else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[..., None].chunk(2, -2)  # (B, out, 1) each
        y = F.silu(self.norm1(self.first(x))) * (1 + scale) + shift
        return self.skip(x) + self.dropout(F.silu(self.norm2(self.second(y))))


class UnetDenoiser(nn.Module):
    """A 1-D U-Net along the chunk, as in Diffusion Policy (Chi et al., 2023), with one block per level instead of two.

    `layers` levels of `width`, 2 x `width`, ... channels; each but the last halves the steps, rounding up, so any
    chunk length works.
    """

    def __init__(self, settings: DenoiserSettings, context: int, chunk: int, action_dim: int):
        super().__init__()
        w, dropout = settings.width, settings.dropout
        sizes = [w * 2**i for i in range(settings.layers)]
        self.time = TimeEmbedding(w)
        self.context = nn.Linear(context, w)
        ins, outs = [action_dim, *sizes[:-1]], sizes[-2::-1]  # down path; up path
        self.down = nn.ModuleList(ConvBlock(a, b, w, dropout) for a, b in zip(ins, sizes, strict=True))
        self.halve = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in sizes[:-1])
        self.middle = ConvBlock(sizes[-1], sizes[-1], w, dropout)
        self.up = nn.ModuleList(ConvBlock(3 * c, c, w, dropout) for c in outs)  # 2c from below, c skip
        self.out = nn.Conv1d(w, action_dim, 1)

    def forward(self, noisy: Tensor, time: Tensor, context: Tensor) -> Tensor:
        condition = F.silu(self.time(time) + self.context(context))  # (B, W)
        x, skips = noisy.transpose(-1, -2), []  # (B, A, K)
        for i, block in enumerate(self.down):
            x = block(x, condition)
            if i < len(self.halve):
                skips.append(x)
                x = self.halve[i](x)
        x = self.middle(x, condition)
        for block in self.up:
            skip = skips.pop()
            doubled = x.repeat_interleave(2, -1)[..., : skip.shape[-1]]
            x = block(torch.cat([doubled, skip], -2), condition)
        return self.out(x).transpose(-1, -2).float()

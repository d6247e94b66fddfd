"""The network inside heads that refine a chunk: (noisy chunk, time, context) -> chunk.

net = build_denoiser("mlp", context=512, chunk=8, action_dim=8, width=256, layers=3)
net(noisy, time, context).shape       # (B, K, A); time (B,) in 0..1
"""

import math

import torch
from torch import Tensor, nn

from s2robot.policies.errors import PolicyError

DENOISERS = ("mlp", "unet")


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time in 0..1, then two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("rates", 2 * math.pi * 2.0 ** torch.arange(8), persistent=False)
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
    """The chunk flattened through residual blocks that the context and the time steer."""

    def __init__(self, context: int, chunk: int, action_dim: int, width: int, layers: int, dropout: float):
        super().__init__()
        self.time = TimeEmbedding(width)
        self.context = nn.Linear(context, width)
        self.into = nn.Linear(chunk * action_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, chunk * action_dim)

    def forward(self, noisy: Tensor, time: Tensor, context: Tensor) -> Tensor:
        condition = nn.functional.silu(self.time(time) + self.context(context))  # (B, W)
        x = self.into(noisy.flatten(-2)) + condition
        for block in self.blocks:
            x = block(x, condition)
        return self.out(self.norm(x)).view(noisy.shape).float()


def build_denoiser(
    kind: str, context: int, chunk: int, action_dim: int, width: int, layers: int, dropout: float = 0.0
) -> nn.Module:
    """The denoiser of this kind; PolicyError for one that is not known."""
    if kind == "mlp":
        return MlpDenoiser(context, chunk, action_dim, width, layers, dropout)
    raise PolicyError(f"policy.head.denoiser is '{kind}', expected {' or '.join(DENOISERS)}")

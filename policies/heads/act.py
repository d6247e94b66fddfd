"""ACT: a conditional variational autoencoder of chunks with a style variable (Zhao et al., 2023).

In training an encoder reads the chunk and gives a style z, which may tell what the context leaves open; a
transformer decoder with one query an action makes the chunk of z and the context. The loss is L1 plus `kl_weight`
times the divergence of z from a standard normal. Acting takes z = 0, ACT's choice: the plan is the same
every time, and of two ways it is one or, where z = 0 lies between them, neither. With `draw` z is drawn, and both
come up. Here the decoder reads the body's vector in place of image tokens, and the encoder the chunk without the
joints. The averaging of overlapping plans is `policy.ensemble`.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml
from s2robot.policies.bodies.transformer import Block, TransformerSettings, attend, even_heads
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes, by_part, signed, unsigned


class ActSettings(Settings, at="policy.head", file="policy/head/act"):
    rules = even_heads
    width: int = from_yaml(ge=1)
    heads: int = from_yaml(ge=1)
    kind: Literal["act"] = from_yaml()
    style: int = from_yaml(ge=1)
    kl_weight: float = from_yaml(ge=0)
    draw: bool = from_yaml()
    layers: int = from_yaml(ge=1)
    dropout: float = from_yaml(ge=0, le=0.99)


class ActHead(Head):
    def __init__(self, settings: ActSettings, sizes: HeadSizes):
        super().__init__()
        s = self.settings = settings
        self.slots = sizes.slots
        self.noise_shape = (s.style,) if s.draw else ()
        self.action = nn.Linear(sizes.action_dim, s.width)
        self.places = nn.Parameter(torch.randn(sizes.chunk + 1, s.width) * 0.02)  # the style's token has one
        self.encoder = _Blocks(s)
        self.moments = nn.Linear(s.width, 2 * s.style)
        self.style = nn.Linear(s.style, s.width)
        self.context = nn.Linear(sizes.context, s.width)
        self.asked = nn.Parameter(torch.randn(sizes.chunk, s.width) * 0.02)
        self.decoder = _Blocks(s)
        self.out = nn.Linear(s.width, sizes.action_dim)

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        target = signed(target, self.slots)
        mean, log_variance = self._encode(target, weight > 0)
        style = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        found = self._decode(context, style)
        loss, parts = by_part((found - target).abs(), weight, self.slots)
        away = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2  # (B,)
        divergence = (away * weight.sum(-1)).sum()
        estimate = unsigned(found.detach(), self.slots)
        loss = loss + self.settings.kl_weight * divergence
        return HeadLoss(loss, estimate, {**parts, "kl": divergence.detach()})

    def sample(self, context: Tensor, noise: Any = None, given: Any = None) -> Tensor:
        middle = context.new_zeros(len(context), self.settings.style, dtype=torch.float32)
        return unsigned(self._decode(context, noise if self.settings.draw else middle), self.slots)

    def _encode(self, target: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B, style) of the style of chunks (B, K, A) whose steps are real (B, K)."""
        tokens = self.action(target.masked_fill(~real[..., None], 0))  # (B, K, W)
        own = torch.zeros_like(tokens[:, :1])
        x = torch.cat([own, tokens], 1) + self.places
        seen = torch.cat([torch.ones_like(real[:, :1]), real], 1)  # (B, 1 + K)
        first = self.encoder(x, seen[:, None, None], slice(0, 1))[:, 0]
        mean, log_variance = self.moments(first).float().chunk(2, -1)
        return mean, log_variance

    def _decode(self, context: Tensor, style: Tensor) -> Tensor:
        """Chunks (B, K, A) from context (B, H) and style (B, Z)."""
        given = self.context(context[:, None])  # (B, 1, W)
        asked = self.asked.expand(len(context), -1, -1)  # (B, K, W)
        x = torch.cat([self.style(style)[:, None].to(given.dtype), given, asked.to(given.dtype)], 1)
        seen = torch.ones_like(x[:1, :, 0], dtype=torch.bool)[:, None, None]  # (1, 1, 1, S)
        return self.out(self.decoder(x, seen, slice(-len(self.asked), None))).float()


class _Blocks(nn.Module):
    """Transformer blocks and a norm; the last one returns only the tokens that are asked."""

    def __init__(self, s: ActSettings):
        super().__init__()
        block = TransformerSettings(width=s.width, heads=s.heads, dropout=s.dropout)
        self.blocks = nn.ModuleList(Block(block) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width)

    def forward(self, x: Tensor, seen: Tensor, asked: slice) -> Tensor:
        return attend(self.blocks, self.norm, x, seen, asked)

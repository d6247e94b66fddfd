"""ACT: a conditional variational autoencoder of chunks with a style variable (Zhao et al., 2023).

In training, an encoder maps the chunk to a style z, which can resolve ambiguity of the context; a transformer decoder with one
query per action predicts the chunk from z and the context. The loss is L1 plus `kl_weight` times the divergence of z from a
standard normal. Inference uses z = 0, as ACT does: the plan is deterministic, and of two possible ways it follows one or, if
z = 0 lies between them, neither. With `draw`, z is sampled, and both occur. Here, the decoder reads the body's vector instead of
image tokens, and the encoder reads the chunk without the joints. `policy.ensemble` averages overlapping plans.
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
        self.places = nn.Parameter(torch.randn(sizes.chunk + 1, s.width) * 0.02)  # incl. the style token
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
        chunk = self._decode(context, style)
        loss, parts = by_part((chunk - target).abs(), weight, self.slots)
        divergences = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2  # (B,)
        divergence = (divergences * weight.sum(-1)).sum()
        estimate = unsigned(chunk.detach(), self.slots)
        loss = loss + self.settings.kl_weight * divergence
        return HeadLoss(loss, estimate, {**parts, "kl": divergence.detach()})

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        zeros = context.new_zeros(len(context), self.settings.style, dtype=torch.float32)
        return unsigned(self._decode(context, noise if self.settings.draw else zeros), self.slots)

    def _encode(self, target: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and log variance (B, style) of chunks (B, K, A) with a mask of valid steps `real` (B, K)."""
        tokens = self.action(target.masked_fill(~real[..., None], 0))  # (B, K, W)
        style = torch.zeros_like(tokens[:, :1])
        x = torch.cat([style, tokens], 1) + self.places
        visible = torch.cat([torch.ones_like(real[:, :1]), real], 1)  # (B, 1 + K)
        first = self.encoder(x, visible[:, None, None], slice(0, 1))[:, 0]
        mean, log_variance = self.moments(first).float().chunk(2, -1)
        return mean, log_variance

    def _decode(self, context: Tensor, style: Tensor) -> Tensor:
        """Predict chunks (B, K, A) from context (B, H) and style (B, Z)."""
        token = self.context(context[:, None])  # (B, 1, W)
        queries = self.asked.expand(len(context), -1, -1)  # (B, K, W)
        x = torch.cat([self.style(style)[:, None].to(token.dtype), token, queries.to(token.dtype)], 1)
        visible = torch.ones_like(x[:1, :, 0], dtype=torch.bool)[:, None, None]  # (1, 1, 1, S)
        return self.out(self.decoder(x, visible, slice(-len(self.asked), None))).float()


class _Blocks(nn.Module):
    """Transformer blocks and a norm; the last block returns only the selected `queries`."""

    def __init__(self, s: ActSettings):
        super().__init__()
        block = TransformerSettings(width=s.width, heads=s.heads, dropout=s.dropout)
        self.blocks = nn.ModuleList(Block(block) for _ in range(s.layers))
        self.norm = nn.LayerNorm(s.width)

    def forward(self, x: Tensor, visible: Tensor, queries: slice) -> Tensor:
        return attend(self.blocks, self.norm, x, visible, queries)

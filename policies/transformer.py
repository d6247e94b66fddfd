"""RPT-style encoder-only transformer (Radosavovic et al., 2023; S² Table 10), about 1 M parameters.

Each step of the context gives C image tokens, a state token and an action token; the tokens of a step
share its position embedding. The action of the last step is what is asked for: a mask token stands in its
place, and its output, through a linear head, is the chunk of the next K actions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2robot.policies.errors import PolicyError

READOUTS = ("mask", "queries")


@dataclass(frozen=True)
class TransformerSettings:
    """Sizes of the transformer; the defaults are those of Table 10."""

    width: int = 192  # channels of a token
    blocks: int = 4  # encoder blocks
    heads: int = 4  # attention heads
    mlp_ratio: float = 2.0  # hidden size of a block's MLP over the width
    dropout: float = 0.0  # on the output of attention and MLP
    action_history: bool = True  # past actions as tokens; false keeps the mask token only
    proprio_history: bool = True  # states of earlier steps as tokens; false keeps the last state only
    readout: str = "mask"  # mask: one token gives the whole chunk; queries: one learned token an action

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise PolicyError(f"network.width {self.width} is not a multiple of network.heads {self.heads}")
        if self.readout not in READOUTS:
            raise PolicyError(f"network.readout is '{self.readout}', expected one of {', '.join(READOUTS)}")
        if self.blocks < 1:
            raise PolicyError(f"network.blocks is {self.blocks}, expected 1 or more")


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, settings: TransformerSettings):
        super().__init__()
        w, hidden = settings.width, int(settings.width * settings.mlp_ratio)
        self.heads = settings.heads
        self.norm1, self.norm2 = nn.LayerNorm(w), nn.LayerNorm(w)
        self.query, self.key_value, self.out = nn.Linear(w, w), nn.Linear(w, 2 * w), nn.Linear(w, w)
        self.mlp = nn.Sequential(nn.Linear(w, hidden), nn.GELU(), nn.Linear(hidden, w))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, visible: Tensor, last: int | None = None) -> Tensor:
        """x (B, S, W), visible (B, 1, 1, S) True where a token may be seen -> (B, `last` or S, W)."""
        y = self.norm1(x)
        start = 0 if last is None else x.shape[1] - last
        q = self.query(y[:, start:]).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, S', E)
        kv = self.key_value(y).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (2, B, H, S, E)
        mixed = F.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=visible)
        x = x[:, start:] + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class TransformerPolicy(nn.Module):
    """Tokens of the whole context in, chunk of actions out; padded steps are not seen."""

    def __init__(
        self,
        settings: TransformerSettings,
        cameras: int,
        context: int,
        chunk: int,
        proprio_dim: int,
        action_dim: int,
    ):
        super().__init__()
        s = self.settings = settings
        self.cameras, self.chunk, self.action_dim = cameras, chunk, action_dim
        self.embed_dim = s.width
        self.state = nn.Linear(proprio_dim, s.width)
        self.action = nn.Linear(action_dim, s.width) if s.action_history and context > 1 else None
        self.readouts = 1 if s.readout == "mask" else chunk
        self.mask = nn.Parameter(torch.randn(self.readouts, s.width) * 0.02)
        self.position = nn.Parameter(torch.randn(context, s.width) * 0.02)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.blocks))
        self.norm = nn.LayerNorm(s.width)
        self.head = nn.Linear(s.width, action_dim * chunk // self.readouts)

    def forward(self, images: Tensor, proprio: Tensor, past_actions: Tensor, pad: Tensor) -> Tensor:
        """images (B, T, C, E), proprio (B, T, P), past_actions (B, T, A), pad (B, T) -> (B, K, A)."""
        b, t, c = images.shape[:3]
        tokens = [(images + self.position[:, None]).flatten(1, 2)]  # (B, T * C, W)
        hidden = [pad.repeat_interleave(c, 1)]  # (B, T * C)
        since = 0 if self.settings.proprio_history else t - 1
        tokens.append((self.state(proprio) + self.position)[:, since:])  # (B, T or 1, W)
        hidden.append(pad[:, since:])
        if self.action is not None:
            tokens.append(self.action(past_actions[:, :-1]) + self.position[:-1])  # (B, T - 1, W)
            hidden.append(pad[:, :-1])
        tokens.append((self.mask + self.position[-1]).expand(b, -1, -1))  # (B, R, W)
        hidden.append(pad.new_zeros(b, self.readouts))
        seen = ~torch.cat(hidden, 1)  # (B, S)
        # Attention weight 0 times a NaN is a NaN: what stands in padding must not even be multiplied.
        x = torch.cat(tokens, 1).masked_fill(~seen[..., None], 0)  # (B, S, W)
        visible = seen[:, None, None]
        for block in self.blocks[:-1]:
            x = block(x, visible)
        x = self.blocks[-1](x, visible, last=self.readouts)  # (B, R, W)
        return self.head(self.norm(x)).reshape(b, self.chunk, self.action_dim)  # (B, K, A)

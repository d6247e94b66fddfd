"""RPT-style encoder-only transformer (Radosavovic et al., 2023; S² Table 10), about 1 M parameters.

Each step of the context has C image tokens, a state token and an action token. A mask token replaces the next action;
the head predicts the next K actions from its output.

With `causal` (the default), every step attends to itself and earlier steps, with a learned bias per distance, and has its
own mask token: one pass over T steps trains T targets, with contexts of 1 to T steps. Without it, as in the papers, all
steps attend to each other, each has a position embedding, and a pass trains only the last step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from s2robot.core.settings import Settings, from_yaml


def even_heads(settings: Any) -> Iterator[tuple[Any, ...]]:
    """Validate attention settings: the heads share the channels evenly."""
    yield "width", settings.width % settings.heads == 0, f"a multiple of {settings.heads} heads"


class TransformerSettings(Settings, at="policy.network", file="policy/transformer"):
    rules = even_heads
    width: int = from_yaml(ge=1)
    heads: int = from_yaml(ge=1)
    blocks: int = from_yaml(ge=1)
    mlp_ratio: float = from_yaml(ge=0.01)
    dropout: float = from_yaml(ge=0, le=0.99)
    action_history: bool = from_yaml()
    proprio_history: bool = from_yaml()
    causal: bool = from_yaml()


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

    def forward(self, x: Tensor, visible: Tensor, queries: slice | Tensor = slice(None)) -> Tensor:
        """x (B, S, W), visible (B or 1, 1 or H, 1 or S, S): True, or a bias, for tokens to attend to.

        Only the tokens `queries` are returned: (B, S', W).
        """
        y = self.norm1(x)
        q = self.query(y[:, queries]).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, S', E)
        kv = self.key_value(y).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (2, B, H, S, E)
        if visible.shape[2] > 1:
            visible = visible[:, :, queries]
        mask = visible.to(q.dtype) if visible.is_floating_point() else visible
        # Fused kernels have no gradient for a bias, and torch does not notice that one is required when members are batched.
        with sdpa_kernel(SDPBackend.MATH) if self.training and mask.is_floating_point() else nullcontext():
            mixed = F.scaled_dot_product_attention(q, kv[0], kv[1], attn_mask=mask)
        x = x[:, queries] + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class TransformerBody(nn.Module):
    """Encode the tokens of the context as one vector; padded steps are masked."""

    def __init__(self, settings: TransformerSettings, context: int, proprio_dim: int, action_dim: int):
        super().__init__()
        s = self.settings = settings
        self.causal = s.causal
        self.embed_dim = s.width
        self.state = nn.Linear(proprio_dim, s.width)
        self.action = nn.Linear(action_dim, s.width) if s.action_history and context > 1 else None
        self.width = s.width
        self.mask = nn.Parameter(torch.randn(1, s.width) * 0.02)
        if s.causal:
            self.distance = nn.Parameter(torch.zeros(s.heads, context))
        else:
            self.position = nn.Parameter(torch.randn(context, s.width) * 0.02)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.blocks))
        self.norm = nn.LayerNorm(s.width)

    def forward(
        self, images: Tensor, proprio: Tensor, past_actions: Tensor, pad: Tensor, every: bool = False
    ) -> Tensor:
        """images (B, T, C, E), proprio (B, T, P), past_actions (B, T, A), pad (B, T) -> (B, width).

        `every`: one vector for each step, (B, T, width); causal only.
        """
        if self.causal:
            return self._causal(images, proprio, past_actions, pad, every)
        b, t, c = images.shape[:3]
        tokens = [(images + self.position[:, None]).flatten(1, 2)]  # (B, T * C, W)
        hidden = [pad.repeat_interleave(c, 1)]  # (B, T * C)
        first = 0 if self.settings.proprio_history else t - 1
        tokens.append((self.state(proprio) + self.position)[:, first:])  # (B, T or 1, W)
        hidden.append(pad[:, first:])
        if self.action is not None:
            tokens.append(self.action(past_actions[:, :-1]) + self.position[:-1])  # (B, T - 1, W)
            hidden.append(pad[:, :-1])
        tokens.append((self.mask + self.position[-1]).expand(b, -1, -1))  # (B, 1, W)
        hidden.append(pad.new_zeros(b, 1))
        visible = ~torch.cat(hidden, 1)  # (B, S)
        # Zero the padding: an attention weight of 0 times NaN would be NaN.
        x = torch.cat(tokens, 1).masked_fill(~visible[..., None], 0)  # (B, S, W)
        return attend(self.blocks, self.norm, x, visible[:, None, None], slice(-1, None)).flatten(1)

    def _causal(self, images: Tensor, proprio: Tensor, past: Tensor, pad: Tensor, every: bool) -> Tensor:
        """Order the tokens by step: images, state, previous action, mask token."""
        b, t, c = images.shape[:3]
        parts = [images, self.state(proprio)[:, :, None]]
        if self.action is not None:
            parts.append(F.pad(self.action(past[:, :-1]), (0, 0, 1, 0))[:, :, None])  # of the previous step
        parts.append(self.mask.expand(b, t, -1, -1))
        x = torch.cat(parts, 2)  # (B, T, S, W)
        size = x.shape[2]
        x = x.masked_fill(pad[..., None, None], 0).flatten(1, 2)  # (B, T * S, W)
        token = torch.arange(t * size, device=x.device)
        place, step = token % size, token // size  # (T * S,) each
        ago = step[:, None] - step  # (T * S, T * S)
        unseen = self._unseen(place == size - 1, place == c, ago)
        bias = self.distance[:, ago.clamp(min=0)].masked_fill(unseen, -torch.inf)  # (H, T * S, T * S)
        # a padded step attends to itself, because a softmax over no tokens is NaN
        padded = pad.repeat_interleave(size, 1)[:, None, None] & (ago != 0)  # (B, 1, T * S, T * S)
        visible = bias[None].masked_fill(padded, -torch.inf)
        queries: slice | Tensor = token.view(t, size)[:, -1] if every else slice(-1, None)
        out = attend(self.blocks, self.norm, x, visible, queries)  # (B, T or 1, W)
        return out.reshape(b, t, self.width) if every else out.flatten(1)

    def _unseen(self, masks: Tensor, states: Tensor, ago: Tensor) -> Tensor:
        """Mask what a token (row) must not attend to: later steps, mask tokens of other steps and, without a history of
        states, all states but that of the same step, which only mask tokens read.  # (T * S, T * S)

        masks, states (T * S,): which tokens are of that kind; ago (T * S, T * S): steps before that of the row.
        """
        guarded = masks if self.settings.proprio_history else masks | states
        hidden = guarded & ~(masks[:, None] & (ago == 0))
        return ((ago < 0) | hidden) & ~torch.eye(len(ago), dtype=torch.bool, device=ago.device)


def attend(
    blocks: nn.ModuleList, norm: nn.Module, x: Tensor, visible: Tensor, queries: slice | Tensor
) -> Tensor:
    """Run all blocks, the last one only for the tokens `queries`, then the norm."""
    for block in blocks[:-1]:
        x = block(x, visible)
    return norm(blocks[-1](x, visible, queries))

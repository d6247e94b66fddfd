"""MVP's policy: a Linear for each image and for the state, then an MLP (Radosavovic et al., 2022).

configs/policy/mvp_mlp.yaml has the sizes of MVP.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml

ACTIVATIONS = {"selu": nn.SELU, "gelu": nn.GELU, "relu": nn.ReLU}


class Dense(nn.Linear):
    """nn.Linear for separate rows (B, I) per member, when members are batched (torch.vmap).

    The batching rule in torch computes the gradient of the transposed weights, and then copies it into the order of the
    weights, which moves more memory than the product itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch._C._functorch.is_batchedtensor(self.weight) and x.ndim == 2):
            return super().forward(x)
        return (self.weight @ x.T).T + self.bias


class MlpSettings(Settings, at="policy.network", file="policy/mlp"):
    image_dim: int = from_yaml(ge=1)
    state_dim: int = from_yaml(ge=1)
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = from_yaml(min_length=1)
    activation: Literal["selu", "gelu", "relu"] = from_yaml()
    layer_norm: bool = from_yaml()
    dropout: float = from_yaml(ge=0, le=0.99)
    action_history: bool = from_yaml()
    proprio_history: bool = from_yaml()


class MlpBody(nn.Module):
    """An MLP on the flattened context; padded steps are zeros."""

    causal = False  # it predicts for the last step only

    def __init__(self, settings: MlpSettings, cameras: int, context: int, proprio_dim: int, action_dim: int):
        super().__init__()
        s = self.settings = settings
        self.embed_dim = s.image_dim
        self.state = nn.Linear(proprio_dim, s.state_dim)
        self.action = nn.Linear(action_dim, s.state_dim) if s.action_history and context > 1 else None
        width = context * cameras * s.image_dim
        width += (context if s.proprio_history else 1) * s.state_dim
        width += (context - 1) * s.state_dim if self.action is not None else 0
        layers: list[nn.Module] = []
        for size in s.hidden:
            layers.append(Dense(width, size))
            if s.layer_norm:
                layers.append(nn.LayerNorm(size))
            layers.append(ACTIVATIONS[s.activation]())
            if s.dropout:
                layers.append(nn.Dropout(s.dropout))
            width = size
        self.body = nn.Sequential(*layers)
        self.width = width

    def forward(self, images: Tensor, proprio: Tensor, past_actions: Tensor, pad: Tensor) -> Tensor:
        """images (B, T, C, E), proprio (B, T, P), past_actions (B, T, A), pad (B, T) -> (B, width)."""
        hidden = pad[..., None]  # (B, T, 1)
        state = self.state(proprio).masked_fill(hidden, 0)  # (B, T, S)
        if not self.settings.proprio_history:
            state = state[:, -1:]
        parts = [images.masked_fill(hidden[..., None], 0).flatten(1), state.flatten(1)]
        if self.action is not None:
            parts.append(self.action(past_actions[:, :-1]).masked_fill(hidden[:, :-1], 0).flatten(1))
        return self.body(torch.cat(parts, -1))

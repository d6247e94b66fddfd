"""MVP's policy: each image and the state through a Linear, then an MLP (Radosavovic et al., 2022).

Defaults are MVP's: 128 + 128, hidden (256, 128, 64), SELU. A bigger head is a setting away:
hidden (512, 512), activation "gelu", layer_norm true, dropout 0.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from s2robot.policies.dense import Dense
from s2robot.policies.errors import PolicyError
from s2robot.policies.settings import check_ranges

ACTIVATIONS = {"selu": nn.SELU, "gelu": nn.GELU, "relu": nn.ReLU}


@dataclass(frozen=True)
class MlpSettings:
    """Sizes of the MLP."""

    image_dim: int = 128  # pooled size of an image
    state_dim: int = 128  # size of the state, and of a past action, after their Linear
    hidden: tuple[int, ...] = (256, 128, 64)  # hidden layers
    activation: str = "selu"  # selu | gelu | relu
    layer_norm: bool = False  # LayerNorm after every hidden Linear
    dropout: float = 0.0  # after every hidden activation
    action_history: bool = False  # past actions as input; they tempt the policy to repeat itself
    proprio_history: bool = True  # states of earlier steps as input, where the context has any

    def __post_init__(self) -> None:
        check_ranges(
            self, "policy.network", image_dim=(1, math.inf), state_dim=(1, math.inf), dropout=(0, 0.99)
        )
        if self.activation not in ACTIVATIONS:
            raise PolicyError(f"network.activation is '{self.activation}', expected {', '.join(ACTIVATIONS)}")
        if not self.hidden or min(self.hidden) < 1:
            raise PolicyError(f"network.hidden is {list(self.hidden)}, expected one or more positive sizes")


class MlpBody(nn.Module):
    """The context flattened in front of an MLP; padded steps count as zeros."""

    queries = 1
    causal = False  # it sees one window at a time

    def __init__(
        self, settings: MlpSettings, cameras: int, context: int, chunk: int, proprio_dim: int, action_dim: int
    ):
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

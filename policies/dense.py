"""Attention sizes, and an nn.Linear whose members (torch.vmap) are trained without copies.

torch's own rule for it gives the gradient of the transposed weights, which is then copied into the order of the weights:
more memory moved than the product itself.
"""

from typing import Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml, invalid


class AttentionSettings(Settings):
    """Channels of attention, split over its heads."""

    width: int = from_yaml(ge=1)
    heads: int = from_yaml(ge=1)

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.width % self.heads:
            raise invalid("width", f"a multiple of {self.heads} heads", self.width)
        return self


class Dense(nn.Linear):
    """nn.Linear of rows (B, I) that are each member's own, where members are side by side."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch._C._functorch.is_batchedtensor(self.weight) and x.ndim == 2):
            return super().forward(x)
        return (self.weight @ x.T).T + self.bias

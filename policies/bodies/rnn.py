"""robomimic's recurrent policy: an LSTM over the context (Mandlekar et al., 2021, "What Matters in Learning from Offline Human
Demonstrations"; BC-RNN). Every step of the context predicts, in training and at inference.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml
from s2robot.policies.bodies.mlp import Dense


class RnnSettings(Settings, at="policy.network", file="policy/rnn"):
    image_dim: int = from_yaml(ge=1)
    state_dim: int = from_yaml(ge=1)
    width: int = from_yaml(ge=1)
    layers: int = from_yaml(ge=1)
    dropout: float = from_yaml(ge=0, le=0.99)


class RnnBody(nn.Module):
    """An LSTM whose memory is zero at the first unpadded step of the context.

    It uses plain Linear layers, because `nn.LSTM` does not support batched members (torch.vmap).
    """

    causal = True

    def __init__(self, settings: RnnSettings, cameras: int, context: int, proprio_dim: int, action_dim: int):
        super().__init__()
        s = self.settings = settings
        self.embed_dim, self.width = s.image_dim, s.width
        self.state = nn.Linear(proprio_dim, s.state_dim)
        widths = [cameras * s.image_dim + s.state_dim, *[s.width] * (s.layers - 1)]
        self.inputs = nn.ModuleList(nn.Linear(width, 4 * s.width) for width in widths)
        self.memories = nn.ModuleList(Dense(s.width, 4 * s.width) for _ in widths)
        self.dropout = nn.Dropout(s.dropout)
        for layer in self.memories:
            with torch.no_grad():
                layer.bias[s.width : 2 * s.width] = 1.0  # open forget gates (Jozefowicz et al., 2015)

    def forward(
        self, images: Tensor, proprio: Tensor, past_actions: Tensor, pad: Tensor, every: bool = False
    ) -> Tensor:
        """images (B, T, C, E), proprio (B, T, P), pad (B, T) -> (B, width); `every`: for each step, (B, T, width)."""
        inputs = torch.cat([images.flatten(2), self.state(proprio)], -1)
        x = inputs.masked_fill(pad[..., None], 0)  # (B, T, I)
        for i, (project, memory) in enumerate(zip(self.inputs, self.memories, strict=True)):
            x = self._layer(project(self.dropout(x) if i else x), memory, pad)
        return x if every else x[:, -1]

    def _layer(self, gates: Tensor, memory: nn.Module, pad: Tensor) -> Tensor:
        """Run one layer over all steps.  # (B, T, 4 W) -> (B, T, W)"""
        hidden = cell = torch.zeros_like(gates[:, 0, : self.width])
        out = []
        for t in range(gates.shape[1]):
            enter, keep, leave, new = (gates[:, t] + memory(hidden)).chunk(4, -1)  # (B, W) each
            cell = (keep.sigmoid() * cell + enter.sigmoid() * new.tanh()).masked_fill(pad[:, t, None], 0)
            hidden = leave.sigmoid() * cell.tanh()
            out.append(hidden)
        return torch.stack(out, 1)

"""Fast forms of timm's layers, in a module that imports timm; `inference` does so only for timm's models."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

_SCORES = 2**21  # attention scores at a time: 4 MiB in bfloat16 stay in the cache


class SplitAttention(Attention):
    """timm's attention without mask, norms and gate, on a CPU: products of a few images at a time."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        masked = any(a is not None and a is not False for a in (*args, *kwargs.values()))
        grad = torch.is_grad_enabled() and x.requires_grad
        if masked or grad or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x, *args, **kwargs)
        b, n, _ = x.shape
        h, d = self.num_heads, self.head_dim
        outputs = []
        for qkv in self.qkv(x).view(b, n, 3, h, d).split(max(1, _SCORES // (h * n * n))):
            # contiguous before the transposition below, which then needs no copy
            q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous().flatten(1, 2).unbind(0)  # (b * h, N, d)
            scores = torch.bmm(q * self.scale, k.transpose(1, 2)).softmax(dim=-1)  # (b * h, N, N)
            out = torch.bmm(scores, v).view(-1, h, n, d).transpose(1, 2)  # (b, N, h, d)
            outputs.append(out.reshape(-1, n, h * d))
        return self.proj(torch.cat(outputs) if len(outputs) > 1 else outputs[0])


def is_plain(attention: Attention) -> bool:
    """Whether the attention is only qkv, softmax and proj, without options of newer timm versions."""
    parts = (attention.q_norm, attention.k_norm, getattr(attention, "norm", None))
    return getattr(attention, "gate", None) is None and all(
        part is None or isinstance(part, nn.Identity) for part in parts
    )


def split_attention(model: nn.Module) -> None:
    """Turn every plain attention of timm's into a SplitAttention, in place."""
    for module in model.modules():
        if type(module) is Attention and is_plain(module):
            module.__class__ = SplitAttention


def gelu_behind(module: nn.Module) -> tuple[nn.Module, str] | None:
    """Return the first layer of timm's MLP and the name of the activation behind it."""
    return (module.fc1, "act") if type(module) is Mlp else None

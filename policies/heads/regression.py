"""Regression: one linear layer predicts the chunk. Fast, and exact if there is only one right way."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes, on_binary


class RegressionSettings(Settings, at="policy.head", file="policy/head/regression"):
    """Only the kind; the losses are settings of the policy."""

    kind: Literal["regression"] = from_yaml()


class RegressionHead(Head):
    """Huber or squared error for continuous numbers, cross entropy (or Huber) for binary ones (a gripper)."""

    def __init__(self, settings: RegressionSettings, sizes: HeadSizes):
        super().__init__()
        self.sizes = sizes
        self.out = nn.Linear(sizes.context, sizes.chunk * sizes.action_dim)

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        sizes, out = self.sizes, self._raw(context)
        losses = [
            (part, self._part(part.kind, out[..., at], target[..., at], weight)) for part, at in sizes.slots
        ]
        parts = {f"{part.label}_loss": loss.detach() for part, loss in losses}
        total: Any = 0
        for binary, share in ((False, 1.0), (True, sizes.gripper_weight)):
            if group := [(part.width, loss) for part, loss in losses if (part.kind == "binary") is binary]:
                total = total + share * _mean(group)
        return HeadLoss(total, self._actions(out.detach()), parts)

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        return self._actions(self._raw(context))

    def _part(self, kind: str, output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of a part's numbers (B, K, size), weighted by (B, K)."""
        sizes, name = self.sizes, self.sizes.gripper_loss if kind == "binary" else self.sizes.joint_loss
        if name == "mse":
            each = F.mse_loss(output, target, reduction="none")
        elif name == "huber":
            each = F.huber_loss(output, target, reduction="none", delta=sizes.huber_delta)
        else:
            each = F.binary_cross_entropy_with_logits(output, target, reduction="none")
        return (each.mean(-1) * weight).sum()

    def _raw(self, context: Tensor) -> Tensor:
        """Return (B, K, A); with cross entropy, binary values are logits."""
        out = self.out(context[..., None, :]).float()
        return out.reshape(*context.shape[:-1], self.sizes.chunk, self.sizes.action_dim)

    def _actions(self, out: Tensor) -> Tensor:
        soft = Tensor.sigmoid if self.sizes.gripper_loss == "bce" else lambda x: x.clamp(0, 1)
        return on_binary(out, self.sizes.slots, soft)


def _mean(losses: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Average the losses of parts, weighted by their sizes."""
    total = sum(size for size, _ in losses)
    return torch.stack([loss * (size / total) for size, loss in losses]).sum()

"""Regression: one linear layer gives the chunk. Fast and exact where there is one right way to go."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes


@dataclass(frozen=True)
class RegressionSettings:
    """Nothing of its own: the losses stand beside it in the policy's settings."""


class RegressionHead(Head):
    """Huber or squared error of the joints, cross entropy (or Huber) of the gripper."""

    def __init__(self, settings: RegressionSettings, sizes: HeadSizes):
        super().__init__()
        self.sizes = sizes
        self.out = nn.Linear(sizes.context // sizes.queries, sizes.chunk * sizes.action_dim // sizes.queries)

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        s = self.sizes
        out = self._raw(context)
        joints, gripper = out[..., :-1], out[..., -1]
        if s.joint_loss == "mse":
            joint_each = F.mse_loss(joints, target[..., :-1], reduction="none")
        else:
            joint_each = F.huber_loss(joints, target[..., :-1], reduction="none", delta=s.huber_delta)
        if s.gripper_loss == "bce":
            gripper_each = F.binary_cross_entropy_with_logits(gripper, target[..., -1], reduction="none")
        else:
            gripper_each = F.huber_loss(gripper, target[..., -1], reduction="none", delta=s.huber_delta)
        joint_loss = (joint_each.mean(-1) * weight).sum()
        gripper_loss = (gripper_each * weight).sum()
        parts = {"joint_loss": joint_loss.detach(), "gripper_loss": gripper_loss.detach()}
        return HeadLoss(joint_loss + s.gripper_weight * gripper_loss, self._actions(out.detach()), parts)

    def sample(self, context: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._actions(self._raw(context))

    def _raw(self, context: Tensor) -> Tensor:
        """(B, K, A); the gripper is a logit with cross entropy."""
        out = self.out(context.unflatten(-1, (self.sizes.queries, -1))).float()
        return out.reshape(*context.shape[:-1], self.sizes.chunk, self.sizes.action_dim)

    def _actions(self, out: Tensor) -> Tensor:
        gripper = out[..., -1:]
        gripper = gripper.sigmoid() if self.sizes.gripper_loss == "bce" else gripper.clamp(0, 1)
        return torch.cat([out[..., :-1], gripper], -1)

"""MIP, the minimal iterative policy: two supervised steps, deterministic where it acts (arXiv 2512.01809).

What is built, with net(chunk, time, context) and t = `time` (0.9 in the paper):

    training    | net(0, 0, context) - action |²  +  | net(t · action + (1 - t) · noise, t, context) - action |²
    acting      first = net(0, 0, context);  action = net(t · first, t, context)

The first step is plain regression, the second learns to mend a chunk that is nearly right. This is the paper's form;
its published code also has one that leaves out the factor t. Squared error on all dimensions, the gripper as
-1 or 1. It does not fit a distribution: of two equally good ways it takes one answer, which may lie between them.
"""

from typing import Literal

import torch
from torch import Tensor

from s2robot.core.settings import from_yaml
from s2robot.policies.heads.denoiser import DenoiserSettings, DenoisingHead
from s2robot.policies.heads.head import HeadLoss, by_part, signed, unsigned


class MipSettings(DenoiserSettings, at="policy.head", file="policy/head/mip"):
    """configs/policy/head/mip.yaml documents each value."""

    kind: Literal["mip"] = from_yaml()
    time: float = from_yaml(gt=0, lt=1)


class MipHead(DenoisingHead):
    """See the module."""

    settings: MipSettings

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        target = signed(target, self.slots)
        noisy = torch.lerp(torch.randn_like(target), target, self.settings.time)
        start = torch.zeros_like(target[..., 0, 0])  # (B,)
        found = self.net(
            torch.cat([torch.zeros_like(target), noisy]),
            torch.cat([start, start + self.settings.time]),
            torch.cat([context, context]),
        )  # (2B, K, A), both steps in one pass
        errors = (found - torch.cat([target, target])).square()
        loss, parts = by_part(errors, torch.cat([weight, weight]), self.slots)
        return HeadLoss(loss, unsigned(found[: len(target)].detach(), self.slots), parts)

    def sample(self, context: Tensor, noise: Tensor | None = None) -> Tensor:
        start = context.new_zeros(len(context), dtype=torch.float32)  # (B,)
        first = self.net(start[:, None, None].expand(-1, *self.shape), start, context)
        again = self.net(self.settings.time * first, start + self.settings.time, context)
        return unsigned(again, self.slots)

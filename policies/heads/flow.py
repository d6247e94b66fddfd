"""Flow matching: noise is carried to actions along straight lines (Lipman et al., 2023; as in pi-0).

The network learns the velocity from noise to action at a random point of the line, and a sample follows it in a
few Euler steps.
"""

from typing import Literal

import torch
from torch import Tensor

from s2robot.core.settings import from_yaml
from s2robot.policies.heads.denoiser import DenoiserSettings, DenoisingHead
from s2robot.policies.heads.head import HeadLoss, HeadSizes, by_part, signed, unsigned


class FlowSettings(DenoiserSettings, at="policy.head", file="policy/head/flow"):
    """configs/policy/head/flow.yaml documents each value."""

    kind: Literal["flow"] = from_yaml()
    steps: int = from_yaml(ge=1)


class FlowHead(DenoisingHead):
    """See the module."""

    settings: FlowSettings

    def __init__(self, settings: FlowSettings, sizes: HeadSizes):
        super().__init__(settings, sizes)
        self.noise_shape = self.shape

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        target = signed(target, self.slots)
        noise, time = torch.randn_like(target), torch.rand_like(target[..., 0, 0])  # (B, K, A), (B,)
        at = time[..., None, None]
        noisy = torch.lerp(noise, target, at)
        velocity = self.net(noisy, time, context)
        loss, parts = by_part((velocity - (target - noise)).square(), weight, self.slots)
        estimate = unsigned((noisy + (1 - at) * velocity).detach(), self.slots)
        return HeadLoss(loss, estimate, parts)

    def sample(self, context: Tensor, noise: Tensor | None = None) -> Tensor:
        actions, steps = self.given(noise), self.settings.steps
        for i in range(steps):
            time = actions.new_full(actions.shape[:-2], i / steps)
            actions = actions + self.net(actions, time, context) / steps
        return unsigned(actions, self.slots)

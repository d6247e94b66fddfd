"""Flow matching: noise is carried to actions along straight lines (Lipman et al., 2023; as in pi-0).

The network learns the velocity from noise to action at a random point of the line, and a sample follows it in a
few Euler steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from s2robot.policies.heads.denoiser import DenoiserSettings, check_counts
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes, by_part, signed, unsigned


@dataclass(frozen=True)
class FlowSettings(DenoiserSettings):
    """configs/policy/head/flow.yaml says what each is."""

    steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "steps")


class FlowHead(Head):
    """See the module."""

    def __init__(self, settings: FlowSettings, sizes: HeadSizes):
        super().__init__()
        self.settings, self.slots = settings, sizes.slots
        self.noise_shape = (sizes.chunk, sizes.action_dim)
        self.net = settings.build(sizes)

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

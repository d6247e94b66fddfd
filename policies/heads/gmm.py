"""GMM: a mixture of Gaussians, trained by maximum likelihood; one component acts (as in robomimic).

For one action, this equals robomimic's BC-RNN-GMM. A chunk is one sample: a component is a complete chunk, with its own
Gaussian for every step and joint, because a component sampled per step could go left in one step and right in the
next. Binary values (a gripper, open or closed) are Bernoulli variables of the component, because a Gaussian of two
values has no width. The noise argument selects the component; sampling around its mean is narrow (`spread`), which
robomimic calls low-noise evaluation.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml
from s2robot.policies.heads.head import Head, HeadLoss, HeadSizes, on_binary


class GmmSettings(Settings, at="policy.head", file="policy/head/gmm"):
    kind: Literal["gmm"] = from_yaml()
    components: int = from_yaml(ge=1)
    min_std: float = from_yaml(gt=0)
    spread: float = from_yaml(ge=0)


class GmmHead(Head):
    def __init__(self, settings: GmmSettings, sizes: HeadSizes):
        super().__init__()
        self.settings = settings
        self.shape, self.slots = (settings.components, sizes.chunk, sizes.action_dim), sizes.slots
        self.gaussians = [(part.width, at) for part, at in sizes.slots if part.kind != "binary"]
        self.moving = sum(width for width, _ in self.gaussians)  # G, count of numbers with a Gaussian
        self.noise_shape = (1 + sizes.chunk * self.moving,)  # for the component, then around its mean
        self.weights = nn.Linear(sizes.context, settings.components)
        self.means = nn.Linear(sizes.context, settings.components * sizes.chunk * sizes.action_dim)
        self.widths = nn.Linear(sizes.context, settings.components * sizes.chunk * self.moving)

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        share, means, std = self._mixture(context)
        scaled = (self._of(target[..., None, :, :], False) - self._of(means, False)) / std  # (B, M, K, G)
        joints = (-0.5 * (scaled.square() + math.log(2 * math.pi)) - std.log()).sum(-1)  # (B, M, K)
        logits = self._of(means, True)  # (B, M, K, A - G)
        closed = self._of(target[..., None, :, :], True).expand(logits.shape)
        gripper = -F.binary_cross_entropy_with_logits(logits, closed, reduction="none").sum(-1)
        within = weight / weight.amax(-1, keepdim=True).clamp(min=1e-12)  # (B, K) within a chunk
        likelihoods = share + ((joints + gripper) * within[..., None, :]).sum(-1)  # (B, M) logarithmic
        chunks = weight.sum(-1) / within.sum(-1).clamp(min=1)  # (B,) so that the loss is in nats per step
        loss = -(likelihoods.logsumexp(-1) * chunks).sum()
        return HeadLoss(loss, self._component(means.detach(), share.argmax(-1)), {"nll": loss.detach()})

    def sample(self, context: Tensor, noise: Any = None, pending: Any = None) -> Tensor:
        share, means, std = self._mixture(context)
        uniform = torch.special.ndtr(noise[..., :1])  # (B, 1) from 0 to 1
        chosen = (uniform > share.exp().cumsum(-1)).sum(-1).clamp(max=self.shape[0] - 1)  # (B,)
        actions = self._component(means, chosen)
        if not self.settings.spread:
            return actions
        around = noise[..., 1:].unflatten(-1, (self.shape[1], -1)) * self.settings.spread
        offsets = (around * _pick(std, chosen)).split([width for width, _ in self.gaussians], -1)
        for (_, at), offset in zip(self.gaussians, offsets, strict=True):  # (B, K, width)
            actions[..., at] += offset
        return actions

    def _mixture(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log shares (B, M), means (B, M, K, A) with logits for binary values, and deviations (B, M, K, G)."""
        m, k, a = self.shape
        std = F.softplus(self.widths(context).float()) + self.settings.min_std
        share = self.weights(context).float().log_softmax(-1)
        means = self.means(context).float()
        return share, means.unflatten(-1, (m, k, a)), std.unflatten(-1, (m, k, self.moving))

    def _component(self, means: Tensor, chosen: Tensor) -> Tensor:
        """Return the mean chunk (B, K, A) of the chosen components (B,), with binary values 0..1."""
        return on_binary(_pick(means, chosen), self.slots, Tensor.sigmoid)

    def _of(self, x: Tensor, binary: bool) -> Tensor:
        """Return the binary values of x (..., A), or the others."""
        pieces = [x[..., at] for part, at in self.slots if (part.kind == "binary") is binary]
        return torch.cat(pieces, -1) if pieces else x[..., :0]


def _pick(values: Tensor, chosen: Tensor) -> Tensor:
    """Select values (B, M, ...) by index (B,) -> (B, ...)."""
    indices = chosen.reshape(-1, *[1] * (values.ndim - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, indices).squeeze(1)

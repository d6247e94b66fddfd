"""The signature of a head: from the vector that a body made of the context to a chunk of K actions.

    head = build_head({"kind": "flow"}, HeadSizes(context=512, chunk=8, slots=spec.action.slots))
    result = head.loss(context, target, weight)       # result.loss is a scalar with gradient
    head.sample(context, noise)                       # (B, K, A)

Target and sample are in normalised units, by the policy's scaler; what is binary (a gripper) is 0 to 1. A is the width
of the action inside, where a rotation has six numbers; `slots` say which are whose.
A head draws nothing itself where it acts: its noise is handed in, drawn from a generator of the episode, so
that an evaluation can be interrupted and resumed to the bit. In a training it draws from torch's generator,
which every step seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from s2robot.policies.parts import Slot


@dataclass(frozen=True)
class HeadSizes:
    """The shapes of a head, and the losses of regression."""

    context: int  # width of the context vector
    chunk: int  # K
    slots: tuple[Slot, ...]  # the parts of an action
    joint_loss: str = "huber"  # huber | mse, of what is not binary
    huber_delta: float = 1.0
    gripper_loss: str = "bce"  # bce | huber, of what is
    gripper_weight: float = 1.0

    @property
    def action_dim(self) -> int:
        """A."""
        return self.slots[-1].at.stop


# Actions (B, K, A) and at which steps a sample has to repeat them (K,), 1 or 0.
Given = tuple[Tensor, Tensor]


@dataclass
class HeadLoss:
    """The outcome of a head's loss."""

    loss: Tensor  # ()
    estimate: Tensor  # (B, K, A) the head's present guess of the target, for metrics; without gradient
    scalars: dict[str, Tensor] = field(default_factory=dict)  # parts of the loss, () each, without gradient


class Head(nn.Module):
    """Base of the heads; see the module."""

    noise_shape: tuple[int, ...] = ()  # of the standard normal noise that a sample takes; () = deterministic
    continues = False  # whether a sample can continue given actions

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        """context (B, H), target (B, K, A), weight (B, K), which adds up to 1."""
        raise NotImplementedError

    def sample(self, context: Tensor, noise: Any = None, given: Given | None = None) -> Tensor:
        """Actions (B, K, A) from context (B, H), noise (B, *noise_shape) where a head takes any, and `given`, if it `continues`."""
        raise NotImplementedError


def signed(actions: Tensor, slots: Sequence[Slot]) -> Tensor:
    """Binary numbers as -1 or 1, the size of the others, for heads that treat all alike."""
    return on_binary(actions, slots, lambda x: x * 2 - 1)


def unsigned(actions: Tensor, slots: Sequence[Slot]) -> Tensor:
    """Invert `signed`: binary numbers 0..1."""
    return on_binary(actions, slots, lambda x: (x * 0.5 + 0.5).clamp(0, 1))


def on_binary(actions: Tensor, slots: Sequence[Slot], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Actions (..., A) with the binary parts changed."""
    return torch.cat([change(actions[..., s.at]) if s.binary else actions[..., s.at] for s in slots], -1)


def by_part(errors: Tensor, weight: Tensor, slots: Sequence[Slot]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the dimensions of errors (B, K, A), weighted by (B, K); and that of each part alone."""
    each = (errors * weight[..., None]).sum((0, 1))  # (A,)
    alone = each.detach()
    return each.mean(), {f"{s.label}_loss": alone[s.at].mean() for s in slots}

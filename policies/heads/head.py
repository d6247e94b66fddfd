"""The signature of a head: from the vector that a body made of the context to a chunk of K actions.

    head = build_head({"kind": "flow"}, HeadSizes(context=512, chunk=8, action_dim=8))
    result = head.loss(context, target, weight)       # result.loss is a scalar with gradient
    head.sample(context, noise)                       # (B, K, A)

Target and sample are in normalised units: joints by the policy's scaler, the gripper (last) 0 open to 1 closed.
A head draws nothing itself where it acts: its noise is handed in, drawn from a generator of the episode, so
that an evaluation can be interrupted and resumed to the bit. In a training it draws from torch's generator,
which every step seeds.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from s2robot.policies.errors import PolicyError


@dataclass(frozen=True)
class HeadSizes:
    """What a head is built for, and how regression measures an error."""

    context: int  # width of the context vector
    chunk: int  # K
    action_dim: int  # A, the gripper last
    queries: int = 1  # vectors that the context is made of: K where the body gives one for each action
    joint_loss: str = "huber"  # huber | mse
    huber_delta: float = 1.0
    gripper_loss: str = "bce"  # bce | huber
    gripper_weight: float = 1.0


@dataclass
class HeadLoss:
    """The outcome of a head's loss."""

    loss: Tensor  # ()
    estimate: Tensor  # (B, K, A) the head's present guess of the target, for metrics; without gradient
    scalars: dict[str, Tensor] = field(default_factory=dict)  # parts of the loss, () each, without gradient


class Head(nn.Module):
    """Base of the heads; see the module."""

    noise_shape: tuple[int, ...] = ()  # of the standard normal noise that a sample takes; () = deterministic

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        """context (B, H), target (B, K, A), weight (B, K), which adds up to 1."""
        raise NotImplementedError

    def sample(self, context: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions (B, K, A) from context (B, H) and noise (B, *noise_shape)."""
        raise NotImplementedError

    def given(self, noise: Tensor | None) -> Tensor:
        """The noise of a sample that needs some; PolicyError where none was handed in."""
        if noise is None:
            raise PolicyError(f"policy: {type(self).__name__} samples from noise, and none was given")
        return noise


def signed(actions: Tensor) -> Tensor:
    """The gripper as -1 or 1, the size of the other dimensions, for heads that treat all alike."""
    return torch.cat([actions[..., :-1], actions[..., -1:] * 2 - 1], -1)


def unsigned(actions: Tensor) -> Tensor:
    """Back from `signed`: the gripper 0..1."""
    return torch.cat([actions[..., :-1], (actions[..., -1:] * 0.5 + 0.5).clamp(0, 1)], -1)


def by_part(errors: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the dimensions of errors (B, K, A), weighted by (B, K); and that of joints and gripper alone."""
    each = (errors * weight[..., None]).sum((0, 1))  # (A,)
    parts = each.detach()
    return each.mean(), {"joint_loss": parts[:-1].mean(), "gripper_loss": parts[-1]}

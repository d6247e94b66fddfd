"""The interface of heads, which map the body's context vector to a chunk of K actions.

    head = build_head(read_head({"kind": "flow"}), HeadSizes(context=512, chunk=8, slots=spec.action.inside))
    result = head.loss(context, target, weight)       # result.loss is a scalar with gradient
    head.sample(context, noise)                       # (B, K, A)

Target and sample are in the normalised units of the policy's scaler; binary values (a gripper) are 0 to 1. A is the inner
width of the action, in which a rotation has six numbers; `slots` are its parts and where they are. At inference, a head does
not sample noise itself: the noise argument comes from a generator of the episode, so that an interrupted evaluation resumes
bit for bit. In training, the head samples from torch's generator, which is seeded at every step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s2robot.policies.parts import Layout


class HeadSizes(NamedTuple):
    """The shapes of a head, and the losses of regression."""

    context: int  # width of the context vector
    chunk: int  # K
    slots: Layout  # the parts of an action, see `Parts.inside`
    joint_loss: str = "huber"  # huber | mse, for non-binary values
    huber_delta: float = 1.0
    gripper_loss: str = "bce"  # bce | huber, for binary values
    gripper_weight: float = 1.0

    @property
    def action_dim(self) -> int:
        return self.slots[-1][1].stop


# Actions (B, K, A), and weights (K,): 1 at steps in which a sample must repeat them, less where it should be near them.
Pending = tuple[Tensor, Tensor]


class HeadLoss(NamedTuple):
    loss: Tensor  # ()
    estimate: Tensor  # (B, K, A) estimate of the target, for metrics; without gradient
    scalars: dict[str, Tensor] = {}  # parts of the loss, () each, without gradient


class Head(nn.Module):
    noise_shape: tuple[int, ...] = ()  # of the standard normal noise for a sample; () = deterministic
    continues = False  # whether a sample can continue pending actions

    def loss(self, context: Tensor, target: Tensor, weight: Tensor) -> HeadLoss:
        """Return the loss for context (B, H), target (B, K, A) and weight (B, K), which sums to 1."""
        raise NotImplementedError

    def sample(self, context: Tensor, noise: Any = None, pending: Pending | None = None) -> Tensor:
        """Return actions (B, K, A) for context (B, H) and noise (B, *noise_shape); `pending` if the head `continues`."""
        raise NotImplementedError


def signed(actions: Tensor, slots: Layout) -> Tensor:
    """Map binary values to -1 or 1, the scale of the others, for heads that treat all numbers equally."""
    return on_binary(actions, slots, lambda x: x * 2 - 1)


def unsigned(actions: Tensor, slots: Layout) -> Tensor:
    """Invert `signed`: binary values 0..1."""
    return on_binary(actions, slots, lambda x: (x * 0.5 + 0.5).clamp(0, 1))


def on_binary(actions: Tensor, slots: Layout, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to the binary parts of actions (..., A)."""
    pieces = ((part, actions[..., at]) for part, at in slots)
    return torch.cat([change(x) if part.kind == "binary" else x for part, x in pieces], -1)


def by_part(errors: Tensor, weight: Tensor, slots: Layout) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean of errors (B, K, A) over all dimensions, weighted by (B, K), and that of each part."""
    errors_by_number = (errors * weight[..., None]).sum((0, 1))  # (A,)
    values = errors_by_number.detach()
    return errors_by_number.mean(), {f"{part.label}_loss": values[at].mean() for part, at in slots}

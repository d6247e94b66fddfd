"""nn.Linear whose members side by side (torch.vmap) are trained without copies.

torch's own rule for it gives the gradient of the transposed weights, which is then copied into the order of the weights:
more memory moved than the product itself. Values are the same to the last bit, of the result and of every gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Members(torch.autograd.Function):
    """Rows x (M, B, I), weights (M, O, I) and biases (M, O) -> (M, B, O)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.bmm(x, weight.mT) + bias[:, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        return torch.bmm(grad, weight), torch.bmm(grad.mT, x), grad.sum(1)


class _Dense(torch.autograd.Function):
    """F.linear; for members side by side `_Members`."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        return grad @ weight, grad.mT @ x, grad.sum(0)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, int]:
        if None in in_dims:
            raise NotImplementedError("each member has rows and weights of its own")
        x, weight, bias = (t.movedim(d, 0) for t, d in zip((x, weight, bias), in_dims, strict=True))
        return _Members.apply(x, weight, bias), 0


class Dense(nn.Linear):
    """nn.Linear of rows (B, I) that are each member's own, where members are side by side."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch._C._functorch.is_batchedtensor(self.weight) and x.ndim == 2):
            return super().forward(x)
        return _Dense.apply(x, self.weight, self.bias)

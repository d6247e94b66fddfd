"""Gradient steps of one model, with a schedule and averaged weights, for policies, encoders and the probes' heads.

learner = Learner(fabric, model, optimizer, lambda step: warm_up_then_cosine(step, steps, 10), decay=0.99)
learner.update(batch)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def warm_up_then_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the fraction of the peak rate: linear over the first `warmup` steps, then a cosine to zero."""
    warmup = max(1, warmup)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def cosine_with_warm_up(step: int, steps: int, warmup: int) -> float:
    """Return the fraction of the peak rate: a cosine to zero over all steps, capped by a linear rise over `warmup`."""
    return min((step + 1) / max(1, warmup), 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trained parameters: only the weights of layers, which multiply their input, get weight decay.

    Biases, norms, temperatures, position tables and query tokens have no reason to be small.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # ensemble members are stacked along the first axis; their names use slashes instead of dots
    layer = {name for name, p in trained if name.endswith("weight") and p.ndim - ("/" in name) > 1}
    decayed = [p for name, p in trained if name in layer]
    plain = [p for name, p in trained if name not in layer]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Average the weights over the steps; `.module` is the model with them.

    After step i (from 0) the average moves 1 - min(decay, (1 + i) / (10 + i)) of the way to the new weights, as in
    TensorFlow's ExponentialMovingAverage. With decay 0 it is the model itself.
    """

    def follow(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        step = int(count) - 1
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + step) / (10 + step)))

    average = AveragedModel(model, multi_avg_fn=follow)
    average.n_averaged.fill_(1)  # count the initial weights as the first, or torch would discard them
    return average


@contextmanager
def _products_in(dtype: torch.dtype) -> Iterator[None]:
    """With bfloat16, round float32 matrices to it when they are multiplied; sums stay float32."""
    before = torch.get_float32_matmul_precision()
    if dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Learner:
    """A model and everything that changes with it in a step; `step` is the number of finished steps.

    Args:
        rate: fraction of the optimiser's learning rate at a step.
        decay: of the averaged weights; None for no averaging.
        product: number format in which float32 matrices are multiplied in a step.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rate: Callable[[int], float],
        decay: float | None = None,
        grad_clip: float | None = None,
        product: torch.dtype = torch.float32,
    ) -> None:
        self.fabric, self.grad_clip, self.step, self.product = fabric, grad_clip, 0, product
        self.grad_norm: Tensor | None = None  # of the last step, before clipping
        self._bare, self._optimizer, self._rate = model, optimizer, rate
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self.lr = 0.0  # of the last step, of the first group
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.average: AveragedModel | None = None if decay is None else averaged(model, decay)

    def update(self, *batch: Any) -> tuple[Tensor, Any]:
        """Do one gradient step; return the loss and the model's other outputs."""
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * self._rate(self.step)
        self.lr = float(self._optimizer.param_groups[0]["lr"])
        with _products_in(self.product):
            loss, *rest = self.model(*batch)
            self.fabric.backward(loss)
        if self.grad_clip:  # a non-finite norm shows up in the loss
            norm = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=self.grad_clip, error_if_nonfinite=False
            )
            self.grad_norm = norm.detach() if norm is not None else None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self._bare)
        return loss.detach(), rest

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next steps depend on, except their batches."""
        state = {
            "model": self._bare.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "precision": self.fabric.strategy.precision.state_dict(),  # the gradient scale of 16-mixed
        }
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bare.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step = state["step"]


def optimise(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    lr: float,
    weight_decay: float,
    warmup: int,
    clip: float | None = None,
) -> Iterator[float]:
    """Train in this process only, with AdamW, a warm-up and a cosine to 0; yield the loss of each step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr, weight_decay=weight_decay)
    for step, (x, y) in enumerate(islice(batches, steps)):
        optimizer.param_groups[0]["lr"] = lr * cosine_with_warm_up(step, steps, warmup)
        error = loss(model(x), y)
        error.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        optimizer.zero_grad()
        yield error.item()

"""The training loop: gradient steps of one model with its schedule and average. `train` and `pretrain` run it.

learner = Learner(fabric, model, optimizer, lambda step: warm_up_then_cosine(step, steps, 10), decay=0.99)
learn(learner, steps, batch, after)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from s2robot.core.trace import span
from s2robot.training.averaging import averaged


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for the weights of layers alone: matrices and kernels, which multiply what comes in.

    Biases, norms, temperatures, and the tables and tokens that stand for a place or a question (position, mask,
    query, camera, class) are added or compared and have no reason to be small. What is fixed is in no group.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # the members of an ensemble are stacked in front; their names have slashes for dots
    layer = {name for name, p in trained if name.endswith("weight") and p.ndim - ("/" in name) > 1}
    decayed = [p for name, p in trained if name in layer]
    plain = [p for name, p in trained if name not in layer]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


@contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside, torch rounds float32 matrices to bfloat16 as it multiplies them, if dtype is that; what it adds up stays float32."""
    before = torch.get_float32_matmul_precision()
    if dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Learner:
    """A model and all that changes with it in a step; `step` counts those that are done."""

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
        """rate: share of the optimiser's learning rate at a step; decay: of the averaged weights, None for none;
        product: number format in which float32 matrices are multiplied in a step."""
        self.fabric, self.grad_clip, self.step, self.product = fabric, grad_clip, 0, product
        self.grad_norm: Tensor | None = None  # of the step done last, before clipping
        self._bare, self._optimizer, self._rate = model, optimizer, rate
        self._peaks = [group["lr"] for group in optimizer.param_groups]
        self._start()
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.average: AveragedModel | None = None if decay is None else averaged(model, decay)

    def _start(self) -> None:
        """The schedule from `step` on; the rate at a step depends on nothing before it."""
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["initial_lr"] = peak
        self._schedule = LambdaLR(self._optimizer, self._rate, last_epoch=self.step - 1)
        self.lr = float(self._optimizer.param_groups[0]["lr"])  # of the step done last

    def update(self, *batch: Any) -> tuple[Tensor, Any]:
        """One gradient step; the loss, and what else the model returned."""
        with products_in(self.product):
            loss, *rest = self.model(*batch)
            self.fabric.backward(loss)
        if self.grad_clip:
            self.grad_norm = self._clipped(self.grad_clip).detach()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr = float(self._optimizer.param_groups[0]["lr"])
        self.step += 1
        self._schedule.step()
        if self.average is not None:
            self.average.update_parameters(self._bare)
        return loss.detach(), rest

    def _clipped(self, most: float) -> Tensor:
        """Clip the gradient's norm; its size before. One that is not finite shows in the loss, which is told in one line."""
        if self.fabric.device.type != "cpu" or self.fabric.world_size > 1:
            norm = self.fabric.clip_gradients(
                self.model, self.optimizer, max_norm=most, error_if_nonfinite=False
            )
            assert norm is not None
            return norm
        # torch multiplies by 1 where nothing is to be clipped, so as not to wait for a GPU; here that is a pass over the memory
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not most / (norm.item() + 1e-5) >= 1:
            nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return norm

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on besides their batches."""
        state = {
            "model": self._bare.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self.step,
            "precision": self.fabric.strategy.precision.state_dict(),  # the gradients' scale of 16-mixed
        }
        return state if self.average is None else state | {"average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._bare.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.fabric.strategy.precision.load_state_dict(state.get("precision", {}))
        self.step = state["step"]
        self._start()


def learn(
    learner: Learner,
    steps: int,
    batch: Callable[[int], tuple],
    after: Callable[[Tensor, Any], None],
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Update until `steps` are done or `stop()` says so.

    Args:
        batch: the model's arguments at a step.
        after: called after every step with the loss and what else the model returned.
    """
    while learner.step < steps and not stop():
        with span("step", step=learner.step):
            with span("batch"):
                given = batch(learner.step)
            after(*learner.update(*given))

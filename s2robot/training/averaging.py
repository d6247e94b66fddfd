"""The average of the weights over the steps of a training: torch's AveragedModel with a decay that warms up."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An average that starts at the model's weights and follows it; `.module` is the model with it.

    After step i (from 0) the average moves 1 - min(decay, (1 + i) / (10 + i)) of the way to the new weights, so
    that the first, random ones are soon forgotten (as TensorFlow's ExponentialMovingAverage). With decay 0 it is
    the model itself.
    """

    def follow(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        step = int(count) - 1
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + step) / (10 + step)))

    average = AveragedModel(model, multi_avg_fn=follow)
    average.n_averaged.fill_(1)  # the weights at the start count as the first, or torch would forget them
    return average

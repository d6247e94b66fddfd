"""The pictures that a pre-training leaves: reconstructions, and loss and learning rate by step."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from s2robot.pretraining.crops import MEAN, STD
from s2robot.pretraining.mae import MAE
from s2robot.reporting.style import BLUE, GRID, VERMILLION, styled


def save_picture(mae: MAE, images: Tensor, path: Path, rows: int = 8) -> None:
    """One row an image: input, what the encoder saw of it, reconstruction."""
    images = images[:rows]
    masked, filled = mae.picture(images.to(mae.mask_token.device), torch.Generator().manual_seed(0))
    strip = torch.cat([images, masked.cpu(), filled.cpu()], dim=3)  # (rows, 3, S, 3 * S)
    strip = strip * STD + MEAN
    sheet = torch.cat(list(strip), dim=1).clamp(0, 1).mul(255).round().byte()  # (3, rows * S, 3 * S)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)


@styled
def pretraining_plot(history: Sequence[Sequence[float]]) -> Figure:
    """Loss and learning rate of a pre-training; `history` has one (step, loss, learning rate) a row."""
    steps, losses, rates = zip(*history, strict=True)
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot(steps, losses, color=BLUE, lw=1.8, marker="o" if len(steps) < 3 else None)
    above.set_ylabel("loss")
    above.set_title(f"masked autoencoding: loss {losses[-1]:.3f} at step {steps[-1]:,.0f}")
    below.plot(steps, rates, color=VERMILLION, lw=1.4, ls="--")
    below.set_ylabel("rate")
    below.set_xlabel("step")
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.grid(**GRID)
    above.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure

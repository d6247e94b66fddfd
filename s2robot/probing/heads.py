"""Train heads on frozen features, read in chunks, and score them: classes, segments, depth.

    head, curve = fit_head(Classify(24), "linear", data, settings, seed=0)
    tallies = tally(Classify(24), head, data)                 # (held-out images, width), in order
    Classify(24).scores(weights @ tallies)                    # weights (B, n) -> {"accuracy": (B,), ...}

Features are standardised by the training images. A head is validated at `checks` evenly spaced steps and its state
with the lowest validation loss is used, so that wider features, which a head fits faster, are not penalised.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from s2robot.core.errors import UserError
from s2robot.core.files import replacing
from s2robot.core.provenance import short_hash
from s2robot.core.settings import Settings, from_yaml
from s2robot.probing.images import Rows
from s2robot.training.loop import optimise

FIT, VALIDATE, TEST = 0, 1, 2  # roles of an image
_NEAR = 1e-3  # m, so that the logarithm of an unknown depth is finite
_WIDTH = 32  # channels of the convolutional head
_TRAIN_POINTS = 32  # points along a side at which a dense head is trained
_BATCH = 32  # images evaluated at once
Scales = Annotated[tuple[int | float, ...], Field(min_length=1)]
Curve = list[tuple[int, float, float]]  # step, mean training loss since the previous one, validation loss


class ScalingSettings(Settings, at="probe", file="probe/scaling"):
    scales: tuple[Scales, ...] = from_yaml(min_length=1)
    resize: tuple[Literal["upsample", "native"], ...] = from_yaml(min_length=1)
    tasks: tuple[Literal["classify", "segment", "depth"], ...] = from_yaml(min_length=1)
    heads: tuple[Literal["linear", "conv"], ...] = from_yaml(min_length=1)
    steps: int = from_yaml(ge=1)
    batch: int = from_yaml(ge=1)
    dense_batch: int = from_yaml(ge=1)
    lr: float = from_yaml(gt=0)
    lr_deep: float = from_yaml(gt=0)
    weight_decay: float = from_yaml(ge=0)
    checks: int = from_yaml(ge=1)
    data: str | None = from_yaml()
    ignore: int | None = from_yaml()
    metre: float = from_yaml()
    points: int = from_yaml(ge=8)
    held_out: float = from_yaml(ge=0.01, le=0.99)
    validation: float = from_yaml(ge=0, le=0.9)
    seeds: tuple[int, ...] = from_yaml(min_length=1)
    resamples: int = from_yaml(ge=100)
    families: tuple[tuple[str, ...], ...] = from_yaml()
    device: str = from_yaml()

    @property
    def all_scales(self) -> tuple[float, ...]:
        return tuple(sorted({scale for chosen in self.scales for scale in chosen}))


@dataclass(frozen=True)
class Classify:
    """Classification into `channels` classes; out (B, C), truth (B,)."""

    channels: int
    metrics: ClassVar = ("accuracy", "loss")

    def tally(self, out: Tensor, truth: Tensor) -> Tensor:
        """Return whether each image is correct, its loss and 1: (B, C), (B,) -> (B, 3)."""
        losses = F.cross_entropy(out, truth.long(), reduction="none")
        return torch.stack([(out.argmax(1) == truth).float(), losses, torch.ones_like(losses)], 1)

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics (B,) from weighted sums of tallies (B, width)."""
        return {"accuracy": sums[:, 0] / sums[:, 2], "loss": sums[:, 1] / sums[:, 2]}


@dataclass(frozen=True)
class Segment:
    """Segmentation of points; out (B, C, h, w), truth (B, P, P), `ignore` where unlabelled."""

    channels: int
    ignore: int | None
    metrics: ClassVar = ("miou", "loss")

    def tally(self, out: Tensor, truth: Tensor) -> Tensor:
        """Return each label's intersection and union, the loss, and the number of labelled points: -> (B, 2 C + 2)."""
        out, known = _resized(out, truth), truth != (-1 if self.ignore is None else self.ignore)
        losses = F.cross_entropy(out, truth.long() * known, reduction="none") * known
        predicted = out.max(1).indices  # (B, P, P); three times as fast as argmax on a CPU
        intersection = self._count(truth, known & (predicted == truth))
        union = self._count(truth, known) + self._count(predicted, known) - intersection
        return torch.cat([intersection, union, losses.sum((1, 2))[:, None], known.sum((1, 2))[:, None]], 1)

    def _count(self, labels: Tensor, where: Tensor) -> Tensor:
        """Count the points of each label.  # (B, P, P) -> float (B, C)"""
        index = torch.where(where, labels, 0).flatten(1).long()
        return torch.zeros(len(labels), self.channels).scatter_add_(1, index, where.flatten(1).float())

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return the mean IoU over labels that occur or are predicted, from all points of all images."""
        intersection, union = sums[:, : self.channels], sums[:, self.channels : -2]
        iou = np.where(union > 0, intersection / np.where(union > 0, union, 1), np.nan)
        return {"miou": np.nanmean(iou, axis=1), "loss": sums[:, -2] / sums[:, -1]}


@dataclass(frozen=True)
class Depth:
    """Logarithm of the depth of points; out (B, 1, h, w), truth (B, P, P) in units of `metre` m, 0 = unknown."""

    metre: float
    channels: ClassVar = 1
    metrics: ClassVar = ("rmse_m", "delta_1.25", "loss")

    def tally(self, out: Tensor, truth: Tensor) -> Tensor:
        """Return squared errors, points within 1.25, squared logarithmic errors, known points: -> (B, 4)."""
        known, predicted = truth > 0, _resized(out, truth)[:, 0]
        logs = torch.log(truth.float() * self.metre + _NEAR * ~known)
        within, errors = (predicted - logs).abs() < np.log(1.25), (predicted.exp() - logs.exp()) ** 2
        counted = (errors, within, (predicted - logs) ** 2, torch.ones_like(predicted))
        return torch.stack([(x * known).sum((1, 2)) for x in counted], 1)

    def scores(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics over all known points of all images."""
        squared, within, logs, points = sums.T
        return {"rmse_m": np.sqrt(squared / points), "delta_1.25": within / points, "loss": logs / points}


Task = Classify | Segment | Depth  # the last two columns of a tally are the summed loss and its count


def loss_of(task: Task, out: Tensor, truth: Tensor) -> Tensor:
    """Return the mean loss; for a dense task, at the points nearest to a _TRAIN_POINTS x _TRAIN_POINTS grid."""
    if truth.ndim > 1 and truth.shape[-1] > _TRAIN_POINTS:
        at = ((torch.arange(_TRAIN_POINTS) + 0.5) * truth.shape[-1] / _TRAIN_POINTS).long()
        truth = truth[:, at[:, None], at]
    losses, counts = task.tally(out, truth)[:, -2:].sum(0)
    return losses / counts.clamp(min=1)


def _resized(out: Tensor, truth: Tensor) -> Tensor:  # (B, C, h, w) -> (B, C, P, P)
    return F.interpolate(out, truth.shape[-2:], mode="bilinear", align_corners=False)


class Head(nn.Module):
    """Standardised tokens (B, N, D) -> (B, channels), or for a dense task a map (B, channels, h, w)."""

    def __init__(self, task: Task, kind: str, tokens: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.dense, self.side = not isinstance(task, Classify), round(tokens**0.5)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", 1 / std)
        self.read: nn.Module
        if kind == "conv":
            first, second = nn.Conv2d(len(mean), _WIDTH, 1), nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
            last, twice = nn.Conv2d(_WIDTH, task.channels, 1), nn.Upsample(scale_factor=2, mode="bilinear")
            self.read = nn.Sequential(first, nn.GELU(), twice, second, nn.GELU(), last)
        elif self.dense:
            self.read = nn.Conv2d(len(mean), task.channels, 1)
        else:
            self.read = nn.Linear(len(mean), task.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * self.scale
        return self.read(x.transpose(1, 2).unflatten(2, (self.side, self.side)) if self.dense else x.mean(1))


@dataclass(frozen=True)
class Data:
    """Features (n, N, D) of which a head uses `columns`, truth (n, ...), and roles FIT, VALIDATE or TEST (n,).

    With one truth value per image, the head uses the mean token.
    """

    features: Rows
    columns: np.ndarray
    truth: Rows | np.ndarray
    roles: np.ndarray

    def batches(
        self, role: int, size: int, rng: np.random.Generator | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of a role, in contiguous runs with about `size` of them each; `rng` shuffles the runs."""
        keep, total = self.roles == role, len(self.roles)
        run = max(size, min(total, round(size * total / max(1, int(keep.sum())))))
        first = int(rng.integers(run)) if rng is not None else 0
        starts = [0, *range(first, total, run)] if first else [*range(0, total, run)]
        ends = [*starts[1:], total]
        for i in rng.permutation(len(starts)) if rng is not None else range(len(starts)):
            rows = slice(starts[i], ends[i])
            if (chosen := keep[rows]).any():
                x, y = self.features[rows][chosen][..., self.columns], self.truth[rows][chosen]
                if y.ndim == 1:
                    x = x.mean(1, dtype=np.float32, keepdims=True)
                yield torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.int32))

    def spread(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of each channel over the tokens of the training images."""
        tokens = (x.double().flatten(0, 1) for x, _ in self.batches(FIT, size))
        sums = [(len(x), x.sum(0), (x**2).sum(0)) for x in tokens]
        n, total, squares = (sum(column) for column in zip(*sums, strict=True))
        mean = total / n
        std = (squares / n - mean**2).clamp(min=0).sqrt()
        std[std < 1e-6 * (mean.abs() + 1e-30)] = torch.inf  # a constant channel carries no information
        return mean.float(), std.float()


def fit_head(task: Task, kind: str, data: Data, settings: ScalingSettings, seed: int) -> tuple[Head, Curve]:
    """Train a head on the FIT images; return its state with the lowest loss on the VALIDATE images, and its curve."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 31])
    size = settings.batch if isinstance(task, Classify) else settings.dense_batch
    head = Head(task, kind, data.features.shape[1], *data.spread(size))
    lr, steps = settings.lr if kind == "linear" else settings.lr_deep, settings.steps
    batches = chain.from_iterable(data.batches(FIT, size, rng) for _ in count())
    role = VALIDATE if (data.roles == VALIDATE).any() else FIT
    lowest, best = np.inf, {}
    curve: Curve = []
    losses: list[float] = []
    trained = optimise(head, batches, partial(loss_of, task), steps, lr, settings.weight_decay, steps // 20)
    for step, loss in enumerate(trained, 1):
        losses.append(loss)
        if step % max(1, steps // settings.checks) == 0 or step == steps:
            total, points = tally(task, head, data, role)[:, -2:].sum(0, dtype=np.float64)
            curve.append((step, sum(losses) / len(losses), total / points))
            losses = []
            if total / points < lowest:
                lowest, best = total / points, {k: v.clone() for k, v in head.state_dict().items()}
    if not best:
        raise UserError(f"probe.lr: the loss of a {kind} head is not finite; lower its rate {lr}")
    head.load_state_dict(best)
    return head, curve


@torch.no_grad()
def tally(task: Task, head: Head, data: Data, role: int = TEST) -> np.ndarray:
    """Return the head's tally of each image of a role.  # float32 (n of the role, width)"""
    return torch.cat([task.tally(head(x), y).float() for x, y in data.batches(role, _BATCH)]).numpy()


def stored(folder: Path, key: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays of `key` from `folder`, or compute and store them, so that a killed run resumes."""
    path = folder / f"{short_hash(key)}.npz"
    if not path.is_file():
        arrays = make()
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path, allow_pickle=False) as content:
        return dict(content)

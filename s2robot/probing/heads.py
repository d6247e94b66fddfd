"""Heads on frozen features, trained piece by piece, and what they get right: classes, segments, depth.

    task = Classify(classes=24)
    fitted = fit(task, "linear", rows, columns, truth, roles, HeadSettings(), seed=0)
    tallies = tally(task, fitted.head, rows, columns, truth, roles == TEST)     # (n, task.width), rows in order
    task.scores(weights @ tallies)                                  # weights (B, n) -> {"accuracy": (B,), ...}

A head sees features that are standardised by the training pictures. It is trained for a number of steps with AdamW;
of the states at `checks` even moments the one with the least loss on the validation pictures is kept, so that a
wider feature, which a head fits faster, is not punished for the steps that it does not need.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F

from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_positive, check_ranges
from s2robot.probing.rows import Rows
from s2robot.training.schedule import cosine_with_warm_up

FIT, VALIDATE, TEST = 0, 1, 2  # roles of a picture
_ONE = 1e-3  # m, so that the logarithm of a depth of 0 is finite
_WIDTH = 32  # channels of the convolutional decoder
_SEEN = 32  # points along a side at which a dense head is trained: a quarter of a token's side and less


@dataclass(frozen=True)
class HeadSettings:
    """configs/scaling/default.yaml says what each is."""

    steps: int = 600
    batch: int = 64
    dense_batch: int = 16
    lr: float = 0.03
    lr_deep: float = 0.003
    weight_decay: float = 0.05
    checks: int = 10

    def __post_init__(self) -> None:
        many = (1, INFINITY)
        check_ranges(
            self,
            "scaling.head",
            steps=many,
            batch=many,
            dense_batch=many,
            weight_decay=(0, INFINITY),
            checks=many,
        )
        check_positive(self, "scaling.head", "lr", "lr_deep")


# --- tasks: targets, loss, and figures from sums over pictures -------------------------------------------------


@dataclass(frozen=True)
class Classify:
    """One of so many classes; truth: their numbers (n,)."""

    classes: int
    heads = ("linear", "attention")
    metrics = ("accuracy", "loss")
    width = 3  # right, loss, the true class's probability

    @property
    def channels(self) -> int:
        return self.classes

    def loss(self, out: Tensor, truth: Tensor) -> Tensor:
        """(B, C), (B,) -> ()"""
        return F.cross_entropy(out, truth.long())

    def tally(self, out: Tensor, truth: Tensor) -> Tensor:
        """(B, C), (B,) -> (B, 3)"""
        logs = F.log_softmax(out, 1).gather(1, truth.long()[:, None])[:, 0]
        return torch.stack([(out.argmax(1) == truth).float(), -logs, logs.exp()], 1)

    def scores(self, sums: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Weighted sums of tallies (B, 3), of so many pictures (B,) -> figures, (B,) each."""
        return {"accuracy": sums[:, 0] / weights, "loss": sums[:, 1] / weights}


@dataclass(frozen=True)
class Segment:
    """Labels of points; truth (n, P, P), `ignore` where there is none."""

    labels: int
    ignore: int | None
    heads = ("linear", "conv")
    metrics = ("miou", "loss")

    @property
    def channels(self) -> int:
        return self.labels

    @property
    def width(self) -> int:
        return 2 * self.labels + 2  # of each label both and either, the loss, labelled points

    def loss(self, out: Tensor, truth: Tensor) -> Tensor:
        """(B, C, h, w), (B, P, P) -> ()"""
        seen = _thinned(truth, _SEEN)
        known = self._known(seen)
        losses = F.cross_entropy(_grown(out, seen.shape[-1]), seen.long() * known, reduction="none")
        return (losses * known).sum() / known.sum().clamp(min=1)

    def tally(self, out: Tensor, truth: Tensor) -> Tensor:
        """(B, C, h, w), (B, P, P) -> (B, width)"""
        grown = _grown(out, truth.shape[-1])
        known = self._known(truth)
        read = grown.argmax(1)  # (B, P, P)
        losses = F.cross_entropy(grown, truth.long() * known, reduction="none") * known
        both = self._count(truth, known & (read == truth))
        either = self._count(truth, known) + self._count(read, known) - both
        return torch.cat([both, either, losses.sum((1, 2))[:, None], known.sum((1, 2))[:, None]], 1)

    def _known(self, truth: Tensor) -> Tensor:
        return truth != self.ignore if self.ignore is not None else torch.ones_like(truth, dtype=torch.bool)

    def _count(self, labels: Tensor, where: Tensor) -> Tensor:
        """How many points have each label.  # (B, P, P) -> float (B, C)"""
        counts = torch.zeros(len(labels), self.labels)
        index = torch.where(where, labels, 0).flatten(1).long()
        return counts.scatter_add_(1, index, where.flatten(1).float())

    def scores(self, sums: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """IoU of each label over all points of all pictures, and its mean over the labels that are there or read."""
        both, either = sums[:, : self.labels], sums[:, self.labels : -2]
        iou = np.where(either > 0, both / np.where(either > 0, either, 1), np.nan)
        return {"miou": np.nanmean(iou, axis=1), "loss": sums[:, -2] / sums[:, -1]}


@dataclass(frozen=True)
class Depth:
    """Depth of points; truth (n, P, P) in units of `metre` m, 0 where it is unknown. Heads read its logarithm."""

    metre: float
    heads = ("linear", "conv")
    metrics = ("rmse_m", "delta_1.25", "loss")
    width = 4  # squared errors, points within 1.25, squared errors of the logarithm, known points
    channels = 1

    def loss(self, out: Tensor, truth: Tensor) -> Tensor:
        """(B, 1, h, w), (B, P, P) -> ()"""
        seen = _thinned(truth, _SEEN)
        known = seen > 0
        errors = (_grown(out, seen.shape[-1])[:, 0] - self._log(seen)) ** 2
        return (errors * known).sum() / known.sum().clamp(min=1)

    def tally(self, out: Tensor, truth: Tensor) -> Tensor:
        """(B, 1, h, w), (B, P, P) -> (B, 4)"""
        known, logs = truth > 0, self._log(truth)
        found = _grown(out, truth.shape[-1])[:, 0]
        within = (found - logs).abs() < np.log(1.25)
        errors = (found.exp() - logs.exp()) ** 2
        counted = (errors, within, (found - logs) ** 2, torch.ones_like(found))
        return torch.stack([(x * known).sum((1, 2)) for x in counted], 1)

    def _log(self, truth: Tensor) -> Tensor:
        return torch.log(truth.float() * self.metre + _ONE * (truth == 0))

    def scores(self, sums: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Over all known points of all pictures."""
        points = sums[:, 3]
        return {
            "rmse_m": np.sqrt(sums[:, 0] / points),
            "delta_1.25": sums[:, 1] / points,
            "loss": sums[:, 2] / points,
        }


Task = Classify | Segment | Depth


def _grown(out: Tensor, side: int) -> Tensor:
    """(B, C, h, w) -> (B, C, side, side)"""
    return F.interpolate(out, (side, side), mode="bilinear", align_corners=False)


def _thinned(truth: Tensor, side: int) -> Tensor:
    """Labels at the nearest of side x side points, or all where they are fewer.  # (B, P, P)"""
    if truth.shape[-1] <= side:
        return truth
    at = ((torch.arange(side) + 0.5) * truth.shape[-1] / side).long()
    return truth[:, at[:, None], at]


# --- heads -----------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """Standardised tokens (B, N, D) -> (B, channels), or of a dense task a map (B, channels, h, w)."""

    def __init__(self, task: Task, kind: str, tokens: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if kind not in task.heads:
            raise UserError(f"scaling.heads: found '{kind}', expected one of {', '.join(task.heads)}")
        self.dense, self.side = not isinstance(task, Classify), round(tokens**0.5)
        if self.dense and self.side**2 != tokens:
            raise UserError(
                f"scaling: found {tokens} tokens a picture, expected a square map for a dense task"
            )
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", 1 / std)
        dim, channels = len(mean), task.channels
        self.pool = AttentionPoolLatent(dim, num_heads=_heads(dim)) if kind == "attention" else None
        self.read: nn.Module
        if kind == "conv":
            self.read = nn.Sequential(
                nn.Conv2d(dim, _WIDTH, 1),
                nn.GELU(),
                nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(_WIDTH, channels, 1),
            )
        else:
            self.read = nn.Conv2d(dim, channels, 1) if self.dense else nn.Linear(dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * self.scale
        if self.dense:
            return self.read(x.transpose(1, 2).unflatten(2, (self.side, self.side)))
        return self.read(self.pool(x) if self.pool is not None else x.mean(1))


def _heads(dim: int) -> int:
    """As many attention heads as go into `dim`, eight at most."""
    return next(count for count in range(8, 0, -1) if dim % count == 0)


@dataclass(frozen=True)
class Fitted:
    """A head in the state that did best, its step, and losses by step: (step, training, validation)."""

    head: Head
    step: int
    curve: list[tuple[int, float, float]]


def fit(
    task: Task,
    kind: str,
    rows: Rows,
    columns: np.ndarray,
    truth: Rows | np.ndarray,
    roles: np.ndarray,
    settings: HeadSettings,
    seed: int,
) -> Fitted:
    """Train a head on the pictures whose role is FIT; the state with the least loss on those of VALIDATE.

    Args:
        rows: features (n, N, D), read piece by piece.
        columns: which of the D numbers the head sees.
        truth: of the task, (n, ...).
        roles: (n,), FIT, VALIDATE or TEST.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 31])
    size = settings.batch if isinstance(task, Classify) else settings.dense_batch
    mean, std = _spread(rows, columns, roles == FIT, size)
    head = Head(task, kind, rows.shape[1], mean, std)
    lr = settings.lr if kind == "linear" else settings.lr_deep
    optimiser = torch.optim.AdamW(head.parameters(), lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: cosine_with_warm_up(step, step / settings.steps, settings.steps // 20)
    )
    best: tuple[float, int, dict[str, Any]] = (np.inf, 0, {})
    curve, training, since = [], 0.0, 0
    every = max(1, settings.steps // settings.checks)
    step = 0
    while step < settings.steps:
        for x, y in _batches(rows, columns, truth, roles == FIT, size, rng):
            loss = task.loss(head(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            training, since = training + loss.item(), since + 1
            if step % every == 0 or step == settings.steps:
                held = training / since  # where no picture is there to validate on
                if (roles == VALIDATE).any():
                    held = _mean_loss(task, head, rows, columns, truth, roles == VALIDATE, size)
                curve.append((step, training / since, held))
                training, since = 0.0, 0
                if held < best[0]:
                    best = held, step, {k: v.clone() for k, v in head.state_dict().items()}
            if step == settings.steps:
                break
    if not best[2]:
        raise UserError(
            f"the loss of a {kind} head is not finite after {step} steps; lower its rate {lr} (scaling.head)"
        )
    head.load_state_dict(best[2])
    return Fitted(head.eval(), best[1], curve)


def _spread(rows: Rows, columns: np.ndarray, keep: np.ndarray, size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each number over tokens and pictures."""
    count, total, squares = 0, np.zeros(len(columns)), np.zeros(len(columns))
    for start, block in rows.blocks(size):
        x = block[keep[start : start + len(block)]][..., columns].astype(np.float64).reshape(-1, len(columns))
        count, total, squares = count + len(x), total + x.sum(0), squares + (x**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std[std < 1e-6 * (np.abs(mean) + 1e-30)] = np.inf  # says nothing
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _batches(
    rows: Rows,
    columns: np.ndarray,
    truth: Rows | np.ndarray,
    keep: np.ndarray,
    size: int,
    rng: np.random.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures to keep, in runs of neighbours that hold about `size` of them; shuffled runs with a `rng`."""
    run = max(size, min(len(rows), round(size * len(rows) / max(1, int(keep.sum())))))
    first = int(rng.integers(run)) if rng is not None else 0
    starts: Sequence[int] = [0, *range(first, len(rows), run)] if first else range(0, len(rows), run)
    ends = [*starts[1:], len(rows)]
    order = rng.permutation(len(starts)) if rng is not None else range(len(starts))
    for i in order:
        chosen = keep[starts[i] : ends[i]]
        if not chosen.any():
            continue
        x = rows.read(starts[i], ends[i])[chosen]
        y = truth.read(starts[i], ends[i]) if isinstance(truth, Rows) else truth[starts[i] : ends[i]]
        yield (
            torch.from_numpy(x[..., columns].astype(np.float32)),
            torch.from_numpy(y[chosen].astype(np.int32)),
        )


@torch.no_grad()
def _mean_loss(
    task: Task,
    head: Head,
    rows: Rows,
    columns: np.ndarray,
    truth: Rows | np.ndarray,
    keep: np.ndarray,
    size: int,
) -> float:
    head.eval()
    losses = [(task.loss(head(x), y).item(), len(x)) for x, y in _batches(rows, columns, truth, keep, size)]
    head.train()
    return sum(loss * count for loss, count in losses) / max(1, sum(count for _, count in losses))


@torch.no_grad()
def tally(
    task: Task,
    head: Head,
    rows: Rows,
    columns: np.ndarray,
    truth: Rows | np.ndarray,
    keep: np.ndarray,
    size: int = 32,
) -> np.ndarray:
    """What the head gets right on each picture to keep, in their order.  # float32 (sum of keep, task.width)"""
    found = [task.tally(head(x), y).float() for x, y in _batches(rows, columns, truth, keep, size)]
    return torch.cat(found).numpy()

"""Capacity and pre-training with S2, on classifiers trained end to end: Tables 3 and 4 of the S2 paper.

    s2robot memorize                                  # every picture a class of its own: loss and accuracy over N
    s2robot memorize memorize.task=classes            # class folders: accuracy on held-out pictures

Three vision transformers see the same number of pictures: a base one, the base one with S2 in its training, and a large one.
`instances` asks each for the number of the picture, so what it reports is what was learnt by heart. `classes` asks for the
class and reports held-out pictures too; a fourth arm puts S2 on the trained, frozen base model and trains a head alone.
Intervals are 95 % t intervals over pictures and seeds, paired in differences.
"""

import csv
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.common.errors import UserError
from s2robot.common.files import replacing, write_json, write_text
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.common.provenance import command, versions
from s2robot.common.ranges import INFINITY, check_positive, check_ranges
from s2robot.common.settings import plain, read
from s2robot.pretraining.objects import ObjectsSettings
from s2robot.probing.heads import Classify
from s2robot.probing.pictures import Pictures
from s2robot.probing.scaling import gather
from s2robot.probing.scaling_figures import samples, seeds_interval
from s2robot.probing.scaling_settings import Result, ScalingSettings
from s2robot.reporting.style import BLUE, GREEN, GRID, ORANGE, PURPLE, save_figure, styled
from s2robot.s2.module import RESIZES, S2
from s2robot.training.schedule import cosine_with_warm_up

BASE, S2_TRAINED, LARGE, S2_AFTER = "base", "base-s2", "large", "base-s2-after"
ARMS = {"instances": (BASE, S2_TRAINED, LARGE), "classes": (BASE, S2_AFTER, S2_TRAINED, LARGE)}
COLOURS = {BASE: BLUE, S2_TRAINED: GREEN, LARGE: ORANGE, S2_AFTER: PURPLE}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VERSION = 1  # of the training


@dataclass(frozen=True)
class MemorizeSettings:
    """configs/memorize/default.yaml says what each is."""

    task: str = "instances"
    counts: tuple[int, ...] = (128, 256, 512)
    base: ViTSpec = field(default_factory=lambda: ViTSpec(64, 8, 96, 4, 3))
    large: ViTSpec = field(default_factory=lambda: ViTSpec(64, 8, 128, 8, 4))
    scales: tuple[int, ...] = (1, 2)
    resize: str = "native"
    seen: int = 40
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    seeds: tuple[int, ...] = (0, 1, 2)
    resamples: int = 1000
    data: str | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        many = (1, INFINITY)
        check_ranges(
            self, "memorize", seen=many, batch=many, weight_decay=(0, INFINITY), resamples=(100, INFINITY)
        )
        check_positive(self, "memorize", "lr")
        for name, known in (("task", ARMS), ("resize", RESIZES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"memorize.{name}: found '{getattr(self, name)}', expected one of {', '.join(known)}"
                )
        if not self.seeds or not self.counts or min(self.counts) < 2:
            raise UserError(
                f"memorize.counts: found {list(self.counts)}, expected one or more of 2 or more, and seeds"
            )


class Classifier(nn.Module):
    """A vision transformer at some scales, and a linear layer on the mean of its tokens.

    uint8 (B, H, W, 3) -> (B, classes). With `vit` given, that one is frozen and the layer alone learns.
    """

    def __init__(
        self, spec: ViTSpec, scales: tuple[int, ...], resize: str, classes: int, vit: nn.Module | None = None
    ):
        super().__init__()
        facts: Any = {
            "tile": spec.img_size,
            "patch": spec.patch_size,
            "num_prefix_tokens": 1,
            "mean": _MEAN,
            "std": _STD,
        }
        self.vit = vit or MVPViT(spec)
        self.s2 = S2(self.vit, scales, output="pooled", resize=resize, frozen=vit is not None, **facts)
        self.norm = nn.LayerNorm(self.s2.dim)
        self.head = nn.Linear(self.s2.dim, classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.norm(self.s2(frames)))


def train(
    model: Classifier, frames: np.ndarray, labels: np.ndarray, settings: MemorizeSettings, seed: int
) -> None:
    """Cross-entropy with AdamW; every picture is seen `seen` times, in an order that the seed draws.

    frames uint8 (N, S, S, 3), labels (N,). Where classes are asked for, pictures are mirrored and shifted at random.
    """
    rng = np.random.default_rng([seed, 41])
    steps = max(1, settings.seen * len(frames) // settings.batch)
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learnt, settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: cosine_with_warm_up(step, step / steps, steps // 10)
    )
    model.train()
    for chosen in _orders(len(frames), settings.batch, steps, rng):
        shown = frames[chosen]
        if settings.task == "classes":
            shown = _varied(shown, rng)
        loss = F.cross_entropy(model(torch.from_numpy(shown)), torch.from_numpy(labels[chosen]).long())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


def _orders(count: int, size: int, steps: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Places of each batch: pictures in a new order whenever all were seen."""
    order = rng.permutation(count)
    for _ in range(steps):
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        yield order[:size]
        order = order[size:]


def _varied(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each mirrored or not, and shifted by up to an eighth, the edge repeated."""
    side = frames.shape[1]
    moved = np.empty_like(frames)
    for i, frame in enumerate(frames):
        down, right = (
            np.clip(np.arange(side) + rng.integers(-side // 8, side // 8 + 1), 0, side - 1) for _ in "yx"
        )
        moved[i] = frame[down[:, None], right[:: rng.choice([-1, 1])]]
    return moved


@torch.no_grad()
def tallies_of(model: Classifier, frames: np.ndarray, labels: np.ndarray, size: int = 64) -> np.ndarray:
    """Right, loss and probability of each picture.  # (N, 3)"""
    task = Classify(model.head.out_features)
    found = [
        task.tally(model(torch.from_numpy(frames[i : i + size])), torch.from_numpy(labels[i : i + size]))
        for i in range(0, len(frames), size)
    ]
    return torch.cat(found).numpy()


def memorize(settings: MemorizeSettings, objects: ObjectsSettings, out: Path) -> dict[str, Any]:
    """Train every arm for every count and seed; returns what memorize.json holds, and writes it, .csv and .png.

    Each trained model leaves its tallies in `out`/fits, so a killed run goes on. Raises UserError for fewer pictures than
    a count, and what `open_pictures` refuses.
    """
    start = time.monotonic()
    root = Path(settings.cache) if settings.cache else cache_dir()
    reading = ScalingSettings(tasks=("classify",), data=settings.data, families=())
    pictures, _ = gather(reading, objects, root)
    side = max(settings.base.img_size, settings.large.img_size) * max(settings.scales)
    learnt, held_out = (np.flatnonzero(pictures.parts != 1), np.flatnonzero(pictures.parts == 1))
    if settings.task == "classes" and not len(held_out):
        raise UserError(f"{pictures.root}: found no held-out pictures, expected train and test folders")
    if max(settings.counts) > len(learnt):
        raise UserError(
            f"memorize.counts: found {max(settings.counts)}, expected at most the {len(learnt)} pictures there are"
        )
    frames, test = (_frames(pictures, places, side) for places in (learnt[: max(settings.counts)], held_out))
    if settings.task == "instances":
        test = test[:0]
    labels = pictures.labels[learnt], pictures.labels[held_out][: len(test)]
    rows, differences = _compare((frames, labels[0]), (test, labels[1]), settings, out / "fits", pictures)
    report = {
        "settings": json.loads(json.dumps({**asdict(settings), "cache": None})),
        "objects": None if settings.data else objects.recipe,
        "held_out": len(test),
        "arms": rows,
        "differences": differences,
        "seconds": round(time.monotonic() - start, 1),
        "versions": versions(),
        "command": command(),
    }
    write_json(out / "memorize.json", report)
    write_text(out / "memorize.csv", _csv(report))
    save_figure(memorize_plot(report), out / "memorize.png")
    return report


def _compare(
    learnt: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    settings: MemorizeSettings,
    folder: Path,
    pictures: Pictures,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each count and arm, and a difference for every two arms of a count and part; data are frames, labels."""
    rows, differences = [], []
    drawn: dict[tuple[int, str, str], dict[str, np.ndarray]] = {}
    jobs = [(n, arm) for n in settings.counts for arm in ARMS[settings.task]]
    with bar("training classifiers") as update:
        for done, (count, arm) in enumerate(jobs):
            classes = count if settings.task == "instances" else len(pictures.classes)
            labels = np.arange(count) if settings.task == "instances" else learnt[1][:count]
            data = (learnt[0][:count], labels), held_out
            found = [
                _trained(arm, classes, *data, settings, seed, folder, pictures.fingerprint)
                for seed in settings.seeds
            ]
            row: dict[str, Any] = {"arm": arm, "pictures": count, **_cost(arm, settings)}
            for part in found[0]:
                results = [Result(np.arange(len(f[part])), f[part], 0.0, 0) for f in found]
                figures, by_seed = samples(results, Classify(classes), _resampled(settings))
                row[part] = {m: seeds_interval(v) for m, v in figures.items()} | {"by_seed": by_seed}
                for other in ARMS[settings.task]:
                    if less := drawn.get((count, other, part)):
                        apart = {m: seeds_interval(figures[m] - less[m]) for m in less}
                        differences.append(
                            {"arm": arm, "minus": other, "pictures": count, "part": part, **apart}
                        )
                drawn[count, arm, part] = figures
            rows.append(row)
            update(done + 1, len(jobs), arm)
    return rows, differences


def _frames(pictures: Pictures, places: np.ndarray, side: int) -> np.ndarray:
    found = np.empty((len(places), side, side, 3), np.uint8)
    for row, i in enumerate(places):
        found[row] = pictures.frame(int(i), side)
    return found


def _resampled(settings: MemorizeSettings) -> ScalingSettings:
    return ScalingSettings(resamples=settings.resamples, families=())


def _model(arm: str, classes: int, settings: MemorizeSettings) -> Classifier:
    spec = settings.large if arm == LARGE else settings.base
    scales = settings.scales if arm == S2_TRAINED else (1,)
    return Classifier(spec, scales, settings.resize, classes)


def _cost(arm: str, settings: MemorizeSettings) -> dict[str, float]:
    """Parameters without the head, and multiply-adds of a picture in 1e9."""
    model = _model(S2_TRAINED if arm == S2_AFTER else arm, 2, settings)
    side = model.vit.spec.img_size * max(settings.scales)  # type: ignore[union-attr]
    # fused kernels are not counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    parameters = sum(p.numel() for p in model.vit.parameters())
    return {
        "parameters": parameters,
        "gflops": round(counter.get_total_flops() / 2e9, 6),
    }


def _trained(
    arm: str,
    classes: int,
    learnt: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    settings: MemorizeSettings,
    seed: int,
    folder: Path,
    fingerprint: str,
) -> Mapping[str, np.ndarray]:
    """Tallies on the pictures that were learnt and on those held out: read from `folder`, or trained and kept there."""
    decides = {
        k: v
        for k, v in asdict(settings).items()
        if k not in ("counts", "seeds", "resamples", "cache", "data")
    }
    key = json.dumps([VERSION, fingerprint, arm, len(learnt[0]), seed, decides])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        torch.manual_seed(seed)
        model = _model(BASE if arm == S2_AFTER else arm, classes, settings)
        train(model, *learnt, settings, seed)
        if arm == S2_AFTER:
            model = Classifier(settings.base, settings.scales, settings.resize, classes, model.vit)
            train(model, *learnt, settings, seed)
        with replacing(path) as part, part.open("wb") as file:
            parts = {"train": learnt, "test": held_out} if len(held_out[0]) else {"train": learnt}
            np.savez(file, **{name: tallies_of(model, *data) for name, data in parts.items()})
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)


def _csv(report: Mapping[str, Any]) -> str:
    """One line a number: of an arm, or where `minus` names another, a difference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "minus", "pictures", "part", "metric", "value", "low", "high"])
    for row in report["arms"]:
        for part in ("train", "test"):
            for metric in Classify.metrics if part in row else ():
                writer.writerow([row["arm"], "", row["pictures"], part, metric, *row[part][metric].values()])
    for row in report["differences"]:
        for metric in Classify.metrics:
            place = [row[k] for k in ("arm", "minus", "pictures", "part")]
            writer.writerow([*place, metric, *row[metric].values()])
    return text.getvalue()


@styled
def memorize_plot(report: Mapping[str, Any]) -> Figure:
    """Loss and accuracy over the number of pictures, learnt ones and, where there are, held-out ones."""
    parts = ("train", "test") if report["held_out"] else ("train",)
    panels = [(part, metric) for part in parts for metric in Classify.metrics]
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, (part, metric) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for arm in dict.fromkeys(row["arm"] for row in report["arms"]):
            rows = [row for row in report["arms"] if row["arm"] == arm]
            x = [row["pictures"] for row in rows]
            low, value, high = ([row[part][metric][k] for row in rows] for k in ("low", "value", "high"))
            axes.fill_between(x, low, high, color=COLOURS[arm], alpha=0.12, lw=0)
            axes.plot(x, value, "o-", color=COLOURS[arm], ms=4, lw=1.5, label=arm)
        axes.set(
            xlabel="pictures", xscale="log", title=f"{metric}, {'learnt' if part == 'train' else 'held out'}"
        )
        axes.set_xticks(x, [str(n) for n in x])
        axes.set_xticks([], minor=True)  # their labels would lie over these
        axes.grid(**GRID)
    figure.axes[0].legend()
    return figure


def summary_text(report: Mapping[str, Any]) -> str:
    """A line an arm and count."""
    lines = []
    for row in report["arms"]:
        figures = [
            f"{'learnt' if part == 'train' else 'held-out'} {m} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
            for part in ("train", "test")
            if part in row
            for m, v in row[part].items()
            if m != "by_seed"
        ]
        cost = f"{row['parameters'] / 1e6:.2f} M, {row['gflops']:.3f} GFLOPs"
        lines.append(f"{row['pictures']:>6} pictures  {row['arm']:<15}{cost:<24}{'  '.join(figures)}")
    return "\n".join(lines)


def run_memorize(cfg: DictConfig) -> None:
    """`s2robot memorize`: train, judge, print."""
    settings = read(MemorizeSettings, plain(cfg.memorize), "memorize")
    out = Path(cfg.run_dir)
    print(summary_text(memorize(settings, read(ObjectsSettings, cfg.objects, "objects"), out)))
    print(f"memorize: {out / 'memorize.json'}, memorize.csv, memorize.png")

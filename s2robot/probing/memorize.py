"""Train classifiers end to end, to compare capacity and S2 in pre-training: Tables 3 and 4 of the S2 paper.

    s2robot probe probe=memorize                              # every image is its own class: loss against their number
    s2robot probe probe=memorize probe.task=classes           # class folders: accuracy on held-out images

Three vision transformers are trained on the same number of images: a base model, the base model with S2 in training,
and a large model. With `classes` a fourth arm trains a new head on S2 of the trained, frozen base model. Intervals are
95 % t intervals over images and seeds, paired in differences.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, count, islice, product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from s2robot.backbones.libraries import IMAGENET
from s2robot.backbones.vit import MVPViT, ViTSpec
from s2robot.core.errors import UserError
from s2robot.core.progress import bar
from s2robot.core.settings import Settings, from_yaml
from s2robot.pretraining.render import ObjectsSettings
from s2robot.probing.heads import Classify, loss_of, stored
from s2robot.probing.images import gather
from s2robot.probing.report import Outcome, Point, compare, earlier, resampled
from s2robot.s2.module import S2
from s2robot.training.loop import optimise

BASE, S2_TRAINED, LARGE, S2_AFTER = "base", "base-s2", "large", "base-s2-after"
ARMS = {"instances": (BASE, S2_TRAINED, LARGE), "classes": (BASE, S2_AFTER, S2_TRAINED, LARGE)}
_BATCH = 64  # images evaluated at once
_VERSION = 2  # of the training and its tallies
Part = tuple[np.ndarray, np.ndarray]  # frames uint8 (n, S, S, 3), labels (n,)


class MemorizeSettings(Settings, at="probe", file="probe/memorize"):
    task: Literal["instances", "classes"] = from_yaml()
    counts: tuple[Annotated[int, Field(ge=2)], ...] = from_yaml(min_length=1)
    base: ViTSpec = from_yaml()
    large: ViTSpec = from_yaml()
    scales: tuple[int, ...] = from_yaml(min_length=1)
    resize: Literal["native", "upsample"] = from_yaml()
    seen: int = from_yaml(ge=1)
    batch: int = from_yaml(ge=1)
    lr: float = from_yaml(gt=0)
    weight_decay: float = from_yaml(ge=0)
    seeds: tuple[int, ...] = from_yaml(min_length=1)
    resamples: int = from_yaml(ge=100)
    data: str | None = from_yaml()


class Classifier(nn.Module):
    """A vision transformer, or the frozen `vit`, at `scales` and a linear layer: uint8 (B, H, W, 3) -> (B, classes)."""

    def __init__(
        self, spec: ViTSpec, scales: tuple[int, ...], resize: str, classes: int, vit: nn.Module | None = None
    ) -> None:
        super().__init__()
        facts: Any = {"tile": spec.img_size, "patch": spec.patch_size, "num_prefix_tokens": 1}
        facts |= dict(zip(("mean", "std"), IMAGENET, strict=True))
        self.vit = vit or MVPViT(spec)
        self.s2 = S2(self.vit, scales, output="pooled", resize=resize, frozen=vit is not None, **facts)
        self.norm = nn.LayerNorm(self.s2.dim)
        self.head = nn.Linear(self.s2.dim, classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.norm(self.s2(frames)))


def train(model: Classifier, part: Part, settings: MemorizeSettings, seed: int) -> None:
    """Train on every image `seen` times, in seeded random order; for classes, mirrored and shifted at random."""
    frames, labels = part
    rng = np.random.default_rng([seed, 41])
    steps = max(1, settings.seen * len(frames) // settings.batch)
    order = chain.from_iterable(rng.permutation(len(frames)) for _ in count())

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            chosen = np.fromiter(islice(order, settings.batch), int)
            shown = _augmented(frames[chosen], rng) if settings.task == "classes" else frames[chosen]
            yield torch.from_numpy(shown), torch.from_numpy(labels[chosen])

    loss, rate = partial(loss_of, Classify(model.head.out_features)), (settings.lr, settings.weight_decay)
    model.train()
    deque(optimise(model, batches(), loss, steps, *rate, steps // 10, clip=1.0), 0)
    model.eval()


def _augmented(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror frames at random and shift each by up to an eighth, repeating the edge."""
    side = frames.shape[1]
    moved = np.empty_like(frames)
    for i, frame in enumerate(frames):
        shifts = rng.integers(-side // 8, side // 8 + 1, 2)
        down, right = np.clip(np.arange(side) + shifts[:, None], 0, side - 1)
        moved[i] = frame[down[:, None], right[:: rng.choice([-1, 1])]]
    return moved


@torch.no_grad()
def tallies_of(model: Classifier, part: Part) -> np.ndarray:
    """Return whether each image is correct, its loss and 1.  # (N, 3)"""
    task, batches = Classify(model.head.out_features), (torch.from_numpy(x).split(_BATCH) for x in part)
    return torch.cat([task.tally(model(x), y) for x, y in zip(*batches, strict=True)]).numpy()


def memorize(settings: MemorizeSettings, objects: ObjectsSettings, out: Path) -> Outcome:
    """Train every arm for every count and seed; the tallies are stored in `out`/fits."""
    images, by_class, limit = gather(settings.data, objects), settings.task == "classes", max(settings.counts)
    learned, test = (np.flatnonzero(keep) for keep in (images.parts != 1, images.parts == 1))
    if limit > len(learned) or (by_class and not len(test)):
        expected = f"{limit} images to learn (probe.counts), and for task=classes a folder of test images"
        raise UserError(f"{images.root}: expected {expected}, got {len(learned)} and {len(test)}")
    side = max(settings.base.img_size, settings.large.img_size) * max(settings.scales)
    indices = {"train": learned[:limit]} | ({"test": test} if by_class else {})
    frames = {part: np.stack([images.frame(i, side) for i in p]) for part, p in indices.items()}
    labels = {part: images.labels[p] if by_class else np.arange(len(p)) for part, p in indices.items()}
    samples = dict[tuple, dict[str, np.ndarray]]()
    jobs = [(n, arm) for n in settings.counts for arm in ARMS[settings.task]]
    costs = {arm: _cost(arm, settings) for arm in ARMS[settings.task]}
    with bar("training classifiers") as update:
        for done, (n, arm) in enumerate(jobs, 1):
            classes = len(images.classes) if by_class else n
            parts = {part: (frames[part], labels[part]) for part in indices}
            parts["train"] = frames["train"][:n], labels["train"][:n]
            fixed = (arm, classes, parts, settings, out / "fits", images.fingerprint)
            fits = [_trained(*fixed, seed) for seed in settings.seeds]
            for part in parts:
                tallies = [{"rows": np.arange(len(f[part])), "tallies": f[part]} for f in fits]
                samples[arm, n, part] = resampled(tallies, Classify(classes).scores, settings.resamples)
            update(done, len(jobs), arm)
    results, differences = compare(samples, ("arm", "images", "part"), earlier(samples))
    results = [row | costs[row["arm"]] for row in results]
    report = {
        "settings": settings.model_dump(mode="json"),
        "objects": None if settings.data else objects.recipe,
        "results": results,
        "differences": differences,
    }
    points: list[Point] = [
        (f"{metric}, {row['part']}", row["arm"], row["images"], row[metric])
        for metric, row in product(Classify.metrics, results)
    ]
    return Outcome("memorize", report, points, 2)


def _model(arm: str, classes: int, settings: MemorizeSettings) -> Classifier:
    spec = settings.large if arm == LARGE else settings.base
    return Classifier(spec, settings.scales if arm == S2_TRAINED else (1,), settings.resize, classes)


def _cost(arm: str, settings: MemorizeSettings) -> dict[str, float]:
    """Return the parameters without the head, and the multiply-adds of an image in 1e9."""
    model = _model(S2_TRAINED if arm == S2_AFTER else arm, 2, settings)
    side = model.vit.spec.img_size * max(settings.scales)  # type: ignore[union-attr]
    # the counter misses fused kernels
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    parameters = sum(p.numel() for p in model.vit.parameters())
    return {"parameters": parameters, "gflops": round(counter.get_total_flops() / 2e9, 6)}


def _trained(
    arm: str,
    classes: int,
    parts: Mapping[str, Part],
    settings: MemorizeSettings,
    folder: Path,
    images: str,
    seed: int,
) -> Mapping[str, np.ndarray]:
    """Return the tallies of each part, read from `folder` or computed and stored there."""
    identity = settings.model_dump(mode="json", exclude={"counts", "seeds", "resamples", "data"})

    def make() -> dict[str, np.ndarray]:
        torch.manual_seed(seed)
        model = _model(BASE if arm == S2_AFTER else arm, classes, settings)
        train(model, parts["train"], settings, seed)
        if arm == S2_AFTER:
            model = Classifier(settings.base, settings.scales, settings.resize, classes, model.vit)
            train(model, parts["train"], settings, seed)
        return {name: tallies_of(model, part) for name, part in parts.items()}

    return stored(folder, [_VERSION, images, arm, len(parts["train"][0]), seed, identity], make)

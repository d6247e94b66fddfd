"""Score against cost of frozen encoders, model size against S2: Figures 2 and 6 of the S2 paper.

    s2robot probe probe=scaling                                  # mvp-tiny and mvp-small on rendered images
    s2robot probe probe=scaling probe.data=photos probe.tasks=[classify]

An arm is a model with a set of scales. Its backbone is frozen; a head is trained on its features and judged on
held-out images. A model runs once at all scales and each arm reads the channels of its own, so all arms of a model
see the same image at scale 1. `resize` says what larger scales see: `upsample` enlarges what scale 1 sees, as in the
paper, and adds no information; `native` is the image as it is.

Intervals are 95 % t intervals over held-out images and seeds, paired between arms.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from s2robot.common.errors import UserError
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.core.settings import Settings, from_yaml, invalid
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.loading import device_of
from s2robot.pretraining.objects import ObjectsSettings, make_objects
from s2robot.probing import heads as fitting
from s2robot.probing.heads import FIT, TEST, VALIDATE, Classify, Data, Depth, HeadSettings, Segment, Task
from s2robot.probing.images import Images, Rows, count_labels, encode_images, open_images, truth_rows
from s2robot.probing.report import Outcome, Point, compare, resample
from s2robot.s2.tiling import square

Scales = Annotated[tuple[int | float, ...], Field(min_length=1)]
RESIZES = {"upsample": "upsampled", "native": "native"}  # here: encoder.resolution
_VERSION = 3  # of how a head is trained and judged
Truths = dict[str, tuple[Task, Rows | np.ndarray]]
Stored = Sequence[Mapping[str, np.ndarray]]  # a fitted head a seed: rows (n,), tallies (n, width), train_loss


class ScalingSettings(Settings, at="probe", file="probe/scaling"):
    """configs/probe/scaling.yaml describes each."""

    scales: tuple[Scales, ...] = from_yaml(min_length=1)
    resize: tuple[Literal["upsample", "native"], ...] = from_yaml(min_length=1)
    tasks: tuple[Literal["classify", "segment", "depth"], ...] = from_yaml(min_length=1)
    heads: tuple[Literal["linear", "conv"], ...] = from_yaml(min_length=1)
    head: HeadSettings = from_yaml()
    data: str | None = from_yaml()
    ignore: int | None = from_yaml()
    metre: float = from_yaml()
    points: int = from_yaml(ge=8)
    held_out: float = from_yaml(ge=0.01, le=0.99)
    validation: float = from_yaml(ge=0, le=0.9)
    seeds: tuple[int, ...] = from_yaml(min_length=1)
    resamples: int = from_yaml(ge=100)
    families: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = from_yaml()
    cache: str | None = from_yaml()
    device: str = from_yaml()

    @model_validator(mode="after")
    def _smallest_scale_in_each(self) -> Self:
        if any(self.all_scales[0] not in chosen for chosen in self.scales):
            raise invalid("scales", "the smallest in each set", self.scales)
        return self

    @property
    def all_scales(self) -> tuple[float, ...]:
        return tuple(sorted({scale for chosen in self.scales for scale in chosen}))


@dataclass(frozen=True)
class Arm:
    """A model with a set of scales, on a task with a head."""

    model: str
    scales: tuple[float, ...]
    task: str
    head: str
    resize: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return f"{self.model} {'+'.join(f'{s:g}' for s in self.scales)}", self.task, self.head, self.resize


def gather(data: str | None, tasks: Sequence[str], objects: ObjectsSettings, root: Path) -> Images:
    """Return the images of a folder, or rendered ones below `root`."""
    if data is not None:
        return open_images(Path(data), tasks)
    key = hashlib.sha256(json.dumps(objects.recipe, sort_keys=True).encode()).hexdigest()[:12]
    with bar("rendering objects") as update:
        return open_images(make_objects(objects, root / "objects" / key, update), tasks)


def roles_of(images: Images, settings: ScalingSettings, seed: int) -> np.ndarray:
    """Return FIT, VALIDATE or TEST for each image, drawn class by class; a test folder is TEST for any seed."""
    rng = np.random.default_rng([seed, 37])
    roles = np.full(len(images), TEST, np.int8)
    for label in np.unique(images.labels):
        places = rng.permutation(np.flatnonzero((images.labels == label) & (images.parts != 1)))
        mixed = len(places) > 1 and images.parts[places[0]] == -1
        tested = min(len(places) - 1, max(1, round(settings.held_out * len(places)))) if mixed else 0
        validated = tested + int(settings.validation * (len(places) - tested))
        roles[places[tested:validated]], roles[places[validated:]] = VALIDATE, FIT
    for role, what in ((FIT, "learn from"), (TEST, "be judged on")):
        if not (roles == role).any():
            raise UserError(f"{images.root}: expected images to {what}, got none")
    return roles


def truths_of(images: Images, settings: ScalingSettings, root: Path) -> Truths:
    """Return each task with its truth."""
    found: Truths = {"classify": (Classify(len(images.classes)), images.labels)}
    dense = {
        name: truth_rows(images, name, settings.points, root) for name in settings.tasks if name not in found
    }
    if "segment" in dense:
        labels = count_labels(images, dense["segment"], settings.ignore)
        found["segment"] = Segment(labels, settings.ignore), dense["segment"]
    if "depth" in dense:
        found["depth"] = Depth(settings.metre), dense["depth"]
    return {name: found[name] for name in settings.tasks}


def scaling(
    models: Mapping[str, Mapping[str, Any]], settings: ScalingSettings, objects: ObjectsSettings, out: Path
) -> Outcome:
    """Train and judge a head for each arm and seed; each leaves a file in `out`/fits."""
    if not models or {name for family in settings.families for name in family} - set(models):
        raise UserError(f"probe.families: expected some of {[*models]}, got {settings.families}")
    root = Path(settings.cache) if settings.cache else cache_dir()
    for name, facts in models.items():
        _encoder(name, facts, settings, "native")  # a wrong one is rejected before anything is drawn
    images = gather(settings.data, settings.tasks, objects, root)
    truths = truths_of(images, settings, root)
    roles = {seed: roles_of(images, settings, seed) for seed in settings.seeds}
    results: dict[Arm, Stored] = {}
    described: dict[str, Any] = {}
    for resize, (name, facts) in product(settings.resize, models.items()):
        encoder = _encoder(name, facts, settings, resize).to(device_of(settings.device))
        described[name] = _described(encoder, settings)
        rows = encode_images(f"{name}, {resize}", encoder, images, root)
        kinds = [(t, kind) for t in truths for kind in (("linear",) if t == "classify" else settings.heads)]
        arms = [Arm(name, tuple(s), t, kind, resize) for (t, kind), s in product(kinds, settings.scales)]
        with bar(f"heads of {name}, {resize}") as update:
            for done, arm in enumerate(arms, 1):
                key = [_VERSION, encoder.fingerprint, images.fingerprint, *arm.key[1:], arm.scales]
                task, truth = truths[arm.task]
                data = [_data(arm, rows, truth, settings, roles[seed]) for seed in settings.seeds]
                results[arm] = _fitted(arm, task, data, settings, key, out / "fits")
                update(done, len(arms), arm.key[0])
    tasks = {name: task for name, (task, _) in truths.items()}
    report = {
        "settings": settings.model_dump(mode="json", exclude={"cache"}),
        "objects": None if settings.data else objects.recipe,
        "images": {"classes": list(images.classes), "count": len(images), "fingerprint": images.fingerprint},
        "models": described,
        **judge(results, tasks, described, settings),
    }
    points: list[Point] = []
    related = {name for family in settings.families for name in family if len(family) > 1}
    for row in report["results"]:
        metric = tasks[row["task"]].metrics[0]
        series = [f"S² from {row['model']}, {row['resize']}"]
        series += ["model size"] if len(row["scales"]) == 1 and row["model"] in related else []
        points += [
            (f"{row['task']}, {row['head']}: {metric}", name, row["gflops"], row[metric]) for name in series
        ]
    return Outcome("scaling", report, points, len(tasks))


def _encoder(name: str, facts: Mapping[str, Any], settings: ScalingSettings, resize: str) -> S2Encoder:
    """Return a model at all scales; the mean alone is stored where no head asks for more."""
    pool = "mean" if settings.tasks == ("classify",) else "tokens"
    wanted = {"scales": list(settings.all_scales), "resolution": RESIZES[resize], "pool": pool}
    try:
        return build_encoder({**facts, **wanted})
    except UserError as error:
        raise UserError(f"probe.models.{name}: {error}") from error


def _described(encoder: S2Encoder, settings: ScalingSettings) -> dict[str, Any]:
    """Return facts of a model, and what each set of scales costs."""
    tile = encoder.tile
    patch = tile // square((tile,), tile, encoder._patch).cells[0]
    a_tile = encoder.gflops_per_image / encoder.layout.tiles
    sizes = [[round(scale * tile) for scale in scales] for scales in settings.scales]
    gflops = [round(a_tile * square(each, tile, patch).tiles, 4) for each in sizes]
    facts = {"name": encoder.name, "tile": tile, "dtype": encoder.dtype, "parameters": encoder.num_parameters}
    facts |= {"block": encoder.describe.get("block"), "fingerprint": encoder.fingerprint}
    return facts | {"sizes": sizes, "gflops": gflops}


def _data(
    arm: Arm, rows: Rows, truth: Rows | np.ndarray, settings: ScalingSettings, roles: np.ndarray
) -> Data:
    """Return what an arm's head is trained on: the channels of its scales, for classes the mean token's."""
    width = rows.shape[2] // len(settings.all_scales)
    places = [settings.all_scales.index(scale) for scale in arm.scales]
    columns = np.concatenate([np.arange(i * width, (i + 1) * width) for i in places])
    return Data(replace(rows, pooled=arm.task == "classify"), columns, truth, roles)


def _fitted(
    arm: Arm, task: Task, data: Sequence[Data], settings: ScalingSettings, key: Sequence[Any], folder: Path
) -> Stored:
    """Return a head a seed: read from `folder`, or trained, judged and stored there."""
    truth = data[0].truth
    decides = [repr(task), settings.head.model_dump(), settings.held_out, settings.validation]
    decides += [truth.path.name if isinstance(truth, Rows) else None]

    def fit(own: Data, seed: int) -> dict[str, Any]:
        head, curve = fitting.fit_head(task, arm.head, own, settings.head, seed)
        loss = min(curve, key=lambda check: check[2])[1]
        tallies, rows = fitting.tally(task, head, own), np.flatnonzero(own.roles == TEST)
        return {"rows": rows, "tallies": tallies, "train_loss": loss}

    pairs = zip(data, settings.seeds, strict=True)
    return [fitting.stored(folder, [*key, *decides, seed], partial(fit, own, seed)) for own, seed in pairs]


def judge(
    found_by_arm: Mapping[Arm, Stored], tasks: Mapping[str, Task], models: Mapping, settings: ScalingSettings
) -> dict[str, Any]:
    """Return "results", every metric of an arm with its interval, and "differences" of `pairs`."""
    samples, rest = {}, {}
    for arm, found in found_by_arm.items():
        samples[arm.key] = samples_of(found, tasks[arm.task], settings.resamples)
        loss = float(np.mean([x["train_loss"] for x in found]))
        gflops = models[arm.model]["gflops"][settings.scales.index(arm.scales)]
        rest[arm.key] = {"model": arm.model, "scales": arm.scales, "gflops": gflops, "train_loss": loss}
    paired = [(arm.key, less.key) for arm, less in pairs([*found_by_arm], settings)]
    rows, differences = compare(samples, ("arm", "task", "head", "resize"), paired)
    results = [row | rest[key] for key, row in zip(rest, rows, strict=True)]
    return {"results": results, "differences": differences}


def samples_of(found: Stored, task: Task, resamples: int) -> dict[str, np.ndarray]:
    """Return every metric of every seed, resampled over images, the first as it is.  # (1 + B, S)"""
    images = np.unique(np.concatenate([result["rows"] for result in found]))
    times = resample(len(images), resamples)  # (1 + B, n)
    scores = []
    for result in found:
        weights = times[:, np.searchsorted(images, result["rows"])]
        with np.errstate(invalid="ignore", divide="ignore"):
            scores.append(task.scores(weights @ result["tallies"].astype(np.float64), weights.sum(1)))
    return {m: np.stack([score[m] for score in scores], 1) for m in task.metrics}


def pairs(arms: Sequence[Arm], settings: ScalingSettings) -> Iterator[tuple[Arm, Arm]]:
    """Yield S2 and its own model at one scale, a larger and a smaller model, S2 from the smaller and the larger model."""
    single = min(settings.scales, key=len)
    for arm in arms:
        for family in [f for f in settings.families if arm.model in f] or [(arm.model,)]:
            for model in family[family.index(arm.model) :]:
                other = replace(arm, model=model, scales=single)
                if len(arm.scales) > len(single):
                    yield arm, other
                elif model != arm.model:
                    yield other, arm

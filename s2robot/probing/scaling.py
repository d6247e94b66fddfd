"""Measure scores of frozen encoders against cost, with model size or S2: Figures 2 and 6 of the S2 paper.

    s2robot probe probe=scaling                                  # mvp-tiny and mvp-small on rendered images
    s2robot probe probe=scaling probe.data=photos probe.tasks=[classify]

An arm is a model with a set of scales. Its backbone is frozen; a head is trained on its features and evaluated on
held-out images. A model runs once at all scales and each arm uses its own channels, so all arms of a model use the
same image at scale 1. `resize` selects the input of larger scales: `upsample` enlarges the input of scale 1, as in the
paper, and adds no information; `native` uses the original image.

Intervals are 95 % t intervals over held-out images and seeds, paired between arms.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.progress import bar
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.loading import device_of
from s2robot.pretraining.render import ObjectsSettings
from s2robot.probing import heads
from s2robot.probing.heads import FIT, TEST, VALIDATE, Classify, Data, Depth, ScalingSettings, Segment, Task
from s2robot.probing.images import Images, Rows, count_labels, encode_images, gather, truth_rows
from s2robot.probing.report import Outcome, compare, earlier, resampled

_RESIZES = {"upsample": "upsampled", "native": "native"}  # probe.resize: encoder.resolution
_SET_BY = {"scales": "probe.scales", "resolution": "probe.resize", "pool": "probe.tasks"}  # of a model
_VERSION = 4  # of the training and evaluation of a head


def roles_of(images: Images, settings: ScalingSettings, seed: int) -> np.ndarray:
    """Return FIT, VALIDATE or TEST for each image, drawn class by class; a test folder is TEST for any seed."""
    rng = np.random.default_rng([seed, 37])
    roles = np.full(len(images), TEST, np.int8)
    for label in np.unique(images.labels):
        indices = rng.permutation(np.flatnonzero((images.labels == label) & (images.parts != 1)))
        mixed = len(indices) > 1 and images.parts[indices[0]] == -1
        tested = min(len(indices) - 1, max(1, round(settings.held_out * len(indices)))) if mixed else 0
        validated = tested + int(settings.validation * (len(indices) - tested))
        roles[indices[tested:validated]], roles[indices[validated:]] = VALIDATE, FIT
    for role, purpose in ((FIT, "train on"), (TEST, "test on")):
        if not (roles == role).any():
            raise UserError(f"{images.root}: expected images to {purpose}, got none")
    return roles


def truths_of(images: Images, settings: ScalingSettings) -> dict[str, tuple[Task, Rows | np.ndarray]]:
    """Return each task with its ground truth."""
    truths: dict[str, tuple[Task, Rows | np.ndarray]] = {}
    for name in settings.tasks:
        if name == "classify":
            truths[name] = Classify(len(images.classes)), images.labels
            continue
        rows = truth_rows(images, name, settings.points)
        labels = count_labels(images, rows, settings.ignore) if name == "segment" else 0
        truths[name] = Segment(labels, settings.ignore) if labels else Depth(settings.metre), rows
    return truths


def scaling(
    models: Mapping[str, Mapping[str, Any]], settings: ScalingSettings, objects: ObjectsSettings, out: Path
) -> Outcome:
    """Train and evaluate a head for each arm and seed; each is stored in `out`/fits."""
    # reject a wrong model before rendering anything
    for (name, facts), (key, by) in product(models.items(), _SET_BY.items()):
        if key in facts:
            raise UserError(f"probe.models.{name}.{key}: expected none, since {by} sets it, got {facts[key]}")
    described = {name: _described(facts, settings) for name, facts in models.items()}
    images = gather(settings.data, objects, "classify" in settings.tasks)
    roles = {seed: roles_of(images, settings, seed) for seed in settings.seeds}
    truths = truths_of(images, settings)
    kinds = [(t, kind) for t in truths for kind in (("linear",) if t == "classify" else settings.heads)]
    samples, facts_of = dict[tuple, dict[str, np.ndarray]](), list[dict[str, Any]]()
    for resize, (name, facts) in product(settings.resize, models.items()):
        encoder = _encoder(facts, settings, settings.all_scales, resize).to(device_of(settings.device))
        rows = encode_images(f"{name}, {resize}", encoder, images)
        arms = [*product(kinds, zip(settings.scales, described[name]["gflops"], strict=True))]
        with bar(f"heads of {name}, {resize}") as update:
            for done, ((task, kind), (scales, gflops)) in enumerate(arms, 1):
                key = (f"{name} {'+'.join(f'{s:g}' for s in scales)}", task, kind, resize)
                identity = [_VERSION, encoder.fingerprint, images.fingerprint, task, kind, resize, scales]
                channels = np.split(np.arange(rows.shape[2]), len(settings.all_scales))  # for each scale
                columns = np.concatenate([channels[settings.all_scales.index(s)] for s in scales])
                fits = [
                    _fitted(truths[task][0], kind, Data(rows, columns, truths[task][1], roles[seed]), settings, seed,
                            identity, out / "fits")
                    for seed in settings.seeds
                ]  # fmt: skip
                samples[key] = resampled(fits, truths[task][0].scores, settings.resamples)
                loss = float(np.mean([fit["train_loss"] for fit in fits]))
                facts_of.append({"model": name, "scales": scales, "gflops": gflops, "train_loss": loss})
                update(done, len(arms), key[0])
    results, differences = compare(samples, ("arm", "task", "head", "resize"), earlier(samples))
    results = [row | facts for row, facts in zip(results, facts_of, strict=True)]
    report = {
        "settings": settings.model_dump(mode="json"),
        "objects": None if settings.data else objects.recipe,
        "images": {"classes": list(images.classes), "count": len(images), "fingerprint": images.fingerprint},
        "models": described,
        "results": results,
        "differences": differences,
    }
    points = []
    for row in results:
        metric, single = truths[row["task"]][0].metrics[0], len(row["scales"]) == 1
        sizes = settings.families if row["scales"] == settings.all_scales[:1] else ()
        own = (family for family in sizes if len(family) > 1 and row["model"] in family)
        series = [f"{row['model']}, {'one scale' if single else 'several'}"]
        series += [f"model size: {', '.join(family)}" for family in own]
        panel = f"{row['task']}, {row['head']}: {metric}"
        points += [(panel, f"{name}, {row['resize']}", row["gflops"], row[metric]) for name in series]
    return Outcome("scaling", report, points, len(truths))


def _encoder(
    facts: Mapping[str, Any], settings: ScalingSettings, scales: tuple[float, ...], resize: str = "native"
) -> S2Encoder:
    """Return a model at these scales; only the mean is stored if no head needs more."""
    pool = "mean" if settings.tasks == ("classify",) else "tokens"
    return build_encoder({**facts, "scales": list(scales), "resolution": _RESIZES[resize], "pool": pool})


def _described(facts: Mapping[str, Any], settings: ScalingSettings) -> dict[str, Any]:
    """Return a model's facts and, for each set of scales, its sizes and its cost, the sum over its tiles."""
    names = {"name": "name", "tile": "tile", "dtype": "dtype", "parameters": "num_parameters"}
    encoder = _encoder(facts, settings, settings.all_scales)
    size = dict(zip(settings.all_scales, encoder.sizes, strict=True))
    tiles = dict(zip(settings.all_scales, (level.count for level in encoder.layout.levels), strict=True))
    per_tile = encoder.gflops_per_image / encoder.layout.tiles
    costs = {
        "sizes": [[size[scale] for scale in chosen] for chosen in settings.scales],
        "gflops": [round(per_tile * sum(tiles[scale] for scale in chosen), 4) for chosen in settings.scales],
    }
    about = {key: getattr(encoder, name) for key, name in names.items()}
    return about | {"block": encoder.describe.get("block")} | costs


def _fitted(
    task: Task, kind: str, data: Data, settings: ScalingSettings, seed: int, identity: list[Any], folder: Path
) -> Mapping[str, np.ndarray]:
    """Return a head's tallies, read from `folder` or computed and stored there."""
    names = "steps batch dense_batch lr lr_deep weight_decay checks held_out validation".split()
    options = [getattr(settings, name) for name in names]
    truth = data.truth.path.name if isinstance(data.truth, Rows) else None

    def make() -> dict[str, Any]:
        head, curve = heads.fit_head(task, kind, data, settings, seed)
        loss = min(curve, key=lambda check: check[2])[1]
        rows = np.flatnonzero(data.roles == TEST)
        return {"rows": rows, "tallies": heads.tally(task, head, data), "train_loss": loss}

    return heads.stored(folder, [*identity, repr(task), options, truth, seed], make)

"""Scores of frozen encoders against their cost: model size against S2, on classes, segments and depth.

    s2robot scaling                                              # mvp-tiny and mvp-small on rendered pictures
    s2robot scaling scaling.data=photos scaling.tasks=[classify]
    s2robot scaling '+scaling.models.dino={name: timm:vit_small_patch14_dinov2, checkpoint: dino.safetensors,
        img_size: 112, block: 8}'

Figures 2 and 6 of the S2 paper: an arm is a model with a set of scales; its backbone is frozen, a head is trained on its
features and judged on held-out pictures. A model runs once at all scales, and each arm reads the channels of its own, so
all arms of a model see the same picture at scale 1. `resize` says what the larger scales see: `upsample` enlarges what
scale 1 sees, as in the paper, and adds no information; `native` takes the picture as it is.

Intervals are 95 % t intervals over held-out pictures and seeds (of the head and of the split), paired between arms.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.files import replacing, write_json
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.common.provenance import command, versions
from s2robot.common.settings import plain, read
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.loading import device_of
from s2robot.pretraining.objects import ObjectsSettings, make_objects
from s2robot.probing.heads import (
    FIT,
    TEST,
    VALIDATE,
    Classify,
    Depth,
    Segment,
    Task,
    fit,
    tally,
)
from s2robot.probing.pictures import Pictures, open_pictures
from s2robot.probing.rows import Rows, encode_pictures, largest_label, mean_rows, truth_rows
from s2robot.probing.scaling_figures import judge
from s2robot.probing.scaling_settings import RESIZES, Arm, Outcome, Result, ScalingSettings
from s2robot.s2.layout import square

VERSION = 2  # of how a head is trained and judged


# --- data --------------------------------------------------------------------------------------------------


def roles_of(pictures: Pictures, settings: ScalingSettings, seed: int) -> np.ndarray:
    """FIT, VALIDATE or TEST for each picture, class by class; held-out parts of the folder are TEST for any seed."""
    rng = np.random.default_rng([seed, 37])
    roles = np.full(len(pictures), TEST, np.int8)
    for label in np.unique(pictures.labels):
        places = rng.permutation(np.flatnonzero((pictures.labels == label) & (pictures.parts != 1)))
        mixed = len(places) > 1 and pictures.parts[places[0]] == -1
        tested = min(len(places) - 1, max(1, round(settings.held_out * len(places)))) if mixed else 0
        learnt = places[tested:]
        validated = int(settings.validation * len(learnt))
        roles[learnt[:validated]], roles[learnt[validated:]] = VALIDATE, FIT
    return roles


def check_roles(pictures: Pictures, settings: ScalingSettings) -> None:
    """Refuse pictures of which none is learnt, or none is held out (UserError)."""
    for role, what in ((FIT, "learn from"), (TEST, "be judged on")):
        if not all((roles_of(pictures, settings, seed) == role).any() for seed in settings.seeds):
            raise UserError(f"{pictures.root}: found no picture to {what}, expected 1 or more")


def gather(
    settings: ScalingSettings, objects: ObjectsSettings, root: Path
) -> tuple[Pictures, dict[str, tuple[Task, Rows | np.ndarray]]]:
    """The pictures, rendered if need be, and each task with its truth; UserError as `scaling`."""
    pictures = _pictures(settings, objects, root)
    return pictures, {name: _truth(name, pictures, settings, root) for name in settings.tasks}


def _pictures(settings: ScalingSettings, objects: ObjectsSettings, root: Path) -> Pictures:
    if settings.data is None:
        key = hashlib.sha256(json.dumps(objects.recipe, sort_keys=True).encode()).hexdigest()[:12]
        with bar("rendering objects") as update:
            folder = make_objects(objects, root / "objects" / key, update)
    else:
        folder = Path(settings.data)
    pictures = open_pictures(folder, settings.tasks)
    if settings.skip_unreadable:
        with bar("trying pictures") as update:
            pictures, said = pictures.readable(settings.tasks, update)
        for line in said:
            print(f"left out: {line}", flush=True)
    return pictures


def _truth(
    name: str, pictures: Pictures, settings: ScalingSettings, root: Path
) -> tuple[Task, Rows | np.ndarray]:
    """A task of these pictures and its truth."""
    if name == "classify":
        return Classify(len(pictures.classes)), pictures.labels
    if name == "depth":
        return Depth(settings.metre), truth_rows(pictures, name, settings.points, root)
    known = pictures.about.get("labels")
    labels = settings.labels or (len(known) if isinstance(known, list) else None)
    truth = truth_rows(pictures, name, settings.points, root, labels)
    largest = largest_label(truth, settings.ignore, pictures, labels)
    return Segment(labels or largest + 1, settings.ignore), truth


# --- the whole comparison ----------------------------------------------------------------------------------


def scaling(
    models: Mapping[str, Mapping[str, Any]], settings: ScalingSettings, objects: ObjectsSettings, out: Path
) -> Outcome:
    """Train and judge a head for each arm and seed; writes scaling.json.

    Each fitted head leaves a file in `out`/fits, so a killed run goes on. Raises UserError for models that cannot be
    built or lack the asked block, for pictures and truths that `open_pictures` and `Pictures` refuse.
    """
    start = time.monotonic()
    _refuse(models, settings)
    root = Path(settings.cache) if settings.cache else cache_dir()
    for name, facts in models.items():
        _encoder(name, facts, settings, "native")  # a wrong one is refused before anything is drawn
    pictures, tasks = gather(settings, objects, root)
    check_roles(pictures, settings)
    read_in = time.monotonic()
    results: dict[Arm, list[Result]] = {}
    facts_of: dict[str, Any] = {}
    for resize in settings.resize:
        for name, facts in models.items():
            encoder = _encoder(name, facts, settings, resize).to(device_of(settings.device))
            rows = encode_pictures(f"{name}, {resize}", encoder, pictures, root)
            facts_of[name] = _described(encoder, settings)
            results |= _fit_model(name, resize, encoder, rows, pictures, tasks, settings, out / "fits")
    report = {
        "settings": json.loads(json.dumps({**asdict(settings), "cache": None})),
        "objects": None if settings.data else objects.recipe,
        "pictures": _counted(pictures, settings),
        "models": facts_of,
        **judge(results, {name: task for name, (task, _) in tasks.items()}, facts_of, settings),
        "seconds": {"pictures": round(read_in - start, 1), "all": round(time.monotonic() - start, 1)},
        "versions": versions(),
        "command": command(),
    }
    write_json(out / "scaling.json", report)
    return Outcome(report, results, pictures)


def _refuse(models: Mapping[str, Any], settings: ScalingSettings) -> None:
    if not models:
        raise UserError("scaling.models: found none, expected at least 1")
    for family in settings.families:
        for name in family:
            if name not in models:
                raise UserError(
                    f"scaling.families: found '{name}', expected names of scaling.models: {', '.join(models)}"
                )


def _encoder(name: str, facts: Mapping[str, Any], settings: ScalingSettings, resize: str) -> S2Encoder:
    """A model at all scales; the mean alone is kept where no head asks for more."""
    needs_mean = settings.tasks == ("classify",) and settings.heads.classify == ("linear",)
    wanted = {"scales": list(settings.all_scales), "resolution": RESIZES[resize]}
    try:
        return build_encoder({**facts, **wanted, "pool": "mean" if needs_mean else "tokens"})
    except UserError as error:
        raise UserError(f"scaling.models.{name}: {error}") from error


def _described(encoder: S2Encoder, settings: ScalingSettings) -> dict[str, Any]:
    """Of a model, and of each set of scales what it costs."""
    patch = encoder.tile // square((encoder.tile,), encoder.tile, encoder._patch).cells[0]
    a_tile = encoder.gflops_per_image / encoder.layout.tiles
    costs = []
    for scales in settings.scales:
        sizes = [round(scale * encoder.tile) for scale in scales]
        costs.append({"sizes": sizes, "gflops": round(a_tile * square(sizes, encoder.tile, patch).tiles, 4)})
    return {
        "name": encoder.name,
        "tile": encoder.tile,
        "block": encoder.describe.get("block"),
        "dtype": encoder.dtype,
        "parameters": encoder.num_parameters,
        "costs": costs,
        "fingerprint": encoder.fingerprint,
    }


def _fit_model(
    model: str,
    resize: str,
    encoder: S2Encoder,
    rows: Rows,
    pictures: Pictures,
    tasks: Mapping[str, tuple[Task, Rows | np.ndarray]],
    settings: ScalingSettings,
    folder: Path,
) -> dict[Arm, list[Result]]:
    """All arms of a model on its features."""
    width = encoder.dim // len(settings.all_scales)
    means: Rows | None = None
    arms = [
        Arm(model, tuple(scales), resize, task, kind)
        for task in tasks
        for kind in getattr(settings.heads, task)
        for scales in settings.scales
    ]
    found: dict[Arm, list[Result]] = {}
    with bar(f"heads of {model}, {resize}") as update:
        for done, arm in enumerate(arms):
            task, truth = tasks[arm.task]
            places = [settings.all_scales.index(scale) for scale in arm.scales]
            columns = np.concatenate([np.arange(i * width, (i + 1) * width) for i in places])
            if (arm.task, arm.head) == ("classify", "linear"):
                means = means or mean_rows(rows, settings.head.batch)
            source = means if (arm.task, arm.head) == ("classify", "linear") else rows
            assert source is not None
            key = [VERSION, encoder.fingerprint, pictures.fingerprint, arm.scales, arm.head, repr(task)]
            key += [asdict(settings.head), settings.points, settings.held_out, settings.validation]
            key += [truth.file.name if isinstance(truth, Rows) else None]
            found[arm] = [
                _result(
                    task,
                    arm.head,
                    source,
                    columns,
                    truth,
                    roles_of(pictures, settings, seed),
                    settings,
                    seed,
                    folder,
                    key,
                )
                for seed in settings.seeds
            ]
            update(done + 1, len(arms), arm.label)
    return found


def _result(
    task: Task,
    kind: str,
    rows: Rows,
    columns: np.ndarray,
    truth: Rows | np.ndarray,
    roles: np.ndarray,
    settings: ScalingSettings,
    seed: int,
    folder: Path,
    key: Sequence[Any],
) -> Result:
    """Of one head: read from `folder`, or fitted, judged and kept there."""
    name = hashlib.sha256(json.dumps([*key, seed]).encode()).hexdigest()[:16]
    path = folder / f"{name}.npz"
    if not path.is_file():
        fitted = fit(task, kind, rows, columns, truth, roles, settings.head, seed)
        tallies = tally(task, fitted.head, rows, columns, truth, roles == TEST)
        losses = {step: loss for step, loss, _ in fitted.curve}
        with replacing(path) as part, part.open("wb") as file:
            np.savez(file, tallies=tallies, train_loss=losses[fitted.step], step=fitted.step)
    with np.load(path, allow_pickle=False) as kept:
        return Result(
            np.flatnonzero(roles == TEST), kept["tallies"], float(kept["train_loss"]), int(kept["step"])
        )


def _counted(pictures: Pictures, settings: ScalingSettings) -> dict[str, Any]:
    roles = roles_of(pictures, settings, settings.seeds[0])
    return {
        "folder": str(pictures.root) if settings.data else "rendered",
        "classes": list(pictures.classes),
        "fit": int((roles == FIT).sum()),
        "validate": int((roles == VALIDATE).sum()),
        "test": int((roles == TEST).sum()),
        "fingerprint": pictures.fingerprint,
    }


def run_scaling(cfg: DictConfig) -> None:
    """`s2robot scaling`: the comparison, its table and its page."""
    from s2robot.probing.examples import examples, write_examples
    from s2robot.probing.scaling_report import summary_text, write_scaling

    node = plain(cfg.scaling)
    models = node.pop("models")
    settings = read(ScalingSettings, node, "scaling")
    out = Path(cfg.run_dir)
    outcome = scaling(models, settings, read(ObjectsSettings, cfg.objects, "objects"), out)
    write_scaling(outcome.report, out)
    shown = write_examples(examples(outcome, settings), outcome.pictures, out) if settings.examples else None
    print(summary_text(outcome.report))
    print(
        f"scaling: {out / 'scaling.html'}, scaling.json, scaling.csv, scaling.png{', examples.html' if shown else ''}"
    )

"""Render images of objects with masks and depth, as folders that `s2robot probe probe=scaling` reads like any dataset.

    s2robot pretrain kind=objects                      # writes into <run_dir>

    <out>/train/images/<class>/<number>.png            # 8-bit RGB
    <out>/train/masks/<class>/<number>.png             # 8-bit, indices into the "labels" of meta.json
    <out>/train/depth/<class>/<number>.png             # 16-bit, mm along the camera's axis; 0 = farther than 10 m
    <out>/test/...                                     # other seeds
    <out>/meta.json

`s2robot.envs.object_scenes` draws them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.core.errors import UserError
from s2robot.core.files import read_json, replacing, write_json
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.workers import worker_pool
from s2robot.envs.gl import require_simulator

FARTHEST = 10.0  # m, in depth images
_FIRST_SEED = {"train": 0, "test": 1_000_000}  # of a part's images, plus 2 million times the seed
_IMAGES_A_JOB = 24
_worlds: dict[int, Any] = {}  # a worker's worlds by image size


class ObjectsSettings(Settings, at="objects", file="objects/default"):
    """configs/objects/default.yaml documents each value."""

    train: int = from_yaml(ge=2, le=999_999)
    test: int = from_yaml(ge=0, le=999_999)
    image_size: int = from_yaml(ge=1)
    small: float = from_yaml(ge=0, le=1)
    seed: int = from_yaml(ge=0)
    workers: int = from_yaml(ge=1)

    @property
    def recipe(self) -> dict[str, Any]:
        """The settings that decide the images."""
        return self.model_dump(exclude={"workers"})


def make_objects(
    settings: ObjectsSettings, out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Draw the images of both parts into `out`, classes in turn, and return `out`; existing images are kept.

    Raises:
        UserError: `out` holds images of other settings, or the simulator is not installed.
    """
    require_simulator()
    from s2robot.envs.object_scenes import CLASSES, LABELS, LOOK

    facts = {"look": LOOK, "classes": list(CLASSES), "labels": list(LABELS), "far_m": FARTHEST}
    meta, path = settings.recipe | facts, out / "meta.json"
    if path.is_file() and read_json(path) != meta:
        raise UserError(f"{path}: expected the same settings, got others; remove it or choose another folder")
    write_json(path, meta)
    jobs = [
        (part, range(first, min(first + _IMAGES_A_JOB, count)))
        for part, count in (("train", settings.train), ("test", settings.test))
        for first in range(0, count, _IMAGES_A_JOB)
    ]
    done, total = 0, settings.train + settings.test
    with worker_pool(settings.workers) as pool:
        for job in [pool.submit(_draw, settings, out, part, numbers) for part, numbers in jobs]:
            done += job.result()
            progress(done, total)
    return out


def _draw(settings: ObjectsSettings, out: Path, part: str, numbers: range) -> int:
    """Draw and save the missing images of these numbers; returns how many numbers there are."""
    from s2robot.envs.object_scenes import CLASSES, ObjectScene

    for number in numbers:
        kind = number % len(CLASSES)
        name = f"{CLASSES[kind]}/{number:06d}.png"
        paths = [out / part / folder / name for folder in ("images", "masks", "depth")]
        if all(path.is_file() for path in paths):
            continue
        if settings.image_size not in _worlds:
            _worlds[settings.image_size] = ObjectScene(settings.image_size)
        seed = 2_000_000 * settings.seed + _FIRST_SEED[part] + number
        small = bool(np.random.default_rng([seed, 29]).random() < settings.small)
        drawn = _worlds[settings.image_size].draw(kind, seed, small)
        millimetres = np.where(drawn.depth < FARTHEST, np.rint(1000 * drawn.depth), 0).astype(np.uint16)
        for path, pixels in zip(paths, (drawn.image, drawn.mask, millimetres), strict=True):
            with replacing(path) as temporary:
                Image.fromarray(pixels).save(temporary, compress_level=1)  # half the time, a fifth more bytes
    return len(numbers)

"""Rendered pictures of objects with their truth, as folders that `s2robot scaling` reads like anybody's own.

    s2robot scenes kind=objects                        # writes into <run_dir>

    <out>/train/images/<class>/<number>.png            # 8-bit RGB
    <out>/train/masks/<class>/<number>.png             # 8-bit, places in the "labels" of meta.json
    <out>/train/depth/<class>/<number>.png             # 16-bit, mm along the camera's axis; 0 = farther than 10 m
    <out>/test/...                                     # other seeds
    <out>/meta.json

What is in them: `s2robot.envs.still_life`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.common.errors import UserError
from s2robot.common.extras import require_simulator
from s2robot.common.files import replacing, write_json
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.envs.workers import worker_pool

FARTHEST = 10.0  # m, of what the depth pictures tell
_FIRST_SEED = {"train": 0, "test": 1_000_000}  # of a part's pictures, plus 2 million times the seed
_PICTURES_A_JOB = 24
_worlds: dict[int, Any] = {}  # what a worker keeps between jobs


@dataclass(frozen=True)
class ObjectsSettings:
    """configs/objects/default.yaml says what each is."""

    train: int = 1440
    test: int = 720
    image_size: int = 384
    small: float = 0.4
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        most, two, many = (0, 999_999), (2, 999_999), (1, INFINITY)
        check_ranges(
            self,
            "objects",
            train=two,
            test=most,
            image_size=many,
            small=(0, 1),
            seed=(0, INFINITY),
            workers=many,
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """All that decides the pictures, besides the code that draws them."""
        recipe = asdict(self)
        del recipe["workers"]
        return recipe


def make_objects(
    settings: ObjectsSettings, out: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Draw the pictures of both parts into `out`, classes in turn; what is there already is kept.

    meta.json comes last: where it stands, all pictures do. Returns `out`.

    Raises:
        UserError: `out` holds pictures of other settings, or the simulator is not installed.
    """
    require_simulator()
    from s2robot.envs.still_life import CLASSES, LABELS, LOOK

    meta = {
        **settings.recipe,
        "look": LOOK,
        "classes": list(CLASSES),
        "labels": list(LABELS),
        "far_m": FARTHEST,
    }
    if _claim(out, meta):
        return out
    jobs = [
        (part, range(first, min(first + _PICTURES_A_JOB, count)))
        for part, count in (("train", settings.train), ("test", settings.test))
        for first in range(0, count, _PICTURES_A_JOB)
    ]
    done, total = 0, settings.train + settings.test
    with worker_pool(settings.workers) as pool:
        for job in [pool.submit(_draw, settings, out, part, numbers) for part, numbers in jobs]:
            done += job.result()
            progress(done, total)
    write_json(out / "meta.json", meta)
    (out / "making.json").unlink(missing_ok=True)
    return out


def _claim(out: Path, meta: dict[str, Any]) -> bool:
    """Whether all pictures of `meta` are there; UserError for a folder whose pictures are of other settings."""
    for path in (out / "meta.json", out / "making.json"):
        if path.is_file() and _read(path) != meta:
            raise UserError(f"{path}: pictures of other settings; remove them or choose another folder")
    done = (out / "meta.json").is_file()
    if not done:
        write_json(out / "making.json", meta)
    return done


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: broken JSON ({error}); remove it or choose another folder") from None


def _draw(settings: ObjectsSettings, out: Path, part: str, numbers: range) -> int:
    """Draw and save these pictures of a part; returns how many there are."""
    from s2robot.envs.still_life import CLASSES, StillLife

    for number in numbers:
        kind = number % len(CLASSES)
        name = f"{CLASSES[kind]}/{number:06d}.png"
        folders = {kind_of: out / part / kind_of / name for kind_of in ("images", "masks", "depth")}
        if all(path.is_file() for path in folders.values()):
            continue
        if settings.image_size not in _worlds:
            _worlds[settings.image_size] = StillLife(settings.image_size)
        seed = 2_000_000 * settings.seed + _FIRST_SEED[part] + number
        small = bool(np.random.default_rng([seed, 29]).random() < settings.small)
        picture = _worlds[settings.image_size].draw(kind, seed, small)
        millimetres = np.where(picture.depth < FARTHEST, np.rint(1000 * picture.depth), 0).astype(np.uint16)
        for path, pixels in zip(folders.values(), (picture.image, picture.mask, millimetres), strict=True):
            with replacing(path) as part_name:
                Image.fromarray(pixels).save(part_name, compress_level=1)  # half the time, a fifth more bytes
    return len(numbers)

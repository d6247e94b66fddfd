"""Folders of images with classes, masks and depth; files are read in chunks, so memory use does not grow with them.

    images = open_images(Path("photos"))             # photos/<class>/*.jpg, or photos/images/<class>/*.jpg
    images.frame(7, 224).shape                       # uint8 (224, 224, 3): the centre square, resized
    images.truth(7, "segment", 96).shape             # photos/masks/<class>/<same name>.png, at the nearest pixels
    encode_images("tiny", encoder, images)[:64].shape    # (64, N, D)

Masks and depth are in folders next to `images`, under the same relative names. A folder may contain `train` and `test`
(or `val`), each with this layout. Images are shuffled with a fixed seed, so that any run of them is a random sample.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from s2robot.core.errors import UserError
from s2robot.core.files import cache_dir, read_json, replacing
from s2robot.core.progress import bar
from s2robot.core.provenance import short_hash
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.encoder import S2Encoder
from s2robot.pretraining.frames import IMAGES, read_image
from s2robot.pretraining.render import ObjectsSettings, make_objects

_HELD_OUT = ("test", "val", "validation")  # names of the folder next to `train`
_TRUTHS = {"segment": "masks", "depth": "depth"}  # task -> folder of its truth
_MODES = {"segment": ("L", "P", "1", "I", "I;16"), "depth": ("I", "I;16")}  # Pillow's, one channel
_BITS = {"segment": "8 or 16", "depth": "16"}
_KINDS = (*IMAGES, ".webp", ".bmp", ".tif", ".tiff")
_FRAME_BYTES = 48_000_000  # approximate size of the frames in memory at once
_VERSION = 3  # of the conversion of images to frames


@dataclass(frozen=True)
class Images:
    """Images of one folder, in shuffled order."""

    root: Path
    names: list[str]  # paths below `root`
    classes: tuple[str, ...]  # names of the class folders; empty if there are none
    labels: np.ndarray  # (n,), index in `classes`
    parts: np.ndarray  # (n,), 0 for `train`, 1 for `test`; -1 in a folder without parts
    fingerprint: str  # changes with names, sizes and times of the files

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int, task: str = "") -> Path:
        """Return the path of image i or, given a task, of its mask or depth."""
        name = Path(self.names[i])
        if task:
            name = Path(*(_TRUTHS[task] if p == "images" else p for p in name.parts)).with_suffix(".png")
        return self.root / name

    def frame(self, i: int, side: int) -> np.ndarray:
        """Return the centre square, resized.  # uint8 (side, side, 3)"""
        image = read_image(self.path(i), "RGB")
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))

    def truth(self, i: int, task: str, side: int) -> np.ndarray:
        """Return the labels or depth of the centre square at the nearest pixels.  # uint16 (side, side)"""
        path = self.path(i, task)
        image = read_image(path)
        with Image.open(self.path(i)) as shown:  # reads the header only
            size = shown.size
        if image.size != size or image.mode not in _MODES[task]:
            expected = f"one channel of {_BITS[task]} bits at {size[0]} x {size[1]} px like its image"
            got = f"Pillow's mode {image.mode} at {image.size[0]} x {image.size[1]}"
            raise UserError(f"{path}: expected {expected}, got {got}")
        return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.NEAREST)).astype(np.uint16)


def gather(data: str | None, objects: ObjectsSettings, classify: bool = True) -> Images:
    """Return the images of a folder, or rendered ones from the user's cache; `classify` requires classes to learn."""
    if data is not None:
        return open_images(Path(data), classify)
    return open_images(make_objects(objects, cache_dir("objects", short_hash(objects.recipe)[:12])), classify)


def open_images(root: Path, classify: bool = True) -> Images:
    """Return the images of a folder; UserError if classes to learn have too few images."""
    folders = {-1: root}
    if (root / "train").is_dir():
        held_out = [root / name for name in _HELD_OUT if (root / name).is_dir()]
        folders = {0: root / "train"} | dict(enumerate(held_out[:1], 1))
    classes: dict[str, int] = {}
    rows, digest = [], hashlib.sha256()
    for part, folder in folders.items():
        images = folder / "images" if (folder / "images").is_dir() else folder
        for path in _files(images):
            name, (below, *rest) = str(path.relative_to(root)), path.relative_to(images).parts
            rows.append((name, classes.setdefault(below if rest else "", len(classes)), part))
            info = path.stat()
            digest.update(os.fsencode(name) + f" {info.st_size} {info.st_mtime_ns}\n".encode())
    labels, parts = np.array([row[1:] for row in rows], int).reshape(-1, 2).T
    learned = np.bincount(labels[parts != 1], minlength=len(classes))
    if classify and (len(classes) < 2 or "" in classes or min(learned) < 2):
        counts = dict(zip(classes, learned.tolist(), strict=True))
        raise UserError(f"{root}: expected class folders with 2 or more images to learn from, got {counts}")
    order = np.random.default_rng(5).permutation(len(rows))
    names = () if set(classes) == {""} else tuple(classes)
    return Images(root, [rows[i][0] for i in order], names, labels[order], parts[order], digest.hexdigest())


def _files(folder: Path) -> Iterator[Path]:
    """Yield image files below a folder, sorted, except hidden ones (partial files and file managers' metadata)."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name[0] != "." and os.path.splitext(name)[1].lower() in _KINDS:
                yield Path(here, name)


@dataclass(frozen=True)
class Rows:
    """An array (n, ...) in a raw file; `rows[a:b]` reads a part."""

    path: Path
    dtype: str
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> np.ndarray:
        # mapped again for each read, because pages of a mapped file count as memory of the process
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[rows])


def encoded(
    name: str,
    encoder: S2Encoder,
    dataset: str,
    cameras: Sequence[str],
    lengths: Sequence[int],
    frames: Callable[[list[int]], Iterator[tuple[int, list[np.ndarray]]]],
) -> FeatureCache:
    """Complete and return the user's cache of an encoder's features; `frames` as in `FeatureCache.build`."""
    about = {"encoder": name, "sizes": list(encoder.sizes)}
    shape, key = (encoder.num_tokens, encoder.dim), encoder.fingerprint
    cache = FeatureCache(cache_dir("features"), dataset, key, cameras, lengths, *shape, about=about)
    with bar(f"encoding {name}") as update:
        cache.build(frames, encoder.encode_cameras, update)
    return cache


def encode_images(name: str, encoder: S2Encoder, images: Images) -> Rows:
    """Return the features of all images, from the user's cache or newly encoded.  # float16 (n, N, D)"""
    side = encoder.image_size
    count = int(np.clip(2 ** int(np.log2(_FRAME_BYTES / (3 * side**2))), 1, 1024))
    pieces = [range(start, min(start + count, len(images))) for start in range(0, len(images), count)]

    def frames(missing: list[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
        for piece in missing:
            yield piece, [np.stack([images.frame(i, side) for i in pieces[piece]])]

    dataset = f"pictures {_VERSION} {images.fingerprint} by {count}"
    cache = encoded(name, encoder, dataset, ["picture"], [*map(len, pieces)], frames)
    return Rows(cache.path / "features.bin", cache.dtype.str, (len(images), encoder.num_tokens, encoder.dim))


def truth_rows(images: Images, task: str, side: int) -> Rows:
    """Return the labels or depth of all images, read once and stored in the user's cache.  # uint16 (n, side, side)"""
    digest = hashlib.sha256(json.dumps([images.fingerprint, task, side]).encode())
    for i in range(len(images)):
        if (path := images.path(i, task)).is_file():
            digest.update(f"{path.stat().st_size} {path.stat().st_mtime_ns} ".encode())
    path = cache_dir("truths") / f"{digest.hexdigest()[:16]}.u2"
    if not path.is_file():
        with replacing(path, shared=True) as part, part.open("wb") as file, bar(f"reading {task}") as update:
            for i in range(len(images)):
                file.write(images.truth(i, task, side).astype("<u2").tobytes())
                update(i + 1, len(images))
    return Rows(path, "<u2", (len(images), side, side))


def count_labels(images: Images, truth: Rows, ignore: int | None) -> int:
    """Return the number of labels in the masks: that of meta.json, but at least the largest label + 1."""
    about = read_json(images.root / "meta.json") if (images.root / "meta.json").is_file() else {}
    blocks = (truth[start : start + 256] for start in range(0, len(images), 256))
    largest = max(int(block[block != ignore].max(initial=0)) for block in blocks)
    return max(len(about.get("labels", ())), largest + 1)

"""Folders of images with classes, masks and depth; files are read in pieces, so memory does not grow with them.

    images = open_images(Path("photos"))             # photos/<class>/*.jpg, or photos/images/<class>/*.jpg
    images.frame(7, 224).shape                       # uint8 (224, 224, 3): the middle square, resized
    images.truth(7, "segment", 96).shape             # photos/masks/<class>/<same name>.png, at the nearest pixels
    encode_images("tiny", encoder, images, root)[:64].shape    # (64, N, D)

Masks and depth lie beside `images` under the same relative names. A folder may hold `train` and `test` (or `val`), each
such a folder. Images stand in an order mixed by a fixed seed, so that neighbours are a sample of all.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from s2robot.core.errors import UserError
from s2robot.core.files import read_json, replacing
from s2robot.core.progress import bar
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.encoder import S2Encoder
from s2robot.pretraining.frames import IMAGES, read_image

HELD_OUT = ("test", "val", "validation")  # names of the folder beside `train`
TRUTHS = {"segment": "masks", "depth": "depth"}  # task -> folder of its truth
_MODES = {"segment": ("L", "P", "1", "I", "I;16"), "depth": ("I", "I;16", "I;16B")}  # Pillow's, one channel
_KINDS = (*IMAGES, ".webp", ".bmp", ".tif", ".tiff")
_FRAME_BYTES = 48_000_000  # of the frames that are in memory at once, about
_VERSION = 2  # of how images become frames


@dataclass(frozen=True)
class Images:
    """Images of one folder, in mixed order."""

    root: Path
    names: np.ndarray  # (n,), paths below `root` as the file system's bytes
    classes: tuple[str, ...]  # names of the class folders; empty where images lie in none
    labels: np.ndarray  # (n,), place in `classes`
    parts: np.ndarray  # (n,), 0 for `train`, 1 for `test`; -1 in a folder without parts
    fingerprint: str  # changes with names, sizes and times of the files

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int, task: str = "") -> Path:
        """Return the path of image i, or with a task of its mask or depth."""
        name = Path(os.fsdecode(bytes(self.names[i])))
        if not task:
            return self.root / name
        parts = list(name.parts)
        parts[parts.index("images")] = TRUTHS[task]
        return self.root.joinpath(*parts).with_suffix(".png")

    def frame(self, i: int, side: int) -> np.ndarray:
        """Return the middle square, resized.  # uint8 (side, side, 3)"""
        image = read_image(self.path(i), "RGB")
        if image.size != (side, side):
            image = image.crop(_middle(image.size)).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def truth(self, i: int, task: str, side: int) -> np.ndarray:
        """Return labels or depth of the middle square at the nearest pixels.  # uint16 (side, side)"""
        path = self.path(i, task)
        image = read_image(path)
        with Image.open(self.path(i)) as shown:  # reads the header only
            size = shown.size
        if image.size != size:
            raise UserError(f"{path}: expected {size[0]} x {size[1]} px as its image, got {image.size}")
        if image.mode not in _MODES[task]:
            bits = "16 bits" if task == "depth" else "8 or 16 bits"
            raise UserError(f"{path}: expected one channel of {bits}, got Pillow's mode {image.mode}")
        left, top, right, _ = _middle(size)
        steps = (np.arange(side) + 0.5) * (right - left) / side
        pixels = np.asarray(image)[(top + steps).astype(int)[:, None], (left + steps).astype(int)]
        return pixels.astype(np.uint16)


def open_images(root: Path, tasks: Sequence[str] = ("classify",)) -> Images:
    """Return the images of a folder; raise UserError where these tasks find no images, truths or classes in it."""
    folders = {-1: root}
    if (root / "train").is_dir():
        held_out = next((root / name for name in HELD_OUT if (root / name).is_dir()), None)
        if held_out is None:
            raise UserError(f"{root}: expected one of {', '.join(HELD_OUT)} beside train, got none")
        folders = {0: root / "train", 1: held_out}
    classes: dict[str, int] = {}
    rows, digest = [], hashlib.sha256()
    for part, folder in folders.items():
        images = folder / "images" if (folder / "images").is_dir() else folder
        for truth in {*tasks} & {*TRUTHS}:
            if images == folder or not (folder / TRUTHS[truth]).is_dir():
                raise UserError(f"{folder}: expected the folders images and {TRUTHS[truth]} for {truth}")
        for path in _files(images):
            name, (below, *rest) = os.fsencode(path.relative_to(root)), path.relative_to(images).parts
            rows.append((name, classes.setdefault(below if rest else "", len(classes)), part))
            info = path.stat()
            digest.update(name + f" {info.st_size} {info.st_mtime_ns}\n".encode())
    if not rows:
        raise UserError(f"{root}: expected images ({' '.join(_KINDS)}), got none")
    names, labels, parts = (np.array(column) for column in zip(*rows, strict=True))
    learnt = np.bincount(labels[parts != 1], minlength=len(classes))
    if "classify" in tasks and (len(classes) < 2 or "" in classes or min(learnt) < 2):
        counts = dict(zip(classes, learnt.tolist(), strict=True))
        raise UserError(f"{root}: expected class folders with 2 or more images to learn from, got {counts}")
    order = np.random.default_rng(5).permutation(len(names))
    known = () if set(classes) == {""} else tuple(classes)
    return Images(root, names[order], known, labels[order], parts[order], digest.hexdigest())


def _files(folder: Path) -> Iterator[Path]:
    """Yield image files below a folder, sorted; hidden ones are half written, or notes of file managers."""
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name[0] != "." and os.path.splitext(name)[1].lower() in _KINDS:
                yield Path(here, name)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest square in the middle: left, top, right, bottom."""
    left, top = ((length - min(size)) // 2 for length in size)
    return left, top, left + min(size), top + min(size)


@dataclass(frozen=True)
class Rows:
    """An array (n, ...) in a raw file, or with `pooled` the mean over its second axis; `rows[a:b]` reads a part."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    pooled: bool = False

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        # mapped anew each time: pages of a mapped file count as memory of the process
        found = np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[rows])
        return found.mean(1, dtype=np.float32, keepdims=True) if self.pooled else found


def encode_images(name: str, encoder: S2Encoder, images: Images, root: Path) -> Rows:
    """Return features of all images, from the cache below `root` or newly encoded.  # float16 (n, N, D)"""
    side = encoder.image_size
    count = int(np.clip(2 ** int(np.log2(_FRAME_BYTES / (3 * side**2))), 1, 1024))
    lengths = [min(count, len(images) - start) for start in range(0, len(images), count)]
    dataset = f"pictures {_VERSION} {images.fingerprint} by {count}"
    shape = encoder.num_tokens, encoder.dim
    about = {"encoder": name, "sizes": list(encoder.sizes), "images": str(images.root)}
    cache = FeatureCache(
        root / "features", dataset, encoder.fingerprint, ["picture"], lengths, *shape, about=about
    )

    def frames(missing: list[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
        for chunk in missing:
            places = range(chunk * count, chunk * count + lengths[chunk])
            yield chunk, [np.stack([images.frame(i, side) for i in places])]

    with bar(f"encoding {name}") as update:
        cache.build(frames, encoder.encode, update)
    return Rows(cache.path / "features.bin", cache.dtype.str, (len(images), *shape))


def truth_rows(images: Images, task: str, side: int, root: Path) -> Rows:
    """Return labels or depth of all images, made once and stored below `root`.  # uint16 (n, side, side)"""
    digest = hashlib.sha256(json.dumps([images.fingerprint, task, side]).encode())
    for i in range(len(images)):
        if (path := images.path(i, task)).is_file():
            digest.update(f"{path.stat().st_size} {path.stat().st_mtime_ns} ".encode())
    rows = Rows(root / "truths" / f"{digest.hexdigest()[:16]}.u2", "<u2", (len(images), side, side))
    if not rows.path.is_file():
        with (
            replacing(rows.path, shared=True) as part,
            part.open("wb") as file,
            bar(f"reading {task}") as update,
        ):
            for i in range(len(images)):
                file.write(images.truth(i, task, side).astype("<u2").tobytes())
                update(i + 1, len(images))
    return rows


def count_labels(images: Images, truth: Rows, ignore: int | None) -> int:
    """Return how many labels masks hold: as meta.json says, but more than the largest."""
    about = read_json(images.root / "meta.json") if (images.root / "meta.json").is_file() else {}
    blocks = (truth[start : start + 256] for start in range(0, len(truth), 256))
    largest = max(int(block[block != ignore].max(initial=0)) for block in blocks)
    return max(len(about.get("labels", ())), largest + 1)

"""Folders of pictures with their truth, a million or a few: class folders, masks, depth.

    pictures = open_pictures(Path("photos"))           # photos/<class>/*.jpg, or photos/images/<class>/*.jpg
    pictures.frame(7, 224).shape                       # uint8 (224, 224, 3): the middle square, resized
    pictures.mask(7, 96).shape                         # photos/masks/<class>/<same name>.png, at the nearest pixels
    pictures.depth(7, 96).shape                        # photos/depth/<class>/<same name>.png, 16 bits

Masks and depth lie beside `images` under the same relative names. Where the folder holds `train` and `test` (or `val`),
each of these is such a folder. Of a picture there is no more in memory than its name; pictures stand in an order that a
fixed seed mixed, so that a run of neighbours is a sample of all.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.common.errors import UserError
from s2robot.pretraining.frames import IMAGES, read_image

HELD_OUT = ("test", "val", "validation")  # names of the folder beside `train`
TRUTHS = {"segment": "masks", "depth": "depth"}  # task -> folder of its truth
_KINDS = (*IMAGES, ".webp", ".bmp", ".tif", ".tiff")
_EIGHT_BITS = ("L", "P", "1")  # Pillow's modes of one channel of 8 bits or fewer; more: I;16, I, F
_ORDER = 5  # seed of the order


@dataclass(frozen=True)
class Pictures:
    """Pictures of one folder, in mixed order.

    Attributes:
        root: the folder.
        names: paths below `root`, as the file system's bytes.  # (n,)
        classes: names of the class folders; empty where pictures lie in none.
        labels: place in `classes` of each picture.  # int32 (n,)
        parts: 0 for pictures of `train`, 1 for those of `test`; all -1 where the folder has no parts.  # int8 (n,)
        fingerprint: changes with names, sizes and times of the picture files.
        about: what meta.json says of the pictures, {} without.
    """

    root: Path
    names: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray
    parts: np.ndarray
    fingerprint: str
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, i: int) -> Path:
        """Of picture i."""
        return self.root / os.fsdecode(bytes(self.names[i]))

    def truth_path(self, i: int, task: str) -> Path:
        """Of its mask or depth: the same name as PNG, in the folder beside `images`."""
        path = self.path(i)
        parts = list(path.relative_to(self.root).parts)
        parts[parts.index("images")] = TRUTHS[task]
        return self.root.joinpath(*parts).with_suffix(".png")

    def truth_state(self, i: int, task: str) -> bytes:
        """Size and time of that file; UserError where there is none."""
        path = self.truth_path(i, task)
        try:
            info = path.stat()
        except OSError as error:
            raise UserError(f"{path}: no such file, expected the truth of {self.path(i)}") from error
        return f"{info.st_size} {info.st_mtime_ns} ".encode()

    def frame(self, i: int, side: int) -> np.ndarray:
        """The middle square, resized.  # uint8 (side, side, 3)"""
        image = read_image(self.path(i), "RGB")
        if image.size != (side, side):
            image = image.crop(_middle(image.size)).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image)

    def mask(self, i: int, side: int, labels: int | None = None) -> np.ndarray:
        """Labels of the middle square.  # uint16 (side, side)

        Raises:
            UserError: no mask, another size than the picture's, several channels, or 8 bits where there are more labels.
        """
        path = self.truth_path(i, "segment")
        mask = self._truth(path, i)
        if mask.mode not in (*_EIGHT_BITS, "I", "I;16"):
            raise UserError(
                f"{path}: found a mask of mode {mask.mode}, expected one channel of whole numbers"
            )
        if labels is not None and labels > 256 and mask.mode in _EIGHT_BITS:
            raise UserError(
                f"{path}: found a mask of 8 bits, expected 16: labels beyond 255, of {labels}, do not fit in"
            )
        return _nearest(np.asarray(mask), side).astype(np.uint16)

    def depth(self, i: int, side: int) -> np.ndarray:
        """Depth of the middle square as it is stored; 0 is unknown.  # uint16 (side, side)

        Raises:
            UserError: no depth, another size than the picture's, or no 16-bit PNG.
        """
        path = self.truth_path(i, "depth")
        depth = self._truth(path, i)
        if depth.mode not in ("I", "I;16", "I;16B"):
            bits = "8 bits" if depth.mode in _EIGHT_BITS else f"mode {depth.mode}"
            raise UserError(f"{path}: found depth of {bits}, expected a PNG of 16 bits and one channel")
        return _nearest(np.asarray(depth), side).astype(np.uint16)

    def _truth(self, path: Path, i: int) -> Image.Image:
        image = read_image(path)
        with Image.open(self.path(i)) as picture:  # reads the head only
            size = picture.size
        if image.size != size:
            found, expected = (f"{width} x {height} px" for width, height in (image.size, size))
            raise UserError(f"{path}: found {found}, expected {expected} as of its picture {self.path(i)}")
        return image

    def readable(
        self, tasks: Sequence[str], progress: Callable[[int, int], None]
    ) -> "tuple[Pictures, list[str]]":
        """Those of which picture and truth can be read, and what was said of the others."""
        keep, said = np.ones(len(self), bool), []
        for i in range(len(self)):
            try:
                read_image(self.path(i))
                for task in {*tasks} & {*TRUTHS}:
                    read_image(self.truth_path(i, task))
            except UserError as error:
                keep[i] = False
                said.append(str(error))
            progress(i + 1, len(self))
        if not said:
            return self, said
        kept = hashlib.sha256(self.fingerprint.encode() + keep.tobytes()).hexdigest()
        arrays = (self.names[keep], self.classes, self.labels[keep], self.parts[keep])
        return Pictures(self.root, *arrays, kept, self.about), said


def open_pictures(root: Path, tasks: Sequence[str] = ("classify",)) -> Pictures:
    """The pictures of a folder, for these tasks.

    Raises:
        UserError: no pictures, no class folders or a class with one picture (classify), no folder of masks or depth,
            a `train` without `test`, a held-out class that is not learnt.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    folders = {-1: root}
    if (root / "train").is_dir():
        held_out = next((root / name for name in HELD_OUT if (root / name).is_dir()), None)
        if held_out is None:
            raise UserError(f"{root}: found train alone, expected one of {', '.join(HELD_OUT)} beside it")
        folders = {0: root / "train", 1: held_out}
    names: list[bytes] = []
    classes: dict[str, int] = {}
    labels, parts = [], []
    digest = hashlib.sha256()
    for part, folder in folders.items():
        _check_truths(folder, tasks)
        images = folder / "images" if (folder / "images").is_dir() else folder
        for path, info in _files(images):
            below = path[len(os.fspath(images)) + 1 :].split(os.sep)
            name = below[0] if len(below) > 1 else ""
            names.append(os.fsencode(path[len(os.fspath(root)) + 1 :]))
            labels.append(classes.setdefault(name, len(classes)))
            parts.append(part)
            digest.update(names[-1] + f" {info.st_size} {info.st_mtime_ns}\n".encode())
    if not names:
        raise UserError(f"{root}: found no pictures ({' '.join(_KINDS)})")
    order = np.random.default_rng(_ORDER).permutation(len(names))
    found = Pictures(
        root,
        np.array(names)[order],
        () if set(classes) == {""} else tuple(classes),
        np.array(labels, np.int32)[order],
        np.array(parts, np.int8)[order],
        digest.hexdigest(),
        _about(root),
    )
    if "classify" in tasks:
        _check_classes(found)
    return found


def _check_truths(folder: Path, tasks: Sequence[str]) -> None:
    for task in tasks:
        if task in TRUTHS and not ((folder / "images").is_dir() and (folder / TRUTHS[task]).is_dir()):
            raise UserError(f"{folder}: expected the folders images and {TRUTHS[task]} for the task {task}")


def _check_classes(found: Pictures) -> None:
    if len(found.classes) < 2 or "" in found.classes:
        raise UserError(
            f"{found.root}: found {len(found.classes)} class folders and pictures "
            f"{'beside' if '' in found.classes else 'in'} them, expected all pictures in two class folders or more"
        )
    learnt = np.bincount(found.labels[found.parts != 1], minlength=len(found.classes))
    for name, count in zip(found.classes, learnt, strict=True):
        if count < 2:
            raise UserError(
                f"{found.root}: class '{name}': found {count} picture{'' if count == 1 else 's'} to learn from, "
                "expected 2 or more"
            )


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Picture files below a folder in the order of their paths."""
    with os.scandir(folder) as entries:
        here = sorted(entries, key=lambda entry: entry.name)
    for entry in here:
        if entry.name.startswith("."):  # half-written files and the notes of file managers
            continue
        if entry.is_dir():
            yield from _files(Path(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in _KINDS:
            yield entry.path, entry.stat()


def _about(root: Path) -> dict[str, Any]:
    path = root / "meta.json"
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest square in the middle: left, top, right, bottom."""
    width, height = size
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _nearest(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle square at the nearest pixels.  # (H, W) -> (side, side)"""
    left, top, right, _ = _middle((pixels.shape[1], pixels.shape[0]))
    steps = (np.arange(side) + 0.5) * (right - left) / side
    return pixels[(top + steps).astype(int)[:, None], (left + steps).astype(int)]

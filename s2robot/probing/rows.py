"""Features and truth of pictures as files that are read piece by piece: memory does not grow with the pictures.

    rows = encode_pictures("tiny", encoder, pictures, root)     # through the feature cache
    rows.read(0, 64).shape                                      # float32 (64, N, D)
    means = mean_rows(rows, 64)                                  # the mean over N, in a file of its own
    truth = truth_rows(pictures, "segment", 96, root)            # uint16 (n, 96, 96)

Files are read, not mapped: pages of a mapped file count as memory of the process that touched them.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from s2robot.common.errors import UserError
from s2robot.common.files import replacing
from s2robot.common.progress import bar
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.encoder import S2Encoder
from s2robot.probing.pictures import Pictures

_FRAME_BYTES = 48_000_000  # of the frames that are in memory at once, about
FEATURES = 2  # version of how pictures become frames


@dataclass(frozen=True)
class Rows:
    """An array in a raw file.  # (n, ...)"""

    file: Path | BinaryIO
    dtype: np.dtype
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop, fewer at the end."""
        stop = min(stop, len(self))
        width = int(np.prod(self.shape[1:]))
        offset = start * width * self.dtype.itemsize
        if not isinstance(self.file, Path):
            self.file.seek(offset)
            found = np.frombuffer(self.file.read((stop - start) * width * self.dtype.itemsize), self.dtype)
        else:
            found = np.fromfile(self.file, self.dtype, (stop - start) * width, offset=offset)
        return found.reshape(stop - start, *self.shape[1:])

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in pieces: (first row, rows)."""
        for start in range(0, len(self), size):
            yield start, self.read(start, start + size)


def encode_pictures(name: str, encoder: S2Encoder, pictures: Pictures, root: Path) -> Rows:
    """Features of all pictures, from the cache below `root` or newly encoded.  # float16 (n, N, D)

    Raises UserError for a picture that cannot be read, and what FeatureCache refuses.
    """
    side = encoder.image_size
    count = int(np.clip(2 ** int(np.log2(_FRAME_BYTES / (3 * side**2))), 1, 1024))
    lengths = [min(count, len(pictures) - start) for start in range(0, len(pictures), count)]
    cache = FeatureCache(
        root / "features",
        f"pictures {FEATURES} {pictures.fingerprint} by {count}",
        encoder.fingerprint,
        ["picture"],
        lengths,
        encoder.num_tokens,
        encoder.dim,
        about={"encoder": name, "sizes": list(encoder.sizes), "pictures": str(pictures.root)},
    )

    def frames(missing: list[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
        for chunk in missing:
            first = chunk * count
            yield chunk, [np.stack([pictures.frame(first + i, side) for i in range(lengths[chunk])])]

    with bar(f"encoding {name}") as update:
        cache.build(frames, encoder.encode, update)
    return Rows(cache.path / "features.bin", cache.dtype, (len(pictures), encoder.num_tokens, encoder.dim))


def mean_rows(rows: Rows, size: int) -> Rows:
    """The mean over tokens, in a file that goes with the process.  # (n, N, D) -> float32 (n, 1, D)"""
    if rows.shape[1] == 1:
        return rows
    file = tempfile.TemporaryFile()
    for _, block in rows.blocks(size):
        file.write(block.mean(1, dtype=np.float32).tobytes())
    return Rows(file, np.dtype("<f4"), (len(rows), 1, rows.shape[2]))  # type: ignore[arg-type]


def truth_rows(pictures: Pictures, task: str, side: int, root: Path, labels: int | None = None) -> Rows:
    """Labels or depth of all pictures, at side x side points; made once, kept below `root`.  # uint16 (n, side, side)

    Raises UserError for what `Pictures.mask` and `Pictures.depth` refuse.
    """
    digest = hashlib.sha256(json.dumps([pictures.fingerprint, task, side, labels]).encode())
    for i in range(len(pictures)):
        digest.update(pictures.truth_state(i, task))
    path = root / "truths" / f"{digest.hexdigest()[:16]}.u2"
    shape = (len(pictures), side, side)
    if not path.is_file() or path.stat().st_size != 2 * int(np.prod(shape)):
        with replacing(path, shared=True) as part, part.open("wb") as file, bar(f"reading {task}") as update:
            for i in range(len(pictures)):
                found = pictures.mask(i, side, labels) if task == "segment" else pictures.depth(i, side)
                file.write(found.astype("<u2").tobytes())
                update(i + 1, len(pictures))
    return Rows(path, np.dtype("<u2"), shape)


def largest_label(truth: Rows, ignore: int | None, pictures: Pictures, labels: int | None) -> int:
    """Of all masks, `ignore` left out; UserError names a picture whose mask holds a label of `labels` or more."""
    largest = 0
    for start, block in truth.blocks(256):
        block = np.where(block == ignore, 0, block) if ignore is not None else block
        most = block.reshape(len(block), -1).max(1)
        if labels is not None and (most >= labels).any():
            i = start + int((most >= labels).argmax())
            raise UserError(
                f"{pictures.truth_path(i, 'segment')}: found label {most.max()}, expected labels below {labels} "
                f"(or {ignore} for what is not labelled)"
            )
        largest = max(largest, int(most.max()))
    return largest

"""The arrays of a dataset on disk; errors name the file that is broken."""

import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from s2robot.core.files import read_bytes
from s2robot.demos.bounds import check_size, json_file, number_type, unpack
from s2robot.demos.errors import DatasetError, disk_error, mismatch, readable

ENDS = "meta/episode_ends"
ENDS_CHUNK = 4096  # episodes in a chunk of meta arrays
CHUNK_BYTES = 1 << 20  # of a data chunk before compression: few files, and little to rewrite in an append
ZSTD = {"id": "zstd"}
LEVEL, QUICK_LEVEL = 5, 2  # of zstd; the second for imported datasets, which are large
VERIFY_BYTES = 64 << 20  # arrays up to this size are decoded on opening; larger ones when they are read


@dataclass(frozen=True)
class StoredArray:
    """One array of the dataset folder `root`; `name` is "data/<key>" or "meta/<key>"."""

    root: Path
    name: str
    array: zarr.Array

    @classmethod
    def open(cls, root: Path, name: str, mode: str = "r") -> "StoredArray":
        """Open an array to read ("r") or also to write ("a"). Raises DatasetError without one."""
        place = folder_of(name)
        file = root / place / "zarr.json"
        _check_layout(file, json_file(file))
        storage = LocalStore(root, read_only=mode == "r")
        # empty chunks are written, so that a lost chunk never reads as zeros
        with readable(file), zarr.config.set({"array.write_empty_chunks": True}):
            array = zarr.open_array(storage, path=place, mode="r" if mode == "r" else "r+", zarr_format=3)
        return cls(root, name, array)

    def chunk_files(self, rows: int, first: int = 0) -> Iterator[tuple[int, Path]]:
        """Yield number and file of the chunks of the first `rows` rows, from the chunk `first` on."""
        for i in range(first, -(-rows // self.array.chunks[0])):
            key = self.array.metadata.encode_chunk_key((i,) + (0,) * (self.array.ndim - 1))
            yield i, self.root / folder_of(self.name) / key

    def check(self, expected: int) -> None:
        """Refuse an array of fewer than `expected` rows, with a missing chunk, or, up to VERIFY_BYTES, a broken one."""
        array, folder = self.array, self.root / folder_of(self.name)
        if array.shape[0] < expected:
            raise mismatch(folder, f"{expected} rows by {ENDS}", array.shape[0])
        check_size(folder, array.dtype.itemsize * math.prod(array.chunks), self._stored(expected))
        if array.dtype.itemsize * math.prod(array.shape[1:]) * expected <= VERIFY_BYTES:
            self.read(0, expected)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows `start` to `stop`. Raises DatasetError with the file of a missing or broken chunk."""
        # zarr's own reader allocates the size in a chunk's header, and reads a missing chunk as zeros
        rows, stop = self.array.chunks[0], min(stop, self.array.shape[0])
        shape = (max(stop - start, 0), *self.array.shape[1:])
        stored = self._stored(stop, start // rows) if shape[0] else 0
        size = self.array.dtype.itemsize * (math.prod(shape) + math.prod(self.array.chunks))
        check_size(self.root / folder_of(self.name), size, stored)
        out = np.empty(shape, self.array.dtype)
        for i, file in self.chunk_files(stop, start // rows):
            chunk = unpack(file, ZSTD, read_bytes(file), self.array.chunks, self.array.dtype, "C")
            least, most = max(start, i * rows), min(stop, (i + 1) * rows)
            out[least - start : most - start] = chunk[least - i * rows : most - i * rows]
        return out

    def _stored(self, rows: int, first: int = 0) -> int:
        """Sum up the bytes of `chunk_files`; DatasetError for a missing one."""
        total = 0
        for _, file in self.chunk_files(rows, first):
            with readable(file):
                total += file.stat().st_size
        return total

    def extend(self, start: int, values: np.ndarray) -> None:
        """Write rows after the first `start` ones, and drop what was there."""
        self.array.resize((start + len(values), *self.array.shape[1:]))
        self.array[start:] = values


def create_array(
    group: zarr.Group, name: str, dtype: np.dtype, shape: tuple[int, ...], level: int = LEVEL
) -> zarr.Array:
    """Create an array without rows, each of `shape`, in place of an existing one."""
    row = dtype.itemsize * math.prod(shape)
    # images: a few in a chunk, for random reads
    rows = ENDS_CHUNK if name.startswith("meta/") else max(4, CHUNK_BYTES // max(row, 1))
    return group.create_array(
        folder_of(name),
        shape=(0, *shape),
        dtype=dtype,
        chunks=(rows, *shape),
        compressors=ZstdCodec(level=level, checksum=True),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},  # flat: c.0.0 beside zarr.json
        config={"write_empty_chunks": True},
        # zarr writes in threads: one that a failed write left behind may still write its file
        overwrite=True,
    )


def define_arrays(root: Path, attributes: Mapping, specs: Mapping) -> dict[str, StoredArray]:
    """Create the arrays (name -> [dtype, shape of a row]) of a first episode, and remove those of a lost one."""
    for folder in (*(root / "data").iterdir(), *(root / "meta").iterdir()):
        if folder.is_dir() and folder.name != "episode_ends":
            shutil.rmtree(folder)
    group = zarr.open_group(LocalStore(root), mode="r+", zarr_format=3)
    level = QUICK_LEVEL if "source" in attributes else LEVEL
    made = {
        name: StoredArray(root, name, create_array(group, name, np.dtype(dtype), tuple(shape), level))
        for name, (dtype, shape) in specs.items()
    }
    group.attrs.put({**attributes, "arrays": specs})
    return made


def folder_of(name: str) -> str:
    """Return an array's folder in the dataset: data/images_wrist/left is in data/images_wrist%2Fleft."""
    kind, _, key = name.partition("/")
    return f"{kind}/{quote(key, safe='')}"


def _check_layout(file: Path, about: Mapping[str, Any]) -> None:
    """Refuse an array that our writer never makes: anything but numbers in whole rows, packed by zstd."""
    number_type(file, about.get("data_type"))
    with readable(file):
        codecs = [codec["name"] for codec in about["codecs"]]
        shape, chunks = about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"]
        rows = len(shape) == len(chunks) > 0 and chunks[1:] == shape[1:] and chunks[0] > 0
    if codecs != ["bytes", "zstd"] or not rows or about.get("storage_transformers"):
        got = f"{codecs} and {shape} in chunks of {chunks}"[:160]
        raise mismatch(file, "bytes, zstd and whole rows in a chunk", got)


def committed_ends(stored: StoredArray) -> np.ndarray:
    """Where each committed episode ends: before the first zero of `meta/episode_ends` (DatasetError).  # (episodes,)"""
    size = stored.array.shape[0]
    files = [file for _, file in stored.chunk_files(size)]
    # a commit that starts a chunk holds one episode: only that chunk may still be unwritten
    if size % stored.array.chunks[0] == 1 and not files[-1].is_file():
        size -= 1
    ends = stored.read(0, size)
    if not ends.all():
        ends = ends[: int(np.argmin(ends != 0))]
    if ends.dtype != np.int64 or ends.ndim != 1 or (np.diff(ends, prepend=0) <= 0).any():
        raise mismatch(stored.root / ENDS, "increasing ends, int64 (episodes,)", f"{ends.dtype} {ends.shape}")
    return ends


@contextmanager
def new_path(out: Path) -> Iterator[Path]:
    """Yield a temporary name that is renamed to `out` at the end, and removed if that fails (DatasetError)."""
    if os.path.lexists(out):
        raise DatasetError(f"{out}: exists already, expected a new path; nothing was overwritten")
    part = out.with_name(f".{uuid.uuid4().hex}.partial.{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.rename(part, out)
    except OSError as error:
        raise disk_error(out, error, "nothing was written") from None
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            with suppress(OSError):  # it was never made, or its parent is no folder
                part.unlink()

"""The arrays of a dataset on disk; errors name the file that is broken."""

import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from s2robot.core.files import read_bytes
from s2robot.demos.bounds import FREE, check_size, json_file, number_type, unpack
from s2robot.demos.errors import DatasetError, disk_error, mismatch, readable

ENDS = "meta/episode_ends"
ENDS_CHUNK = 4096  # episodes in a chunk of meta arrays
CHUNK_BYTES = 1 << 20  # of a data file before compression: few files, and little to rewrite in an append
FRAMES = 8  # decoded together at most: few for random reads, and enough to store what they share once
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

    # zarr recomputes some of these on every access
    folder = cached_property(lambda self: self.root / folder_of(self.name))
    dtype = cached_property(lambda self: self.array.dtype)
    chunks = cached_property(lambda self: self.array.chunks)
    # of one or many chunks
    file_rows = cached_property(lambda self: (self.array.shards or self.array.chunks)[0])

    def chunk_files(self, rows: int, first: int = 0) -> Iterator[tuple[int, Path]]:
        """Yield number and file of the files of the first `rows` rows, from the file `first` on."""
        for i in range(first, -(-rows // self.file_rows)):
            key = self.array.metadata.encode_chunk_key((i,) + (0,) * (self.array.ndim - 1))
            yield i, self.folder / key

    def check(self, expected: int) -> None:
        """Refuse an array of fewer than `expected` rows, with a missing chunk, or, up to VERIFY_BYTES, a broken one."""
        array, folder = self.array, self.folder
        if array.shape[0] < expected:
            raise mismatch(folder, f"{expected} rows by {ENDS}", array.shape[0])
        check_size(folder, array.dtype.itemsize * math.prod(array.chunks), self._stored(expected))
        if array.dtype.itemsize * math.prod(array.shape[1:]) * expected <= VERIFY_BYTES:
            self.read(0, expected)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows `start` to `stop`. Raises DatasetError with the file of a missing or broken chunk."""
        # zarr's own reader allocates the size in a chunk's header, and reads a missing chunk as zeros
        chunks, stop = self.chunks, min(stop, self.array.shape[0])
        shape = (max(stop - start, 0), *chunks[1:])
        size = self.dtype.itemsize * (math.prod(shape) + math.prod(chunks))
        if shape[0] and size > FREE:
            check_size(self.folder, size, self._stored(stop, start // self.file_rows))
        out = np.empty(shape, self.dtype)
        for first, file, data in self._packed(start, stop) if shape[0] else ():
            chunk = unpack(file, ZSTD, data, chunks, self.dtype, "C")
            least, most = max(start, first), min(stop, first + chunks[0])
            out[least - start : most - start] = chunk[least - first : most - first]
        return out

    def _packed(self, start: int, stop: int) -> Iterator[tuple[int, Path, bytes]]:
        """Yield the first row, the file and the bytes of each chunk that holds some of these rows."""
        rows, each = self.file_rows, self.chunks[0]
        for i, file in self.chunk_files(stop, start // rows):
            if rows == each:
                yield i * rows, file, read_bytes(file)
                continue
            wanted = range(max(start - i * rows, 0) // each, -(-min(stop - i * rows, rows) // each))
            for k, data in zip(wanted, _pieces(file, rows // each, wanted), strict=True):
                yield i * rows + k * each, file, data

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
    row = max(dtype.itemsize * math.prod(shape), 1)
    rows, shards = ENDS_CHUNK if name.startswith("meta/") else max(4, CHUNK_BYTES // row), None
    if name.startswith("data/images_") and (count := rows // FRAMES):  # small chunks, many in a file
        rows, shards = FRAMES, (FRAMES * count, *shape)
    return group.create_array(
        folder_of(name),
        shape=(0, *shape),
        dtype=dtype,
        chunks=(rows, *shape),
        shards=shards,
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
    """Refuse an array that our writer never makes: anything but numbers in whole rows, packed by zstd, alone or in shards."""
    number_type(file, about.get("data_type"))
    with readable(file):
        codecs, shape = about["codecs"], about["shape"]
        grids = [about["chunk_grid"]["configuration"]["chunk_shape"]]
        if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
            shard = codecs[0]["configuration"]
            index = [codec["name"] for codec in shard["index_codecs"]], shard["index_location"]
            codecs = shard["codecs"] if index == (["bytes", "crc32c"], "end") else codecs
            grids.append(shard["chunk_shape"])
        names = [codec["name"] for codec in codecs]
        rows = all(len(shape) == len(c) > 0 and c[1:] == shape[1:] and c[0] > 0 for c in grids)
    if names != ["bytes", "zstd"] or not rows or about.get("storage_transformers"):
        got = f"{names} and {shape} in chunks of {grids[-1]}"[:160]
        raise mismatch(file, "bytes, zstd and whole rows in a chunk", got)


def _pieces(file: Path, count: int, wanted: range) -> list[bytes]:
    """Return some chunks of a shard of `count`, whose index ends the file: offset and size of each (DatasetError)."""
    with readable(file):
        number = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would never open
        try:
            begin = os.fstat(number).st_size - 4 - 16 * count  # after the index: its checksum
            index = np.frombuffer(os.pread(number, 16 * count, begin), "<u8").reshape(count, 2)
            places = index[wanted.start : wanted.stop].tolist()
            # as of a chunk that was never written
            if any(offset + length > begin for offset, length in places):
                raise mismatch(file, f"chunks in its first {begin} bytes", places)
            return [os.pread(number, length, offset) for offset, length in places]
        finally:
            os.close(number)


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

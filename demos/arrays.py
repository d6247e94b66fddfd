"""Read and write the arrays of a dataset on disk; errors name the broken file."""

import fcntl
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from platform import node
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
ENDS_CHUNK = 4096  # episodes per chunk of a meta array
CHUNK_BYTES = 1 << 20  # uncompressed size of a data file: few files, and appends rewrite little
FRAMES = 8  # images per chunk: few for fast random reads, enough to compress what they share
ZSTD = {"id": "zstd"}
LEVEL, QUICK_LEVEL = 5, 2  # zstd levels; the second is for imported datasets, which are large
VERIFY_BYTES = 64 << 20  # arrays up to this size are verified on opening, larger ones on reading


@dataclass(frozen=True)
class StoredArray:
    """An array in the dataset folder `root`, named "data/<key>" or "meta/<key>"."""

    root: Path
    name: str
    array: zarr.Array

    @classmethod
    def open(cls, root: Path, name: str, mode: str = "r") -> "StoredArray":
        """Open an array to read ("r") or to read and write ("a"); DatasetError if it does not exist."""
        folder = folder_of(name)
        file = root / folder / "zarr.json"
        _check_layout(file, json_file(file))
        storage = LocalStore(root, read_only=mode == "r")
        # write empty chunks, so that a missing chunk is an error and never reads as zeros
        with readable(file), zarr.config.set({"array.write_empty_chunks": True}):
            array = zarr.open_array(storage, path=folder, mode="r" if mode == "r" else "r+", zarr_format=3)
        return cls(root, name, array)

    # zarr recomputes some of these on every access
    folder = cached_property(lambda self: self.root / folder_of(self.name))
    dtype = cached_property(lambda self: self.array.dtype)
    chunks = cached_property(lambda self: self.array.chunks)
    # rows per file, which holds one chunk or a shard of many
    file_rows = cached_property(lambda self: (self.array.shards or self.array.chunks)[0])

    def chunk_files(self, rows: int, first: int = 0) -> Iterator[tuple[int, Path]]:
        """Yield (number, path) of the files that hold the first `rows` rows, starting with file `first`."""
        for i in range(first, -(-rows // self.file_rows)):
            yield i, self.folder / self.array.metadata.encode_chunk_key((i,) + (0,) * (self.array.ndim - 1))

    def check(self, expected: int) -> None:
        """Reject an array with fewer than `expected` rows, a missing chunk or (up to VERIFY_BYTES) a broken one."""
        array, folder = self.array, self.folder
        if array.shape[0] < expected:
            raise mismatch(folder, f"{expected} rows according to {ENDS}", array.shape[0])
        check_size(folder, array.dtype.itemsize * math.prod(array.chunks), self._stored_bytes(expected))
        if array.dtype.itemsize * math.prod(array.shape[1:]) * expected <= VERIFY_BYTES:
            self.read(0, expected)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows `start` to `stop`; DatasetError names the file of a missing or broken chunk."""
        # zarr's reader trusts the size in a chunk's header, and reads a missing chunk as zeros
        chunks, stop = self.chunks, min(stop, self.array.shape[0])
        shape = (max(stop - start, 0), *chunks[1:])
        size = self.dtype.itemsize * (math.prod(shape) + math.prod(chunks))
        if shape[0] and size > FREE:
            check_size(self.folder, size, self._stored_bytes(stop, start // self.file_rows))
        out = np.empty(shape, self.dtype)
        for first, file, data in self._packed_chunks(start, stop) if shape[0] else ():
            chunk = unpack(file, ZSTD, data, chunks, self.dtype, "C")
            begin, end = max(start, first), min(stop, first + chunks[0])
            out[begin - start : end - start] = chunk[begin - first : end - first]
        return out

    def _packed_chunks(self, start: int, stop: int) -> Iterator[tuple[int, Path, bytes]]:
        """Yield the first row, the file and the packed bytes of each chunk that overlaps these rows."""
        rows, step = self.file_rows, self.chunks[0]
        for i, file in self.chunk_files(stop, start // rows):
            if not self.array.shards:
                yield i * rows, file, read_bytes(file)
                continue
            chunks = range(max(start - i * rows, 0) // step, -(-min(stop - i * rows, rows) // step))
            for k, data in zip(chunks, _read_shard(file, rows // step, chunks), strict=True):
                yield i * rows + k * step, file, data

    def _stored_bytes(self, rows: int, first: int = 0) -> int:
        """Return the total size of `chunk_files` in bytes; DatasetError if one is missing."""
        total = 0
        for _, file in self.chunk_files(rows, first):
            with readable(file):
                total += file.stat().st_size
        return total

    def extend(self, start: int, values: np.ndarray) -> None:
        """Write rows from `start` on, and drop the rows that were there."""
        self.array.resize((start + len(values), *self.array.shape[1:]))
        self.array[start:] = values


def create_array(
    group: zarr.Group, name: str, dtype: np.dtype, shape: tuple[int, ...], level: int = LEVEL
) -> zarr.Array:
    """Create an array of no rows, each row of shape `shape`; an existing array is replaced."""
    row = max(dtype.itemsize * math.prod(shape), 1)
    rows, shards = ENDS_CHUNK if name.startswith("meta/") else max(4, CHUNK_BYTES // row), None
    if name.startswith("data/images_") and (count := rows // FRAMES):  # small chunks, many per file
        rows, shards = FRAMES, (FRAMES * count, *shape)
    return group.create_array(
        folder_of(name),
        shape=(0, *shape),
        dtype=dtype,
        chunks=(rows, *shape),
        shards=shards,
        compressors=ZstdCodec(level=level, checksum=True),
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},  # flat: c.0.0 next to zarr.json
        config={"write_empty_chunks": True},
        # a zarr thread left over from a failed write may still be writing its file
        overwrite=True,
    )


def define_arrays(root: Path, attributes: Mapping, specs: Mapping) -> dict[str, StoredArray]:
    """Create the arrays of the first episode (name -> [dtype, shape of a row]); remove those of a lost one."""
    for folder in (*(root / "data").iterdir(), *(root / "meta").iterdir()):
        if folder.is_dir() and folder.name != "episode_ends":
            shutil.rmtree(folder)
    group = zarr.open_group(LocalStore(root), mode="r+", zarr_format=3)
    level = QUICK_LEVEL if "source" in attributes else LEVEL
    arrays = {
        name: StoredArray(root, name, create_array(group, name, np.dtype(dtype), tuple(shape), level))
        for name, (dtype, shape) in specs.items()
    }
    group.attrs.put({**attributes, "arrays": specs})
    return arrays


def folder_of(name: str) -> str:
    """Return an array's folder in the dataset: data/images_wrist%2Fleft for data/images_wrist/left."""
    kind, _, key = name.partition("/")
    return f"{kind}/{quote(key, safe='')}"


def _check_layout(file: Path, about: Mapping[str, Any]) -> None:
    """Reject any layout that our writer does not produce: numbers in whole rows, zstd, with or without shards."""
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


def _read_shard(file: Path, count: int, chunks: range) -> list[bytes]:
    """Return `chunks` of a shard that holds `count`; its index of (offset, size) ends the file (DatasetError)."""
    with readable(file):
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would block forever
        try:
            begin = os.fstat(descriptor).st_size - 4 - 16 * count  # a checksum follows the index
            index = np.frombuffer(os.pread(descriptor, 16 * count, begin), "<u8").reshape(count, 2)
            spans = index[chunks.start : chunks.stop].tolist()
            # also true of a chunk that was never written, and of chunks that share their bytes
            if any(offset + length > begin for offset, length in spans) or sum(n for _, n in spans) > begin:
                raise mismatch(file, f"chunks in its first {begin} bytes", spans[:4])
            return [os.pread(descriptor, length, offset) for offset, length in spans]
        finally:
            os.close(descriptor)


def committed_ends(stored: StoredArray) -> np.ndarray:
    """Return the ends of the committed episodes, those before the first zero (DatasetError).  # (episodes,)"""
    size = stored.array.shape[0]
    last = stored.chunk_files(size, size // stored.file_rows)  # listing all could exhaust memory
    # a commit that starts a chunk adds one episode, so only that chunk may be unwritten
    if size % stored.chunks[0] == 1 and not all(file.is_file() for _, file in last):
        size -= 1
    ends = stored.read(0, size)
    if not ends.all():
        ends = ends[: int(np.argmin(ends != 0))]
    if ends.dtype != np.int64 or ends.ndim != 1 or (np.diff(ends, prepend=0) <= 0).any():
        raise mismatch(stored.root / ENDS, "increasing ends, int64 (episodes,)", f"{ends.dtype} {ends.shape}")
    return ends


def check_new(out: Path) -> None:
    """Reject a path that exists already (DatasetError)."""
    if os.path.lexists(out):
        raise DatasetError(f"{out}: exists already, expected a new path; nothing was overwritten")


@contextmanager
def new_path(out: Path) -> Iterator[Path]:
    """Yield a temporary path, renamed to `out` on success and removed on failure (DatasetError).

    The path is in a locked folder. If a writer is killed, its folder is removed by the next writer beside it.
    """
    check_new(out)
    folder, lock = out.with_name(f".{node()}.{uuid.uuid4().hex}.partial.{out.name}"), None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out.parent)
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # not every network disk has locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder / out.name
        check_new(out)  # another writer may have been faster
        os.rename(folder / out.name, out)
    except OSError as error:
        raise disk_error(out, error, "nothing was written") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of killed writers, whose locks the system has released; other machines' locks may be invisible."""
    for folder in parent.glob(f".{node()}.{'[0-9a-f]' * 32}.partial.*"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if any(folder.iterdir()):  # else its writer may be about to lock it
                    shutil.rmtree(folder)
            finally:
                os.close(descriptor)

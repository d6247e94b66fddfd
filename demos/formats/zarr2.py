"""Arrays of zarr's format 2, in a folder or a zip file.

    group = Group2(Path("replay.zarr"))
    group.arrays["data/action"][0:100]         # (100, 2)
    group.left_out                             # {"meta/instruction": "dtype '|O'"}

zarr's own reader runs any codec that numcodecs knows, pickle among them, allocates what a chunk's head says, and fills in
chunks that are missing. This one reads plain numbers through a few codecs, within the limits of `bounds.py`.
"""

import math
import re
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.bounds import CODECS, IMAGE_CODECS, check_size, json_object, number_type, unpack
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.source import require


@dataclass(frozen=True)
class Array2:
    """One array, read by rows; a chunk that is not there reads as the fill value."""

    where: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    order: str
    fill: Any  # None: no chunk may be missing
    codec: Mapping[str, Any]
    files: list[tuple[tuple[int, ...], str, int]]  # of each chunk that is there: position, name, stored bytes
    read: Callable[[str], bytes]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def chunk_count(self) -> int:
        return math.prod(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        first, last = start // self.chunks[0], -(-stop // self.chunks[0])
        found = self.files[bisect_left(self.files, ((first,),)) : bisect_left(self.files, ((last,),))]
        shape = (max(stop - start, 0), *self.shape[1:])
        size = self.dtype.itemsize * (math.prod(shape) + math.prod(self.chunks))
        check_size(self.where, size, sum(stored for _, _, stored in found))
        out = np.full(shape, 0 if self.fill is None else self.fill, self.dtype)
        for at, name, _ in found:
            where = f"{self.where.rpartition(':')[0]}: {name}"
            chunk = unpack(where, self.codec, self.read(name), self.chunks, self.dtype, self.order)
            begin = [i * c for i, c in zip(at, self.chunks, strict=True)]
            begin[0] -= start
            room = out[tuple(slice(max(b, 0), b + c) for b, c in zip(begin, self.chunks, strict=True))]
            room[...] = chunk[max(-begin[0], 0) :][tuple(slice(n) for n in room.shape)]
        return out


class Group2:
    """The arrays `data/<key>` and `meta/<key>` of a store, and its attributes.

    Raises:
        DatasetError: the store cannot be opened, or its metadata is broken.
    """

    def __init__(self, path: Path):
        self.path = path
        if path.is_dir():
            self._read = lambda name: (path / name).read_bytes()
            # a link to a device or a pipe is no file
            listed = (f for f in path.rglob("*") if f.is_file())
            self._sizes = {f.relative_to(path).as_posix(): f.stat().st_size for f in listed}
        else:
            self._zip = zipfile.ZipFile(path)
            self._read = self._from_zip
            self._sizes = {info.filename: info.compress_size for info in self._zip.infolist()}
        self.attributes = self._json(".zattrs") if ".zattrs" in self._sizes else {}
        self.arrays: dict[str, Array2] = {}
        self.left_out: dict[str, str] = {}  # array -> why
        chunks: dict[str, list[tuple[tuple[int, ...], str, int]]] = {}
        for name, size in self._sizes.items():
            if found := re.fullmatch(r"((?:data|meta)/[^/]+)/(\d+(?:[./]\d+)*)", name):
                at = tuple(map(int, re.split("[./]", found[2])))
                chunks.setdefault(found[1], []).append((at, name, size))
        for name in sorted(self._sizes):
            if re.fullmatch(r"(data|meta)/[^/]+/\.zarray", name):
                key, about = name.removesuffix("/.zarray"), self._json(name)
                try:
                    dtype = number_type(f"{path}: {key}", about.get("dtype"))
                except DatasetError:  # text, as an instruction is
                    self.left_out[key] = f"dtype {about.get('dtype')!r}"[:80]
                    continue
                self.arrays[key] = self._array(key, about, dtype, sorted(chunks.get(key, [])))

    def _array(self, key: str, about: Mapping[str, Any], dtype: np.dtype, chunks: list) -> Array2:
        where = f"{self.path}: {key}"
        codec, filters = about.get("compressor"), about.get("filters")
        kind = codec.get("id") if isinstance(codec, dict) else codec
        if filters or kind not in (None, *CODECS, *IMAGE_CODECS):
            found = f"filters {filters}" if filters else f"compressor {kind!r}"
            raise mismatch(where, found[:80], f"no filter, and {', '.join((*CODECS, *IMAGE_CODECS))} or none")
        if kind in IMAGE_CODECS:
            require("imagecodecs", extra="imagecodecs")
            from imagecodecs.numcodecs import register_codecs

            register_codecs(verbose=False)
        shape, grid = (tuple(about.get(name) or ()) for name in ("shape", "chunks"))
        if len(shape) != len(grid) or not all(type(n) is int and n >= 0 for n in shape + grid) or 0 in grid:
            raise mismatch(f"{where}: shape", f"{shape} in chunks of {grid}"[:80], "whole numbers")
        ends = [-(-n // c) for n, c in zip(shape, grid, strict=True)]
        files = [c for c in chunks if len(c[0]) == len(ends) and all(map(int.__lt__, c[0], ends))]
        order = "F" if about.get("order") == "F" else "C"
        return Array2(
            where, shape, grid, dtype, order, about.get("fill_value"), codec or {}, files, self._read
        )

    def _json(self, name: str) -> dict[str, Any]:
        return json_object(f"{self.path}: {name}", self._read(name))

    def _from_zip(self, name: str) -> bytes:
        info = self._zip.getinfo(name)
        check_size(f"{self.path}: {name}", info.file_size, info.compress_size)
        return self._zip.read(name)

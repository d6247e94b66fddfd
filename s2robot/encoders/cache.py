"""Cache a dataset's features on disk, so that every frame is encoded once instead of once per epoch.

    cache = FeatureCache(root, dataset.fingerprint, encoder.fingerprint, cameras, lengths, encoder.num_tokens,
                         encoder.dim)
    cache.build(make_frames, encoder.encode_cameras)   # encodes missing episodes; resumes after a kill
    cache.features.shape                       # (T, cameras, N, D), all episodes concatenated

N is the largest token count of any camera; the other cameras are padded with zeros.

A cache is a folder named by a hash of dataset, encoder, cameras, number format and renderer. `features.bin` stores raw
little-endian numbers, `index.json` the identity, `done.txt` a line for every finished episode. An episode is marked as
finished after its features are safe on disk, so a kill loses at most the episode in progress.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from s2robot.core.errors import UserError
from s2robot.core.files import write_text
from s2robot.core.provenance import short_hash
from s2robot.core.timing import span

Frames = Iterable[tuple[int, Sequence[np.ndarray]]]  # (episode, one uint8 (T_ep, H, W, 3) per camera)
Encode = Callable[[Sequence[np.ndarray]], Tensor]  # one uint8 (B, H, W, 3) per camera -> (B, C, N, D)
DTYPES = {name: np.dtype(code) for name, code in {"float16": "<f2", "float32": "<f4", "uint8": "u1"}.items()}
VERSION = 1
JOURNAL = "done.txt"
NOTHING: Mapping[str, Any] = MappingProxyType({})


def as_stored(tokens: Tensor, dtype: str = "float16") -> Tensor:
    """Round tokens as the cache does, so that a policy trained from the cache gets the same values."""
    return tokens.half().to(tokens.dtype) if dtype == "float16" else tokens


class FeatureCache:
    """The features of one dataset, computed by one encoder.

    Args:
        root: folder of all caches.
        dataset, encoder: fingerprints (any strings), part of the key.
        cameras: names, in the order of the frames.
        episode_lengths: steps of every episode.
        tokens, dim: tokens of a frame (the largest count of any camera) and their width.
        dtype: number format on disk, "float16", "float32" or "uint8".
        about: JSON-able notes, not part of the key.
        renderer: JSON-able facts about the renderer, part of the key; empty if the dataset contains frames. None: this
            machine cannot render, so any complete cache of this dataset and encoder is used, whatever its renderer.
        shapes: (H, W) of each camera whose frames are not square, part of the key.
        required: required episodes; None: all. Rows of other episodes may be empty.

    Data on disk that does not match all of these is ignored and encoded again.
    """

    def __init__(
        self,
        root: str | Path,
        dataset: str,
        encoder: str,
        cameras: Sequence[str],
        episode_lengths: Sequence[int],
        tokens: int,
        dim: int,
        dtype: str = "float16",
        about: Mapping[str, Any] | None = None,
        renderer: Mapping[str, Any] | None = NOTHING,
        shapes: Mapping[str, Sequence[int]] = NOTHING,
        required: Iterable[int] | None = None,
    ) -> None:
        lengths = [int(n) for n in episode_lengths]
        self.dtype: np.dtype[Any] = DTYPES[dtype]
        self.shape = (sum(lengths), len(cameras), int(tokens), int(dim))  # (T, C, N, D)
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self.starts = self.ends - np.asarray(lengths, dtype=np.int64)
        self.required = list(range(len(lengths))) if required is None else sorted(map(int, required))
        self.identity = {
            "version": VERSION,
            "dataset": dataset,
            "encoder": encoder,
            "cameras": list(cameras),
            "dtype": dtype,
            "shape": list(self.shape),
            "episode_lengths": lengths,
        }
        key = {k: self.identity[k] for k in ("version", "dataset", "encoder", "cameras", "dtype")}
        if shapes:
            key["wide"] = self.identity["wide"] = {name: list(size) for name, size in shapes.items()}
        if renderer:
            key["drawn"] = self.identity["drawn"] = json.loads(json.dumps(renderer))
        self.path = Path(root) / short_hash(key)
        if renderer is None:
            others = sorted(Path(root).glob("*/"))
            self.path = next((p for p in others if {*self.required} <= self.done(p) != set()), self.path)
        self.about = dict(about or {})

    @property
    def nbytes(self) -> int:
        """Size of the features on disk."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def done(self, path: Path | None = None) -> set[int]:
        """Return the episodes with valid features of this dataset and encoder on disk (at `path`)."""
        path = path or self.path
        try:
            index = _index(path)
            size = (path / "features.bin").stat().st_size
        except (OSError, ValueError, TypeError):
            return set()  # no index, or a damaged one: encode again
        same = size == self.nbytes and all(index.get(key) == value for key, value in self.identity.items())
        return index["done"] if same else set()

    def missing(self) -> list[int]:
        """Return the required episodes that are not encoded yet."""
        done = self.done()
        return [i for i in self.required if i not in done]

    @property
    def features(self) -> np.ndarray:
        """All features, read-only (T, C, N, D), memory-mapped. Raises UserError if required episodes are missing."""
        if missing := self.missing():
            which = f"{len(missing)} of {len(self.required)} episodes are missing (first {missing[0]})"
            raise UserError(f"{self.path}: features of {which}; build the cache first")
        if not self.nbytes or not self.required:
            return np.broadcast_to(self.dtype.type(0), self.shape)
        return np.memmap(self.path / "features.bin", self.dtype, "r", shape=self.shape)

    def build(
        self,
        make_frames: Callable[[list[int]], Any],
        encode: Encode | None,
        progress: Callable[[int, int], None] | None = None,
        dataset_of_first: Callable[[int], str] | None = None,
    ) -> np.ndarray:
        """Encode the missing episodes and return `features`.

        Args:
            make_frames: given the missing episodes, yields (episode, one uint8 (T_ep, H, W, 3) per camera) in any order.
            encode: one uint8 (B, H, W, 3) per camera -> (B, C, N, D). None: `make_frames` yields results of `checked`.
            progress: called with (steps done, steps in total), at the start and after every episode.
            dataset_of_first: returns the fingerprint that the dataset had with only its first n episodes; features
                of that earlier dataset are copied.

        Waits for another process that builds the same cache. Raises UserError for features of a wrong shape or beyond
        the range of float16, a missing episode or a full disk.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path / "lock"):
                if not self.done():
                    self._start()
                    if dataset_of_first:
                        self._copy_earlier(dataset_of_first)
                self._encode_missing(make_frames, encode, progress or (lambda done, total: None))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            why = f"the disk is full; the cache needs {self.nbytes / 1e6:.0f} MB; episodes encoded so far are kept"
            raise UserError(f"{self.path}: {why}") from error
        return self.features

    def _encode_missing(
        self,
        make_frames: Callable[[list[int]], Any],
        encode: Encode | None,
        progress: Callable[[int, int], None],
    ) -> None:
        done, lengths = self.done(), self.ends - self.starts
        missing = [i for i in self.required if i not in done]
        total = int(lengths[self.required].sum())
        steps = int(sum(lengths[i] for i in self.required if i in done))
        progress(steps, total)
        if not missing:
            return
        self._mark(done)  # a killed build may leave half a line
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        with (self.path / "features.bin").open("r+b") as file, (self.path / JOURNAL).open("ab") as journal:
            for i, frames in make_frames(missing):
                values = frames
                if encode:
                    with span("encode", episode=i):
                        values = self.checked(i, frames, encode)
                file.seek(int(self.starts[i]) * row)
                with span("write features", episode=i):
                    # features before the journal entry
                    for stream, data in ((file, values.tobytes()), (journal, f"{i}\n".encode())):
                        stream.write(data)
                        stream.flush()
                        os.fsync(stream.fileno())
                steps += int(lengths[i])
                progress(steps, total)

    def _copy_earlier(self, dataset_of_first: Callable[[int], str]) -> None:
        """Copy the features of the longest earlier version of the dataset."""
        candidates, current = [], (self.ends - self.starts).tolist()
        for path in self.path.parent.glob("*/"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                index, size = _index(path), (path / "features.bin").stat().st_size
                lengths, keys = index["episode_lengths"], "version encoder cameras dtype drawn wide".split()
                same = all(index.get(key) == self.identity.get(key) for key in keys)
                row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
                fits = 0 < len(lengths) < len(current) and lengths == current[: len(lengths)]
                if same and fits and index["done"] and 0 < size == sum(lengths) * row:
                    candidates.append((-len(lengths), path, index))
        for count, path, index in sorted(candidates, key=lambda candidate: candidate[:2]):
            if index["dataset"] == dataset_of_first(-count):
                shape = (int(self.ends[-count - 1]), *self.shape[1:])
                new = np.memmap(self.path / "features.bin", self.dtype, "r+", shape=self.shape)
                new[: shape[0]] = np.memmap(path / "features.bin", self.dtype, "r", shape=shape)
                new.flush()  # features before the journal entry
                return self._mark(index["done"])

    def checked(self, i: int, frames: Sequence[np.ndarray], encode: Encode) -> np.ndarray:
        """Encode episode i in the cache's format, (T_ep, C, N, D); UserError for a wrong shape or a lost value."""
        shape = (int(self.ends[i] - self.starts[i]), *self.shape[1:])
        tokens = encode(frames).cpu().numpy()
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(tokens, dtype=self.dtype)
        if values.shape != shape or not np.isfinite(values).all():
            got = f"{tokens.shape} up to {np.abs(tokens).max(initial=0):g}"
            raise UserError(f"episode {i}: expected {shape} finite {self.dtype.name}, got {got}")
        return values

    def _start(self) -> None:
        """Allocate the file, so that a full disk fails immediately, and write an empty index."""
        (self.path / "index.json").unlink(missing_ok=True)
        (self.path / JOURNAL).unlink(missing_ok=True)
        with (self.path / "features.bin").open("wb") as file:
            if self.nbytes:
                os.posix_fallocate(file.fileno(), 0, self.nbytes)
        write_text(self.path / "index.json", json.dumps({**self.identity, "about": self.about}))

    def _mark(self, done: Iterable[int]) -> None:
        write_text(self.path / JOURNAL, "".join(f"{i}\n" for i in sorted(done)))


def _index(path: Path) -> dict[str, Any]:
    """Read a cache's index and journal. Raises OSError or ValueError if they are missing or damaged."""
    index = json.loads((path / "index.json").read_text())
    lines: list[str] = []
    with suppress(FileNotFoundError):
        lines = (path / JOURNAL).read_text().split("\n")[:-1]
    return index | {"done": {*map(int, lines)}}


class Joined:
    """Arrays (M_i, ...) joined along the first axis without copying memory-mapped files, with a tensor's `index_select`."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = tuple(arrays)
        self._ends = np.cumsum([len(a) for a in self.arrays])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.arrays[0].shape[1:])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return a copy of the rows (n, ...) at a slice, list or array of indices (n,)."""
        indices = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        out = np.empty((len(indices), *self.shape[1:]), self.arrays[0].dtype)
        array_of = np.searchsorted(self._ends, indices, "right")
        for i, array in enumerate(self.arrays):
            selected = array_of == i
            if selected.any():
                out[selected] = array[indices[selected] - (self._ends[i] - len(array))]
        return out

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        assert dim == 0
        return torch.from_numpy(self[rows.numpy()])

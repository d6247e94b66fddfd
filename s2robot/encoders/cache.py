"""Features on disk: every frame of a dataset is encoded once, never once an epoch.

    cache = FeatureCache(root, dataset.fingerprint, encoder.fingerprint, cameras, lengths, encoder.num_tokens,
                         encoder.dim)
    cache.build(make_frames, encoder.encode)   # encodes what is missing; goes on after a kill
    cache.features.shape                       # (T, cameras, N, D), all episodes one after the other

N is that of the camera with the most tokens; zeros fill up the others.

A cache is one folder named by a hash of dataset, encoder, cameras, number format and what drew the frames, holding `features.bin`
(raw little-endian numbers) and `index.json` (what they are, which episodes are done). An episode is marked
as done after its features are safe on disk, so a kill at any moment loses at most the episode in progress. While a cache is
built its marks are lines of `done.txt`: an index of all episodes, written after each, would cost the square of their number.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor

from s2robot.common.errors import UserError
from s2robot.common.files import write_text
from s2robot.encoders.cameras import encode_cameras
from s2robot.envs.trace import span

Frames = Iterable[tuple[int, Sequence[np.ndarray]]]  # (episode, one uint8 (T_ep, H, W, 3) a camera)
DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
VERSION = 1
JOURNAL = "done.txt"
NOTHING: Mapping[str, Any] = MappingProxyType({})
_ROUNDING = 2e-3  # of the largest feature: float16 rounds to half of that; other pixels differ by a hundred times more


def as_stored(tokens: Tensor, dtype: str = "float16") -> Tensor:
    """Float tokens rounded as the cache rounds them: what a policy trained from the cache must see."""
    return tokens.half().to(tokens.dtype) if dtype == "float16" else tokens


class FeatureCache:
    """The features of one dataset by one encoder.

    Args:
        root: folder of all caches.
        dataset, encoder: fingerprints (any strings); other ones mean another cache.
        cameras: names, in the order of the frames.
        episode_lengths: steps of every episode.
        tokens, dim: tokens of a frame (the most of any camera) and their width.
        dtype: "float16" or "float32", of the numbers on disk.
        about: JSON-able notes for people, not part of the key.
        drawn: JSON-able facts of what draws the frames from the dataset's states; none where the dataset's
            fingerprint tells all. None: nothing can draw here, so a cache of this dataset and encoder is taken whatever drew it.
        wide: (H, W) of the frames of each camera whose frames are no squares; version 0.1 cut squares out of them.
        wanted: episodes without which it is not whole; None: all. Rows of others may hold nothing.

    Whatever is on disk and does not match all of this is never read: it is encoded again.
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
        drawn: Mapping[str, Any] | None = NOTHING,
        wide: Mapping[str, Sequence[int]] = NOTHING,
        wanted: Iterable[int] | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"features.dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
        lengths = [int(n) for n in episode_lengths]
        self.dtype: np.dtype[Any] = DTYPES[dtype]
        self.shape = (sum(lengths), len(cameras), int(tokens), int(dim))  # (T, C, N, D)
        self.ends = np.cumsum(lengths, dtype=np.int64)
        self.starts = self.ends - np.asarray(lengths, dtype=np.int64)
        self.wanted = list(range(len(lengths))) if wanted is None else sorted(map(int, wanted))
        self.identity = {
            "version": VERSION,
            "dataset": dataset,
            "encoder": encoder,
            "cameras": list(cameras),
            "dtype": dtype,
            "shape": list(self.shape),
            "episode_lengths": lengths,
        }
        named = {k: self.identity[k] for k in ("version", "dataset", "encoder", "cameras", "dtype")}
        if wide:
            named["wide"] = self.identity["wide"] = {name: list(size) for name, size in wide.items()}
        self._bare = Path(root) / _key(named)  # of version 0.1, and of frames that nothing has drawn
        self.path = self._bare
        if drawn:
            self.identity["drawn"] = json.loads(json.dumps(drawn))
            self.path = Path(root) / _key(named | {"drawn": drawn})
        elif drawn is None:
            self.path = next((p for p in sorted(Path(root).glob("*/")) if self._fits(p)), self._bare)
        self.about = dict(about or {})

    @property
    def nbytes(self) -> int:
        """Size of the features on disk."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def done(self) -> set[int]:
        """Episodes whose features are on disk, valid and of this dataset and encoder."""
        return self._done(self.path, self.identity)

    def _done(self, path: Path, identity: Mapping[str, Any]) -> set[int]:
        try:
            index = _index(path)
            size = (path / "features.bin").stat().st_size
        except (OSError, ValueError):
            return set()  # none yet, or a damaged index: encode again
        if size != self.nbytes:
            return set()
        if any(index.get(key) != value for key, value in identity.items()):
            return set()
        return index["done"]

    def _fits(self, path: Path) -> bool:
        done = self._done(path, self.identity)
        return bool(done) and done.issuperset(self.wanted)

    def adopt(
        self,
        make_frames: Callable[[list[int]], Frames],
        encode: Callable[[np.ndarray], Tensor | np.ndarray],
    ) -> bool:
        """Take over a whole cache of version 0.1, which did not note what drew its frames; True if there is one.

        Its shortest episode is drawn and encoded again: if that gives the same features to rounding, what draws here
        is what drew there. Otherwise it is left alone, and everything is encoded again.
        """
        identity = {k: v for k, v in self.identity.items() if k != "drawn"}
        ready = self.path != self._bare and not self.done()
        if not ready or len(self._done(self._bare, identity)) != len(self.ends) or not self.nbytes:
            return False
        shortest = int(np.argmin(self.ends - self.starts))
        there = np.memmap(self._bare / "features.bin", self.dtype, "r", shape=self.shape)
        old = there[self.starts[shortest] : self.ends[shortest]].astype(np.float32)
        _, frames = next(iter(make_frames([shortest])))
        new = self.checked(shortest, frames, encode).astype(np.float32)
        if np.abs(new - old).max() > _ROUNDING * np.abs(old).max():
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        self._write_index(set(range(len(self.ends))), self._bare)
        os.rename(self._bare, self.path)
        return True

    def missing(self) -> list[int]:
        """Episodes still to be encoded."""
        done = self.done()
        return [i for i in self.wanted if i not in done]

    @property
    def features(self) -> np.ndarray:
        """All features, read-only (T, C, N, D), memory-mapped. Raises UserError if wanted episodes are missing."""
        if missing := self.missing():
            raise UserError(
                f"{self.path}: features of {len(missing)} of {len(self.wanted)} episodes are missing "
                f"(first {missing[0]}); build the cache first"
            )
        if not self.nbytes:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.path / "features.bin", self.dtype, "r", shape=self.shape)

    def build(
        self,
        make_frames: Callable[[list[int]], Any],
        encode: Callable[[np.ndarray], Tensor | np.ndarray] | None,
        progress: Callable[[int, int], None] | None = None,
        dataset_of_first: Callable[[int], str] | None = None,
    ) -> np.ndarray:
        """Encode the missing episodes and return `features`.

        Args:
            make_frames: given the missing episodes, yields (episode, one uint8 (T_ep, H, W, 3) a camera) in any order.
            encode: uint8 (B, H, W, 3) -> (B, N, D); None: `make_frames` yields what `checked` gave elsewhere.
            progress: called with (steps done, steps in all), at the start and after every episode.
            dataset_of_first: the fingerprint of the dataset when it had only the first so many episodes. What a cache
                of then holds is copied.

        Another process that builds the same cache is waited for. Raises UserError for frames or features of a
        wrong shape, features that float16 cannot hold, an episode not delivered, and a full disk.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with self._lock():
                if not self.done():
                    self._start()
                    self._take_over(dataset_of_first)
                self._encode_missing(make_frames, encode, progress or (lambda done, total: None))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{self.path}: the disk is full; the cache needs {self.nbytes / 1e6:.0f} MB; "
                "episodes encoded so far are kept"
            ) from error
        return self.features

    def _encode_missing(
        self,
        make_frames: Callable[[list[int]], Any],
        encode: Callable[[np.ndarray], Tensor | np.ndarray] | None,
        progress: Callable[[int, int], None],
    ) -> None:
        done = self.done()
        missing = [i for i in self.wanted if i not in done]
        lengths = self.ends - self.starts
        total = int(lengths[self.wanted].sum())
        steps = int(sum(lengths[i] for i in self.wanted if i in done))
        progress(steps, total)
        self._close_journal(done)  # of a build that was killed, whose last line may be cut off
        if not missing:
            return
        with (
            (self.path / "features.bin").open("r+b", buffering=0) as file,
            (self.path / JOURNAL).open("ab", buffering=0) as journal,
        ):
            for i, frames in make_frames(missing):
                values = frames
                if encode:
                    with span("encode", episode=i):
                        values = self.checked(i, frames, encode)
                offset = int(self.starts[i]) * int(np.prod(self.shape[1:])) * self.dtype.itemsize
                with span("write features", episode=i):
                    _write_all(file.fileno(), values.reshape(-1).view(np.uint8).data, offset)
                    os.fsync(file.fileno())  # features before the mark that they are there
                    journal.write(f"{i}\n".encode())
                    os.fsync(journal.fileno())
                    done.add(i)
                steps += int(lengths[i])
                progress(steps, total)
        self._close_journal(done)
        if left := [i for i in missing if i not in done]:
            raise UserError(f"{self.path}: no frames came for {len(left)} episodes (first {left[0]})")

    def _take_over(self, dataset_of_first: Callable[[int], str] | None) -> None:
        """Copy what the cache of the longest earlier state of the dataset holds."""
        if dataset_of_first is None:
            return
        found = [(count, path) for path in self.path.parent.glob("*/") if (count := self._grew_from(path))]
        for count, path in sorted(found, key=lambda pair: (-pair[0], pair[1])):
            index = _index(path)
            if index["dataset"] != dataset_of_first(count):
                continue
            shape = (int(self.ends[count - 1]), *self.shape[1:])
            old = np.memmap(path / "features.bin", self.dtype, "r", shape=shape)
            new = np.memmap(self.path / "features.bin", self.dtype, "r+", shape=self.shape)
            new[: len(old)] = old
            new.flush()  # features before the mark that they are there
            return self._write_index(index["done"])

    def _grew_from(self, path: Path) -> int:
        """How many episodes a cache of fewer than ours has that differs in nothing but the dataset; else 0."""
        try:
            index = _index(path)
            lengths, size = index["episode_lengths"], (path / "features.bin").stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        count, ours = len(lengths), (self.ends - self.starts).tolist()
        same = all(
            index.get(key) == self.identity.get(key)
            for key in ("version", "encoder", "cameras", "dtype", "drawn", "wide")
        )
        row = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        fits = index.get("done") and lengths == ours[:count] and size == sum(lengths) * row
        return count if same and fits and 0 < count < len(ours) and size else 0

    def checked(
        self, i: int, frames: Sequence[np.ndarray], encode: Callable[[np.ndarray], Tensor | np.ndarray]
    ) -> np.ndarray:
        """Features of episode i in the cache's format, (T_ep, C, N, D), with every mismatch a UserError."""
        length, cameras = int(self.ends[i] - self.starts[i]), self.shape[1]
        for seen in frames:
            if seen.dtype != np.uint8 or seen.ndim != 4 or len(seen) != length:
                raise UserError(
                    f"episode {i}: found frames {seen.dtype} {seen.shape}, expected uint8 ({length} steps, H, W, 3)"
                )
        if len(frames) != cameras:
            raise UserError(f"episode {i}: found frames of {len(frames)} cameras, expected {cameras}")
        if not length:
            return np.zeros((0, *self.shape[1:]), self.dtype)
        tokens = encode_cameras(encode, frames).cpu().numpy()  # (T_ep, C, N, D)
        if tokens.shape[2:] != self.shape[2:]:
            raise UserError(
                f"episode {i}: the encoder gives tokens {tokens.shape[2:]}, the cache is for {self.shape[2:]}"
            )
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(tokens, dtype=self.dtype)
        if not np.isfinite(values).all():
            largest = np.abs(tokens).max()
            raise UserError(
                f"episode {i}: features are not finite as {self.dtype.name} (largest {largest:g})"
            )
        return values

    def _start(self) -> None:
        """A file of the right size and an empty index; claims the space now, so a full disk shows at once."""
        (self.path / "index.json").unlink(missing_ok=True)
        (self.path / JOURNAL).unlink(missing_ok=True)
        with (self.path / "features.bin").open("wb") as file:
            if self.nbytes:
                os.posix_fallocate(file.fileno(), 0, self.nbytes)
        self._write_index(set())

    def _write_index(self, done: set[int], path: Path | None = None) -> None:
        index = {**self.identity, "about": self.about, "done": sorted(done)}
        write_text((path or self.path) / "index.json", json.dumps(index))

    def _close_journal(self, done: set[int]) -> None:
        """What it says goes into the index; a kill between leaves it said twice."""
        if (self.path / JOURNAL).exists():
            self._write_index(done)
            (self.path / JOURNAL).unlink()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Held by one process at a time, and let go by the system when that process dies."""
        with (self.path / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _index(path: Path) -> dict[str, Any]:
    """What a cache says of itself. Raises OSError or ValueError where it says nothing that can be read."""
    whole: list[str] = []
    # read first: who builds writes the index before it takes the journal away
    with suppress(FileNotFoundError):
        whole = (path / JOURNAL).read_text().split("\n")[:-1]
    index = json.loads((path / "index.json").read_text())
    if not isinstance(index, dict):
        raise ValueError(f"{path}: found an index of {type(index).__name__}, expected a table")
    done = index.get("done", [])
    if not isinstance(done, list) or not all(type(i) is int for i in done):
        raise ValueError(f"{path}: found done {done!r}, expected numbers of episodes")
    return index | {"done": {*done, *map(int, whole)}}


def _key(named: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written

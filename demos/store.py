"""Store episodes in one zarr folder, appending each atomically.

    with EpisodeStore.create("demos.zarr", attributes) as store:
        store.append({"action": actions, "proprio": proprio}, {"seed": 7, "success": True})
    store = EpisodeStore.open("demos.zarr")
    store["action"].shape   # (all steps, 8)

``data/<key>`` holds all episodes end to end, ``meta/episode_ends`` their ends, and ``meta/<key>`` a value per episode.
Format: zarr 3, zstd with a checksum in every chunk; images are sharded in chunks of a few frames, for random reads.

An append survives kill -9. zarr writes each file under a temporary name and renames it, so a chunk is either old or
new, and the new one includes the earlier episodes. Arrays grow first, ``episode_ends`` last: it is padded with zeros,
and a single rename of its chunk then commits the episode. Readers stop at the first zero in ``episode_ends``, and the
next writer removes uncommitted rows. Files are not synced, so a power failure may lose data on some file systems.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from s2robot.core.errors import check_same
from s2robot.core.settings import read
from s2robot.demos import arrays
from s2robot.demos.arrays import ENDS, StoredArray
from s2robot.demos.bounds import json_file
from s2robot.demos.errors import disk_error, mismatch
from s2robot.demos.schema import SCHEMA_VERSION, check_joints, checked_attributes, checked_episode

Arrays = Mapping[str, Any]  # key -> numbers
PIECE_BYTES = 8 << 20  # copied from another dataset at a time
Split = tuple[np.ndarray, np.ndarray]  # indices of episodes to train on and to validate on, sorted


def _attributes(path: Path) -> dict[str, Any]:
    file = path / "zarr.json"
    return read(dict[str, Any], json_file(file).get("attributes"), f"{file}: attributes")


class EpisodeStore(contextlib.AbstractContextManager["EpisodeStore"]):
    """A dataset of episodes; use :meth:`create` or :meth:`open`.

    The first episode defines ``keys`` and ``meta_keys``. A reader sees the episodes committed before it was opened, even
    if another process appends. Only one process at a time can write to the store.
    """

    def __init__(self, path: Path, mode: str):
        self.path, self.mode = path, mode
        self._lock: Any = None
        self._fingerprint: str | None = None
        self._arrays: dict[str, StoredArray] = {}  # "data/<key>", "meta/<key>"
        self._specs: dict[str, list] = {}  # name -> [dtype, shape of a row]
        if mode != "a":
            self._load()
            return
        try:
            self._acquire_lock()
            self._load()
            for file in self.path.rglob("*.partial"):  # left by a killed writer
                file.unlink(missing_ok=True)
            self._cut()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: str | Path, attributes: Mapping[str, Any]) -> "EpisodeStore":
        """Create an empty dataset with these attributes (see `schema.py`), open for appending (UserError)."""
        path = Path(path)
        attributes = checked_attributes(path, attributes)
        check_joints(path, attributes)
        with arrays.new_path(path) as fresh:
            about = {**attributes, "arrays": {}}
            root = zarr.create_group(LocalStore(fresh), zarr_format=3, attributes=about)
            root.create_group("data")
            arrays.create_array(root, ENDS, np.dtype(np.int64), ())
        return cls(path, "a")

    @classmethod
    def open(cls, path: str | Path, mode: str = "r") -> "EpisodeStore":
        """Open a dataset to read ("r") or append ("a"); UserError: missing, broken, or in use by another writer."""
        path = Path(path)
        if not path.is_dir():
            raise mismatch(path, "a dataset folder", "a file" if path.exists() else "none")
        return cls(path, mode)

    def close(self) -> None:
        """Release the write lock; the store can still be read."""
        if self._lock is not None:
            self._lock()  # closes the descriptor, once only
        self._lock, self.mode = None, "r"

    def __exit__(self, *_: object) -> None:
        self.close()

    def _acquire_lock(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)  # lock the folder itself, which leaves no lock file
        self._lock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise mismatch(self.path, "one writer at a time", "another writer at work") from None

    def _load(self) -> None:
        # read the commit record first, so that the attributes cover every episode it counts
        file = self.path / "zarr.json"
        found = _attributes(self.path).get("schema_version")
        if found is None:
            raise mismatch(file, "an episode store, or a replay buffer in zarr 2", "another zarr group")
        check_same(file, {"schema_version": SCHEMA_VERSION}, {"schema_version": found})
        self._arrays[ENDS] = StoredArray.open(self.path, ENDS, self.mode)
        self.episode_ends = arrays.committed_ends(self._arrays[ENDS])  # (episodes,) int64
        attributes = _attributes(self.path)
        specs = attributes.pop("arrays", None)
        if not isinstance(specs, dict) or (len(self) and not any(name.startswith("data/") for name in specs)):
            raise mismatch(file, "arrays: name -> [dtype, shape]", specs)
        self._attrs = checked_attributes(self.path, attributes)
        for name in specs if len(self) else ():
            stored = self._arrays[name] = StoredArray.open(self.path, name, self.mode)
            self._specs[name] = [str(stored.array.dtype), list(stored.array.shape[1:])]
            stored.check(self._rows(name))

    def _cut(self) -> None:
        """Remove rows beyond the last commit."""
        for name, stored in self._arrays.items():
            if stored.array.shape[0] > self._rows(name):
                stored.array.resize((self._rows(name), *stored.array.shape[1:]))

    def append(self, episode: Arrays, meta: Arrays | None = None) -> None:
        """Add one whole episode; after an error (UserError), the dataset is unchanged.

        ``episode``: key -> finite numbers (T, ...), T >= 1 equal; ``meta``: key -> number, bool or small numeric array.
        """
        self.append_pieces([episode], meta)

    def check_fits(self, episode: Arrays, meta: Arrays) -> None:
        """Reject an episode that :meth:`append` would reject (UserError), before one like it is recorded."""
        checked_episode(f"{self.path}: another episode", self._specs, episode, meta, self._attrs)

    def append_pieces(self, pieces: Iterable[Arrays], meta: Arrays | None = None) -> None:
        """Like :meth:`append`, for an episode that arrives a few steps at a time."""
        self._commit(pieces, [meta or {}])

    def _commit(
        self, pieces: Iterable[Arrays], meta: Sequence[Arrays], lengths: np.ndarray | None = None
    ) -> None:
        """Append episodes of these lengths in one commit; by default, all pieces form one episode."""
        if self.mode != "a":
            raise mismatch(self.path, "mode 'a' to append", self.mode)
        where, first, keys = f"{self.path}: episode {len(self)}", self.num_steps, list[str]()
        end = first
        try:
            for piece in pieces:
                steps, values = checked_episode(where, self._specs, piece, meta[0], self._attrs)
                keys = list(values)
                if end == 0:  # the first episode defines the arrays
                    rows = [(f"data/{k}", v.dtype, v.shape[1:]) for k, v in steps.items()]
                    rows += [(f"meta/{k}", v.dtype, v.shape) for k, v in values.items()]
                    self._specs = {name: [str(dtype), list(shape)] for name, dtype, shape in rows}
                    new_arrays = arrays.define_arrays(self.path, self._attrs, self._specs)
                    self._arrays = {ENDS: self._arrays[ENDS], **new_arrays}
                for key, value in steps.items():
                    self._arrays[f"data/{key}"].extend(end, value)
                end += len(next(iter(steps.values())))
            if end == first:
                raise mismatch(where, "at least one step", "none")
            for key in keys:
                self._arrays[f"meta/{key}"].extend(len(self), np.stack([each[key] for each in meta]))
            ends = np.array([end]) if lengths is None else first + np.cumsum(lengths)
            self._arrays[ENDS].extend(len(self), ends)  # the commit
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._cut()
            self._specs = self._specs if len(self) else {}
            if isinstance(error, OSError):
                lost = f"episode {len(self)} is lost; {len(self)} earlier episodes are intact"
                raise disk_error(self.path, error, lost) from None
            raise
        self.episode_ends = np.append(self.episode_ends, ends)
        self._fingerprint = None

    def append_all(self, other: "EpisodeStore", first: int | None = None) -> None:
        """Append the (``first``) episodes of a dataset; UserError: attributes other than ``seed``, or arrays, differ."""
        check_same(other.path, self.attrs, other.attrs, f" as in {self.path}", free=("seed",))
        lengths, columns = other.lengths[:first], {key: other.meta(key) for key in other.meta_keys}
        meta = [{key: values[i] for key, values in columns.items()} for i in range(len(lengths))]
        rows = max(1, PIECE_BYTES // max(sum(other.read(key, 0, 1).nbytes for key in other.keys), 1))
        chunk, done = self._arrays[ENDS].array.chunks[0], 0
        while done < len(lengths):
            # commit the first episode of a chunk alone: see `arrays.committed_ends`
            room = -len(self) % chunk or 1
            begin, end = other._first_row(done), other._first_row(min(done + room, len(lengths)))
            pieces = (
                {key: other.read(key, at, min(at + rows, end)) for key in other.keys}
                for at in range(begin, end, rows)
            )
            self._commit(pieces, meta[done : done + room], lengths[done : done + room])
            done += room

    def __len__(self) -> int:
        return len(self.episode_ends)

    def __getitem__(self, key: str) -> np.ndarray:
        """Return all committed steps of a key.  # (num_steps, ...)"""
        return self.read(key, 0, self.num_steps)

    def read(self, key: str, start: int, stop: int) -> np.ndarray:
        """Return steps ``start`` to ``stop`` of a key, counted over all episodes.  # (stop - start, ...)"""
        self._check_key("data", key)
        return self._arrays[f"data/{key}"].read(start, min(stop, self.num_steps))

    def meta(self, key: str) -> np.ndarray:
        """Return one value per episode.  # (episodes, ...)"""
        self._check_key("meta", key)
        return self._arrays[f"meta/{key}"].read(0, len(self))

    def episode_slice(self, i: int) -> slice:
        """Return the rows of episode ``i`` in the arrays over time; negative ``i`` counts from the end."""
        return slice(self._first_row(range(len(self))[i]), int(self.episode_ends[i]))

    def episode(self, i: int) -> dict[str, np.ndarray]:
        """Return all arrays of episode ``i``.  # key -> (T, ...)"""
        rows = self.episode_slice(i)
        return {key: self.read(key, rows.start, rows.stop) for key in self.keys}

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(n.removeprefix("data/") for n in self._specs if n.startswith("data/"))

    @property
    def meta_keys(self) -> tuple[str, ...]:
        return tuple(n.removeprefix("meta/") for n in self._specs if n.startswith("meta/"))

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of one step of a key."""
        self._check_key("data", key)
        return tuple(self._specs[f"data/{key}"][1])

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode.  # (episodes,)"""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def num_steps(self) -> int:
        return self._first_row(len(self))

    @property
    def attrs(self) -> dict[str, Any]:
        """A copy of the attributes, including schema_version."""
        return json.loads(json.dumps(self._attrs))

    @property
    def robot(self) -> str:
        return self._attrs["robot"]

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self._attrs["cameras"])

    @property
    def fingerprint(self) -> str:
        """sha256 of the attributes and committed contents, independent of the file layout."""
        if self._fingerprint is None:
            self._fingerprint = self.fingerprint_of_first(len(self))
        return self._fingerprint

    def fingerprint_of_first(self, episodes: int) -> str:
        """Return the fingerprint that the first `episodes` alone have."""
        ends = self.episode_ends[:episodes]
        specs = self._specs if len(ends) else {}
        digest = hashlib.sha256(json.dumps([self._attrs, specs], sort_keys=True).encode())
        digest.update(ends.tobytes())
        for name in sorted(specs):
            dtype, shape = specs[name]
            step = max(1, arrays.CHUNK_BYTES // max(np.dtype(dtype).itemsize * math.prod(shape), 1))
            count = self._first_row(len(ends)) if name.startswith("data/") else len(ends)
            for start in range(0, count, step):
                digest.update(self._arrays[name].read(start, min(start + step, count)).tobytes())
        return digest.hexdigest()

    def split(self, fraction: float, seed: int, chosen: Any = None, spent: Collection[int] = ()) -> Split:
        """Draw training episodes and a ``fraction`` for validation, at least one of each unless that is 0 (DatasetError).

        ``chosen``: the episodes to split, a count from the start, a list, or None for all. ``spent`` are never held out.
        """
        pool = np.array(chosen) if isinstance(chosen, list) else np.arange(len(self))[:chosen]
        total, minimum = len(pool), 2 if fraction else 1
        if total < minimum:
            raise mismatch(self.path, f"at least {minimum} episodes", total)
        count = min(max(round(fraction * total), 1), total - 1) if fraction else 0
        order = pool[np.random.default_rng(seed).permutation(total)]
        held_out = order[~np.isin(order, list(spent))][:count]
        if count and not len(held_out):
            got = f"{total} duplicates or episodes that train.from's policy was trained on"
            raise mismatch(self.path, "unseen episodes to hold out, or train.validation=0", got)
        return np.setdiff1d(order, held_out), np.sort(held_out)

    def check(self, robot=None, action_frame=None, cameras=(), rate_hz=None) -> None:
        """Reject a dataset with another robot, action frame or rate, or without one of the cameras (DatasetError)."""
        expected = {"robot": robot, "action_frame": action_frame, "rate_hz": rate_hz}
        expected = {name: value for name, value in expected.items() if value is not None}
        check_same(self.path, expected, {name: self._attrs[name] for name in expected})
        if missing := [camera for camera in cameras or () if camera not in self.cameras]:
            names = ",".join(self.cameras)
            use = f"; use env.cameras=[{names}]" if names else ""
            raise mismatch(f"{self.path}: cameras", f"'{missing[0]}' among them", f"{names or 'none'}{use}")

    def _first_row(self, i: int) -> int:
        return int(self.episode_ends[i - 1]) if i else 0

    def _rows(self, name: str) -> int:
        return self.num_steps if name.startswith("data/") else len(self)

    def _check_key(self, group: str, key: str) -> None:
        keys = self.keys if group == "data" else self.meta_keys
        if key not in keys:
            raise mismatch(self.path / group, f"the key '{key}'", ", ".join(keys) or "none")

"""Base class of the readers: the selected episodes of a dataset, in pieces, with the attributes of a store.

Our writers add a :class:`Sidecar` to the format's own fields, from which the readers restore the same store: names,
types, the order of cameras and the parts. Other programs ignore it.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator

from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, Stored, from_yaml, read
from s2robot.demos.bounds import number_type
from s2robot.demos.errors import DatasetError, mismatch, readable
from s2robot.demos.replay import camera_sizes
from s2robot.demos.schema import check_finite
from s2robot.demos.selection import Episodes, numbers
from s2robot.demos.store import EpisodeStore

NAME = "s2robot"  # of the sidecar's attribute, and of the group for arrays that the format cannot hold
PIECE_BYTES = 32 << 20  # images per piece: memory does not grow with the length of an episode
SHOWN = 12  # keys listed in a message

Piece = dict[str, np.ndarray]
Names = Sequence[str]
Progress = Callable[[int, int], None]  # (steps done, total)
Dtype = Annotated[str, AfterValidator(lambda name: str(number_type("dtype", name)))]
Types = dict[str, tuple[Dtype, tuple[int, ...]]]  # key -> dtype, shape of a row


def walk(folder: Path) -> list[Path]:
    """Return the files of a dataset, also behind links to folders, which `Path.rglob` does not follow; each folder once."""
    found, seen = list[Path](), set[str]()
    for at, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(at))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(at, name)) not in seen]
        found += [
            path for name in names if (path := Path(at, name)).is_file()
        ]  # no links to devices and pipes
    return found


def silent(done: int, total: int) -> None:
    """Show no progress."""


class Choice(Settings, file="convert"):
    """The contents to read from a dataset; configs/convert.yaml documents each value."""

    action: tuple[str, ...] | None = from_yaml()
    proprio: tuple[str, ...] | None = from_yaml()
    cameras: tuple[str, ...] | None = from_yaml()
    action_kind: Literal["absolute", "delta"] = from_yaml()
    rate_hz: float | None = from_yaml(gt=0)
    episodes: Episodes = from_yaml()
    mask: str | None = from_yaml()
    tolerance_s: float = from_yaml(gt=0)
    image_size: int | None = from_yaml(ge=1)


class Sidecar(Stored):
    """Attributes of a store, and the types and locations of its arrays and values."""

    attributes: dict[str, Any]
    arrays: Types  # over time
    values: Types  # one per episode
    places: dict[str, tuple[str, ...]]  # array -> the file's arrays, joined by columns

    @classmethod
    def of_store(cls, store: EpisodeStore, places: Mapping[str, Sequence[str]]) -> "Sidecar":
        """Describe a store whose arrays are written to ``places``; rendered frames count as images."""
        attributes = {k: v for k, v in store.attrs.items() if k != "schema_version"} | {"kind": "images"}
        sizes = camera_sizes(store, store.cameras)
        arrays: dict[str, Any] = {f"images_{name}": ("uint8", (*size, 3)) for name, size in sizes.items()}
        arrays |= {key: (str(store.read(key, 0, 1).dtype), store.shape(key)) for key in store.keys}
        values = {k: (str(v.dtype), v.shape[1:]) for k in store.meta_keys for v in [store.meta(k)]}
        arrays = {key: arrays[key] for key in places}
        return read(cls, {"attributes": attributes, "arrays": arrays, "values": values, "places": places})

    def array(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Join columns of the file into an array of the store.  # (t, ...)"""
        dtype, row = self.arrays[key]
        joined = columns[0] if len(columns) == 1 else np.concatenate(columns, 1)
        return np.asarray(joined).reshape(len(joined), *row).astype(dtype, copy=False)

    def episode_values(self, stored: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
        """Return an episode's values with their stored types (DatasetError)."""
        with readable(where):
            return {k: np.asarray(stored[k], d).reshape(s) for k, (d, s) in self.values.items()}


class Source(ABC):
    """A dataset whose episodes are validated while they are read; every error is one line.

    A subclass sets `lengths`, and sets `keys` and `attributes` with `restore`, or with `choose` and `describe`.
    """

    def __init__(self, path: Path, choice: Choice):
        self.path, self.choice = path, choice
        self.attributes: dict[str, Any] = {}  # of a store with kind "images"
        self.keys: dict[str, list[str]] = {}  # array -> the file's arrays, joined by columns
        # array -> columns of each of them; "": all, text such as ":2" until sizes are known
        self.columns: dict[str, list[Any]] = {}
        self.lengths: Sequence[int] = ()  # steps of each episode in the file
        self.notes: list[str] = []  # for the user, about omitted contents
        self.progress: Progress = silent
        self.sidecar: Sidecar | None = None
        self._done = 0

    @abstractmethod
    def pieces_of(self, number: int) -> Iterator[Piece]:
        """Yield the arrays of an episode a few steps at a time; each piece has all keys.  # key -> (t, ...)"""

    def values_of(self, number: int) -> dict[str, Any]:
        """Return an episode's values, one per key."""
        return {}

    def name_of(self, number: int) -> str:
        """Return the name of an episode for messages."""
        return f"{self.path}: episode {number}"

    def missing_file(self, number: int) -> Path | None:
        """Return a missing file of an episode, or None."""
        return None

    def select(self) -> None:
        """Select the episodes; DatasetError if one of them or its file does not exist."""
        episodes, total = self.choice.episodes, len(self.lengths)
        is_count = episodes is None or isinstance(episodes, int)
        self._chosen = sorted(range(total)[:episodes] if is_count else numbers(episodes, total, "episodes"))
        if not self._chosen:
            raise mismatch(self.path, "at least one episode", "none")
        self.steps = sum(int(self.lengths[i]) for i in self._chosen)
        if missing := {i: file for i in self._chosen if (file := self.missing_file(i))}:
            raise mismatch(next(iter(missing.values())), "a file", f"none{self._without(set(missing))}")

    def _without(self, bad: set[int]) -> str:
        others = as_ranges([i for i in self._chosen if i not in bad])
        return f'; "episodes=[{others}]" (or demos.episodes) may read the others' if others else ""

    def __len__(self) -> int:
        return len(self._chosen)

    def values(self, i: int) -> dict[str, Any]:
        with readable(self.path):
            return self.values_of(self._chosen[i])

    def pieces(self, i: int) -> Iterator[Piece]:
        """Yield the arrays of the selected episode ``i``, a few steps at a time (DatasetError)."""
        number, start = self._chosen[i], 0
        pieces = self.pieces_of(number)
        while True:
            try:
                with readable(self.path):  # excludes errors of the caller
                    if (piece := next(pieces, None)) is None:
                        return
                    for key, array in piece.items():
                        check_finite(f"{self.name_of(number)}: {key}", array, start)
            except UserError as error:
                raise DatasetError(f"{error}{self._without({number})}") from error
            yield piece
            steps = len(next(iter(piece.values())))
            start, self._done = start + steps, self._done + steps
            self.progress(self._done, self.steps)

    def restore(self, stored: dict[str, Any], where: str) -> bool:
        """Restore keys, types and attributes from a sidecar; False if the user selected other keys (UserError)."""
        sidecar, choice = read(Sidecar, stored, f"{where}: "), self.choice
        if choice.action is not None or choice.proprio is not None:
            self.notes.append(f"{where}: what s2robot stored is ignored, because action or proprio is set")
            return False
        about = sidecar.attributes
        self.check_rate(about["rate_hz"], where)
        cameras = about["cameras"]
        if choice.cameras is not None:
            cameras = chosen(choice.cameras, cameras, "cameras", self.path)
        omitted = {f"images_{name}" for name in about["cameras"] if name not in cameras}
        self.keys = {key: list(places) for key, places in sidecar.places.items() if key not in omitted}
        self.sidecar, self.attributes = sidecar, about | {"cameras": cameras}
        return True

    def check_rate(self, rate: float, where: object) -> None:
        """Reject a `rate_hz` that differs from the stored one (DatasetError)."""
        if self.choice.rate_hz not in (None, rate):
            raise mismatch("rate_hz", f"{rate:g} as in {where}, or null", f"{self.choice.rate_hz:g}")

    def choose(self, cameras: Mapping[str, str], **arrays: tuple[Names, Names]) -> dict[str, str]:
        """Set the file's arrays for action and proprio, and return the selected cameras, key -> name (DatasetError).

        ``arrays``: for `action` and `proprio`, the available arrays and the format's usual ones.
        """
        names = {name: key for key, name in cameras.items()}
        if (selected := self.choice.cameras) is not None:
            keys = [names.get(n, n) for n in chosen(selected, [*names, *cameras], "cameras", self.path)]
            cameras = {key: cameras[key] for key in keys}
        if len({*cameras.values()}) < len(cameras):
            raise mismatch(self.path, "cameras with different names", ", ".join(cameras))
        for array, (known, usual) in arrays.items():
            terms = [key.partition("[") for key in getattr(self.choice, array) or usual or (array,)]
            keys = [key for key, _, _ in terms]
            self.keys[array] = chosen(keys, known, f"{array}, numbers (T, n)", self.path)
            self.columns[array] = [columns.removesuffix("]") for _, _, columns in terms]
        return dict(cameras)

    def leave_out(self, arrays: Mapping[str, Any], cameras: Sequence[str]) -> None:
        """Note the arrays that are not read. DatasetError: without any camera, one looks like images of another form."""
        for name, array in arrays.items():
            form = f"{array.dtype} {array.shape}" if hasattr(array, "dtype") else "a group"
            if not cameras and self.choice.cameras is None and getattr(array, "ndim", 0) == 4:
                raise mismatch(f"{self.path}: {name}", "images uint8 (T, H, W, 3), or cameras=[]", form)
            self.notes.append(f"{name} is left out: {form}")

    def describe(
        self, kind: str, robot: str | None, rate_hz: float, cameras: Mapping[str, Sequence[int]],
        action_parts: list[dict], proprio_parts: list[dict], **more: Any,
    ) -> None:  # fmt: skip
        """Set the attributes; `cameras`: name -> (H, W), `kind`: the source's format or world. DatasetError: a column
        does not exist."""
        for array, parts in (("action", action_parts), ("proprio", proprio_parts)):
            for i, columns in enumerate(self.columns.get(array, ())):
                if columns:
                    where = f"{self.path}: {array}: {self.keys[array][i]}"
                    parts[i], self.columns[array][i] = cut(parts[i], columns, where)
        names = [n for part in proprio_parts for n in part.get("names") or []]
        self.attributes = {
            "robot": robot or "unknown",
            "joint_names": names if len(set(names)) == len(names) else [],
            "rate_hz": rate_hz,
            "cameras": list(cameras),
            "camera_geometry": {name: {"size": list(size)} for name, size in cameras.items()},
            "action_frame": "parts",
            "env_version": kind,
            "env_config": {},
            "seed": 0,
            "kind": "images",
            "action_parts": action_parts,
            "proprio_parts": proprio_parts,
            "source": {"format": kind, "name": self.path.name},
            **more,
        }

    def sliced(self, arrays: Mapping[str, list], start: int, stop: int, more: int = 0) -> Iterator[Piece]:
        """Yield pieces of the file's arrays, joined by `keys`; ``more``: bytes per step that the reader adds itself."""
        row = sum(a.dtype.itemsize * math.prod(a.shape[1:]) for each in arrays.values() for a in each)
        for rows in piece_slices(start, stop, row + more):
            yield {key: self.joined(key, [a[rows] for a in each]) for key, each in arrays.items()}

    def joined(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Join the file's arrays that `keys` lists for an array of the store.  # (t, ...)"""
        if self.sidecar:
            return self.sidecar.array(key, columns)
        if key not in ("action", "proprio"):
            return columns[0]
        flat = [np.asarray(c).reshape(len(c), -1) for c in columns]
        selected = self.columns.get(key) or [""] * len(flat)
        flat = [array[:, which] if which else array for array, which in zip(flat, selected, strict=True)]
        with np.errstate(over="ignore"):  # the store rejects infinity
            return np.concatenate(flat, 1).astype(np.float32)


NEEDS = {"lerobot": ("pyarrow", "av"), "robomimic": ("h5py",)}  # format -> packages from the extra `data`


def as_ranges(episodes: Sequence[int]) -> str:
    """Return [0, 1, 2, 5] as "0:3,5"."""
    known = set(episodes)
    starts = [i for i in episodes if i - 1 not in known]
    ends = [i + 1 for i in episodes if i + 1 not in known]
    return ",".join(str(a) if b == a + 1 else f"{a}:{b}" for a, b in zip(starts, ends, strict=True))


def piece_slices(start: int, stop: int, step_bytes: int) -> Iterator[slice]:
    """Split steps into pieces of about PIECE_BYTES."""
    step = int(np.clip(PIECE_BYTES // max(step_bytes, 1), 4, 4096))
    yield from (slice(at, min(at + step, stop)) for at in range(start, stop, step))


def part_of(key: str, size: int, kind: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a part named after its key, with other characters than letters, digits and _ replaced."""
    name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in key)
    return {"name": name, "size": size, "kind": kind} | ({"names": list(names)} if names else {})


def cut(part: dict[str, Any], columns: str, where: str) -> tuple[dict[str, Any], list[int]]:
    """Select columns of a part, such as ":2" for 0 and 1; return the smaller part and the columns (DatasetError)."""
    if part["kind"] not in ("absolute", "delta") or "low" in part:
        raise mismatch(where, "all columns, which belong together", f"[{columns}]")
    selected = numbers(columns, part["size"], where, "columns")
    names = {"names": [part["names"][i] for i in selected]} if "names" in part else {}
    return {**part, "size": len(selected), **names}, selected


def chosen(keys: Sequence[str], known: Sequence[str], what: str, path: Path) -> list[str]:
    """Return the selected keys; DatasetError names one that does not exist."""
    known = list(dict.fromkeys(known))  # a camera's name may equal its key
    if missing := [key for key in keys if key not in known]:
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        names = f"{', '.join(known[:SHOWN]) or 'none'}{more}"
        raise mismatch(f"{path}: {what}", f"some of {names}", f"'{missing[0]}'")
    return list(keys)

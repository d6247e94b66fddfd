"""The common base of the readers: the chosen episodes of a dataset, in pieces, with the attributes of a store.

source = read(Path("lift"), Choice())
for piece in source.pieces(0):      # {"action": (t, A), "proprio": (t, P), "images_top": (t, H, W, 3)}
    ...
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2robot.core.settings import Settings, from_yaml, read
from s2robot.demos.errors import DatasetError, mismatch, one_line
from s2robot.demos.formats.sidecar import Sidecar
from s2robot.demos.schema import check_finite
from s2robot.demos.selection import Episodes, numbers

PIECE_BYTES = 32 << 20  # of images in a piece: memory does not grow with an episode
SHOWN = 12  # keys in a message

Piece = dict[str, np.ndarray]
Progress = Callable[[int, int], None]  # steps done, of how many


def silent(done: int, total: int) -> None:
    """Show no progress."""


class Choice(Settings, file="convert"):
    """What a user may choose of a dataset; configs/convert.yaml documents each value."""

    action: tuple[str, ...] | None = from_yaml()
    proprio: tuple[str, ...] | None = from_yaml()
    cameras: tuple[str, ...] | None = from_yaml()
    action_kind: Literal["absolute", "delta"] = from_yaml()
    rate_hz: float | None = from_yaml(gt=0)
    episodes: Episodes = from_yaml()
    mask: str | None = from_yaml()
    tolerance_s: float = from_yaml(gt=0)
    image_size: int | None = from_yaml(ge=1)


class Source(ABC):
    """A dataset to read, whose episodes are checked while they are read; any error is one line.

    A reader sets `keys` (array -> the file's arrays whose columns it joins) and `attributes` (those of a store of kind
    images) by `restore` or by `choose` and `describe`, and defines the methods on episodes by their number in the file.
    """

    def __init__(self, path: Path, choice: Choice):
        self.path, self.choice = path, choice
        self.attributes: dict[str, Any] = {}
        self.keys: dict[str, list[str]] = {}
        self.notes: list[str] = []  # what is left out, for the user
        self.progress: Progress = silent
        self._sidecar: Sidecar | None = None
        self._done = 0

    # ---------------------------------------------------------------- what a reader defines

    @abstractmethod
    def count(self) -> int:
        """Return how many episodes there are."""

    @abstractmethod
    def length_of(self, number: int) -> int:
        """Return the steps of an episode."""

    @abstractmethod
    def pieces_of(self, number: int) -> Iterator[Piece]:
        """Yield the arrays of an episode, a few steps at a time: all keys in every piece.  # key -> (t, ...)"""

    def values_of(self, number: int) -> dict[str, Any]:
        """Return an episode's values, one a key."""
        return {}

    def name_of(self, number: int) -> str:
        """Return an episode's name in messages."""
        return f"{self.path}: episode {number}"

    def missing_file(self, number: int) -> Path | None:
        """Return a file of an episode that does not exist."""
        return None

    # ---------------------------------------------------------------- the chosen episodes

    def select(self) -> None:
        """Choose the episodes.

        Raises:
            DatasetError: an episode or a file of one that does not exist; the text says how to leave it out.
        """
        chosen, total = self.choice.episodes, self.count()
        if chosen is None or isinstance(chosen, int):
            self._chosen = list(range(total if chosen is None else min(total, chosen)))
        else:
            self._chosen = sorted(numbers(chosen, total, "episodes"))
        self.steps = sum(map(self.length_of, self._chosen))
        missing = {i: file for i in self._chosen if (file := self.missing_file(i))}
        if missing:
            more = f" (and of {len(missing) - 1} more episodes)" if len(missing) > 1 else ""
            file = next(iter(missing.values()))
            raise DatasetError(f"{file}: found no such file{more}, expected one{self._without(set(missing))}")

    def _without(self, bad: set[int]) -> str:
        rest = as_ranges([i for i in self._chosen if i not in bad])
        hint = f'; "episodes=[{rest}]" reads the others (demos.episodes where a verb has that)'
        return hint if rest else ""

    def __len__(self) -> int:
        return len(self._chosen)

    def length(self, i: int) -> int:
        return self.length_of(self._chosen[i])

    def values(self, i: int) -> dict[str, Any]:
        with readable(self.path):
            return self.values_of(self._chosen[i])

    def pieces(self, i: int) -> Iterator[Piece]:
        """Yield the arrays of the chosen episode ``i``, a few steps at a time (DatasetError)."""
        number, start = self._chosen[i], 0
        if self.length(i) < 1:
            raise mismatch(self.name_of(number), "no steps", "at least one")
        pieces = self.pieces_of(number)
        while True:
            try:
                with readable(self.path):  # not what becomes of a piece
                    piece = next(pieces, None)
                    for key, array in (piece or {}).items():
                        check_finite(f"{self.name_of(number)}: {key}", array, start)
            except DatasetError as error:
                raise DatasetError(f"{error}{self._without({number})}") from error
            if piece is None:
                return
            yield piece
            steps = len(next(iter(piece.values())))
            start, self._done = start + steps, self._done + steps
            self.progress(self._done, self.steps)

    # ---------------------------------------------------------------- names and types

    def restore(self, stored: dict[str, Any], where: str) -> bool:
        """Take keys, types and attributes from what our own writer stored; False if the user chooses other keys.

        Raises:
            UserError: broken values, no such camera, or a rate or kind of action other than the stored one.
        """
        sidecar, choice = read(Sidecar, stored, f"{where}: "), self.choice
        if choice.action is not None or choice.proprio is not None:
            return False
        about = sidecar.attributes
        if choice.rate_hz not in (None, rate := about.get("rate_hz")):
            raise mismatch(
                f"{self.path}: rate_hz", f"{choice.rate_hz:g}", f"{rate:g} as the file says, or null"
            )
        parts = about.get("action_parts") or [{"kind": about.get("action_frame")}]
        kinds = sorted({str(part["kind"]) for part in parts})
        if choice.action_kind == "delta" and "delta" not in kinds:
            raise mismatch(f"{self.path}: action_kind", "delta", f"none: the file says {', '.join(kinds)}")
        if choice.cameras is not None:
            sidecar = sidecar.with_cameras(chosen(choice.cameras, about["cameras"], "cameras", self.path))
        self._sidecar, self.attributes = sidecar, sidecar.attributes
        self.keys = {key: list(places) for key, places in sidecar.places.items()}
        return True

    def choose(
        self, cameras: Mapping[str, str], **arrays: tuple[Sequence[str], Sequence[str]]
    ) -> dict[str, str]:
        """Decide which arrays of the file make action, proprio and cameras.

        Args:
            cameras: key -> name.
            arrays: for `action` and `proprio` the arrays that may be chosen, and those that the format calls so.

        Returns:
            The chosen cameras, key -> name.

        Raises:
            DatasetError: no such array or camera, or two cameras of one name.
        """
        names: dict[str, str] = {}  # name -> key
        for key, name in cameras.items():
            if name in names:
                found = f"two cameras called '{name}': {names[name]} and {key}"
                raise mismatch(self.path, found, "different names")
            names[name] = key
        if (wanted := self.choice.cameras) is not None:
            keys = [names.get(n, n) for n in chosen(wanted, [*names, *cameras], "cameras", self.path)]
            cameras = {key: cameras[key] for key in keys}
        for array, (known, usual) in arrays.items():
            self.keys[array] = chosen(
                getattr(self.choice, array) or usual or (array,), known, array, self.path
            )
        return dict(cameras)

    def describe(
        self,
        kind: str,
        robot: str | None,
        rate_hz: float,
        cameras: Mapping[str, Sequence[int]],
        action_parts: list[dict],
        proprio_parts: list[dict],
        **more: Any,
    ) -> None:
        """Set the attributes; `cameras`: name -> (H, W), `kind`: the source's format or world."""
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

    def joined(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Make an array of the store from the arrays of the file that `keys` lists for it.  # (t, ...)"""
        if self._sidecar:
            return self._sidecar.array(key, columns)
        if key not in ("action", "proprio"):
            return columns[0]
        return np.concatenate([c.reshape(len(c), -1) for c in columns], 1).astype(np.float32)

    def leave_out(self, arrays: Mapping[str, Any]) -> None:
        """Note arrays that are not read; None: something that is no array."""
        for key, a in arrays.items():
            about = "" if a is None else f" ({a.dtype} {list(a.shape[1:])} a step)"
            self.notes.append(f"{key}{about} is left out")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors that odd contents of a foreign file cause into one line (DatasetError)."""
    try:
        yield
    except (
        ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, SyntaxError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        if getattr(error, "user_error", False):
            raise
        raise DatasetError(f"{path}: cannot be read ({one_line(error)})") from error


NEEDS = {"lerobot": ("pyarrow", "av"), "robomimic": ("h5py",)}  # format -> packages of the extra `data`


def require(*modules: str, extra: str = "data") -> None:
    """Raise DatasetError with the command that installs a missing package."""
    for module in modules:
        if find_spec(module) is None:
            raise DatasetError(f"{module} is not installed: pip install 's2robot[{extra}]'")


def as_ranges(episodes: Sequence[int]) -> str:
    """
    >>> as_ranges([0, 1, 2, 5])
    '0:3,5'
    """
    known = set(episodes)
    starts = [i for i in episodes if i - 1 not in known]
    ends = [i + 1 for i in episodes if i + 1 not in known]
    return ",".join(str(a) if b == a + 1 else f"{a}:{b}" for a, b in zip(starts, ends, strict=True))


def piece_slices(start: int, stop: int, step_bytes: int) -> Iterator[slice]:
    """Split steps into pieces, by the bytes of one step."""
    # a chunk of a store holds 4 images
    step = int(np.clip(PIECE_BYTES // max(step_bytes, 1), 4, 4096)) // 4 * 4
    for at in range(start, stop, step):
        yield slice(at, min(at + step, stop))


def part_of(key: str, size: int, kind: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """A part named after its key, in letters, digits and _."""
    name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in key)
    return {"name": name, "size": size, "kind": kind} | ({"names": list(names)} if names else {})


def chosen(keys: Sequence[str], known: Sequence[str], what: str, path: Path) -> list[str]:
    """Return the chosen keys; DatasetError names one that does not exist."""
    known = list(dict.fromkeys(known))  # a camera's name may be its key
    for key in keys:
        if key not in known:
            more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            found = ", ".join(known[:SHOWN]) or "none"
            raise mismatch(f"{path}: {what}", f"'{key}'", f"some of {found}{more}")
    return list(keys)

"""The common interface of the readers: a dataset as episodes that arrive in pieces, with the attributes of a store.

source = read(Path("lift"), Choice())
for piece in source.pieces(0):      # {"action": (t, A), "proprio": (t, P), "images_top": (t, H, W, 3)}
    ...
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.errors import DatasetError, mismatch, one_line
from s2robot.demos.schema import check_finite
from s2robot.demos.selection import Episodes, numbers

PIECE_BYTES = 32 << 20  # of images in a piece: memory does not grow with an episode
AUTOMATIC = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own columns
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


@dataclass
class Source(ABC):
    """A dataset to read. `attributes` are those of an `EpisodeStore` of kind images."""

    path: Path
    attributes: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what is left out, for the user

    @abstractmethod
    def __len__(self) -> int:
        """Episodes."""

    @abstractmethod
    def length(self, i: int) -> int:
        """Steps of episode ``i``."""

    @abstractmethod
    def pieces(self, i: int) -> Iterator[Piece]:
        """The arrays of episode ``i``, a few of its steps at a time: all keys in every piece.  # key -> (t, ...)"""

    def values(self, i: int) -> dict[str, Any]:
        """One value a key of episode ``i``."""
        return {}

    def name(self, i: int) -> str:
        """Episode ``i`` in messages."""
        return f"{self.path}: episode {i}"

    def missing_file(self, i: int) -> Path | None:
        """A file of episode ``i`` that does not exist."""
        return None


class Selected(Source):
    """Some episodes of a source, checked while they are read; any error is one line.

    Raises:
        DatasetError: an episode or a file of one that does not exist; the text says how to leave it out.
    """

    def __init__(self, inner: Source, episodes: Any, kind: str):
        super().__init__(inner.path, inner.attributes, inner.notes)
        total = len(inner)
        if episodes is None or isinstance(episodes, int):
            self._numbers = list(range(total if episodes is None else min(total, episodes)))
        else:
            self._numbers = sorted(numbers(episodes, total, "episodes"))
        self._inner, self._kind, self._done = inner, kind, 0
        self.steps = sum(map(inner.length, self._numbers))
        self.progress: Progress = silent
        missing = {i: file for i in self._numbers if (file := inner.missing_file(i))}
        if missing:
            more = f" (and of {len(missing) - 1} more episodes)" if len(missing) > 1 else ""
            file = next(iter(missing.values()))
            raise DatasetError(f"{file}: found no such file{more}, expected one{self._without(set(missing))}")

    def _without(self, bad: set[int]) -> str:
        rest = as_ranges([i for i in self._numbers if i not in bad])
        return (
            f'; "episodes=[{rest}]" reads the others (demos.episodes where a verb has that)' if rest else ""
        )

    def __len__(self) -> int:
        return len(self._numbers)

    def length(self, i: int) -> int:
        return self._inner.length(self._numbers[i])

    def values(self, i: int) -> dict[str, Any]:
        with readable(self.path, self._kind):
            return self._inner.values(self._numbers[i])

    def pieces(self, i: int) -> Iterator[Piece]:
        number = self._numbers[i]
        if self.length(i) < 1:
            raise mismatch(self._inner.name(number), "no steps", "at least one")
        pieces, start = self._inner.pieces(number), 0
        while True:
            try:
                with readable(self.path, self._kind):  # not what becomes of a piece
                    piece = next(pieces, None)
                    for key, array in (piece or {}).items():
                        check_finite(f"{self._inner.name(number)}: {key}", array, start)
            except DatasetError as error:
                raise DatasetError(f"{error}{self._without({number})}") from error
            if piece is None:
                return
            yield piece
            steps = len(next(iter(piece.values())))
            start, self._done = start + steps, self._done + steps
            self.progress(self._done, self.steps)


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors that odd contents of a foreign file cause into one line (DatasetError)."""
    try:
        yield
    except (
        ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RecursionError, SyntaxError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        if getattr(error, "user_error", False):
            raise
        raise DatasetError(f"{path}: cannot be read as {kind} ({one_line(error)})") from error


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


def piece_slices(start: int, stop: int, frame_bytes: int) -> Iterator[slice]:
    """Split steps into pieces, by the bytes of one step."""
    # a chunk of a store holds 4 images
    step = int(np.clip(PIECE_BYTES // max(frame_bytes, 1), 4, 4096)) // 4 * 4
    for at in range(start, stop, step):
        yield slice(at, min(at + step, stop))


def read_ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Read each piece in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, pieces, None)
        while (piece := waiting.result()) is not None:
            waiting = pool.submit(next, pieces, None)
            yield piece


def part_of(key: str, size: int, kind: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """A part named after its key, in letters, digits and _."""
    name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in key)
    return {"name": name, "size": size, "kind": kind} | ({"names": list(names)} if names else {})


def chosen(keys: Sequence[str], known: Sequence[str], what: str, path: Path) -> list[str]:
    """The chosen keys; DatasetError names one that does not exist."""
    known = list(dict.fromkeys(known))  # a camera's name may be its key
    for key in keys:
        if key not in known:
            more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            raise mismatch(
                f"{path}: {what}", f"'{key}'", f"some of {', '.join(known[:SHOWN]) or 'none'}{more}"
            )
    return list(keys)


def chosen_cameras(cameras: Mapping[str, str], choice: Choice, path: Path) -> dict[str, str]:
    """The chosen cameras, by key or name, in the chosen order.  # key -> name

    Raises:
        DatasetError: two cameras of one name, or no such camera.
    """
    keys: dict[str, str] = {}  # name -> key
    for key, name in cameras.items():
        if name in keys:
            raise mismatch(path, f"two cameras called '{name}': {keys[name]} and {key}", "different names")
        keys[name] = key
    if choice.cameras is None:
        return dict(cameras)
    names = chosen(choice.cameras, [*keys, *cameras], "cameras", path)
    return {keys.get(name, name): cameras[keys.get(name, name)] for name in names}


def left_out(arrays: Mapping[str, Any]) -> list[str]:
    """Notes about arrays that are not read; None: something that is no array."""
    return [
        f"{key} is left out" if a is None else f"{key} ({a.dtype} {list(a.shape[1:])} a step) is left out"
        for key, a in arrays.items()
    ]


def store_attributes(
    source: Path,
    kind: str,
    robot: str | None,
    rate_hz: float,
    cameras: Mapping[str, Sequence[int]],
    action_parts: list[dict],
    proprio_parts: list[dict],
    **more: Any,
) -> dict[str, Any]:
    """The attributes of a store; `cameras`: name -> (H, W), `kind`: the source's format or world."""
    names = [n for part in proprio_parts for n in part.get("names") or []]
    return {
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
        "source": {"format": kind, "name": source.name},
        **more,
    }

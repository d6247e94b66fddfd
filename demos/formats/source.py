"""What every format gives and takes: a data set as episodes that come in pieces, with the attributes of our store.

source = read(Path("lift"), Choice())
for piece in source.pieces(0):      # {"action": (t, A), "proprio": (t, P), "images_top": (t, H, W, 3)}
    ...
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.selection import numbers

PIECE_BYTES = 32 << 20  # of pictures in a piece: memory does not grow with an episode
AUTOMATIC = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own columns
KINDS = ("absolute", "delta")
SHOWN = 12  # keys in a message

Piece = dict[str, np.ndarray]


@dataclass(frozen=True)
class Choice:
    """What a user may say of a data set that leaves it open; None: what the format's habits say."""

    action: tuple[str, ...] | None = None  # keys that make the action, in their order
    proprio: tuple[str, ...] | None = None  # likewise the state that the policy is told
    cameras: tuple[str, ...] | None = None  # which of them, by their keys or short names
    action_kind: str = "absolute"  # of actions of which the format says nothing: absolute | delta
    rate_hz: float | None = None  # control steps a second, where the format does not say
    episodes: Any = None  # the first so many, or a list of numbers and ranges "0:40"
    mask: str | None = None  # only the demos of this filter key (robomimic) or split (LeRobot)
    tolerance_s: float = 1e-4  # of a time stamp
    image_size: int | None = (
        None  # px, of pictures that are drawn from states; None: what the file says, else 256
    )

    def __post_init__(self) -> None:
        if self.action_kind not in KINDS:
            raise DatasetError(f"action_kind: found '{self.action_kind}', expected {' or '.join(KINDS)}")
        if self.rate_hz is not None and not self.rate_hz > 0:
            raise DatasetError(f"rate_hz: found {self.rate_hz}, expected more than 0")
        if isinstance(self.episodes, int) and (self.episodes < 1 or isinstance(self.episodes, bool)):
            raise DatasetError(f"episodes: found {self.episodes}, expected 1 or more, or null for all")
        if self.image_size is not None and self.image_size < 1:
            raise DatasetError(f"image_size: found {self.image_size}, expected 1 or more")
        if not self.tolerance_s > 0:
            raise DatasetError(f"tolerance_s: found {self.tolerance_s}, expected more than 0")


@dataclass
class Source(ABC):
    """A data set to read. `attributes` are those of an `EpisodeStore` of kind images."""

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

    def missing(self, i: int) -> Path | None:
        """A file of episode ``i`` that is not there."""
        return None


class Chosen(Source):
    """Some episodes of a source.

    Raises:
        DatasetError: an episode that is not there, or a file of one; says how to leave it out.
    """

    def __init__(self, inner: Source, episodes: Any):
        super().__init__(inner.path, inner.attributes, inner.notes)
        total = len(inner)
        if episodes is None or isinstance(episodes, int):
            self._taken = list(range(total if episodes is None else min(total, episodes)))
        else:
            self._taken = sorted(numbers(episodes, total, "episodes"))
        self._inner = inner
        gone = {i: file for i in self._taken if (file := inner.missing(i))}
        if gone:
            more = f" (and of {len(gone) - 1} more episodes)" if len(gone) > 1 else ""
            file = next(iter(gone.values()))
            raise DatasetError(f"{file}: found no such file{more}, expected one{self._without(set(gone))}")

    def _without(self, bad: set[int]) -> str:
        rest = as_ranges([i for i in self._taken if i not in bad])
        return (
            f'; "episodes=[{rest}]" reads the others (demos.episodes where a verb has that)' if rest else ""
        )

    def __len__(self) -> int:
        return len(self._taken)

    def length(self, i: int) -> int:
        return self._inner.length(self._taken[i])

    def values(self, i: int) -> dict[str, Any]:
        return self._inner.values(self._taken[i])

    def pieces(self, i: int) -> Iterator[Piece]:
        try:
            yield from self._inner.pieces(self._taken[i])
        except DatasetError as error:
            raise DatasetError(f"{error}{self._without({self._taken[i]})}") from error


@contextmanager
def readable(path: Path, kind: str) -> Iterator[None]:
    """Where a file of others is opened or read: what nobody foresaw in it is one line, too.

    Raises:
        DatasetError: for the errors that odd contents end in; one that is meant for the user passes as it is.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RecursionError,
        SyntaxError,
        TypeError,
        ValueError,
    ) as error:
        if getattr(error, "user_error", False):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise DatasetError(f"{path}: cannot be read as {kind} ({text})") from error


def require(*modules: str, extra: str = "data") -> None:
    """Refuse to go on without packages that the extra brings.

    Raises:
        DatasetError: one is not installed; the text holds the command that installs it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise DatasetError(f"{module} is not installed: pip install 's2robot[{extra}]'")


def as_ranges(found: Sequence[int]) -> str:
    """
    >>> as_ranges([0, 1, 2, 5])
    '0:3,5'
    """
    known = set(found)
    starts = [i for i in found if i - 1 not in known]
    ends = [i + 1 for i in found if i + 1 not in known]
    return ",".join(str(a) if b == a + 1 else f"{a}:{b}" for a, b in zip(starts, ends, strict=True))


def steps_of(frame_bytes: int) -> int:
    """How many steps make a piece, where one has so many bytes of pictures."""
    return (
        int(np.clip(PIECE_BYTES // max(frame_bytes, 1), 4, 4096)) // 4 * 4
    )  # 4 pictures in a chunk of a store


def ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same pieces, each read by a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, pieces, None)
        while (piece := waiting.result()) is not None:
            waiting = pool.submit(next, pieces, None)
            yield piece


def flat_names(names: Any, size: int) -> list[str] | None:
    """Names of numbers as they come in the wild (nested lists, a dict of lists), or None where they do not fit.

    >>> flat_names([["a", "b"]], 2), flat_names({"motors": ["a"]}, 1), flat_names(["state"], 26)
    (['a', 'b'], ['a'], None)
    """

    def walk(node: Any) -> Iterator[Any]:
        if isinstance(node, Mapping):
            node = list(node.values()) if all(isinstance(v, list) for v in node.values()) else list(node)
        if isinstance(node, list):
            for inner in node:
                yield from walk(inner)
        elif node is not None:
            yield str(node)

    found = list(walk(names))
    return found if len(found) == size and len(set(found)) == size else None


def part_of(key: str, size: int, kind: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """A part called as its key is, in letters, digits and _."""
    name = "".join(c if c.isascii() and (c.isalnum() or c == "_") else "_" for c in key)
    return {"name": name, "size": size, "kind": kind} | ({"names": list(names)} if names else {})


def chosen(wanted: Sequence[str], known: Sequence[str], what: str, path: Path) -> list[str]:
    """The wanted keys; DatasetError names one that is not there."""
    known = list(dict.fromkeys(known))  # a camera's name may be its key
    for key in wanted:
        if key not in known:
            more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
            raise mismatch(
                f"{path}: {what}", f"'{key}'", f"some of {', '.join(known[:SHOWN]) or 'none'}{more}"
            )
    return list(wanted)


def different(cameras: Mapping[str, str], path: Path) -> None:
    """Refuse two cameras of one name; `cameras`: key -> name."""
    seen: dict[str, str] = {}
    for key, name in cameras.items():
        if name in seen:
            raise mismatch(path, f"two cameras called '{name}': {seen[name]} and {key}", "different names")
        seen[name] = key


def left_out(arrays: Mapping[str, Any]) -> list[str]:
    """What to say of arrays over time that are not read, by their keys; None: something that is no array."""
    return [
        f"{key} is left out" if a is None else f"{key} ({a.dtype} {list(a.shape[1:])} a step) is left out"
        for key, a in arrays.items()
    ]


def finite(piece: Piece, where: str, start: int) -> Piece:
    """The piece; DatasetError where one of its numbers is none.  `start`: its first step in the episode."""
    for key, array in piece.items():
        if array.dtype.kind == "f":
            bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
            if bad.any():
                step = int(bad.argmax())
                value = array[step][~np.isfinite(array[step])].flat[0]
                raise mismatch(f"{where}: {key}", f"{value} at step {start + step}", "finite numbers")
    return piece


def about(
    source: Path,
    kind: str,
    robot: str | None,
    rate_hz: float,
    cameras: Mapping[str, Sequence[int]],
    action_parts: list[dict],
    proprio_parts: list[dict],
    **more: Any,
) -> dict[str, Any]:
    """The attributes of a store; `cameras`: name -> (H, W), `kind`: what the source is."""
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

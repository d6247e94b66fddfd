"""Any data set into our store, streaming: memory holds a few steps, and a file appears whole or not at all.

convert(Path("aloha"), Path("aloha.zarr"))                     # LeRobot -> our store
as_store(Path("aloha"), cache, Choice())                       # our store of it, made once
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from s2robot.demos.errors import DatasetError, DiskError, disk_error, mismatch
from s2robot.demos.formats.found import format_of, read
from s2robot.demos.formats.source import Choice, Source, readable
from s2robot.demos.store import EpisodeStore

READER = 4  # raised when the same files are read into another store, so that cached ones are made again
Progress = Callable[[int, int], None]  # steps done, of how many


def silent(done: int, total: int) -> None:
    """Nobody looks."""


def convert(
    path: Path,
    out: Path,
    choice: Choice | None = None,
    progress: Progress = silent,
) -> Source:
    """Write the data set at `path` as `out`; returns what was read, whose `notes` say what was left out.

    Raises:
        DatasetError: `out` is there already, `path` is no data set or a broken one, or a disk that refuses. Nothing
            is left under the name `out` then.
    """
    source = read(path, choice or Choice())
    write(source, out, progress)
    return source


def write(source: Source, out: Path, progress: Progress = silent) -> None:
    """Write a data set as our store. Raises as :func:`convert`."""
    if os.path.lexists(out):
        raise DatasetError(f"{out}: exists already, expected a new path; nothing was overwritten")
    with whole(out) as part:
        try:
            write_store(_Counted(source, progress), part)
        except DiskError as error:
            raise DiskError(str(error).replace(str(part), str(out))) from None
        except DatasetError as error:  # what the store finds, it finds in what came from the source
            raise DatasetError(str(error).replace(str(part), str(source.path))) from error


def write_store(source: Source, path: Path) -> None:
    """Our own store."""
    with EpisodeStore.create(path, source.attributes) as store:
        for i in range(len(source)):
            store.append_pieces(source.pieces(i), source.values(i))


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A name to write a file or folder under, which becomes `out` at the end; nothing is left if that fails."""
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
            with suppress(OSError):  # none was made, or what is above it is no folder
                part.unlink()


class _Counted(Source):
    """A source that tells how far its reading is, and in one line what cannot be read."""

    def __init__(self, inner: Source, progress: Progress):
        super().__init__(inner.path, inner.attributes, inner.notes)
        self._inner, self._progress, self._done = inner, progress, 0
        self._kind = format_of(inner.path)
        self._total = sum(inner.length(i) for i in range(len(inner)))

    def __len__(self) -> int:
        return len(self._inner)

    def length(self, i: int) -> int:
        return self._inner.length(i)

    def values(self, i: int) -> dict:
        with readable(self.path, self._kind):
            return self._inner.values(i)

    def pieces(self, i: int) -> Iterator[dict]:
        if self.length(i) < 1:
            raise mismatch(f"{self.path}: episode {i}", "no steps", "at least one")
        pieces = self._inner.pieces(i)
        while True:
            with readable(self.path, self._kind):  # not what becomes of a piece
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece
            self._done += len(next(iter(piece.values())))
            self._progress(self._done, self._total)


# -------------------------------------------------------------------- once, into a cache


def as_store(
    path: Path,
    cache: Path,
    choice: Choice | None = None,
    progress: Progress = silent,
    said: Callable[[str], None] = print,
) -> Path:
    """The path of our store of a data set: itself if it is one, else a copy in `cache`, made at the first call.

    The copy's name holds names, sizes and times of all files of the source: it is made again where one changes.

    Raises:
        DatasetError: as :func:`convert`.
    """
    choice = choice or Choice()
    if not path.exists():
        return path  # what is wrong with one that is not there, the store says best
    if format_of(path) == "s2robot":
        choice = replace(choice, image_size=None)  # a size of pictures is of the way out, too
        if choice == Choice():
            return path
    key = hashlib.sha256(json.dumps([READER, asdict(choice), _files(path)]).encode()).hexdigest()[:16]
    out = cache / f"{path.name.split('.')[0]}-{key}.zarr"
    if not out.exists():
        source = read(path, choice)
        for note in source.notes:
            said(f"note: {path}: {note}")
        try:
            write(source, out, progress)
        except DatasetError:
            if not out.exists():  # another process may have been first
                raise
        said(f"{path} ({source.attributes['env_version']}) as episodes: {out}")
    return out


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a data set."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not found:
        raise mismatch(path, "an empty folder", "a data set")
    facts = ((p, p.stat()) for p in found)
    return [(str(p.relative_to(path.parent)), s.st_size, s.st_mtime_ns) for p, s in facts]

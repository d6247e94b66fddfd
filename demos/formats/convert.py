"""Read any dataset, and convert it into a store piece by piece; a file appears whole or not at all.

read(Path("aloha"), Choice()).attributes                       # LeRobot, robomimic, diffusion_policy or our own store
convert(Path("aloha"), Path("aloha.zarr"))                     # LeRobot -> a store
as_store(Path("aloha"), cache, Choice())                       # a store of it, made once
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s2robot.demos.arrays import new_path
from s2robot.demos.errors import DatasetError, DiskError, mismatch
from s2robot.demos.formats.source import (
    NEEDS,
    Choice,
    Piece,
    Progress,
    Source,
    piece_slices,
    readable,
    require,
    silent,
)  # fmt: skip
from s2robot.demos.store import EpisodeStore

READER = 4  # raised when the same files are read differently, so that cached stores are made again


# -------------------------------------------------------------------- which format


def format_of(path: Path) -> str:
    """Return s2robot, lerobot, robomimic or diffusion_policy, by the content and never by the name alone.

    Raises:
        DatasetError: nothing is there, or something else.
    """
    if path.is_dir():
        if (path / "zarr.json").is_file():
            return "s2robot"
        if (path / "meta/info.json").is_file():
            return "lerobot"
        if (path / ".zgroup").is_file() or (path / "replay_buffer.zarr/.zgroup").is_file():
            return "diffusion_policy"
    elif path.is_file():
        with path.open("rb") as file:
            head = file.read(8)
        if head == b"\x89HDF\r\n\x1a\n":
            return "robomimic"
        if head.startswith(b"PK\x03\x04"):
            return "diffusion_policy"
    expected = (
        "a data set of s2robot (.zarr), LeRobot (meta/info.json), robomimic (.hdf5) or diffusion_policy"
    )
    raise mismatch(path, "something else" if path.exists() else "no such file or folder", expected)


def read(path: Path, choice: Choice) -> Source:
    """Open a dataset.

    Raises:
        DatasetError: it is none, cannot be read, or `choice` must say more.
    """
    with readable(path):
        source = _reader(path, choice)(path, choice)
        source.select()
    return source


def _reader(path: Path, choice: Choice) -> type[Source]:
    """Return the reader of a dataset; refuse choices that it does not have."""
    kind = format_of(path)
    if choice.mask is not None and kind not in ("robomimic", "lerobot"):
        found = f"'{choice.mask}' for {path}"
        raise mismatch("mask", found, "null: robomimic and LeRobot have filter keys and splits")
    require(*NEEDS.get(kind, ()))
    if kind == "robomimic":
        from s2robot.demos.formats.robomimic import Robomimic, demo_names, open_file

        with open_file(path) as file:
            first = file["data"][demo_names(file, path, choice)[0]]
            has_images = "obs" in first
        if not has_images:
            from s2robot.demos.formats.robosuite_states import RobosuiteStates

            return RobosuiteStates
    if choice.image_size is not None:
        raise mismatch("image_size", f"{choice.image_size} for {path}", "null: its images have their size")
    if kind == "robomimic":
        return Robomimic
    if kind == "lerobot":
        from s2robot.demos.formats.lerobot import LeRobot

        return LeRobot
    if kind == "diffusion_policy":
        from s2robot.demos.formats.diffusion_policy import ReplayBuffer

        return ReplayBuffer
    if choice.episodes is None:
        raise mismatch(path, "an episode store already", "a data set of another format, or episodes=[...]")
    for key, default in Choice():
        if key != "episodes" and (value := getattr(choice, key)) != default:
            raise mismatch(key, value, "nothing: of an episode store only episodes can be chosen")
    return _StoreSource


class _StoreSource(Source):
    """A store, to copy some of its episodes."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path, choice)
        self._store = EpisodeStore.open(path)
        self.attributes = {k: v for k, v in self._store.attrs.items() if k != "schema_version"}

    def count(self) -> int:
        return len(self._store)

    def length_of(self, number: int) -> int:
        return int(self._store.lengths[number])

    def values_of(self, number: int) -> dict[str, Any]:
        return {key: self._store.meta(key)[number] for key in self._store.meta_keys}

    def pieces_of(self, number: int) -> Iterator[Piece]:
        store, steps = self._store, self._store.episode_slice(number)
        row = sum(math.prod(store.shape(key)) for key in store.keys if key.startswith("images_"))
        for rows in piece_slices(steps.start, steps.stop, row):
            yield {key: store.read(key, rows.start, rows.stop) for key in store.keys}


# -------------------------------------------------------------------- into a store


def convert(path: Path, out: Path, choice: Choice | None = None, progress: Progress = silent) -> Source:
    """Write the dataset at `path` as a store; returns what was read, whose `notes` say what was left out.

    Raises:
        DatasetError: `out` exists, `path` is no dataset or a broken one, or a disk that rejects the write. Nothing is
            left under the name `out` then.
    """
    source = read(path, choice or Choice())
    write_store(source, out, progress)
    return source


def write_store(source: Source, out: Path, progress: Progress = silent) -> None:
    """Write an open dataset as a store. Raises as :func:`convert`."""
    source.progress = progress
    with new_path(out) as part:
        try:
            with EpisodeStore.create(part, source.attributes) as store:
                for i in range(len(source)):
                    store.append_pieces(source.pieces(i), source.values(i))
        except DiskError as error:
            raise DiskError(str(error).replace(str(part), str(out))) from None
        except DatasetError as error:  # the store checks what comes from the source
            raise DatasetError(str(error).replace(str(part), str(source.path))) from error


def as_store(
    path: Path,
    cache: Path,
    choice: Choice | None = None,
    progress: Progress = silent,
    show: Callable[[str], None] = print,
) -> Path:
    """Return the path of a dataset's store: itself if it is one, else a copy in `cache`, made at the first call.

    The copy's name depends on names, sizes and times of all files of the source, so it is made again when one changes.
    """
    choice = choice or Choice()
    if not path.exists():
        return path  # opening it as a store gives the best message
    if format_of(path) == "s2robot":
        choice = choice.replace(image_size=None)  # a size of images is also a setting of the export
        if choice == Choice():
            return path
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stamps = [(str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    key = hashlib.sha256(json.dumps([READER, choice.model_dump(), stamps]).encode()).hexdigest()[:16]
    out = cache / f"{path.name.split('.')[0]}-{key}.zarr"
    if not out.exists():
        source = read(path, choice)
        for note in source.notes:
            show(f"note: {path}: {note}")
        try:
            write_store(source, out, progress)
        except DatasetError:
            if not out.exists():  # another process may have been first
                raise
        show(f"{path} ({source.attributes['env_version']}) as episodes: {out}")
    return out

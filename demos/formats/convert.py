"""Read a dataset of any format, and convert it to a store piece by piece; no partial store is ever left behind."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from s2robot.core.errors import UserError, require
from s2robot.demos.arrays import new_path
from s2robot.demos.binding import bind, is_open
from s2robot.demos.errors import DatasetError, DiskError, mismatch, readable
from s2robot.demos.formats.source import NEEDS, Choice, Piece, Progress, Source, piece_slices, silent, walk
from s2robot.demos.lineage import note_round, rounds_of
from s2robot.demos.store import EpisodeStore

READER = 9  # increase it when readers change, so that cached stores are converted again
COMMON = {"action", "proprio", "cameras", "action_kind", "rate_hz"}
# format -> its module, reader, and supported keys of Choice besides `episodes`
READERS = {
    "s2robot": ("convert", "StoreSource", set[str]()),
    "lerobot": ("lerobot", "LeRobot", COMMON | {"mask", "tolerance_s"}),
    "robomimic": ("robomimic", "Robomimic", COMMON | {"mask"}),
    "robosuite states": ("robomimic", "RobosuiteStates", COMMON | {"mask", "image_size"}),
    "diffusion_policy": ("diffusion_policy", "ReplayBuffer", COMMON),
}


def format_of(path: Path) -> str:
    """Detect s2robot, lerobot, robomimic or diffusion_policy from the contents, not the name (DatasetError)."""
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
    formats = "a dataset of s2robot (.zarr), LeRobot (meta/info.json), robomimic (.hdf5) or diffusion_policy"
    raise mismatch(path, formats, "something else" if path.exists() else "nothing")


def read(path: Path, choice: Choice) -> Source:
    """Open a dataset (UserError: not a dataset, unreadable, or `choice` does not fit its format)."""
    with readable(path):
        source = _reader(path, choice)(path, choice)
        source.select()
    return source


def _reader(path: Path, choice: Choice) -> type[Source]:
    """Return the reader for a dataset; reject options that it does not support."""
    kind = format_of(path)
    require(*NEEDS.get(kind, ()), extra="data")
    if kind == "robomimic":
        from s2robot.demos.formats.robomimic import demo_names, open_file

        with open_file(path) as file:
            if "obs" not in file[f"data/{demo_names(file, path, choice)[0]}"]:
                kind = "robosuite states"
    module, name, keys = READERS[kind]
    for key, default in Choice():
        if key not in keys | {"episodes"} and (value := getattr(choice, key)) != default:
            raise mismatch(key, f"{json.dumps(default)} for {kind} ({path})", value)
    return getattr(import_module(f"s2robot.demos.formats.{module}"), name)


class StoreSource(Source):
    """Read episodes of an existing store, to copy them."""

    def __init__(self, path: Path, choice: Choice, store: EpisodeStore | None = None):
        super().__init__(path, choice)
        self._store = store or EpisodeStore.open(path)
        self.lengths = self._store.lengths.tolist()
        self.attributes = {k: v for k, v in self._store.attrs.items() if k != "schema_version"}

    def values_of(self, number: int) -> dict[str, Any]:
        return {key: self._store.meta(key)[number] for key in self._store.meta_keys}

    def pieces_of(self, number: int) -> Iterator[Piece]:
        store, steps = self._store, self._store.episode_slice(number)
        row = sum(math.prod(store.shape(key)) for key in store.keys if key.startswith("images_"))
        for rows in piece_slices(steps.start, steps.stop, row):
            yield {key: store.read(key, rows.start, rows.stop) for key in store.keys}


def convert(path: Path, out: Path, choice: Choice | None = None, progress: Progress = silent) -> Source:
    """Write the dataset at `path` as a store (UserError); return its reader, whose `notes` list omitted contents."""
    return write_store(read(path, choice or Choice()), out, progress)


def copy_store(store: EpisodeStore, out: Path, progress: Progress = silent) -> Source:
    """Copy an open store, with its attributes as modified in memory (UserError)."""
    source = StoreSource(store.path, Choice(), store)
    source.select()
    return write_store(source, out, progress)


def write_store(source: Source, out: Path, progress: Progress = silent) -> Source:
    """Write an open dataset as a store (UserError); return it."""
    source.progress = progress
    with new_path(out) as part:
        try:
            with EpisodeStore.create(part, source.attributes) as store:
                for i in range(len(source)):
                    store.append_pieces(source.pieces(i), source.values(i))
            for each in rounds_of(source.path) if isinstance(source, StoreSource) else ():
                note_round(part, each)
        except DiskError as error:
            text = str(error).replace(str(part), str(out)).rpartition(", ")[0]
            raise DiskError(f"{text}, nothing was written") from error
        except UserError as error:  # the store rejects the source's contents
            raise DatasetError(str(error).replace(str(part), str(source.path))) from error
    return source


def as_store(
    path: Path,
    cache: Path,
    choice: Choice | None = None,
    progress: Progress = silent,
    show: Callable[[str], None] = print,
    world: Any = None,
) -> Path:
    """Return the path of a dataset as a store: `path` itself if it is one, else a copy in `cache`.

    UserError, before anything is copied: the source has no world of its own and does not fit the settings ``world``.
    The copy's name depends on the source's path and its files' names, sizes and times, so a change creates a new copy.
    """
    choice = choice or Choice()
    if not path.exists():
        return path  # opening it as a store raises the clearest error
    if format_of(path) == "s2robot":
        choice = choice.replace(image_size=None)  # an option of the export only
        if choice == Choice():
            return path
    files = [path] if path.is_file() else sorted(walk(path))
    stamps = [(str(p.relative_to(path.parent)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    identity = json.dumps([READER, str(path.resolve()), choice.model_dump(), stamps])
    out = cache / f"{path.name.split('.')[0]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.zarr"
    if not out.exists():
        source = read(path, choice)
        if is_open(source.attributes, world):
            bind(source.attributes, world, path)
        for note in source.notes:
            show(f"note: {path}: {note}")
        try:
            write_store(source, out, progress)
        except UserError:
            if not out.exists():  # another process may have created it
                raise
        show(f"{path} ({source.attributes['env_version']}) as episodes: {out}")
    return out

"""Read and write diffusion_policy's replay buffers: zarr format 2, as a folder or a .zarr.zip.

Format: real-stanford/diffusion_policy, `common/replay_buffer.py`: `data/<key>` holds all episodes end to end, next to
`meta/episode_ends`, with one image per chunk. A real robot's folder holds a buffer and `videos/<episode>/<camera>.mp4`
at a higher rate. As in `real_data_to_replay_buffer`, each step uses the first frame at or after its time.

zarr's reader runs any numcodecs codec, even pickle, trusts the size in a chunk's header, and fills in missing chunks.
This one reads only plain numbers, through a few codecs and within the limits of `bounds.py`.
"""

import math
import re
import tempfile
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import numcodecs
import numpy as np
import zarr
from pydantic import Field
from zarr.storage import LocalStore

from s2robot.core.errors import require
from s2robot.core.parts import words
from s2robot.core.settings import Stored, read
from s2robot.demos.bounds import CODECS, IMAGE_CODECS, check_size, json_object, number_type, unpack
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.formats.export import ExportSettings, all_pieces, array_keys, check_names, rates_of
from s2robot.demos.formats.source import NAME, Choice, Piece, Progress, Sidecar, Source, part_of, walk
from s2robot.demos.formats.video import frames_at, open_video
from s2robot.demos.schema import parts_of
from s2robot.demos.store import EpisodeStore

STATE = "agent_pos"
CHUNK_BYTES = 2_000_000  # per chunk of numbers
ReadFile = Callable[[str], bytes]
Chunk = tuple[tuple[int, ...], str, int]  # position, name, stored bytes


class Layout(Stored):
    """The .zarray file of an array."""

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    chunks: tuple[Annotated[int, Field(ge=1)], ...]
    order: Literal["C", "F"] = "C"
    fill_value: Any = None  # None: missing chunks are an error
    compressor: dict[str, Any] | None = None
    filters: list[Any] | None = None


class Array2:
    """An array described by its .zarray, read by rows (UserError); missing chunks read as the fill value."""

    def __init__(self, where: str, stored: dict[str, Any], chunks: list[Chunk], read_file: ReadFile):
        self.where, self._read, self.dtype = where, read_file, number_type(where, stored.get("dtype"))
        self.about = about = read(Layout, stored, f"{where}: ")
        kind = (about.compressor or {}).get("id")
        if about.filters or kind not in (None, *CODECS, *IMAGE_CODECS):
            expected = f"no filter, and {', '.join((*CODECS, *IMAGE_CODECS))} or none"
            raise mismatch(where, expected, f"filters {about.filters}, compressor {kind!r}"[:80])
        if kind in IMAGE_CODECS:
            require("imagecodecs", extra="imagecodecs")
            from imagecodecs.numcodecs import register_codecs

            register_codecs(verbose=False)
        self.shape, self.ndim = about.shape, len(about.shape)
        grid = [-(-n // c) for n, c in zip(about.shape, about.chunks, strict=True)]
        self.chunk_count = math.prod(grid)
        self.chunks = sorted(c for c in chunks if len(c[0]) == len(grid) and all(map(int.__lt__, c[0], grid)))

    def __getitem__(self, rows: slice) -> np.ndarray:
        about, (start, stop, _) = self.about, rows.indices(self.shape[0])
        first, last = start // about.chunks[0], -(-stop // about.chunks[0])
        chunks = self.chunks[bisect_left(self.chunks, ((first,),)) : bisect_left(self.chunks, ((last,),))]
        shape = (max(stop - start, 0), *self.shape[1:])
        size = self.dtype.itemsize * (math.prod(shape) + math.prod(about.chunks))
        check_size(self.where, size, sum(stored for _, _, stored in chunks))
        out = np.full(shape, 0 if about.fill_value is None else about.fill_value, self.dtype)
        for at, name, _ in chunks:
            where, codec = f"{self.where.rpartition(':')[0]}: {name}", about.compressor or {}
            chunk = unpack(where, codec, self._read(name), about.chunks, self.dtype, about.order)
            begin = [i * c for i, c in zip(at, about.chunks, strict=True)]
            begin[0] -= start
            target = out[tuple(slice(max(b, 0), b + c) for b, c in zip(begin, about.chunks, strict=True))]
            target[...] = chunk[max(-begin[0], 0) :][tuple(slice(n) for n in target.shape)]
        return out


def _files(path: Path) -> tuple[dict[str, int], ReadFile]:
    """Return the sizes of the files in a folder or zip, and a function that reads one."""
    if path.is_dir():
        sizes = {f.relative_to(path).as_posix(): f.stat().st_size for f in walk(path)}
        return sizes, lambda name: (path / name).read_bytes()
    archive, stored = zipfile.ZipFile(path), path.stat().st_size
    if (claimed := sum(info.compress_size for info in archive.infolist())) > stored:
        raise mismatch(path, f"entries of at most {stored} bytes", claimed)

    def read_zipped(name: str) -> bytes:
        info = archive.getinfo(name)
        check_size(f"{path}: {name}", info.file_size, info.compress_size)
        return archive.read(name)

    return {info.filename: info.compress_size for info in archive.infolist()}, read_zipped


def arrays_of(path: Path, sizes: dict[str, int], read_file: ReadFile) -> tuple[dict[str, Array2], list[str]]:
    """Return the numeric arrays `data/<key>` and `meta/<key>`, and the keys of all other arrays."""
    arrays, others, chunks = dict[str, Array2](), list[str](), dict[str, list[Chunk]]()
    for name, size in sizes.items():
        if found := re.fullmatch(r"((?:data|meta)/[^/]+)/(\d+(?:[./]\d+)*)", name):
            chunks.setdefault(found[1], []).append((tuple(map(int, re.split("[./]", found[2]))), name, size))
    for name in sorted(n for n in sizes if re.fullmatch(r"(data|meta)/[^/]+/\.zarray", n)):
        key, stored = name.removesuffix("/.zarray"), json_object(f"{path}: {name}", read_file(name))
        try:
            number_type(key, stored.get("dtype"))
        except DatasetError:  # such as instruction texts
            others.append(key)
            continue
        arrays[key] = Array2(f"{path}: {key}", stored, chunks.get(key, []), read_file)
    return arrays, others


class ReplayBuffer(Source):
    """A replay buffer, or the folder of a real robot with a buffer and videos; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path, choice)
        buffer = path / "replay_buffer.zarr"
        sizes, read_file = _files(buffer if buffer.is_dir() else path)
        arrays, others = arrays_of(path, sizes, read_file)
        self.notes += [f"{key} is left out" for key in others]
        self._arrays = {k.removeprefix("data/"): a for k, a in arrays.items() if k.startswith("data/")}
        self._meta = {unquote(k[5:]): a for k, a in arrays.items() if k.startswith("meta/")}
        self._ends = ends = self._meta["episode_ends"][:]
        self.lengths = np.diff(ends, prepend=0).tolist()
        if min(self.lengths) <= 0:
            raise mismatch(f"{path}: meta/episode_ends", "increasing ends", ends.tolist()[:5])
        for key, array in self._arrays.items():
            if array.shape[0] != ends[-1]:
                raise mismatch(f"{path}: data/{key}", f"{ends[-1]} steps as in episode_ends", array.shape[0])
        self._videos: dict[str, str] = {}  # camera -> its file in an episode's folder
        where = f"{path}: {NAME}"
        text = json_object(where, read_file(".zattrs")).get(NAME) if ".zattrs" in sizes else None
        if not text or not self.restore(json_object(where, text), where):
            self._choose_arrays()
        self._check_chunks(by_s2robot=bool(text))

    def _check_chunks(self, by_s2robot: bool) -> None:
        """Note missing chunks, which read as the fill value, or raise for our own files, which never omit any."""
        for name in dict.fromkeys(k for keys in self.keys.values() for k in keys):
            array = self._arrays[name]
            count, fill = f"{len(array.chunks)} of {array.chunk_count} chunks", array.about.fill_value
            if len(array.chunks) < array.chunk_count:
                if by_s2robot or fill is None:
                    raise mismatch(f"{self.path}: data/{name}", "all chunks", count)
                self.notes.append(f"data/{name}: {count} exist; the others are read as {fill}")

    def _choose_arrays(self) -> None:
        """Choose the arrays that make action, proprio and cameras."""
        path, arrays, choice = self.path, self._arrays, self.choice
        images = [k for k, a in arrays.items() if a.ndim == 4 and a.shape[3] == 3]
        flat = [k for k, a in arrays.items() if a.ndim == 2 and a.dtype.kind in "fiu"]
        stems = sorted({p.stem for p in path.glob("videos/*/*.mp4")}, key=lambda s: (len(s), s))
        videos = {f"{stem}.mp4": f"camera_{stem}" if stem.isdigit() else stem for stem in stems}
        names = {k: k.removesuffix("_image") for k in images} | videos
        # UMI also stores the poses at the start and the end of each demo
        robot = [
            k for k in flat if k.startswith("robot") and "_demo_" not in k and arrays[k].dtype.kind == "f"
        ]
        usual = robot or [k for k in (STATE, "state") if k in flat]
        cameras = self.choose(names, action=(flat, ["action"]), proprio=(flat, usual or [STATE]))
        used = {key for keys in self.keys.values() for key in keys}.union(images, ["timestamp"])
        self.leave_out({f"data/{k}": a for k, a in arrays.items() if k not in used}, list(cameras))
        self._videos = {name: file for file, name in cameras.items() if file in videos}
        sizes = {}
        for key, name in cameras.items():
            if key in videos:
                require("av", extra="data")
                with open_video(next(p for p in path.glob("videos/*/*.mp4") if p.name == key)) as (_, stream):
                    sizes[name] = stream.codec_context.height, stream.codec_context.width
            else:
                sizes[name] = arrays[key].shape[1], arrays[key].shape[2]
        parts = [
            [part_of(k, arrays[k].shape[1], kind) for k in self.keys[array]]
            for array, kind in (("action", choice.action_kind), ("proprio", "absolute"))
        ]
        self.describe("diffusion_policy", None, self._rate(), sizes, *parts)
        self.keys |= {f"images_{name}": [key] for key, name in cameras.items() if key not in videos}

    def _rate(self) -> float:
        """Return `rate_hz`, which must match usable time stamps, or else their rate."""
        stamps, selected, step = self._arrays.get("timestamp"), self.choice.rate_hz, 0.0
        where = f"{self.path}: data/timestamp"
        if stamps is not None and max(self.lengths) > 1:  # without the gaps between two episodes
            gaps = np.delete(np.diff(np.asarray(stamps[:], np.float64).ravel()), self._ends[:-1] - 1)
            step = float(np.median(gaps))
        self._use_timestamps = 1e-3 <= step <= 2  # else they do not increase, or are not in s
        if not self._use_timestamps:
            if selected is None:
                got = "none" if stamps is None else f"a step of {step:g} s"
                raise mismatch(where, "increasing time stamps in s, or rate_hz=10", got)
            self.notes += ["data/timestamp is left out"] * (stamps is not None)
            return selected
        rate = round(1 / step, 2)
        if selected and abs(selected - rate) > 0.01 * rate:  # the clock of a real robot jitters
            raise mismatch("rate_hz", f"{rate:g} as in {where}, or null", f"{selected:g}")
        if uneven := int((np.abs(gaps - step) > step / 2).sum()):
            span = f"between {gaps.min():.3g} and {gaps.max():.3g} s"
            self.notes.append(
                f"data/timestamp: {uneven} of {len(gaps)} steps are not {step:.3g} s long, but {span}"
            )
        return selected or rate

    def values_of(self, number: int) -> dict[str, Any]:
        if self.sidecar is None:
            return {"source_episode": number}
        arrays = {k: array for k, array in self._meta.items() if k in self.sidecar.values and array.ndim}
        stored = {key: array[number : number + 1][0] for key, array in arrays.items()}
        return self.sidecar.episode_values(stored, f"{self.path}: meta")

    def pieces_of(self, number: int) -> Iterator[Piece]:
        stop = int(self._ends[number])
        start = stop - self.lengths[number]
        streams = {
            f"images_{name}": frames_at(self.path / f"videos/{number}" / file, self._times(start, stop))
            for name, file in self._videos.items()
        }
        arrays = {key: [self._arrays[name] for name in names] for key, names in self.keys.items()}
        sizes = [self.attributes["camera_geometry"][name]["size"] for name in self._videos]
        for piece in self.sliced(arrays, start, stop, sum(3 * math.prod(size) for size in sizes)):
            count = len(piece["action"])
            yield piece | {key: np.stack([*islice(stream, count)]) for key, stream in streams.items()}

    def _times(self, start: int, stop: int) -> np.ndarray:
        """Return the time of each step in s since the first.  # (T,)"""
        if not self._use_timestamps:
            return np.arange(stop - start) / self.attributes["rate_hz"]
        stamps = self._arrays["timestamp"][start:stop].astype(np.float64).ravel()
        return stamps - stamps[0]

    def joined(self, key: str, columns: Sequence[np.ndarray]) -> np.ndarray:
        array = super().joined(key, columns)
        if self.sidecar or not key.startswith("images_") or array.dtype == np.uint8:
            return array
        # resizing may overshoot
        if 0 < (most := float(array.max())) <= 1 or most > 510 or array.min() < -100:
            where = f"{self.path}: data/{self.keys[key][0]}"
            raise mismatch(where, "images of 0 to 255", f"{float(array.min()):g} to {most:g}")
        return np.rint(array).clip(0, 255).astype(np.uint8)


def write(store: EpisodeStore, target: Path, settings: ExportSettings, progress: Progress) -> None:
    """Write a store as a replay buffer, zipped if the name ends in .zip (UserError: see `all_pieces`)."""
    if target.suffix != ".zip":
        return _write_folder(store, target, progress)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.") as folder:
        _write_folder(store, Path(folder), progress)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as file:  # the chunks are compressed already
            for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                file.write(path, path.relative_to(folder).as_posix())


def _write_folder(store: EpisodeStore, target: Path, progress: Progress) -> None:
    places = {key: _name(key) for key in array_keys(store)}
    check_names(places.items(), store.path)
    sidecar = Sidecar.of_store(store, {key: [name] for key, name in places.items()})
    attributes = {NAME: sidecar.model_dump_json(), "actions": words(parts_of(store.attrs, "action"))}
    root = zarr.create_group(LocalStore(target), zarr_format=2, attributes=attributes)
    data, meta, steps = root.create_group("data"), root.create_group("meta"), store.num_steps
    types = ((key, name, *sidecar.arrays[key]) for key, name in places.items())
    arrays = {key: _array(data, name, (steps, *shape), dtype) for key, name, dtype, shape in types}
    values = {quote(key, safe=" :"): store.meta(key) for key in store.meta_keys}
    for name, rows in {"episode_ends": store.episode_ends, **values}.items():
        _array(meta, name, rows.shape, str(rows.dtype))[:] = rows
    if "timestamp" not in places.values():  # s since the episode's start, as their real robot records
        each = zip(store.lengths, rates_of(store), strict=True)
        times = np.concatenate([np.arange(count) / rate for count, rate in each])
        _array(data, "timestamp", times.shape, "float64")[:] = times
    for i, at, piece in all_pieces(store, progress):
        start = store.episode_slice(i).start + at
        for key, rows in piece.items():
            arrays[key][start : start + len(rows)] = rows


def _name(key: str) -> str:
    if key.startswith("images_"):
        return f"{quote(key.removeprefix('images_'), safe=' :')}_image"
    return quote(STATE if key == "proprio" else f"recorded_{key}" if key == STATE else key, safe=" :")


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: str) -> Any:
    is_image = len(shape) == 4 and dtype == "uint8"
    row = np.dtype(dtype).itemsize * math.prod(shape[1:])
    count = 1 if is_image else min(shape[0], max(1, CHUNK_BYTES // row))
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(count, *shape[1:]),
        compressors=numcodecs.Blosc("zstd", clevel=5, shuffle=numcodecs.Blosc.BITSHUFFLE),
        fill_value=0,
        config={"write_empty_chunks": True},  # a lost chunk must not read as a black image
    )

"""diffusion_policy's replay buffers: zarr format 2, as a folder or a .zarr.zip.

    ReplayBuffer(Path("pusht_cchi_v7_replay.zarr"), Choice(rate_hz=10))

Format: real-stanford/diffusion_policy, `common/replay_buffer.py`: `data/<key>` end to end, `meta/episode_ends`.
"""

import math
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from s2robot.demos.bounds import json_object
from s2robot.demos.errors import mismatch, one_line
from s2robot.demos.formats.sidecar import NAME
from s2robot.demos.formats.source import Choice, Piece, Source, chosen, part_of, piece_slices
from s2robot.demos.formats.video import camera_files, frame_size, frames_at
from s2robot.demos.formats.zarr2 import Group2

STATE = "agent_pos"


class ReplayBuffer(Source):
    """One replay buffer, or a real robot's folder with a buffer and videos; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path, choice)
        inside = path / "replay_buffer.zarr"
        group = _open_group(inside if inside.is_dir() else path)
        self._arrays = {k.removeprefix("data/"): a for k, a in group.arrays.items() if k.startswith("data/")}
        self._meta = {unquote(k[5:]): a for k, a in group.arrays.items() if k.startswith("meta/")}
        self.notes += [f"{key} ({why}) is left out" for key, why in group.left_out.items()]
        self._ends = ends = self._meta["episode_ends"][:]
        if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
            raise mismatch(f"{path}: meta/episode_ends", ends.tolist()[:5], "ends that rise")
        for key, array in self._arrays.items():
            if array.shape[0] != ends[-1]:
                expected = f"{ends[-1]} by episode_ends"
                raise mismatch(f"{path}: data/{key}", f"{array.shape[0]} steps", expected)
        self._videos: dict[str, str] = {}  # camera -> its file in an episode's folder
        text = group.attributes.get(NAME)
        if text and self.restore(json_object(f"{path}: {NAME}", text), f"{path}: {NAME}"):
            chosen([k for keys in self.keys.values() for k in keys], list(self._arrays), "data", path)
        else:
            self._choose_arrays()
        self._check_chunks(ours=bool(text))

    def _check_chunks(self, ours: bool) -> None:
        """Note missing chunks, which read as the fill value.

        Our writer omits none, and without a fill value none may be missing, so there it is an error.
        """
        for name in dict.fromkeys(k for keys in self.keys.values() for k in keys):
            array = self._arrays[name]
            found, fill = f"{len(array.files)} of {array.chunk_count} chunks", array.fill
            if len(array.files) == array.chunk_count:
                continue
            if ours or fill is None:
                raise mismatch(f"{self.path}: data/{name}", found, "all of them")
            self.notes.append(f"data/{name}: {found} are there; the others are read as {fill}")

    def _choose_arrays(self) -> None:
        """Decide which arrays make action, proprio and cameras."""
        path, arrays, choice = self.path, self._arrays, self.choice
        images = [k for k, a in arrays.items() if a.ndim == 4 and a.shape[3] == 3]
        flat = [k for k, a in arrays.items() if a.ndim == 2 and a.dtype.kind == "f"]
        videos = {file: name for name, file in camera_files(path / "videos/0").items()}
        names = {k: k.removesuffix("_image") for k in images} | videos
        usual = [k for k in flat if k.startswith("robot")] or [k for k in (STATE, "state") if k in flat]
        cameras = self.choose(names, action=(flat, ["action"]), proprio=(flat, usual or [STATE]))
        used = {key for keys in self.keys.values() for key in keys}.union(images, ["timestamp"])
        self.leave_out({f"data/{k}": a for k, a in arrays.items() if k not in used})
        self._videos = {name: file for file, name in cameras.items() if file in videos}
        self._use_timestamps = choice.rate_hz is None and "timestamp" in arrays
        self.describe(
            "diffusion_policy",
            None,
            choice.rate_hz or self._rate(),
            {
                name: frame_size(path / "videos/0" / key) if key in videos else arrays[key].shape[1:3]
                for key, name in cameras.items()
            },
            [part_of(k, arrays[k].shape[1], choice.action_kind) for k in self.keys["action"]],
            [part_of(k, arrays[k].shape[1], "absolute") for k in self.keys["proprio"]],
        )
        self.keys |= {f"images_{name}": [key] for key, name in cameras.items() if key not in videos}

    def _rate(self) -> float:
        """Steps a second, by the time stamps of the first episode."""
        stamps = self._arrays.get("timestamp")
        if stamps is None or self._ends[0] < 2:
            raise mismatch(f"{self.path}: data", "no timestamp", "the control steps a second: rate_hz=10")
        return round(1 / float(np.median(np.diff(np.asarray(stamps[: int(self._ends[0])]).ravel()))), 2)

    def count(self) -> int:
        return len(self._ends)

    def length_of(self, number: int) -> int:
        return int(self._ends[number] - (self._ends[number - 1] if number else 0))

    def values_of(self, number: int) -> dict[str, Any]:
        if self._sidecar is None:
            return {}
        own = {k: v for k, v in self._meta.items() if k in self._sidecar.values and v.ndim}
        stored = {k: v[number : number + 1][0] for k, v in own.items()}
        return self._sidecar.episode_values(stored, f"{self.path}: meta")

    def pieces_of(self, number: int) -> Iterator[Piece]:
        start, stop = int(self._ends[number]) - self.length_of(number), int(self._ends[number])
        streams = {
            f"images_{name}": frames_at(self.path / f"videos/{number}" / file, self._times(start, stop))
            for name, file in self._videos.items()
        }
        arrays = [self._arrays[k] for keys in self.keys.values() for k in keys]
        row = sum(a.dtype.itemsize * math.prod(a.shape[1:]) for a in arrays)
        row += sum(3 * math.prod(self.attributes["camera_geometry"][name]["size"]) for name in self._videos)
        for rows in piece_slices(start, stop, row):
            piece = {key: self._read(key, keys, rows) for key, keys in self.keys.items()}
            count = rows.stop - rows.start
            yield piece | {key: np.stack(list(islice(stream, count))) for key, stream in streams.items()}

    def _times(self, start: int, stop: int) -> np.ndarray:
        """Seconds of an episode's steps since its first.  # (T,)"""
        if not self._use_timestamps:
            return np.arange(stop - start) / self.attributes["rate_hz"]
        stamps = np.asarray(self._arrays["timestamp"][start:stop], np.float64).ravel()
        return stamps - stamps[0]

    def _read(self, key: str, names: Sequence[str], rows: slice) -> np.ndarray:
        array = self.joined(key, [self._arrays[name][rows] for name in names])
        if not key.startswith("images_") or array.dtype == np.uint8:
            return array
        if array.dtype.kind == "f" and 0 < array.max() <= 1:  # others hold 0 to 255 as floats
            found = f"images of 0 to {array.max():g} in steps {rows.start} to {rows.stop - 1}"
            raise mismatch(f"{self.path}: data/{names[0]}", found, "0 to 255")
        return np.rint(array).clip(0, 255).astype(np.uint8)


def _open_group(path: Path) -> Group2:
    expected = "zarr 2 with data/ and meta/episode_ends"
    try:
        group = Group2(path)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise mismatch(path, f"no replay buffer ({one_line(error)})", expected) from None
    if "meta/episode_ends" not in group.arrays or not any(k.startswith("data/") for k in group.arrays):
        found = ", ".join(group.arrays) or "no arrays of numbers"
        raise mismatch(path, f"no replay buffer ({found[:160]})", expected)
    return group

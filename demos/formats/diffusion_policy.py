"""diffusion_policy's replay buffers: zarr format 2, as a folder or a .zarr.zip.

    ReplayBuffer(Path("pusht_cchi_v7_replay.zarr"), Choice(rate_hz=10))

Format: real-stanford/diffusion_policy, `common/replay_buffer.py`: `data/<key>` end to end, `meta/episode_ends`.
"""

import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from s2robot.demos.errors import mismatch
from s2robot.demos.formats.kept import NAME, Kept
from s2robot.demos.formats.robot_videos import cameras_of, frames_at, size_of
from s2robot.demos.formats.source import (
    Choice,
    Piece,
    Source,
    about,
    chosen,
    different,
    finite,
    left_out,
    part_of,
    steps_of,
)
from s2robot.demos.formats.zarr2 import Group2

_EXPECTED = "zarr 2 with data/ and meta/episode_ends"


class ReplayBuffer(Source):
    """One replay buffer, or a real robot's folder of one and videos; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path)
        inside = path / "replay_buffer.zarr"
        group = _opened(inside if inside.is_dir() else path)
        self._arrays, self._meta = (
            {
                unquote(k[5:]) if kind == "meta/" else k[5:]: a
                for k, a in group.arrays.items()
                if k[:5] == kind
            }
            for kind in ("data/", "meta/")
        )
        self.notes += [f"{key} ({why}) is left out" for key, why in group.left_out.items()]
        text = group.attributes.get(NAME)
        ends = self._meta["episode_ends"][:]
        if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
            raise mismatch(f"{path}: meta/episode_ends", ends.tolist()[:5], "ends that rise")
        for key, array in self._arrays.items():
            if array.shape[0] != ends[-1]:
                raise mismatch(
                    f"{path}: data/{key}", f"{array.shape[0]} steps", f"{ends[-1]} by episode_ends"
                )
        self._ends = ends
        self._videos: dict[str, str] = {}  # camera -> its file in an episode's folder
        self._kept = Kept.of(text, f"{path}: {NAME}") if text else None
        if self._kept and self._kept.fits(choice):
            self._kept = self._kept.as_asked(choice, path)
            self._keys = self._kept.places
            for key in (k for keys in self._keys.values() for k in keys):
                chosen([key], list(self._arrays), "data", path)
            self.attributes = self._kept.attributes
        else:
            self._kept = None
            self._name(choice)
        self._check_chunks(ours=bool(text))

    def _check_chunks(self, ours: bool) -> None:
        """A chunk that is not there reads as its fill value: a lost one, or one of nothing else that was left out.

        Our writer leaves none out, and neither does anybody who tells of no fill value.
        """
        for name in dict.fromkeys(k for keys in self._keys.values() for k in keys):
            array = self._arrays[name]
            there, count, fill = len(array.files), array.chunk_count, array.fill
            if there == count:
                continue
            if ours or fill is None:
                raise mismatch(f"{self.path}: data/{name}", f"{there} of {count} chunks", "all of them")
            self.notes.append(
                f"data/{name}: {there} of {count} chunks are there; the others are read as {fill}"
            )

    def _name(self, choice: Choice) -> None:
        """Decide what makes action and proprio, and what the cameras are called."""
        path, arrays = self.path, self._arrays
        pictures = [k for k, a in arrays.items() if a.ndim == 4 and a.shape[3] == 3]
        flat = [k for k, a in arrays.items() if a.ndim == 2 and a.dtype.kind == "f"]
        cameras = {k: k.removesuffix("_image") for k in pictures}
        videos = cameras_of(path / "videos/0")
        different(cameras | {file: name for name, file in videos.items()}, path)
        names = [*cameras.values(), *videos]
        if choice.cameras is not None:
            known = dict(zip([*cameras, *names], [*cameras.values(), *names], strict=True))
            names = [known[w] for w in chosen(choice.cameras, list(known), "cameras", path)]
        keys = {name: key for key, name in cameras.items()}
        self._videos = {name: videos[name] for name in names if name in videos}
        action = chosen(choice.action or ("action",), flat, "action", path)
        habits = [k for k in flat if k.startswith("robot")] or [
            k for k in ("agent_pos", "state") if k in flat
        ]
        proprio = chosen(choice.proprio or habits or ("agent_pos",), flat, "proprio", path)
        self._keys = {"action": action, "proprio": proprio}
        self._keys |= {f"images_{name}": [keys[name]] for name in names if name in keys}
        used = (*action, *proprio, *pictures, "timestamp")
        self.notes += left_out({f"data/{k}": a for k, a in arrays.items() if k not in used})
        self._rate_hz = choice.rate_hz
        sizes = {
            name: size_of(path / "videos/0" / videos[name])
            if name in videos
            else arrays[keys[name]].shape[1:3]
            for name in names
        }
        self.attributes = about(
            path,
            "diffusion_policy",
            None,
            choice.rate_hz or self._rate(),
            sizes,
            [part_of(k, arrays[k].shape[1], choice.action_kind) for k in action],
            [part_of(k, arrays[k].shape[1], "absolute") for k in proprio],
        )

    def _rate(self) -> float:
        """Steps a second, by the time stamps of the first episode."""
        stamps = self._arrays.get("timestamp")
        if stamps is None or self._ends[0] < 2:
            raise mismatch(
                f"{self.path}: data",
                "no timestamp",
                "the control steps a second: rate_hz=10",
            )
        return round(1 / float(np.median(np.diff(np.asarray(stamps[: int(self._ends[0])]).ravel()))), 2)

    def __len__(self) -> int:
        return len(self._ends)

    def length(self, i: int) -> int:
        return int(self._ends[i] - (self._ends[i - 1] if i else 0))

    def values(self, i: int) -> dict[str, Any]:
        if self._kept is None:
            return {}
        found = {k: v[i : i + 1][0] for k, v in self._meta.items() if k in self._kept.values and v.ndim}
        return self._kept.episode_values(found, f"{self.path}: meta")

    def pieces(self, i: int) -> Iterator[Piece]:
        start, stop = int(self._ends[i]) - self.length(i), int(self._ends[i])
        films = {
            f"images_{name}": frames_at(self.path / f"videos/{i}" / file, self._times(start, stop))
            for name, file in self._videos.items()
        }
        sizes = (self.attributes["camera_geometry"][name]["size"] for name in self._videos)
        rows = (self._arrays[k] for keys in self._keys.values() for k in keys)
        step = steps_of(
            sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in rows) + sum(3 * h * w for h, w in sizes)
        )
        for at in range(start, stop, step):
            end = min(at + step, stop)
            piece = {key: self._read(key, keys, at, end) for key, keys in self._keys.items()}
            piece |= {key: np.stack(list(islice(film, end - at))) for key, film in films.items()}
            yield finite(piece, f"{self.path}: episode {i}", at - start)

    def _times(self, start: int, stop: int) -> np.ndarray:
        """Of an episode's steps, s since its first.  # (T,)"""
        if self._rate_hz or "timestamp" not in self._arrays:
            return np.arange(stop - start) / self.attributes["rate_hz"]
        stamps = np.asarray(self._arrays["timestamp"][start:stop], np.float64).ravel()
        return stamps - stamps[0]

    def _read(self, key: str, keys: list[str], start: int, stop: int) -> np.ndarray:
        found = [self._arrays[name][start:stop] for name in keys]
        if self._kept:
            return self._kept.array(key, found)
        if not key.startswith("images_"):
            return np.concatenate(found, 1).astype(np.float32)
        pictures = found[0]  # some hold 0 to 255 as floats
        if pictures.dtype.kind == "f" and 0 < pictures.max() <= 1:
            raise mismatch(
                f"{self.path}: data/{keys[0]}",
                f"pictures of 0 to {pictures.max():g} in steps {start} to {stop - 1}",
                "0 to 255",
            )
        return pictures if pictures.dtype == np.uint8 else np.rint(pictures).clip(0, 255).astype(np.uint8)


def _opened(path: Path) -> Group2:
    try:
        group = Group2(path)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise mismatch(path, f"no replay buffer ({text})", _EXPECTED) from None
    if "meta/episode_ends" not in group.arrays or not any(k.startswith("data/") for k in group.arrays):
        found = ", ".join(group.arrays) or "no arrays of numbers"
        raise mismatch(path, f"no replay buffer ({found[:160]})", _EXPECTED)
    return group

"""diffusion_policy's replay buffers: zarr format 2, as a folder or a .zarr.zip.

    ReplayBuffer(Path("pusht_cchi_v7_replay.zarr"), Choice(rate_hz=10))

Format: real-stanford/diffusion_policy, `common/replay_buffer.py`: `data/<key>` end to end, `meta/episode_ends`.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from s2robot.demos.errors import DatasetError, mismatch
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
    require,
    steps_of,
)


class ReplayBuffer(Source):
    """One replay buffer, or a real robot's folder of one and videos; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path)
        inside = path / "replay_buffer.zarr"
        self._arrays, self._meta, text = _opened(inside if inside.is_dir() else path)
        ends = self._meta["episode_ends"]
        if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
            raise mismatch(f"{path}: meta/episode_ends", ends.tolist()[:5], "ends that rise")
        for key, array in self._arrays.items():
            if array.shape[0] != ends[-1]:
                raise mismatch(
                    f"{path}: data/{key}", f"{array.shape[0]} steps", f"{ends[-1]} by episode_ends"
                )
        self._ends = ends[: choice.episodes]
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
        self._check_chunks(inside if inside.is_dir() else path, ours=bool(text))

    def _check_chunks(self, path: Path, ours: bool) -> None:
        """A chunk that is not there reads as its fill value: a lost one, or one of nothing else that was left out.

        Our writer leaves none out, and neither does anybody who tells of no fill value.
        """
        for name in dict.fromkeys(k for keys in self._keys.values() for k in keys):
            array: Any = self._arrays[name]
            there, count = _chunks(path, name, array.cdata_shape), array.nchunks
            if there == count:
                continue
            fill = array.metadata.fill_value
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
                "control steps a second: `s2robot convert` with rate_hz=10",
            )
        return round(1 / float(np.median(np.diff(np.asarray(stamps[: int(self._ends[0])]).ravel()))), 2)

    def __len__(self) -> int:
        return len(self._ends)

    def length(self, i: int) -> int:
        return int(self._ends[i] - (self._ends[i - 1] if i else 0))

    def values(self, i: int) -> dict[str, Any]:
        if self._kept is None:
            return {}
        return self._kept.episode_values({k: v[i] for k, v in self._meta.items()}, f"{self.path}: meta")

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
        found = []
        for name in keys:
            try:
                found.append(np.asarray(self._arrays[name][start:stop]))
            except Exception as error:  # codecs raise many kinds for bad bytes
                text = f"{type(error).__name__}: {error}"[:160]
                raise mismatch(
                    f"{self.path}: data/{name}", f"steps that cannot be read ({text})", "whole chunks"
                ) from None
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


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray], str | None]:
    """The arrays over time by name, the values of episodes and where these end, and what a writer of ours left."""
    try:
        store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
        root = zarr.open_group(store, mode="r", zarr_format=2)
        data: Any = root["data"]
        meta: Any = root["meta"]
        _need_codecs(path)
        arrays = {name: data[name] for name in sorted(data.array_keys())}
        values = {unquote(name): np.asarray(meta[name][...]) for name in {"episode_ends", *meta.array_keys()}}
        return arrays, values, root.attrs.get(NAME)  # type: ignore[return-value]
    except DatasetError:
        raise
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise mismatch(
            path, f"no replay buffer ({text})", "zarr 2 with data/ and meta/episode_ends"
        ) from None


def _chunks(path: Path, name: str, grid: tuple[int, ...]) -> int:
    """How many of an array's chunks are there; zarr's own count takes minutes for a chunk a picture."""
    if path.is_dir():
        folder = path / "data" / name
        names = [f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()]
    else:
        with zipfile.ZipFile(path) as file:
            start = f"data/{name}/"
            names = [n.removeprefix(start) for n in file.namelist() if n.startswith(start)]
    places = {tuple(map(int, re.split("[./]", n))) for n in names if re.fullmatch(r"\d+([./]\d+)*", n)}
    return sum(len(p) == len(grid) and all(i < n for i, n in zip(p, grid, strict=True)) for p in places)


def _need_codecs(path: Path) -> None:
    """JPEG 2000 and JPEG XL, as image caches have them, come with a package of their own."""
    if path.is_dir():
        texts = [f.read_text("utf-8") for f in path.glob("data/*/.zarray")]
    else:
        with zipfile.ZipFile(path) as file:
            texts = [file.read(n).decode() for n in file.namelist() if n.endswith(".zarray")]
    if any("imagecodecs" in text for text in texts):
        require("imagecodecs", extra="imagecodecs")
        from imagecodecs.numcodecs import register_codecs

        register_codecs(verbose=False)

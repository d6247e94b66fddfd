"""diffusion_policy's replay buffers: zarr format 2, as a folder or a .zarr.zip.

    ReplayBuffer(Path("pusht_cchi_v7_replay.zarr"), Choice(rate_hz=10))

Format: real-stanford/diffusion_policy, `common/replay_buffer.py`: `data/<key>` end to end, `meta/episode_ends`.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from s2robot.demos.errors import mismatch
from s2robot.demos.formats.source import (
    Choice,
    Piece,
    Source,
    about,
    chosen,
    different,
    finite,
    part_of,
    require,
    steps_of,
)


class ReplayBuffer(Source):
    """One replay buffer; see :class:`Source`."""

    def __init__(self, path: Path, choice: Choice):
        super().__init__(path)
        inside = path / "replay_buffer.zarr"
        if inside.is_dir():
            self.notes.append("the pictures in videos/ are left out: only replay_buffer.zarr is read")
        self._arrays, ends = _opened(inside if inside.is_dir() else path)
        if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) <= 0).any():
            raise mismatch(f"{path}: meta/episode_ends", ends.tolist()[:5], "ends that rise")
        for key, array in self._arrays.items():
            if array.shape[0] != ends[-1]:
                raise mismatch(
                    f"{path}: data/{key}", f"{array.shape[0]} steps", f"{ends[-1]} by episode_ends"
                )
        self._ends = ends[: choice.episodes]
        pictures = [k for k, a in self._arrays.items() if a.ndim == 4 and a.shape[3] == 3]
        flat = [k for k, a in self._arrays.items() if a.ndim == 2 and a.dtype.kind == "f"]
        cameras = {k: k.removesuffix("_image") for k in pictures}
        different(cameras, path)
        if choice.cameras is not None:
            known = {name: key for key, name in cameras.items()}
            wanted = chosen(choice.cameras, [*known, *cameras], "cameras", path)
            cameras = {known.get(w, w): cameras[known.get(w, w)] for w in wanted}
        action = chosen(choice.action or ("action",), flat, "action", path)
        habits = [k for k in flat if k.startswith("robot")] or [
            k for k in ("agent_pos", "state") if k in flat
        ]
        proprio = chosen(choice.proprio or habits or ("agent_pos",), flat, "proprio", path)
        self._keys = {"action": action, "proprio": proprio}
        self._keys |= {f"images_{name}": [key] for key, name in cameras.items()}
        self.attributes = about(
            path,
            "diffusion_policy",
            None,
            choice.rate_hz or self._rate(),
            {name: self._arrays[key].shape[1:3] for key, name in cameras.items()},
            [part_of(k, self._arrays[k].shape[1], choice.action_kind) for k in action],
            [part_of(k, self._arrays[k].shape[1], "absolute") for k in proprio],
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

    def pieces(self, i: int) -> Iterator[Piece]:
        start, stop = int(self._ends[i]) - self.length(i), int(self._ends[i])
        rows = (self._arrays[keys[0]] for keys in self._keys.values())
        step = steps_of(sum(a.dtype.itemsize * int(np.prod(a.shape[1:])) for a in rows))
        for at in range(start, stop, step):
            piece = {key: self._read(key, keys, at, min(at + step, stop)) for key, keys in self._keys.items()}
            yield finite(piece, f"{self.path}: episode {i}", at - start)

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
        if not key.startswith("images_"):
            return np.concatenate(found, 1).astype(np.float32)
        pictures = found[0]  # some hold 0 to 255 as floats
        return pictures if pictures.dtype == np.uint8 else np.rint(pictures).clip(0, 255).astype(np.uint8)


def _opened(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The arrays over time by name, and where episodes end."""
    try:
        store = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
        root = zarr.open_group(store, mode="r", zarr_format=2)
        data: Any = root["data"]
        _need_codecs(path)
        arrays = {name: data[name] for name in sorted(data.array_keys())}
        return arrays, np.asarray(root["meta/episode_ends"][:])  # type: ignore[index]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, json.JSONDecodeError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise mismatch(
            path, f"no replay buffer ({text})", "zarr 2 with data/ and meta/episode_ends"
        ) from None


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

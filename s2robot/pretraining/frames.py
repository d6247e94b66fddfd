"""Read frames for pre-training from arrays, images, videos or demos.

    bank = FrameBank("scenes")                 # frames.npy, as `pretrain kind=scenes` writes it
    bank = FrameBank("photos")                 # .png, .jpg and videos of any size, in any subfolders
    bank = FrameBank("kitchen.mp4", every=10)  # every tenth frame of a video
    bank = FrameBank("demos.zarr")             # every camera at every step; states are rendered
    len(bank), bank[7].shape                   # bank[7] is uint8 (H, W, 3), RGB

Videos are decoded and recorded states rendered once into a memory-mapped file in the user's cache, so `bank[i]` is
always the same and may be called from threads and forks.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from s2robot.core.errors import UserError, reported, require
from s2robot.core.files import cache_dir, read_json, replacing
from s2robot.core.progress import bar
from s2robot.core.provenance import short_hash
from s2robot.demos.store import EpisodeStore

_WORKERS = 2  # processes that render recorded states
IMAGES = (".png", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class FrameBank:
    """Frames by index; the kind of `path` determines how they are read.

    Args:
        path: a folder with frames.npy (uint8, N x H x W x 3, memory-mapped), a demo store, an image, a video, or a folder
            of images and videos of any size, in the order of their paths.
        every: use every n-th frame of a video.

    UserError for an unreadable file; a broken image is detected when it is opened.
    """

    def __init__(self, path: str | Path, *, every: int = 1) -> None:
        self.path, self.every = Path(path), every
        self.made: dict[str, Any] | None = None
        self._reads: list[Callable[[int], np.ndarray]] = []  # for each source: index -> frame
        self._counts: list[int] = []
        array = self.path if self.path.suffix == ".npy" else self.path / "frames.npy"
        if array.is_file():
            self._add_array(array)
        elif (self.path / "zarr.json").is_file() or self.path.suffix == ".zarr":
            self._add_store(EpisodeStore.open(self.path))
        else:
            self._add_files()
        self.ends = np.cumsum(self._counts, dtype=np.int64)
        if not len(self):
            raise UserError(
                f"{self.path}: expected frames.npy, images ({' '.join(IMAGES)}), videos ({' '.join(VIDEOS)}) or a demo "
                f"store, got {'none' if self.path.exists() else 'no such file or folder'}"
            )

    def _add(self, count: int, read: Callable[[int], np.ndarray]) -> None:
        self._counts.append(count)
        self._reads.append(read)

    def _add_array(self, path: Path) -> None:
        with reported(f"{path}: not a readable array"):
            frames = np.load(path, mmap_mode="r", allow_pickle=False)
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
                raise ValueError(f"expected uint8 (N, H, W, 3), got {frames.dtype} {frames.shape}")
        self._add(len(frames), frames.__getitem__)

    def _add_files(self) -> None:
        digest, videos = hashlib.sha256(), 0
        for file in [self.path] if self.path.is_file() else sorted(self.path.rglob("*")):
            # partial files, file managers' metadata, and files in folders such as .Trash-1000
            if any(name[0] == "." for name in file.relative_to(self.path).parts):
                continue
            if file.suffix.lower() in IMAGES:
                self._add(1, partial(_read_rgb, file))
                with reported(f"{file}: not a readable image"):
                    digest.update(os.fsencode(f"{file.relative_to(self.path)} {file.stat().st_size}\n"))
            elif file.suffix.lower() in VIDEOS:
                with file.open("rb") as content:
                    sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                frames = islice(_video_frames(file), 0, None, self.every)
                self._add_array(_cached({"video": sha256, "every": self.every}, frames, file.name))
                digest.update(sha256.encode())
                videos += 1
        if self._counts:
            self.made = {"videos": videos, "sha256": digest.hexdigest(), "every": self.every}

    def _add_store(self, store: EpisodeStore) -> None:
        """Add every camera at every step: read, or rendered at the store's image size if it contains only states."""
        cameras = store.cameras
        about = {key: store.attrs[key] for key in ("robot", "kind", "cameras", "env_version")}
        self.made = {**about, "dataset": store.fingerprint}
        if store.attrs["kind"] == "images":

            def read(i: int) -> np.ndarray:
                step, camera = divmod(i, len(cameras))
                return store.read(f"images_{cameras[camera]}", step, step + 1)[0]

            return self._add(store.num_steps * len(cameras), read)
        from s2robot.demos.replay import render_episodes, world_of_demos  # loads the simulator

        size = world_of_demos(store).image_size
        # another version of mujoco may render different pixels
        renderer = {"mujoco": importlib.metadata.version("mujoco"), "size": size}
        key = {"dataset": store.fingerprint, "cameras": list(cameras), **renderer}

        def draw() -> Iterator[np.ndarray]:
            for _, frames in render_episodes(store, list(range(len(store))), cameras, size, _WORKERS):
                yield from (frame for step in zip(*frames, strict=True) for frame in step)  # (H, W, 3) each

        self._add_array(_cached(key, draw(), store.path.name))

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> np.ndarray:
        """Return frame i, uint8 (H, W, 3), as a view if it is memory-mapped."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: frame {i} of {len(self)}")
        i %= len(self)
        source = int(np.searchsorted(self.ends, i, "right"))
        return self._reads[source](i - int(self.ends[source]) + self._counts[source])

    def describe(self) -> dict[str, Any]:
        """Return the number and size of the frames and how they were made, without paths, for the recipe."""
        meta = self.path / "meta.json"
        made = read_json(meta) if meta.is_file() else self.made
        return {"frames": len(self), "shape": list(self[0].shape), "made": made}


def read_image(file: Path, mode: str | None = None) -> Image.Image:
    """Read an image in Pillow's `mode` or its own; UserError for an unreadable file."""
    # only these formats: Pillow would start a PostScript interpreter for PostScript named .png
    formats = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
    with reported(f"{file}: not a readable image"), Image.open(file, formats=formats) as image:
        image.load()
        if mode == "RGB" and image.mode.startswith("I"):  # 16-bit values, which Pillow would clip at 255
            return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert(mode)
        return image.convert(mode) if mode else image.copy()


def _read_rgb(file: Path, _: int) -> np.ndarray:
    return np.asarray(read_image(file, "RGB"))


def _video_frames(file: Path) -> Iterator[np.ndarray]:
    """Yield every frame, uint8 (H, W, 3), upright. UserError for a damaged video, which would yield grey frames."""
    require("av", extra="data")
    import av

    kinds = (IndexError, av.error.FFmpegError)  # IndexError if there is no video stream
    with reported(f"{file}: not a readable video", kinds=kinds), av.open(f"file:{file}") as video:
        stream = video.streams.video[0]  # "file:" so that no name is parsed as a URL
        stream.codec_context.options = {"err_detect": "explode"}
        size: dict[str, Any] = {}
        for frame in video.decode(stream):
            size = size or {"width": frame.width, "height": frame.height}  # later frames may differ
            yield np.rot90(frame.to_ndarray(format="rgb24", **size), frame.rotation // 90)


def _cached(key: dict[str, Any], frames: Iterable[np.ndarray], name: str) -> Path:
    """Write frames of one size to the user's cache once, while other processes wait; returns the .npy, (N, H, W, 3)."""
    path = cache_dir("frames") / f"{short_hash(key)}.npy"
    with FileLock(path.with_name(f".{path.stem}.lock")):
        if not path.is_file():
            with replacing(path) as part, bar(f"frames of {name}") as update:
                _write_array(part, frames, update)
    return path


def _write_array(path: Path, frames: Iterable[np.ndarray], update: Callable[..., None]) -> None:
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (0, 0, 0, 3)}
    count = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)  # leaves room for the sizes to grow
        for count, frame in enumerate(frames, 1):
            if count > 1 and frame.shape != (first := header["shape"][1:]):
                raise UserError(f"env.image_size: expected one size, got {first} and {frame.shape}")
            file.write(np.ascontiguousarray(frame).data)
            header["shape"] = (count, *frame.shape)
            update(count, None)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        os.fsync(file.fileno())  # complete before the rename, also after a power cut

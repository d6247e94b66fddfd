"""Read the frames of a pre-training from arrays, images, videos or demos.

    bank = FrameBank("scenes")                 # frames.npy, as `pretrain kind=scenes` writes it
    bank = FrameBank("photos")                 # .png, .jpg and videos of any sizes, in any sub-folders
    bank = FrameBank("kitchen.mp4", every=10)  # every tenth frame of a video
    bank = FrameBank("demos.zarr")             # every camera at every step; states are rendered
    len(bank), bank[7].shape                   # bank[7] is uint8 (H, W, 3), RGB

Videos and recorded states are decoded once into a memory-mapped file of the user's cache, so `bank[i]` is always the same
and may be called from threads and forks.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.core.errors import UserError, require
from s2robot.core.files import cache_dir, read_json, replacing
from s2robot.core.progress import bar
from s2robot.demos.store import EpisodeStore

IMAGES = (".png", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class FrameBank:
    """Frames by index; the kind of `path` decides how they are read.

    Args:
        path: a folder with frames.npy (uint8, N x H x W x 3, memory-mapped), a demo store, an image, a video, or a folder
            of images and videos, in the order of their paths, of any sizes.
        every: use every n-th frame of a video.
        workers: processes that render recorded states.
        progress: show decoding and rendering.

    Raises:
        UserError: names a file that cannot be read; a broken image shows when it is opened.
    """

    def __init__(self, path: str | Path, *, every: int = 1, workers: int = 2, progress: bool = False) -> None:
        self.path, self.every, self.made = Path(path), every, None
        array = self.path if self.path.suffix == ".npy" else self.path / "frames.npy"
        self.sources: Sequence[_Read | np.ndarray]
        if array.is_file():
            self.sources = [_open_array(array)]
        elif (self.path / "zarr.json").is_file() or self.path.suffix == ".zarr":
            store = EpisodeStore.open(self.path)
            self.sources = [_store_frames(store, workers, progress)]
            about = {key: store.attrs[key] for key in ("robot", "kind", "cameras", "env_version")}
            self.made = {**about, "dataset": store.fingerprint}
        else:
            self.sources = self._files(progress)
        self.ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64)
        if not len(self):
            raise UserError(
                f"{self.path}: expected frames.npy, images ({' '.join(IMAGES)}), videos ({' '.join(VIDEOS)}) or a demo "
                f"store, got {'none' if self.path.exists() else 'no such file or folder'}"
            )

    def _files(self, progress: bool) -> list[_Read | np.ndarray]:
        sources: list[_Read | np.ndarray] = []
        digest, videos = hashlib.sha256(), 0
        for file in [self.path] if self.path.is_file() else sorted(self.path.rglob("*")):
            if file.name.startswith("."):  # partial files and notes of file managers
                continue
            if file.suffix.lower() in IMAGES:
                sources.append(_Read(1, partial(_read_rgb, file)))
            elif file.suffix.lower() in VIDEOS:
                with file.open("rb") as content:
                    sha256 = hashlib.file_digest(content, "sha256").hexdigest()
                frames = islice(_video_frames(file), 0, None, self.every)
                sources.append(_cached({"video": sha256, "every": self.every}, frames, file, None, progress))
                digest.update(sha256.encode())
                videos += 1
        if videos:
            self.made = {"videos": videos, "sha256": digest.hexdigest(), "every": self.every}
        return sources

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> np.ndarray:
        """Return frame i, uint8 (H, W, 3), as a view where it is memory-mapped."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: frame {i} of {len(self)}")
        i %= len(self)
        source = int(np.searchsorted(self.ends, i, "right"))
        return self.sources[source][i - int(self.ends[source])]  # counted from the source's end

    def describe(self) -> dict[str, Any]:
        """Return the number and size of the frames and how they were made, without paths, for the recipe."""
        meta = self.path / "meta.json"
        made = read_json(meta) if meta.is_file() else self.made
        return {"frames": len(self), "shape": list(self[0].shape), "made": made}


class _Read:
    """Frames that are read on access."""

    def __init__(self, count: int, read: Callable[[int], np.ndarray]) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        return self.read(i % self.count)


def read_image(file: Path, mode: str | None = None) -> Image.Image:
    """Read an image in Pillow's `mode` or its own; UserError names a file that cannot be read."""
    try:
        # by its format: Pillow would start a PostScript interpreter for what only is called .png
        with Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF")) as image:
            image.load()
            if mode == "RGB" and image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255
                grey = (np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)
                return Image.fromarray(grey).convert(mode)
            return image.convert(mode) if mode else image.copy()
    # Pillow raises many kinds for broken files, SyntaxError among them
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: not a readable image: {what}") from error


def _read_rgb(file: Path, _: int) -> np.ndarray:
    return np.asarray(read_image(file, "RGB"))


def _store_frames(store: EpisodeStore, workers: int, progress: bool) -> _Read | np.ndarray:
    """Return every camera at every step: read, or rendered at the store's image size if it holds states only."""
    cameras, total = store.cameras, store.num_steps * len(store.cameras)
    if not len(store) or not cameras:
        raise UserError(f"{store.path}: found {len(store)} episodes of {len(cameras)} cameras")
    if store.attrs["kind"] == "images":

        def read(i: int) -> np.ndarray:  # all cameras of a step one after the other
            step, camera = divmod(i, len(cameras))
            return store.read(f"images_{cameras[camera]}", step, step + 1)[0]

        for i, name in enumerate(cameras):
            if (first := read(i)).dtype != np.uint8 or first.ndim != 3 or first.shape[-1] != 3:
                found = f"{first.dtype} {first.shape}"
                raise UserError(f"{store.path}: images_{name}: expected uint8 (H, W, 3), got {found}")
        return _Read(total, read)
    from s2robot.demos.replay import render_episodes, world_of_demos  # loads the simulator

    size = world_of_demos(store).image_size
    # another mujoco may render other pixels
    drawn_by = {"mujoco": importlib.metadata.version("mujoco"), "size": size}
    key = {"dataset": store.fingerprint, "cameras": list(cameras), **drawn_by}

    def draw() -> Iterator[np.ndarray]:
        for _, frames in render_episodes(store, list(range(len(store))), cameras, size, workers):
            yield from (frame for step in zip(*frames, strict=True) for frame in step)  # (H, W, 3) each

    return _cached(key, draw(), store.path, total, progress)


def _video_frames(file: Path) -> Iterator[np.ndarray]:
    """Yield every frame, uint8 (H, W, 3), upright. UserError for a damaged video, which would give grey frames."""
    require("av", "data")
    import av

    try:
        with av.open(f"file:{file}") as video:  # "file:" so that no name is taken for an address
            if not video.streams.video:
                raise UserError(f"{file}: not a readable video: no video stream")
            stream = video.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in video.decode(stream):
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    except av.error.FFmpegError as error:
        raise UserError(f"{file}: not a readable video: {error.strerror}") from error


def _cached(
    key: dict[str, Any], frames: Iterable[np.ndarray], source: Path, total: int | None, progress: bool
) -> np.ndarray:
    """Write frames to the user's cache once and map them from there, (N, H, W, 3); locked against other processes."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir("frames")
    path = folder / f"{name}.npy"
    try:
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the process dies
            if not path.is_file():
                with (
                    replacing(path) as part,
                    bar(f"frames of {source.name}") if progress else nullcontext(lambda *_: None) as update,
                ):
                    _write_array(part, frames, source, lambda count: update(count, total))
    except OSError as error:
        raise UserError(
            f"{source}: its frames cannot be written to {path}: {error.strerror or error}; make room, set "
            "S2ROBOT_CACHE=<folder>, or use fewer frames of a video (every)"
        ) from error
    return _open_array(path)


def _write_array(
    path: Path, frames: Iterable[np.ndarray], source: Path, update: Callable[[int], None]
) -> None:
    """Write frames of one size as a .npy file; its header is rewritten when their number is known."""
    count, shape = 0, None
    with path.open("wb") as file:
        for count, frame in enumerate(frames, 1):
            if shape not in (None, frame.shape):
                raise UserError(f"{source}: frame {count - 1}: expected {shape}, got {frame.shape}")
            if shape is None:
                shape = frame.shape
                _write_header(file, 0, shape)
            file.write(np.ascontiguousarray(frame).data)
            update(count)
        if shape is None:
            raise UserError(f"{source}: expected at least 1 frame, got none")
        file.seek(0)
        _write_header(file, count, shape)
        file.flush()
        os.fsync(file.fileno())  # complete before the rename, also after a power cut


def _write_header(file: Any, count: int, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)  # leaves room for the count to grow


def _open_array(path: Path) -> np.ndarray:
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable array: {error}") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise UserError(f"{path}: expected uint8 (N, H, W, 3), got {frames.dtype} {frames.shape}")
    return frames

"""Frames to learn from, one after the other, whatever they are stored as.

    bank = FrameBank("scenes")                 # frames.npy, as `s2robot scenes` writes it
    bank = FrameBank("photos")                 # .png, .jpg and videos of any sizes, in any sub-folders
    bank = FrameBank("kitchen.mp4", every=10)  # each tenth frame of a video
    bank = FrameBank("demos.zarr")             # every camera at every step; states are drawn
    len(bank), bank[7].shape                   # bank[7] is uint8 (H, W, 3), RGB

What cannot be read at random (videos, recorded states) is turned into pixels once, in a file of the user's
cache that is memory-mapped. So `bank[i]` is always the same, and may be called from threads and forks.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import imageio_ffmpeg
import numpy as np
from PIL import Image

from s2robot.common.errors import UserError
from s2robot.common.files import replacing
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.demos.errors import DatasetError
from s2robot.demos.store import EpisodeStore

IMAGES = (".png", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")


class FrameBank:
    """Frames to learn from; what is at `path` says how they are read.

    A folder with frames.npy (uint8, N x H x W x 3; it is memory-mapped), a demo store, an image, a video, or a
    folder of images and videos, taken in the order of their paths; sizes may differ from file to file. A
    meta.json in the folder (how the frames were made) goes into the recipe of the encoder.

    every: of a video's frames, each how many-th is taken. workers: processes that draw recorded states.
    progress: show how videos are decoded and states drawn.
    Raises UserError, in one line that names the file, for anything that cannot be read. Images are opened when
    they are asked for, so a broken one shows only then.
    """

    def __init__(self, path: str | Path, *, every: int = 1, workers: int = 2, progress: bool = False) -> None:
        self.path, self.every, self.made = Path(path), every, None
        if every < 1:
            raise UserError(f"{self.path}: found every {every}, expected a whole number of at least 1")
        array = self.path if self.path.suffix == ".npy" else self.path / "frames.npy"
        self.sources: Sequence[_Image | _StoreImages | np.ndarray]
        if array.is_file():
            self.sources = [_open_array(array)]
        elif (self.path / "zarr.json").is_file() or self.path.suffix == ".zarr":
            store = _read(lambda: EpisodeStore.open(self.path))
            self.sources = [_store_frames(store, workers, progress)]
            about = {key: store.attrs[key] for key in ("robot", "kind", "cameras", "env_version")}
            self.made = {**about, "dataset": store.fingerprint}
        else:
            self.sources = self._files(progress)
        self.ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64)
        if not len(self):
            raise UserError(
                f"{self.path}: expected frames.npy, images ({' '.join(IMAGES)}), videos ({' '.join(VIDEOS)}) "
                f"or a demo store, found {'none' if self.path.exists() else 'no such file or folder'}"
            )

    def _files(self, progress: bool) -> list[_Image | _StoreImages | np.ndarray]:
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*"))
        sources: list[_Image | _StoreImages | np.ndarray] = []
        digest, videos = hashlib.sha256(), 0
        for file in files:
            if file.name.startswith("."):  # half-written files and the notes of file managers
                continue
            if file.suffix.lower() in IMAGES:
                sources.append(_Image(file))
            elif file.suffix.lower() in VIDEOS:
                sha256 = _sha256(file)
                key = {"video": sha256, "every": self.every}
                frames = islice(_video_frames(file), 0, None, self.every)
                sources.append(_cached(key, frames, file, None, progress))
                digest.update(sha256.encode())
                videos += 1
        if videos:
            self.made = {"videos": videos, "sha256": digest.hexdigest(), "every": self.every}
        return sources

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, i: int) -> np.ndarray:
        """Frame i (from the end if negative), uint8 (H, W, 3).

        From a mapped file it is a view, so that a crop reads no more than its rows.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.path}: frame {i} of {len(self)}")
        i %= len(self)
        source = int(np.searchsorted(self.ends, i, "right"))
        return self.sources[source][i - int(self.ends[source])]  # counted from the source's end

    def describe(self) -> dict[str, Any]:
        """For the recipe: number and size of the frames, and how they were made if that is known; no path."""
        meta, made = self.path / "meta.json", self.made
        if meta.is_file():
            try:
                made = json.loads(meta.read_text("utf-8"))
            except (OSError, ValueError) as error:
                raise UserError(f"{meta}: not readable as JSON: {error}") from error
        return {"frames": len(self), "shape": list(self[0].shape), "made": made}


# ---------------------------------------------------------------- sources: a length, and frames by number


class _Image:
    """The one frame of an image file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> np.ndarray:
        return np.asarray(read_image(self.file, "RGB"))


def read_image(file: Path, mode: str | None = None) -> Image.Image:
    """An image with its pixels, in Pillow's `mode` or its own; UserError names a file that cannot be read."""
    try:
        # by its format: Pillow would start a PostScript interpreter for what only is called .png
        with Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF")) as image:
            image.load()
            if mode == "RGB" and image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert(
                    mode
                )
            return image.convert(mode) if mode else image.copy()
    # Pillow raises many kinds for broken files, SyntaxError among them
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: not a readable image: {_line(error)}") from error


class _StoreImages:
    """Recorded images, all cameras of a step one after the other."""

    def __init__(self, store: EpisodeStore) -> None:
        self.store, self.cameras = store, store.cameras
        for camera in self.cameras:
            first = self._rows(camera, 0, 1)
            if first.dtype != np.uint8 or first.ndim != 4 or first.shape[-1] != 3:
                found = f"{first.dtype} {first.shape[1:]}"
                raise UserError(f"{store.path}: images_{camera}: found {found}, expected uint8 (H, W, 3)")

    def __len__(self) -> int:
        return self.store.num_steps * len(self.cameras)

    def __getitem__(self, i: int) -> np.ndarray:
        step, camera = divmod(i % len(self), len(self.cameras))
        return self._rows(self.cameras[camera], step, step + 1)[0]

    def _rows(self, camera: str, start: int, stop: int) -> np.ndarray:
        return _read(lambda: self.store.read(f"images_{camera}", start, stop))


def _store_frames(store: EpisodeStore, workers: int, progress: bool) -> _StoreImages | np.ndarray:
    """Every camera at every step, read or, where the store holds states only, drawn at its own image size."""
    if not len(store) or not store.cameras:
        raise UserError(f"{store.path}: found {len(store)} episodes of {len(store.cameras)} cameras")
    if store.attrs["kind"] == "images":
        return _StoreImages(store)
    from s2robot.demos.replay import (
        render_episodes,
        world_of_demos,
    )  # loads the simulator, which nothing else here needs

    size = _read(lambda: world_of_demos(store)).image_size
    # another mujoco may draw other pixels
    drawn_by = {"mujoco": importlib.metadata.version("mujoco"), "size": size}
    key = {"dataset": store.fingerprint, "cameras": list(store.cameras), **drawn_by}

    def draw() -> Iterator[np.ndarray]:
        episodes = list(range(len(store)))
        for _, frames in render_episodes(store, episodes, store.cameras, size, workers):
            yield from (frame for step in zip(*frames, strict=True) for frame in step)  # (H, W, 3) each

    return _cached(key, draw(), store.path, store.num_steps * len(store.cameras), progress)


def _video_frames(file: Path) -> Iterator[np.ndarray]:
    """Every frame as it was stored, uint8 (H, W, 3), turned upright as the file says.

    Raises UserError for a file with any error: a cut or damaged video would give grey or repeated frames.
    """
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise UserError(f"{file}: videos need ffmpeg: {_line(error)}") from error
    # stops at the first error; "file:" so that no name passes for an address
    command = [program, "-v", "error", "-nostdin", "-xerror", "-i", f"file:{file}", "-map", "0:V:0"]
    # each picture with its own size, none left out or repeated to even out the rate
    command += ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "pipe:1"]
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages
        ) as ffmpeg,
    ):
        try:
            assert ffmpeg.stdout is not None
            while (frame := _read_ppm(ffmpeg.stdout)) is not None:
                yield frame
            ffmpeg.wait()
            messages.seek(0)
            said = messages.read().decode("utf-8", "replace").strip().splitlines()
            if ffmpeg.returncode or said:
                reason = re.sub(r"^\[.*?\] *", "", said[0]) if said else f"ffmpeg gives {ffmpeg.returncode}"
                raise UserError(f"{file}: not a readable video: {reason}")
        finally:
            ffmpeg.kill()  # where the reader stopped early


def _read_ppm(stream: Any) -> np.ndarray | None:
    """The next picture of ffmpeg's stream (P6, width height, 255, pixels); None at its end."""
    head = [stream.readline() for _ in range(3)]
    if not head[2]:
        return None
    width, height = (int(number) for number in head[1].split())
    pixels = stream.read(width * height * 3)
    if len(pixels) < width * height * 3:
        return None
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


# ---------------------------------------------------------------- the cache


def _cached(
    key: dict[str, Any], frames: Iterable[np.ndarray], source: Path, total: int | None, progress: bool
) -> np.ndarray:
    """Frames that are taken from `frames` once and from the user's cache ever after, (N, H, W, 3) mapped.

    Another process that does the same is waited for.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir("frames")
    path = folder / f"{name}.npy"
    try:
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the system when this process dies
            if not path.is_file():
                with replacing(path) as part, part.open("wb") as file:
                    _write_array(file, frames, source, total, progress)
    except OSError as error:
        raise UserError(
            f"{source}: its frames cannot be kept as {path}: {error.strerror or error}; make room, name "
            "another cache with S2ROBOT_CACHE=<folder>, or take fewer frames of a video (every)"
        ) from error
    except DatasetError as error:
        raise UserError(str(error)) from error
    return _open_array(path)


def _write_array(
    file: BinaryIO, frames: Iterable[np.ndarray], source: Path, total: int | None, progress: bool
) -> None:
    """Frames of one size as a .npy file, whose header is written again when their number is known."""
    count = 0
    shape: tuple[int, ...] = ()
    with bar(f"frames of {source.name}") if progress else nullcontext(lambda *args: None) as update:
        for frame in frames:
            if not count:
                shape = frame.shape
                _write_header(file, 0, shape)
            elif frame.shape != shape:
                raise UserError(
                    f"{source}: frame {count} is {frame.shape[1]} x {frame.shape[0]} px, "
                    f"expected {shape[1]} x {shape[0]} as the first"
                )
            file.write(np.ascontiguousarray(frame).data)
            count += 1
            update(count, total)
        update(count, count)
        if not count:
            raise UserError(f"{source}: found no frames, expected at least 1")
        file.seek(0)
        _write_header(file, count, shape)
        file.flush()
        os.fsync(file.fileno())  # whole before it gets its name, also after a power cut


def _write_header(file: BinaryIO, count: int, shape: tuple[int, ...]) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(file, header)  # leaves room for the count to grow


def _open_array(path: Path) -> np.ndarray:
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable array: {error}") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise UserError(f"{path}: found {frames.dtype} {frames.shape}, expected uint8 (N, H, W, 3)")
    return frames


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _read(get: Callable[[], Any]) -> Any:
    """What `get` returns, a dataset's error being one of ours."""
    try:
        return get()
    except DatasetError as error:
        raise UserError(str(error)) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

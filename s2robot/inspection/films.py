"""Episodes as videos for the page, all cameras in one picture so that they are in step, and what the frames look like.

A finished video lies in the cache under a name made of all that decides its pictures; the next inspection takes it from
there. Nothing larger than a few frames is held where frames are stored; where they are drawn, one episode's.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, isqrt, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.common.errors import UserError
from s2robot.common.files import replacing
from s2robot.common.paths import cache_dir
from s2robot.common.progress import Update
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.workers import worker_pool
from s2robot.demos.replay import camera_sizes, drawn_by, episode_frames, world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.frames import at_height, sizes_of
from s2robot.inspection.findings import FrameStats
from s2robot.reporting.h264 import encode

MADE = 2  # raised when the same frames give another video or other facts: cached ones are made again
PIECE = 32  # frames of a camera in memory
LOOKED_AT = 10_000  # pixels of a picture at least, if it has so many, for brightness and change
ROW = 3  # cameras beside each other
GAP = 4  # px between them

Frames = dict[str, np.ndarray]  # camera -> uint8 (H, W, 3)


class FilmSettings(Settings, at="videos", file="inspect"):
    """Settings of the videos; configs/inspect.yaml documents each value."""

    write: bool = from_yaml()
    height: int = from_yaml(ge=16)
    draw: int | None = from_yaml(ge=16)
    crf: int = from_yaml(ge=0, le=51)
    key_every: int = from_yaml(ge=1)


@dataclass(frozen=True)
class Tiles:
    """Where the cameras lie in the picture."""

    width: int
    height: int
    places: dict[str, tuple[int, int, int, int]]  # camera -> left, top, width, height


def tiles(sizes: dict[str, tuple[int, int]], height: int) -> Tiles:
    """Rows of cameras of one height, at most `height` px; `sizes`: camera -> (H, W)."""
    names = list(sizes)
    across = len(names) if len(names) <= ROW else ceil(sqrt(len(names)))
    places, top, widest = {}, 0, 0
    for start in range(0, len(names), across):
        row = names[start : start + across]
        high = min(height, max(sizes[name][0] for name in row))
        left = 0
        for name in row:
            wide = max(1, round(sizes[name][1] * high / sizes[name][0]))
            places[name] = (left, top, wide, high)
            left += wide + GAP
        widest, top = max(widest, left - GAP), top + high + GAP
    top -= GAP
    return Tiles(widest + widest % 2, top + top % 2, places)  # even, as the encoder wants


@dataclass(frozen=True)
class Film:
    """One episode to film."""

    path: Path  # of the store
    episode: int
    cameras: tuple[str, ...]
    world: Any  # settings of what states are drawn in; None: frames are stored
    drawn_by: dict[str, Any]
    rate: float
    settings: FilmSettings


def film_all(
    store: EpisodeStore,
    episodes: int,
    settings: FilmSettings,
    workers: int,
    folder: Path,
    update: Update,
) -> tuple[Tiles, list[dict[str, FrameStats]]]:
    """Films of the first so many episodes in `folder` as `0000.mp4` and so on, and what their frames look like.

    Raises:
        UserError: a video that cannot be written. DatasetError: frames that cannot be read or drawn.
    """
    world: Any = world_of_demos(store) if store.attrs["kind"] == "states" else None
    if world is not None and settings.draw is not None:
        world = world.replace(image_size=at_height(world.image_size, store.cameras, settings.draw))
    job = Film(store.path, 0, store.cameras, world, drawn_by(store) or {}, store.attrs["rate_hz"], settings)
    found: list[dict[str, FrameStats]] = []
    with worker_pool(min(workers, episodes)) as pool:
        tasks = [(replace(job, episode=i),) for i in range(episodes)]
        for i, (video, facts) in enumerate(pool.in_order(film, tasks)):
            _link(video, folder / f"{i:04d}.mp4")
            found.append({c: FrameStats(*map(np.array, rows)) for c, rows in facts.items()})
            update(i + 1, episodes, "episodes")
    return tiles(_sizes(store, job), settings.height), found


def film(job: Film) -> tuple[Path, dict[str, Any]]:
    """The video of an episode in the cache, made if it is not there, and camera -> change, mean, deviation a step."""
    store = EpisodeStore.open(job.path)
    video = cache_dir("videos") / f"{_key(store, job)}.mp4"
    facts = video.with_suffix(".json")  # written last: with it the video is whole
    if video.exists():
        with suppress(FileNotFoundError, ValueError):  # not there, or not whole: made again
            return video, json.loads(facts.read_text(encoding="utf-8"))
    layout = tiles(_sizes(store, job), job.settings.height)
    seen = {camera: _FrameObserver() for camera in job.cameras}
    pictures = _pictures(_frames(store, job), layout, seen)
    try:
        with replacing(video, shared=True) as part:
            shape = (layout.height, layout.width)
            encode(part, pictures, shape, job.rate, job.settings.crf, job.settings.key_every)
        rows = {camera: watch.rows for camera, watch in seen.items()}
        with replacing(facts, shared=True) as part:
            part.write_text(json.dumps(rows))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{video}: the video cannot be written: {error}") from error
    return video, rows


def _sizes(store: EpisodeStore, job: Film) -> dict[str, tuple[int, int]]:
    return (
        camera_sizes(store, job.cameras) if job.world is None else sizes_of(job.world.image_size, job.cameras)
    )


def _key(store: EpisodeStore, job: Film) -> str:
    """All that decides a video and what is noted of its frames."""
    about = [MADE, job.cameras, repr(job.world), job.drawn_by, job.rate, str(job.settings)]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for key in ("state",) if job.world is not None else [f"images_{c}" for c in job.cameras]:
        for piece in _pieces(store, key, job.episode):
            digest.update(np.ascontiguousarray(piece).data)
    return digest.hexdigest()[:24]


def _pieces(store: EpisodeStore, key: str, episode: int) -> Iterator[np.ndarray]:
    rows = store.episode_slice(episode)
    for start in range(rows.start, rows.stop, PIECE):
        yield store.read(key, start, min(start + PIECE, rows.stop))


def _frames(store: EpisodeStore, job: Film) -> Iterator[Frames]:
    """The frames of an episode, step by step."""
    if job.world is not None:
        drawn = episode_frames(store.path, job.episode, job.cameras, job.world.image_size, job.world)
        yield from (dict(zip(job.cameras, step, strict=True)) for step in zip(*drawn, strict=True))
        return
    for pieces in zip(*(_pieces(store, f"images_{c}", job.episode) for c in job.cameras), strict=True):
        yield from (dict(zip(job.cameras, step, strict=True)) for step in zip(*pieces, strict=True))


def _pictures(
    frames: Iterator[Frames], layout: Tiles, seen: "dict[str, _FrameObserver]"
) -> Iterator[np.ndarray]:
    for step in frames:
        canvas = np.full((layout.height, layout.width, 3), 255, np.uint8)
        for camera, (left, top, wide, high) in layout.places.items():
            image = step[camera]
            seen[camera].look(image)
            if image.shape[:2] != (high, wide):
                small = Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR)
                image = np.asarray(small)
            canvas[top : top + high, left : left + wide] = image
        yield canvas


class _FrameObserver:
    """What the frames of a camera look like, one after the other."""

    def __init__(self) -> None:
        self.rows: tuple[list[float], list[float], list[float]] = ([], [], [])
        self._last: tuple[np.ndarray, np.ndarray] | None = None  # the frame before, and its brightness

    def look(self, image: np.ndarray) -> None:
        """Note one frame (H, W, 3)."""
        every = max(1, isqrt(image.shape[0] * image.shape[1] // LOOKED_AT))
        red, green, blue = np.moveaxis(image[::every, ::every].astype(np.uint16), -1, 0)
        thin = (red + green + blue) / 3  # (h, w); a mean over the last axis takes ten times as long
        change = 255.0
        if self._last is not None:
            before, brightness = self._last
            seen = np.abs(thin - brightness).mean()
            change = 0.0 if np.array_equal(image, before) else max(float(seen), 1e-3)
        for row, value in zip(self.rows, (change, float(thin.mean()), float(thin.std())), strict=True):
            row.append(round(value, 3))
        self._last = image, thin


def _link(video: Path, place: Path) -> None:
    """The video of the cache beside the page: the same file where the disk allows, else a copy."""
    try:
        with replacing(place) as part:
            part.unlink(
                missing_ok=True
            )  # a killed process's, which may be a link into the cache: not to be written into
            try:
                os.link(video, part)
            except OSError:  # another disk, or one without links
                shutil.copy2(video, part)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror})") from error

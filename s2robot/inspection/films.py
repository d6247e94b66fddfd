"""Episodes as videos for the page, all cameras side by side so that they are in step, and measurements of their frames.

Stored frames are read a few at a time; where states are drawn, memory holds one episode's frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, isqrt, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s2robot.core.errors import UserError
from s2robot.core.files import replacing
from s2robot.core.progress import Update
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.workers import worker_pool
from s2robot.demos.replay import camera_sizes, episode_frames, world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.frames import at_height
from s2robot.inspection.findings import FrameStats
from s2robot.reporting.h264 import encode

PIECE = 32  # frames of a camera in memory
SAMPLED = 10_000  # pixels of an image at least, if it has so many, for brightness and change
ROW = 3  # cameras beside each other
GAP = 4  # px between them


class FilmSettings(Settings, at="videos", file="inspect"):
    """Settings of the videos; configs/inspect.yaml documents each value."""

    write: bool = from_yaml()
    height: int = from_yaml(ge=16)
    draw: int | None = from_yaml(ge=16)
    crf: int = from_yaml(ge=0, le=51)
    key_every: int = from_yaml(ge=1)


@dataclass(frozen=True)
class Tiles:
    """Where the cameras lie in the video."""

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


def film_all(
    store: EpisodeStore, episodes: int, settings: FilmSettings, workers: int, folder: Path, update: Update
) -> tuple[Tiles, list[dict[str, FrameStats]]]:
    """Write videos of the first so many episodes into `folder` as `0000.mp4` and so on, and measure their frames.

    Raises:
        UserError: a video that cannot be written. DatasetError: frames that cannot be read or drawn.
    """
    world: Any = world_of_demos(store) if store.attrs["kind"] == "states" else None
    if world is not None:
        size = world.image_size
        size = size if settings.draw is None else at_height(size, store.cameras, settings.draw)
        world = world.replace(image_size=size, cameras=store.cameras)
    layout = tiles(camera_sizes(store, store.cameras, world), settings.height)
    found: list[dict[str, FrameStats]] = []
    with worker_pool(min(workers, episodes)) as pool:
        how = (world, layout, store.attrs["rate_hz"], settings)
        tasks = [(store.path, i, folder / f"{i:04d}.mp4", *how) for i in range(episodes)]
        for stats in pool.in_order(film, tasks):
            found.append(stats)
            update(len(found), episodes, "episodes")
    return layout, found


def film(
    path: Path, episode: int, video: Path, world: Any, layout: Tiles, rate: float, settings: FilmSettings
) -> dict[str, FrameStats]:
    """Write the video of an episode; returns the measurements of each camera."""
    store = EpisodeStore.open(path)
    seen = {camera: _Measurements() for camera in layout.places}
    images = _tiled(_frames(store, episode, world), layout, seen)
    try:
        with replacing(video) as part:
            shape = (layout.height, layout.width)
            encode(part, images, shape, rate, settings.crf, settings.key_every)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{video}: the video cannot be written: {error}") from error
    return {camera: FrameStats(*map(np.array, each.rows)) for camera, each in seen.items()}


def _frames(store: EpisodeStore, episode: int, world: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """The frames of an episode, step by step."""
    if world is not None:
        frames = episode_frames(store.path, episode, store.cameras, world.image_size, world)
        yield from zip(*frames, strict=True)
        return
    rows = store.episode_slice(episode)
    for start in range(rows.start, rows.stop, PIECE):
        stop = min(start + PIECE, rows.stop)
        yield from zip(*(store.read(f"images_{c}", start, stop) for c in store.cameras), strict=True)


def _tiled(
    frames: Iterator[tuple[np.ndarray, ...]], layout: Tiles, seen: "dict[str, _Measurements]"
) -> Iterator[np.ndarray]:
    for step in frames:
        canvas = np.full((layout.height, layout.width, 3), 255, np.uint8)
        for (camera, (left, top, wide, high)), image in zip(layout.places.items(), step, strict=True):
            seen[camera].add(image)
            if image.shape[:2] != (high, wide):
                image = np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
            canvas[top : top + high, left : left + wide] = image
        yield canvas


class _Measurements:
    """Change, mean and deviation of brightness of a camera's frames, one after the other."""

    def __init__(self) -> None:
        self.rows: tuple[list[float], list[float], list[float]] = ([], [], [])
        self._last: tuple[np.ndarray, np.ndarray] | None = None  # the frame before, and its brightness

    def add(self, image: np.ndarray) -> None:
        """Measure the next frame (H, W, 3)."""
        every = max(1, isqrt(image.shape[0] * image.shape[1] // SAMPLED))
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

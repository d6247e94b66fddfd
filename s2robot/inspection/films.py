"""Write episodes as videos for the page, with all cameras side by side, and measure their frames."""

from collections.abc import Iterator
from math import ceil, isqrt, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from s2robot.core.progress import Update
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.workers import worker_pool
from s2robot.demos.replay import camera_sizes, episode_frames, open_cached, world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.frames import at_height
from s2robot.envs.gl import require_simulator
from s2robot.inspection.tables import FrameStats
from s2robot.reporting.h264 import encode

PIECE = 32  # recorded frames per camera to hold in memory
SAMPLED = 10_000  # minimum count of pixels for brightness and change, if the image has that many
ROW = 3  # most cameras in a single row
GAP = 4  # px between cameras


class FilmSettings(Settings, at="videos", file="inspect"):
    write: bool = from_yaml()
    height: int = from_yaml(ge=16)
    draw: int | None = from_yaml(ge=16)
    crf: int = from_yaml(ge=0, le=51)
    key_every: int = from_yaml(ge=1)


class Tiles(NamedTuple):
    """The positions of the cameras in the video."""

    width: int
    height: int
    places: dict[str, tuple[int, int, int, int]]  # camera -> left, top, width, height


def tiles(sizes: dict[str, tuple[int, int]], height: int) -> Tiles:
    """Arrange cameras in rows of equal height, at most `height` px; `sizes`: camera -> (H, W)."""
    names = list(sizes)
    per_row = len(names) if len(names) <= ROW else ceil(sqrt(len(names)))
    places, top, widest = {}, 0, 0
    for start in range(0, len(names), per_row):
        row = names[start : start + per_row]
        row_height, left = min(height, max(sizes[name][0] for name in row)), 0
        for name in row:
            width = max(1, round(sizes[name][1] * row_height / sizes[name][0]))
            places[name] = (left, top, width, row_height)
            left += width + GAP
        widest, top = max(widest, left - GAP), top + row_height + GAP
    top -= GAP
    return Tiles(widest + widest % 2, top + top % 2, places)  # the encoder requires even sizes


def film_all(
    store: EpisodeStore, episodes: int, settings: FilmSettings, workers: int, folder: Path, update: Update
) -> tuple[Tiles, list[dict[str, FrameStats]]]:
    """Write videos of the first `episodes` as `folder`/0000.mp4 and so on, and measure their frames (UserError)."""
    world: Any = world_of_demos(store) if store.attrs["kind"] == "states" else None
    if world is not None:
        require_simulator(world)
        size = world.image_size
        size = size if settings.draw is None else at_height(size, store.cameras, settings.draw)
        world = world.replace(image_size=size, cameras=store.cameras)
    layout = tiles(camera_sizes(store, store.cameras, world), settings.height)
    measured: list[dict[str, FrameStats]] = []
    with worker_pool(min(workers, episodes)) as pool:
        options = (world, layout, store.attrs["rate_hz"], settings)
        tasks = [(store.path, i, folder / f"{i:04d}.mp4", *options) for i in range(episodes)]
        for stats in pool.in_order(film, tasks):
            measured.append(stats)
            update(len(measured), episodes, "episodes")
    return layout, measured


def film(
    path: Path, episode: int, video: Path, world: Any, layout: Tiles, rate: float, settings: FilmSettings
) -> dict[str, FrameStats]:
    """Write the video of an episode, and return the measurements of each camera."""
    measured: dict[str, list[tuple[float, ...]]] = {camera: [] for camera in layout.places}

    def canvases() -> Iterator[np.ndarray]:
        last: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # camera -> previous frame and its brightness
        for step in _frames(open_cached(path, episode), episode, world):
            canvas = np.full((layout.height, layout.width, 3), 255, np.uint8)
            for (camera, (left, top, width, height)), image in zip(layout.places.items(), step, strict=True):
                brightness, change = _brightness(image), 255.0
                if camera in last:  # 0 only if every byte is equal
                    before, brightness_before = last[camera]
                    change = max(float(np.abs(brightness - brightness_before).mean()), 1e-3)
                    change = 0.0 if np.array_equal(image, before) else change
                measured[camera].append((change, brightness.mean(), brightness.std()))
                last[camera] = image, brightness
                if image.shape[:2] != (height, width):
                    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
                    image = np.asarray(resized)
                canvas[top : top + height, left : left + width] = image
            yield canvas

    encode(video, canvases(), (layout.height, layout.width), rate, settings.crf, settings.key_every)
    return {camera: FrameStats(*np.round(rows, 3).T) for camera, rows in measured.items()}


def _frames(store: EpisodeStore, episode: int, world: Any) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the frames of an episode, step by step."""
    if world is not None:
        images = episode_frames(store.path, episode, store.cameras, world.image_size, world)
        yield from zip(*images, strict=True)
        return
    rows = store.episode_slice(episode)
    for start in range(rows.start, rows.stop, PIECE):
        stop = min(start + PIECE, rows.stop)
        yield from zip(*(store.read(f"images_{c}", start, stop) for c in store.cameras), strict=True)


def _brightness(image: np.ndarray) -> np.ndarray:
    """Return the brightness of sampled pixels.  # (H, W, 3) -> (h, w)"""
    every = max(1, isqrt(image.shape[0] * image.shape[1] // SAMPLED))
    red, green, blue = np.moveaxis(image[::every, ::every].astype(np.uint16), -1, 0)
    return (red + green + blue) / 3  # mean() over the last axis is ten times slower

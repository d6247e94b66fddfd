"""The features of demos: out of the cache, or drawn and encoded; of a mix from the caches of each of its datasets."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2robot.common.errors import UserError
from s2robot.common.extras import require_simulator
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.demos.mix import Mix
from s2robot.demos.replay import (
    camera_sizes,
    drawn_by,
    episode_frames,
    frames_of,
    render_episodes,
    seen_of,
    world_of_demos,
)
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.cache import FeatureCache, Frames
from s2robot.encoders.cameras import token_maps
from s2robot.encoders.encoder import S2Encoder
from s2robot.encoders.joined import Joined
from s2robot.encoders.views import Views
from s2robot.envs.frames import ImageSize, as_image_size
from s2robot.envs.task import TaskSettings
from s2robot.envs.trace import span
from s2robot.envs.workers import engine_in_use, worker_pool
from s2robot.loading import device_of


@dataclass(frozen=True)
class FeaturesSettings:
    """configs/features/default.yaml says what each is."""

    cache: str | None = None
    workers: int | None = None
    dtype: str = "float16"
    device: str = "auto"
    threads: int | None = None
    views: int = 0
    shift: float = 0.02
    colour: float = 0.2

    def __post_init__(self) -> None:
        check_ranges(self, "features", views=(0, INFINITY), shift=(0, 0.5), colour=(0, 1))
        for name in ("workers", "threads"):
            if (found := getattr(self, name)) is not None and found < 1:
                raise UserError(f"features.{name}: found {found}, expected 1 or more, or null")

    def shares(self) -> tuple[int, int]:
        """Processes, and threads of each: threads wait for each other and spin, so that a core each is left to processes."""
        threads = self.threads or 1
        return self.workers or max(1, (os.cpu_count() or 1) // threads), threads


def encode_demos(
    store: EpisodeStore,
    encoder: S2Encoder,
    cameras: tuple[str, ...],
    settings: FeaturesSettings,
    views: Views | None = None,
    episodes: np.ndarray | None = None,
) -> tuple[Any, list[FeatureCache]]:
    """The features of a dataset, (steps, cameras, tokens, dim), from the cache or newly encoded; and the caches.

    With ``views`` those of other views of the frames, (steps, views * cameras, tokens, dim); with ``episodes`` those of
    these alone, and what the rows of others hold is not said.
    """
    if not isinstance(store, Mix):
        features, cache = _encode(store, encoder, cameras, settings, views, episodes)
        return features, [cache]
    frame_sizes(store, encoder, cameras)  # refuses what cannot be one array
    found = []
    for member, first in zip(store.members, store.firsts, strict=False):
        own = None if episodes is None else np.intersect1d(episodes, first + np.arange(len(member))) - first
        found.append(_encode(member, encoder, cameras, settings, views, own))
    return Joined([features for features, _ in found]), [cache for _, cache in found]


def _encode(
    store: EpisodeStore,
    encoder: S2Encoder,
    cameras: tuple[str, ...],
    settings: FeaturesSettings,
    views: Views | None,
    episodes: np.ndarray | None,
) -> tuple[np.ndarray, FeatureCache]:
    sizes = frame_sizes(store, encoder, cameras)
    cache = FeatureCache(
        settings.cache or cache_dir("features"),
        store.fingerprint,
        f"{encoder.fingerprint}, {views.key}" if views else encoder.fingerprint,
        views.names(cameras) if views else cameras,
        store.lengths.tolist(),
        max(rows * columns for rows, columns in token_maps(encoder, sizes)),
        encoder.dim,
        settings.dtype,
        {"dataset": str(store.path), "encoder": encoder.name, "sizes": list(encoder.sizes)},
        drawn_by(store),
        wide(sizes),
        episodes,
    )
    device = device_of(settings.device)
    encoder.to(device)
    if not cache.missing():
        return cache.features, cache
    if store.attrs["kind"] == "states":
        require_simulator()
    work = _Work(store, cache, encoder, cameras, as_image_size(sizes), settings, views)
    before = torch.get_num_threads()
    torch.set_num_threads(work.threads)
    if cache.adopt(work.frames, encoder.encode):
        print(f"features: drawn and encoded as the cached ones of version 0.1, which serve: {cache.path}")
    apart = engine_in_use().far or device.type == "cpu"
    with bar(f"encoding {views.count} views" if views else "encoding frames") as update:
        features = cache.build(
            work.values if apart else work.frames,
            None if apart else encoder.encode,
            lambda done, total: update(done, total, f"steps of {len(cameras)} cameras"),
            store.fingerprint_of_first,
        )
    torch.set_num_threads(before)
    return features, cache


class _Work:
    """What is to be drawn and encoded, in either of two ways: frames that come here, where a GPU has them, or values.

    A processor encodes where it has drawn: frames are more bytes than features, and no core waits for another, whichever
    of the two is the slower.
    """

    def __init__(
        self,
        store: EpisodeStore,
        cache: FeatureCache,
        encoder: S2Encoder,
        cameras: tuple[str, ...],
        size: ImageSize,
        settings: FeaturesSettings,
        views: Views | None,
    ) -> None:
        self.store, self.cache, self.encoder, self.views = store, cache, encoder, views
        self.cameras, self.size, self.device = cameras, size, settings.device
        self.workers, self.threads = settings.shares()

    def frames(self, episodes: list[int]) -> Frames:
        """As `FeatureCache.build` encodes them."""
        drawn = render_episodes(self.store, episodes, self.cameras, self.size, self.workers)
        return self.views.frames(drawn) if self.views else drawn

    def values(self, episodes: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Episodes and their features, as they are done."""
        world = world_of_demos(self.store) if self.store.attrs["kind"] == "states" else None
        how = self.cameras, self.size, world
        far = engine_in_use().far
        state = partial(Encoding, self.cache, self.encoder.to("cpu"), self.device, self.threads, self.views)
        run: Any = Encoding.run if far else Encoding.run_here
        tasks = ((i, *(seen_of(self.store, i, *how) if far else (self.store.path, *how))) for i in episodes)
        with worker_pool(self.workers, state, encodes=True, anywhere=far) as pool:
            for (episode, *_), found in pool.as_done(run, tasks, ahead=2):
                yield episode, found


class Encoding:
    """Draws and encodes: what a worker holds that does both."""

    def __init__(
        self, cache: FeatureCache, encoder: S2Encoder, device: str, threads: int, views: Views | None
    ) -> None:
        torch.set_num_threads(threads)
        self.cache, self.encoder, self.views = cache, encoder.to(device_of(device)), views

    def run(self, episode: int, seen: list[np.ndarray], world: TaskSettings | None) -> np.ndarray:
        """The features of an episode as they stand in the cache; ``seen``, ``world``: of :func:`seen_of`."""
        return self._values(episode, frames_of(seen, world, episode))

    def run_here(self, episode: int, path: Path, *how: Any) -> np.ndarray:
        """As `run`, on the machine that has the dataset; ``how``: as of :func:`episode_frames`."""
        return self._values(episode, episode_frames(path, episode, *how))

    def _values(self, episode: int, frames: Sequence[np.ndarray]) -> np.ndarray:
        if self.views:
            _, frames = next(self.views.frames([(episode, frames)]))
        with span("encode", episode=episode):
            return self.cache.checked(episode, frames, self.encoder.encode)


def frame_sizes(
    store: EpisodeStore, encoder: S2Encoder, cameras: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """(H, W) of each camera's frames as they are encoded: those recorded, or drawn as the encoder wants them.

    Raises:
        UserError: of a mix, two datasets whose frames are not of one size.
    """
    if isinstance(store, Mix):
        first, *others = [frame_sizes(member, encoder, cameras) for member in store.members]
        for member, other in zip(store.members[1:], others, strict=True):
            for name in cameras:
                if other[name] != first[name]:
                    a, b = (" x ".join(map(str, size)) for size in (first[name], other[name]))
                    raise UserError(
                        f"demos.mix: camera '{name}' has {a} px in {store.members[0].path} and {b} px in "
                        f"{member.path}, expected the same"
                    )
        return first
    sizes = camera_sizes(store, cameras)
    if store.attrs["kind"] == "images":
        return sizes
    return {name: encoder.frame_size(*size) for name, size in sizes.items()}


def wide(sizes: Mapping[str, tuple[int, int]]) -> dict[str, list[int]]:
    """Those of them that are no squares, as JSON types; with none all is as it was when frames had to be squares."""
    return {name: [height, width] for name, (height, width) in sizes.items() if height != width}

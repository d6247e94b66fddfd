"""The features of demos: out of the cache, or drawn and encoded; of a mix from the caches of each of its datasets."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from s2robot.envs.frames import as_image_size
from s2robot.envs.task import TaskSettings
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
        """Processes that draw, and threads of the encoder beside them.

        Several threads wait for each other, so that all of them are to have a core; one takes a core when it has frames,
        and leaves it to one more process when it has none.
        """
        cores = os.cpu_count() or 1
        threads = self.threads or max(1, cores - (self.workers or max(1, cores // 2)))
        return self.workers or max(1, cores - threads + (threads == 1 < cores)), threads


def encode_demos(
    store: EpisodeStore,
    encoder: S2Encoder,
    cameras: tuple[str, ...],
    settings: FeaturesSettings,
    views: Views | None = None,
) -> tuple[Any, list[FeatureCache]]:
    """The features of a dataset, (steps, cameras, tokens, dim), from the cache or newly encoded; and the caches.

    With ``views`` those of other views of the frames, (steps, views * cameras, tokens, dim).
    """
    if not isinstance(store, Mix):
        features, cache = _encode(store, encoder, cameras, settings, views)
        return features, [cache]
    frame_sizes(store, encoder, cameras)  # refuses what cannot be one array
    found = [_encode(member, encoder, cameras, settings, views) for member in store.members]
    return Joined([features for features, _ in found]), [cache for _, cache in found]


def _encode(
    store: EpisodeStore,
    encoder: S2Encoder,
    cameras: tuple[str, ...],
    settings: FeaturesSettings,
    views: Views | None,
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
    )
    encoder.to(device_of(settings.device))
    if not cache.missing():
        return cache.features, cache
    if store.attrs["kind"] == "states":
        require_simulator()
    workers, threads = settings.shares()

    def frames(missing: list[int]) -> Frames:
        drawn = render_episodes(store, missing, cameras, as_image_size(sizes), workers)
        return views.frames(drawn) if views else drawn

    def values(missing: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        how = (
            cameras,
            as_image_size(sizes),
            world_of_demos(store) if store.attrs["kind"] == "states" else None,
        )
        tasks = ((i, *seen_of(store, i, *how)) for i in missing)
        state = partial(Encoding, cache, encoder.to("cpu"), settings.device, settings.threads or 1, views)
        with worker_pool(workers, state, encodes=True, anywhere=True) as pool:
            for (episode, *_), found in pool.as_done(Encoding.run, tasks, ahead=2):
                yield episode, found

    far = engine_in_use().far
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    if cache.adopt(frames, encoder.encode):
        print(f"features: drawn and encoded as the cached ones of version 0.1, which serve: {cache.path}")
    with bar(f"encoding {views.count} views" if views else "encoding frames") as update:
        features = cache.build(
            values if far else frames,
            None if far else encoder.encode,
            lambda done, total: update(done, total, f"steps of {len(cameras)} cameras"),
            store.fingerprint_of_first,
        )
    torch.set_num_threads(before)
    return features, cache


class Encoding:
    """Draws and encodes: what a worker of an engine holds that has them on other machines."""

    def __init__(
        self, cache: FeatureCache, encoder: S2Encoder, device: str, threads: int, views: Views | None
    ) -> None:
        torch.set_num_threads(threads)
        self.cache, self.encoder, self.views = cache, encoder.to(device_of(device)), views

    def run(self, episode: int, seen: list[np.ndarray], world: TaskSettings | None) -> np.ndarray:
        """The features of an episode as they stand in the cache; ``seen``, ``world``: of :func:`seen_of`."""
        frames: Sequence[np.ndarray] = frames_of(seen, world, episode)
        if self.views:
            _, frames = next(self.views.frames([(episode, frames)]))
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

"""Compute the features of a dataset, or read them from the cache."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from s2robot.core.errors import check_same
from s2robot.core.files import cache_dir
from s2robot.core.progress import bar
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.timing import cores, span
from s2robot.core.workers import engine_in_use, worker_pool
from s2robot.demos import replay
from s2robot.demos.mix import Mix
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.cache import FeatureCache, Joined
from s2robot.encoders.encoder import S2Encoder, token_maps
from s2robot.envs.frames import as_image_size
from s2robot.loading import device_of


class FeaturesSettings(Settings, at="features", file="features/default"):
    cache: str | None = from_yaml()
    workers: int | None = from_yaml(ge=1)
    dtype: Literal["float16", "float32"] = from_yaml()
    device: str = from_yaml()
    threads: int | None = from_yaml(ge=1)

    def shares(self) -> tuple[int, int]:
        """Return the number of processes and the threads per process; the default is one, since waiting threads spin."""
        threads = self.threads or 1
        return self.workers or max(1, cores() // threads), threads


def encode_demos(
    store: EpisodeStore,
    encoder: S2Encoder,
    cameras: tuple[str, ...],
    settings: FeaturesSettings,
    episodes: np.ndarray | None = None,
) -> tuple[Any, list[FeatureCache]]:
    """Return the features of a dataset (steps, cameras, tokens, dim) and their caches, one for each dataset of a mix. With
    ``episodes``, the rows of other episodes are undefined."""
    if not isinstance(store, Mix):
        features, cache = _encode(store, encoder, cameras, settings, episodes)
        return features, [cache]
    frame_sizes(store, encoder, cameras)  # rejects datasets with different frame sizes
    found = []
    for member, first in zip(store.members, store.firsts, strict=False):
        own = None if episodes is None else np.intersect1d(episodes, first + np.arange(len(member))) - first
        found.append(_encode(member, encoder, cameras, settings, own))
    return Joined([features for features, _ in found]), [cache for _, cache in found]


def _encode(
    store: EpisodeStore,
    encoder: S2Encoder,
    cameras: tuple[str, ...],
    settings: FeaturesSettings,
    episodes: np.ndarray | None,
) -> tuple[np.ndarray, FeatureCache]:
    sizes = frame_sizes(store, encoder, cameras)
    tokens = max(rows * columns for rows, columns in token_maps(encoder, sizes))
    wide = {name: size for name, size in sizes.items() if size[0] != size[1]}
    about = {"dataset": str(store.path), "encoder": encoder.name, "sizes": list(encoder.sizes)}
    cache = FeatureCache(
        settings.cache or cache_dir("features"), store.fingerprint, encoder.fingerprint, tuple(sizes),
        store.lengths.tolist(), tokens, encoder.dim, encoder.stored or settings.dtype, about,
        replay.drawn_by(store), wide, episodes,
    )  # fmt: skip
    device = device_of(settings.device)
    encoder.to(device)
    if not cache.missing():
        return cache.features, cache
    world = world_of_demos(store) if store.attrs["kind"] == "states" else None
    workers, threads = settings.shares()
    size = as_image_size(sizes)
    previous_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    # CPU workers also encode their frames: features are smaller to transfer, and no core waits for another
    far = engine_in_use().is_remote
    in_workers = far or device.type == "cpu"

    def encoded(episodes: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield episodes and their features in the order of completion."""
        state = partial(Encoding, cache, encoder.to("cpu"), settings.device, threads)
        options = cameras, size, world

        def frames(i: int) -> Callable[[], list[np.ndarray]]:
            if far:  # a remote worker cannot read the dataset, so send it the recorded data
                return partial(replay.frames_of, *replay.seen_of(store, i, *options), i)
            return partial(replay.episode_frames, store.path, i, *options)

        tasks = ((i, frames(i)) for i in episodes)
        with worker_pool(workers, state, encodes=True, anywhere=far) as pool:
            for (episode, _), found in pool.as_done(Encoding.run, tasks, ahead=2):
                yield episode, found

    with bar("encoding frames") as update:
        rendered = lambda episodes: replay.render_episodes(store, episodes, cameras, size, workers)  # noqa: E731
        features = cache.build(
            encoded if in_workers else rendered,
            None if in_workers else encoder.encode_cameras,
            lambda done, total: update(done, total, f"steps of {len(cameras)} cameras"),
            store.fingerprint_of_first,
        )
    torch.set_num_threads(previous_threads)
    return features, cache


class Encoding:
    """The state of a worker that renders and encodes."""

    def __init__(self, cache: FeatureCache, encoder: S2Encoder, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.cache, self.encoder = cache, encoder.to(device_of(device))

    def run(self, episode: int, make_frames: Callable[[], list[np.ndarray]]) -> np.ndarray:
        frames = make_frames()
        with span("encode", episode=episode):
            return self.cache.checked(episode, frames, self.encoder.encode_cameras)


def frame_sizes(
    store: EpisodeStore, encoder: S2Encoder, cameras: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """Return the encoded frame size (H, W) of each camera; UserError if two datasets of a mix differ."""
    if isinstance(store, Mix):
        first = frame_sizes(store.members[0], encoder, cameras)
        for member in store.members[1:]:
            check_same(f"demos.mix: {member.path}", first, frame_sizes(member, encoder, cameras), " px")
        return first
    sizes = replay.camera_sizes(store, cameras)
    if store.attrs["kind"] == "images":
        return sizes
    return {name: encoder.frame_size(*size) for name, size in sizes.items()}

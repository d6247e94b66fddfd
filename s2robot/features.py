"""Compute the features of a dataset, or read them from the cache."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from s2robot.core.errors import UserError, check_same
from s2robot.core.files import cache_dir
from s2robot.core.progress import bar
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.timing import cores, span
from s2robot.core.workers import engine_in_use, worker_pool
from s2robot.demos import replay
from s2robot.demos.mix import Mix
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.augment import AUGMENTATION, augmented
from s2robot.encoders.cache import FeatureCache, Joined
from s2robot.encoders.encoder import S2Encoder, token_maps
from s2robot.envs.frames import as_image_size
from s2robot.loading import device_of


class FeaturesSettings(Settings, at="features", file="features/default"):
    cache: str | None = from_yaml(min_length=1)  # "" comes from an unset shell variable
    workers: int | None = from_yaml(ge=1)
    dtype: Literal["float16", "float32"] = from_yaml()
    device: str = from_yaml()
    threads: int | None = from_yaml(ge=1)
    augment: int | None = from_yaml(ge=0)

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
    """Return the features of a dataset (steps, cameras, tokens, dim) and their caches, one for each dataset of a mix; those
    of each augmented copy of all steps follow. With ``episodes``, the rows of other episodes are undefined."""
    members, firsts = (store.members, store.firsts) if isinstance(store, Mix) else ((store,), (0,))
    frame_sizes(store, encoder, cameras)  # rejects datasets with different frame sizes
    found = []
    for copy in range((settings.augment or 0) + 1):
        for member, first in zip(members, firsts, strict=False):
            own = None if episodes is None else np.intersect1d(episodes - first, np.arange(len(member)))
            found.append(_encode(member, encoder, cameras, settings, own, copy))
    features = [features for features, _ in found]
    return features[0] if len(found) == 1 else Joined(features), [cache for _, cache in found]


def _encode(
    store: EpisodeStore,
    encoder: S2Encoder,
    cameras: tuple[str, ...],
    settings: FeaturesSettings,
    episodes: np.ndarray | None,
    copy: int,
) -> tuple[np.ndarray, FeatureCache]:
    def named(fingerprint: str) -> str:
        return f"{fingerprint} {AUGMENTATION} {copy}" if copy and fingerprint else fingerprint

    sizes = frame_sizes(store, encoder, cameras)
    tokens = max(rows * columns for rows, columns in token_maps(encoder, sizes))
    wide = {name: size for name, size in sizes.items() if size[0] != size[1]}
    about = {"dataset": str(store.path), "encoder": encoder.name, "sizes": list(encoder.sizes)}
    cache = FeatureCache(
        settings.cache or cache_dir("features"), named(store.fingerprint), encoder.fingerprint, tuple(sizes),
        store.lengths.tolist(), tokens, encoder.dim, encoder.stored or settings.dtype, about,
        replay.drawn_by(store), wide, episodes,
    )  # fmt: skip
    device = device_of(settings.device)
    encoder.to(device)
    if not cache.missing():
        return cache.features, cache
    if not copy:  # once, not for each augmented copy
        _check_repeats(encoder, sizes)
    world = world_of_demos(store) if store.attrs["kind"] == "states" else None
    workers, threads = settings.shares()
    options = cameras, as_image_size(sizes), world
    previous_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    # CPU workers also encode their frames: features are smaller to transfer, and no core waits for another
    far = engine_in_use().is_remote
    in_workers = far or device.type == "cpu"

    def frames(i: int) -> Callable[[], list[np.ndarray]]:
        if far:  # a remote worker cannot read the dataset, so send it the recorded data
            make = partial(replay.frames_of, *replay.frame_inputs(store, i, *options), i)
        else:
            make = partial(replay.episode_frames, store.path, i, *options)
        return partial(augmented, make, (i, copy)) if copy else make

    def made(episodes: list[int]) -> Iterator[tuple[int, Any]]:
        """Yield episodes and their features, or on a GPU their frames, in the order of completion."""
        state = partial(Encoding, cache, encoder.to("cpu"), settings.device, threads) if in_workers else None
        function = Encoding.run if in_workers else _frames
        with worker_pool(workers, state, encodes=in_workers, anywhere=far) as pool:
            for (episode, _), found in pool.as_done(function, ((i, frames(i)) for i in episodes), ahead=2):
                yield episode, found

    encode = None if in_workers else encoder.encode_cameras
    with bar(f"encoding {'augmented ' * bool(copy)}frames", f"steps of {len(cameras)} cameras") as update:
        features = cache.build(made, encode, update, lambda count: named(store.fingerprint_of_first(count)))
    torch.set_num_threads(previous_threads)
    return features, cache


def _check_repeats(encoder: S2Encoder, sizes: Mapping[str, tuple[int, int]]) -> None:
    """UserError if equal frames get other features, as from a model that draws or counts: a rollout would see others."""
    frames = [np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8) for size in sizes.values()]
    first, again = (encoder.encode_cameras(frames).float() for _ in range(2))
    if not torch.allclose(first, again, rtol=1e-2, atol=1e-2 * float(first.abs().mean())):
        gap = f"a difference of up to {float((first - again).abs().max()):.2g}"
        raise UserError(f"{encoder.name}: expected the same features for the same frames, got {gap}")


def _frames(episode: int, make: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
    return make()


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

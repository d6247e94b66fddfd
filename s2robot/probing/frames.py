"""Frames of scripted cube picks with the simulator's ground truth, and encoders' features of them.

data = FrameFeatures(FrameSettings(), [encoder])   # renders missing frames, one file per episode
data.encode("tiny", encoder).shape                 # (T, cameras, N, D), from the feature cache
data.labels("train")["cube_pose"].shape            # (600, 7)
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from s2robot.core.files import cache_dir, replacing
from s2robot.core.progress import bar
from s2robot.core.provenance import short_hash
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.timing import cores
from s2robot.core.workers import worker_pool
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.cube_config import CubePickConfig, PickerConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.tasks import make_cached
from s2robot.loading import device_of
from s2robot.probing.images import encoded
from s2robot.probing.report import JOINED, resample

# Lower seeds belong to evaluations (10000, 20000) and demos (100000), those from 500,000,000 to pre-training scenes.
_SEEDS, _EPISODES = {"ge": 200_000, "le": 490_000_000}, {"ge": 2, "le": 1_000_000}
_VERSION = 3  # of a file's contents and the rendering of its frames


def draw_episode(world: CubePickConfig, seed: int, count: int) -> dict[str, np.ndarray]:
    """Render one scripted pick, with its kicks and misses, at random moments.

    gripper (count, 6) is x, y, z (m, table frame), sin and cos of four times the yaw, opening; distance is in m.
    """
    rows = []
    for env, step in _moments(world, seed, count):
        rotation = env.data.site_xmat[env.grip_site].reshape(3, 3)
        yaw = 4 * np.arctan2(rotation[1, 1], rotation[0, 1])
        distance = np.linalg.norm(env.grip_position - env.cube_pose[:3])
        gripper = np.array([*env.grip_position, np.sin(yaw), np.cos(yaw), env.opening])
        frame = {"images": np.stack([*env.render_cameras().values()]), "cube_pose": env.cube_pose}
        rows.append({**frame, "distance": distance, "gripper": gripper, "step": step})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _moments(world: CubePickConfig, seed: int, count: int) -> Iterator[tuple[CubePick, int]]:
    """Yield a scripted pick's simulation at `count` distinct random steps, each with its step."""
    env: Any = make_cached(world, draw=False)
    env.reset(seed=seed)
    picker = env.expert(np.random.default_rng([seed, 7]), PickerConfig())
    states = [env.get_state()]
    while len(states) <= world.max_steps and not env.is_success:
        env.step_physics(picker.act()[0])
        states.append(env.get_state())
    rng = np.random.default_rng([seed, 13])  # independent of the picker's own stream
    for step in np.sort(rng.choice(len(states), count, replace=False)):
        env.set_state(states[step])
        yield env, int(step)


def _draw_to(path: Path, *episode: Any) -> None:
    with replacing(path, shared=True) as part:
        np.savez_compressed(part, **draw_episode(*episode))


class FrameSettings(Settings, at="probe", file="probe/readout"):
    world: CubePickConfig = Field(default_factory=CubePickConfig)
    image_size: int | None = from_yaml(ge=1)
    train_episodes: int = from_yaml(**_EPISODES)
    test_episodes: int = from_yaml(**_EPISODES)
    frames: int = from_yaml(ge=1, le=20)
    train_seed: int = from_yaml(**_SEEDS)
    test_seed: int = from_yaml(**_SEEDS)
    resamples: int = from_yaml(ge=100)
    workers: int | None = from_yaml(ge=1)
    device: str = from_yaml()

    def rules(self) -> Iterator[tuple[Any, ...]]:
        disjoint = not set(self.seeds("train")) & set(self.seeds("test"))
        yield "test_seed", disjoint, "a range without training episodes"
        yield "frames", self.frames <= self.world.max_steps, f"<= {self.world.max_steps}, env.max_steps"

    def seeds(self, part: str) -> range:
        """Return the seeds of the "train" or "test" episodes."""
        first = getattr(self, f"{part}_seed")
        return range(first, first + getattr(self, f"{part}_episodes"))

    @property
    def parts(self) -> dict[str, range]:
        """Indices of the training and the held-out episodes."""
        train = self.train_episodes
        return {"train": range(train), "test": range(train, train + self.test_episodes)}

    def weights(self) -> dict[str, np.ndarray]:
        """Return how often each episode counts in each resample; training episodes count once."""
        test = resample(self.test_episodes, self.resamples)
        return {"train": np.ones((1, self.train_episodes)), "test": test}


class FrameFeatures:
    """The frames of a probe, at the largest encoder's image size, and their features; later runs reuse them."""

    def __init__(self, cfg: FrameSettings, encoders: Sequence[S2Encoder]) -> None:
        size = cfg.image_size or max(encoder.image_size for encoder in encoders)
        self.cfg = cfg.replace(image_size=size)
        self.seeds = [*cfg.seeds("train"), *cfg.seeds("test")]
        world = cfg.world.replace(image_size=size)
        facts = [_VERSION, repr(world), repr(PickerConfig()), cfg.frames, version("mujoco")]
        self.key = short_hash(facts)
        missing = [seed for seed in self.seeds if not self.file(seed).is_file()]
        jobs = [(self.file(seed), world, seed, cfg.frames) for seed in missing]
        if jobs:
            workers = min(cfg.workers or max(1, cores() // 2), len(jobs))
            with worker_pool(workers) as pool, bar("rendering frames") as update:
                for done, _ in enumerate(pool.in_order(_draw_to, jobs), 1):
                    update(done, len(jobs))

    def file(self, seed: int) -> Path:
        return cache_dir() / "readout" / self.key / f"{seed}.npz"

    def _read(self, seed: int) -> dict[str, np.ndarray]:
        with np.load(self.file(seed), allow_pickle=False) as file:
            return dict(file)

    def labels(self, part: str) -> dict[str, np.ndarray]:
        """Return `draw_episode`'s labels of a part's n frames, and "episode" (n,), its index in the part."""
        rows = [self._read(seed) for seed in self.cfg.seeds(part)]
        labels = {name: np.concatenate([row[name] for row in rows]) for name in rows[0] if name != "images"}
        return {**labels, "episode": np.repeat(np.arange(len(rows)), self.cfg.frames)}

    def encode(self, name: str, encoder: S2Encoder) -> np.ndarray:
        """Return features from the cache, or newly encoded.  # (T, cameras, N, D)"""
        dataset = short_hash([self.key, self.seeds])
        encoder.to(device_of(self.cfg.device))

        def images(episodes: list[int]) -> Iterator[tuple[int, list[np.ndarray]]]:
            for i in episodes:
                yield i, list(self._read(self.seeds[i])["images"].swapaxes(0, 1))

        lengths = [self.cfg.frames] * len(self.seeds)
        return encoded(name, encoder, f"readout {dataset}", self.cfg.world.cameras, lengths, images).features


def columns_of(cameras: Sequence[str]) -> dict[str, list[int]]:
    """Return the camera indices of each readout: each camera alone, then all of them joined."""
    return {name: [i] for i, name in enumerate(cameras)} | {JOINED: list(range(len(cameras)))}


def describe(encoder: S2Encoder) -> dict[str, Any]:
    """Return an encoder's facts for a report."""
    names = "name sizes num_tokens dim dtype num_parameters gflops_per_image fingerprint"
    return {name: getattr(encoder, name) for name in names.split()}

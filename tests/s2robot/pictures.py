"""Datasets of synthetic images without a simulator, and settings of a policy that trains in a second."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from s2robot.cli import main
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from tests.envs.real.home import described

ABOUT = {
    "robot": "xarm7", "joint_names": list(described("xarm7").joint_names), "rate_hz": 10, "seed": 0, "camera_geometry": {}, "kind": "images",
    "action_frame": ACTION_FRAME, "env_version": "mine", "env_config": {},
}  # fmt: skip
POLICY = [
    "policy.network.hidden=[16]", "policy.network.image_dim=8", "policy.network.state_dim=8",
    "policy.pooling.keypoints=4", "policy.pooling.values=2",
]  # fmt: skip
TRAINING = ["train.steps=2", "train.batch_size=8", "train.threads=1", "features.workers=1", *POLICY]


def trained(out: Path, *words: object) -> Path:
    """Run `s2robot train` into a folder and return its checkpoint."""
    assert main(["train", *TRAINING, *map(str, words), f"hydra.run.dir={out}"]) == 0
    return out / "checkpoint"


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_noise(
    path: Path, sizes: dict[str, tuple[int, int]], lengths: Iterable[int], action: int = 8, proprio: int = 8, **about: Any
) -> Path:  # fmt: skip
    """Write episodes of noise; the last number of an action is 0 or 1."""
    rng = np.random.default_rng(0)
    with EpisodeStore.create(path, ABOUT | {"cameras": list(sizes)} | about) as store:
        for steps in lengths:
            images = {f"images_{c}": rng.integers(0, 256, (steps, *hw, 3), "u1") for c, hw in sizes.items()}
            numbers = [rng.uniform(-0.05, 0.05, (steps, count)).astype("f4") for count in (action, proprio)]
            numbers[0][:, -1] = rng.integers(0, 2, steps)
            store.append({"action": numbers[0], "proprio": numbers[1], **images})
    return path


def scene(seed: int) -> np.ndarray:
    """Return images that differ, smooth enough for JPEG.  # uint8 (6, 72, 96, 3)"""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 8, 3), np.uint8)
    return np.stack([cv2.resize(image, (96, 72), interpolation=cv2.INTER_LINEAR) for image in coarse])


def attributes_of(cameras: tuple[str, ...]) -> dict:
    """Return the attributes of demos from an arm."""
    return ABOUT | {"cameras": list(cameras), "env_version": ENV_VERSION}


def write_pictures(path: Path, cameras: tuple[str, ...]) -> Path:
    """Write one episode: 6 images of 72 x 96 for each camera."""
    with EpisodeStore.create(path, attributes_of(cameras)) as store:
        images = {f"images_{name}": scene(seed) for seed, name in enumerate(cameras)}
        blank = np.zeros((6, 8), np.float32)
        store.append({"action": blank, "proprio": blank, **images}, {"seed": 0, "success": False})
    return path

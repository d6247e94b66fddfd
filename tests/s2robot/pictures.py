"""Pictures that no simulator draws, and a dataset of them."""

from pathlib import Path

import cv2
import numpy as np

from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import JOINT_NAMES
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION


def scene(seed: int) -> np.ndarray:
    """Pictures that differ, smooth enough for JPEG.  # uint8 (6, 72, 96, 3)"""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 8, 3), np.uint8)
    return np.stack([cv2.resize(image, (96, 72), interpolation=cv2.INTER_LINEAR) for image in coarse])


def attributes_of(cameras: tuple[str, ...]) -> dict:
    """What demos of an arm say of themselves."""
    return {
        "robot": "xarm7", "joint_names": list(JOINT_NAMES), "rate_hz": 10, "cameras": list(cameras),
        "camera_geometry": {}, "action_frame": ACTION_FRAME, "env_version": ENV_VERSION, "env_config": {}, "seed": 0,
        "kind": "images",
    }  # fmt: skip


def write_pictures(path: Path, cameras: tuple[str, ...]) -> Path:
    """A dataset of one episode: 6 pictures of 72 x 96 for each camera."""
    with EpisodeStore.create(path, attributes_of(cameras)) as store:
        images = {f"images_{name}": scene(seed) for seed, name in enumerate(cameras)}
        blank = np.zeros((6, 8), np.float32)
        store.append({"action": blank, "proprio": blank, **images}, {"seed": 0, "success": False})
    return path

"""A small store of pictures with what a foreign data set brings: parts, tasks, cameras of two sizes."""

import numpy as np
import pytest

from s2robot.demos.store import EpisodeStore
from tests.inline import do_inline

ATTRIBUTES = {
    "robot": "two_links", "joint_names": [], "rate_hz": 10, "cameras": ["top", "wrist/left"], "camera_geometry": {},
    "action_frame": "parts", "env_version": "elsewhere", "env_config": {}, "seed": 0, "kind": "images",
    "tasks": ["lift </script> the cup", "pour"], "source": {"format": "LeRobot v3.0", "name": "cups"},
    "action_parts": [
        {"name": "arm", "size": 2, "kind": "delta", "names": ["shoulder", "elbow"]},
        {"name": "claw", "size": 1, "kind": "binary"},
    ],
    "proprio_parts": [{"name": "state", "size": 9, "kind": "absolute"}],
}  # fmt: skip
LENGTHS = (12, 12, 9, 12)


def episode(i: int, length: int) -> dict[str, np.ndarray]:
    """Its pictures grow brighter step by step, so that a frame of the video tells which step it shows."""
    t = np.arange(length, dtype=np.float32)
    level = np.broadcast_to((40 + 10 * t)[:, None, None, None], (length, 24, 32, 3))
    speckled = level + 20 * (np.indices((24, 32)).sum(0) % 2)[None, ..., None]
    return {
        "action": np.stack([0.1 * np.sin(t), -0.1 * np.cos(t), (t > 5).astype(np.float32)], 1),
        "proprio": np.sin(t[:, None] / 5 + np.arange(9) + i / 50).astype(np.float32),
        "images_top": speckled.astype(np.uint8),
        "images_wrist/left": np.ascontiguousarray(speckled[:, :16, :16].astype(np.uint8)),
    }


@pytest.fixture
def cups(tmp_path, monkeypatch):
    """Four episodes, the third a failure; films are made in this process, in a cache of the test's own."""
    do_inline(monkeypatch)
    monkeypatch.setenv("S2ROBOT_CACHE", str(tmp_path / "cache"))
    with EpisodeStore.create(tmp_path / "cups.zarr", ATTRIBUTES) as store:
        for i, length in enumerate(LENGTHS):
            store.append(episode(i, length), {"task": i % 2, "success": i != 2, "source_episode": 10 + i})
    return tmp_path / "cups.zarr"

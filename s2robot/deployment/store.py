"""The dataset that an arm's episodes are appended to."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import JOINT_NAMES
from s2robot.deployment.preflight import Camera
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.frames import ImageSize, size_of


def open_store(
    path: Path, robot: str, rate_hz: float, cameras: Mapping[str, Camera], image_size: ImageSize, seed: int, own: Mapping[str, Any],
    check: Callable[[EpisodeStore], None],
) -> EpisodeStore:  # fmt: skip
    """The store at `path`, made if there is none.

    Args:
        robot, rate_hz, cameras, seed: attributes of a new one; an old one has to have the same, but for the seed.
        image_size: of the pictures, pixels.
        own: more attributes of a new one.
        check: raises UserError for an old one that does not go on with these episodes.

    Raises:
        DatasetError, UserError: one that holds something else.
    """
    names = list(cameras)
    if not path.exists():
        attributes = {
            "robot": robot, "joint_names": list(JOINT_NAMES), "rate_hz": rate_hz, "cameras": names,
            "camera_geometry": {
                name: {"size": list(size_of(image_size, name))} | ({"fovy": camera.fovy} if camera.fovy else {})
                for name, camera in cameras.items()
            },
            "action_frame": ACTION_FRAME, "env_version": ENV_VERSION, "env_config": {}, "seed": seed, "kind": "images",
        }  # fmt: skip
        return EpisodeStore.create(path, {**attributes, **own})
    store = EpisodeStore.open(path, "a")
    try:
        store.check(robot, ACTION_FRAME, names, rate_hz)
        check(store)
    except BaseException:
        store.close()
        raise
    return store

"""The dataset that an arm's episodes are appended to."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.demos.lineage import began_with
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
    sizes = {name: size_of(image_size, name) for name in names}
    if not path.exists():
        attributes = {
            "robot": robot, "joint_names": list(JOINT_NAMES), "rate_hz": rate_hz, "cameras": names,
            "camera_geometry": {
                name: {"size": list(sizes[name])} | ({"fovy": camera.fovy} if camera.fovy else {})
                for name, camera in cameras.items()
            },
            "action_frame": ACTION_FRAME, "env_version": ENV_VERSION, "env_config": {}, "seed": seed, "kind": "images",
        }  # fmt: skip
        return EpisodeStore.create(path, {**attributes, **own})
    store = EpisodeStore.open(path, "a")
    try:
        store.check(robot, ACTION_FRAME, names, rate_hz)
        if set(store.cameras) != set(names):
            raise UserError(f"{path}: found cameras {', '.join(store.cameras)}, expected {', '.join(names)}")
        for name in names if len(store) else ():
            if (found := tuple(store.shape(f"images_{name}")[:2])) != tuple(sizes[name]):
                raise UserError(
                    f"{path}: found pictures of {found} pixels of {name}, expected {tuple(sizes[name])}"
                )
        check(store)
    except BaseException:
        store.close()
        raise
    return store


def open_corrections(out: Path, demos: EpisodeStore, first: int | None = None) -> EpisodeStore:
    """The dataset that corrections are appended to; where it is not there, a copy of the (first) demos.

    Each of its episodes says in `perturbed` which steps are not to be imitated (none of the demos', where they do not say),
    and in `speed` how fast it was, as a share of `rate_hz`.

    Raises:
        DatasetError, UserError: one that does not begin with the demos.
    """
    count = began_with(demos, first)
    began = {"began_with": demos.fingerprint_of_first(count)}
    if not os.path.lexists(out):
        part = out.with_name(f".{out.name}.partial")
        shutil.rmtree(part, ignore_errors=True)
        with EpisodeStore.create(part, {**demos.attrs, **began}) as copy:
            for i in range(count):
                arrays = demos.episode(i)
                arrays.setdefault("perturbed", np.zeros(len(arrays["action"]), np.uint8))
                values = {"speed": float(demos.attrs.get("speed", 1))}
                copy.append(arrays, values | {key: demos.meta(key)[i] for key in demos.meta_keys})
        os.rename(part, out)
    store = EpisodeStore.open(out)
    if store.attrs.get("began_with") != began["began_with"]:
        raise UserError(
            f"{out}: found other episodes, expected a dataset that begins with the {count} of {demos.path}"
        )
    if "speed" not in store.meta_keys:
        raise UserError(f"{out}: expected a speed of each episode, got none: begin another out")
    return EpisodeStore.open(out, "a")

"""The dataset to which an arm's episodes are appended."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import one_of
from s2robot.core.parts import default_parts, plain
from s2robot.demos.lineage import open_copy
from s2robot.demos.schema import JOINTS
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.arm import Camera
from s2robot.envs.cube_config import ACTION_FRAME, ENV_VERSION
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.arms.description import ArmDescription

CAUSES = ("steps", "ended", "stopped", "fault")  # how an episode ended; stored as an index into this tuple


def open_store(
    path: Path, arm: ArmDescription, rate_hz: float, cameras: Mapping[str, Camera], image_size: ImageSize,
    same: Mapping[str, Any], **attributes: Any,
) -> EpisodeStore:  # fmt: skip
    """Return the store at `path`, created if it does not exist. Raises DatasetError or UserError if it does not match.

    Args:
        arm, rate_hz, cameras, image_size (pixels), same: attributes of a new store, which an existing one must match.
        attributes: further attributes of a new store, including `seed`.
    """
    names, same = list(cameras), {"kind": "images", **same}
    sizes = {name: size_of(image_size, name) for name in names}
    parts = {f"{key}_parts": plain(arm.parts(key)) for key in ("action", "proprio")}
    if parts != {key: plain(default_parts(key, JOINTS)) for key in parts}:
        same |= parts
    if not path.exists():
        return EpisodeStore.create(path, {
            "robot": arm.name, "joint_names": list(arm.joint_names), "rate_hz": rate_hz, "cameras": names,
            "camera_geometry": {
                name: {"size": list(sizes[name])} | ({"fovy": camera.fovy} if camera and camera.fovy else {})
                for name, camera in cameras.items()
            },
            "action_frame": ACTION_FRAME, "env_version": ENV_VERSION, "env_config": {}, **same, **attributes,
        })  # fmt: skip
    store = EpisodeStore.open(path, "a")
    try:
        store.check(arm.name, ACTION_FRAME, names, rate_hz)
        actual = {key: store.attrs.get(key) for key in same} | {"cameras": sorted(store.cameras)}
        expected = {**same, "cameras": sorted(names)}
        if len(store) and actual == expected:
            actual |= {f"images_{name}": tuple(store.shape(f"images_{name}")[:2]) for name in names}
            expected |= {f"images_{name}": tuple(sizes[name]) for name in names}
        for key, value in expected.items():
            one_of(f"{path}: {key}", actual[key], [value])
    except BaseException:
        store.close()
        raise
    return store


def open_corrections(
    out: Path, demos: EpisodeStore, first: int | None = None, cameras: Iterable[str] | None = None
) -> EpisodeStore:
    """Return the dataset for appending corrections; if there is none, create it as a copy of the (first) demos.

    Each episode stores in `perturbed` which steps must not be imitated, and in `speed` its fraction of `rate_hz`.
    `cameras`: of a correction, if they differ from the demos'.

    Raises DatasetError or UserError if it does not begin with the demos, or corrections cannot be appended to the demos.
    """
    _check_fits(demos, demos.cameras if cameras is None else tuple(cameras))
    count = len(demos.lengths[:first])

    def fill(copy: EpisodeStore) -> None:
        for i in range(count):
            arrays = demos.episode(i)
            arrays.setdefault("perturbed", np.zeros(len(arrays["action"]), np.uint8))
            values = {"speed": float(demos.attrs.get("speed", 1))}
            copy.append(arrays, values | {key: demos.meta(key)[i] for key in demos.meta_keys})

    return open_copy(out, demos, count, fill, adds=True)


def _check_fits(demos: EpisodeStore, cameras: Collection[str]) -> None:
    """Reject demos to which steps of the control loop cannot be appended, before an episode is lost."""
    images = [key for key in (f"images_{name}" for name in cameras) if key in demos.keys]
    step: dict[str, Any] = {
        **{key: np.zeros(8, np.float32) for key in ("action", "action_raw", "action_sent", "proprio")},
        **{key: np.zeros(demos.shape(key), np.uint8) for key in images},
        "verdict": np.uint8(0), "code": np.int32(0), "perturbed": np.uint8(0), "time": 0.0, "time_action": 0.0,
        "camera_age": np.zeros(len(cameras), np.float32),
    }  # fmt: skip
    optional = {"cause": 1, "speed": 1.0}
    meta = {"seed": 0, "success": True} | {k: v for k, v in optional.items() if k in demos.meta_keys}
    demos.check_fits({key: np.array([value]) for key, value in step.items() if key in demos.keys}, meta)

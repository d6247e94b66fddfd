"""The cameras of a deployment: started, and described as the pre-flight compares them."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.preflight import STOP, Camera, Finding
from s2robot.deployment.scene import STAND_INS, Scene
from s2robot.deployment.settings import Bridge, CameraSettings
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.cameras.camera import CameraReader, Source, part_seen
from s2robot.envs.real.cameras.sources import OpenCVCamera, RealSenseCamera, ReplayCamera

KINDS = ("opencv", "realsense", "replay", *STAND_INS)
DEVICES = {
    "opencv": "a path such as /dev/v4l/by-id/...",
    "realsense": "a serial number",
    "replay": "the folder of a dataset",
}
START_S = 30.0  # s until a camera's first frame
EXPOSURE_S = 1.0  # s that automatic exposure takes after a camera's first frame, which may be black


@dataclass
class Cameras:
    """Those that give frames, by name, and why others do not."""

    readers: dict[str, CameraReader] = field(default_factory=dict)
    facts: dict[str, Camera] = field(default_factory=dict)  # what the readers' frames are
    failed: list[Finding] = field(default_factory=list)


def start_cameras(
    bridge: Bridge,
    names: Iterable[str],
    scene: Scene | None,
    stack: ExitStack,
    image_size: ImageSize = 256,
) -> Cameras:
    """Starts those of `names`, to be closed with `stack`; a finding for each one that gives no frames.

    image_size: of the frames that the policy gets; the middle of a picture that has their shape is what it sees.
    """
    found = Cameras()
    for name in names:
        try:
            if name not in bridge.cameras:
                raise UserError(
                    f"bridge.cameras: found {', '.join(bridge.cameras)}, expected '{name}' among them "
                    f"(+bridge.cameras.{name}.kind=opencv +bridge.cameras.{name}.device=<path>)"
                )
            camera = bridge.cameras[name]
            reader = CameraReader(name, _source(name, camera, scene), camera.rotate)
            stack.callback(reader.close)
            reader.start(START_S)
            found.readers[name] = reader
        except ValueError as error:  # UserError, EnvError, DatasetError
            found.failed.append(Finding(STOP, f"camera {name}", str(error)))
    if any(bridge.cameras[name].kind in ("opencv", "realsense") for name in found.readers):
        time.sleep(EXPOSURE_S)
    found.facts = {
        name: _described(reader, bridge.cameras[name], scene, name, size_of(image_size, name))
        for name, reader in found.readers.items()
    }
    return found


def _described(
    reader: CameraReader, camera: CameraSettings, scene: Scene | None, name: str, size: tuple[int, int]
) -> Camera:
    frame = reader.latest()
    assert frame is not None  # start has waited for it
    height, width = part_seen((frame.image.shape[0], frame.image.shape[1]), size)
    fps, fovy = float(camera.fps), camera.fovy
    if camera.kind in STAND_INS:
        assert scene is not None
        fps, geometry = scene.cameras()
        fovy = geometry[name]["fovy"]
    return Camera(width, height, fps, "rgb", fovy)


def _source(name: str, camera: CameraSettings, scene: Scene | None) -> Callable[[], Source]:
    kind, where = camera.kind, f"bridge.cameras.{name}"
    if kind not in KINDS:
        raise UserError(f"{where}.kind: found '{kind}', expected one of {', '.join(KINDS)}")
    if kind in STAND_INS:
        if scene is None:
            raise UserError(f"{where}.kind: found '{kind}' without bridge.{kind}.port, expected both")
        return scene.camera(name)
    device = camera.device
    if device is None:
        raise UserError(f"{where}.device: found none, expected {DEVICES[kind]}")
    if kind == "opencv":
        return partial(
            OpenCVCamera, device, camera.width, camera.height, camera.fps, camera.fourcc, camera.exposure,
            camera.white_balance,
        )  # fmt: skip
    if kind == "realsense":
        return partial(RealSenseCamera, device, camera.width, camera.height, camera.fps)
    store = EpisodeStore.open(device)
    if f"images_{name}" not in store.keys:
        raise UserError(f"{where}.device: {device} holds no images_{name}, expected a dataset of pictures")
    return partial(ReplayCamera, _Pictures(store, f"images_{name}"), camera.fps)


class _Pictures(Sequence[np.ndarray]):
    """The pictures of a dataset, read a few at a time: all of them may be more than the memory holds."""

    def __init__(self, store: EpisodeStore, key: str, together: int = 16):
        self._store, self._key, self._together = store, key, together
        self._first, self._read = 0, store.read(key, 0, together)  # (together, H, W, 3)

    def __len__(self) -> int:
        return self._store.num_steps

    def __getitem__(self, i: Any) -> Any:
        first = i - i % self._together
        if first != self._first:
            self._first, self._read = first, self._store.read(self._key, first, first + self._together)
        return self._read[i - first]

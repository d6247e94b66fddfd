"""The cameras of a deployment: started, and described as the pre-flight compares them; the emulator's scene.

Nothing that drives an arm imports the emulator: `find_scene` does, where the config asks for it.
"""

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.preflight import STOP, Camera, Finding
from s2robot.deployment.settings import Bridge, CameraSettings
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.cameras.camera import (
    CameraReader,
    OpenCVCamera,
    RealSenseCamera,
    ReplayCamera,
    Source,
    part_seen,
)

STAND_IN = "s2robot.envs.real.emulator.stand_in"
Scene = Any  # its `StandIn`: an emulated arm with cameras, table and operator
DEVICES = {
    "opencv": "a path such as /dev/v4l/by-id/...",
    "realsense": "a serial number",
    "replay": "the folder of a dataset",
}
START_S = 30.0  # s until a camera's first frame
EXPOSURE_S = 1.0  # s that automatic exposure takes after a camera's first frame, which may be black


def find_scene(bridge: Bridge, stack: ExitStack) -> Scene | None:
    """Return the emulator that stands in for the arm, closed with `stack`; None for a real arm.

    Raises:
        UserError: it does not run.
    """
    if (port := bridge.emulator.port) is None:
        return None
    try:
        scene = importlib.import_module(STAND_IN).StandIn(port)
    except EnvError as error:
        raise UserError(f"bridge.emulator.port: {error}") from None
    stack.callback(scene.close)
    return scene


@dataclass
class Cameras:
    """The cameras that give frames, by name, and why the others do not."""

    readers: dict[str, CameraReader] = field(default_factory=dict)
    facts: dict[str, Camera] = field(default_factory=dict)  # of the readers' frames
    failed: list[Finding] = field(default_factory=list)

    def check(self) -> None:
        """Raise UserError for the first camera that gives no frames."""
        for failed in self.failed:
            raise UserError(f"{failed.check}: {failed.text}")


def start_cameras(
    bridge: Bridge, names: Iterable[str], scene: Scene | None, stack: ExitStack, image_size: ImageSize = 256
) -> Cameras:
    """Start the cameras `names`, to be closed with `stack`; return a finding for each one that gives no frames.

    image_size: of the frames that the policy gets; it sees the middle of a frame that has their shape.
    """
    found = Cameras()
    for name in names:
        try:
            if name not in bridge.cameras:
                raise UserError(
                    f"bridge.cameras: expected '{name}', got {', '.join(bridge.cameras)} "
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
    for name, reader in found.readers.items():
        frame, camera = reader.latest(), bridge.cameras[name]
        assert frame is not None  # start has waited for it
        height, width = part_seen((frame.image.shape[0], frame.image.shape[1]), size_of(image_size, name))
        fps, fovy = float(camera.fps), camera.fovy
        if camera.kind == "emulator":
            assert scene is not None
            fps, geometry = scene.cameras()
            fovy = geometry[name]["fovy"]
        found.facts[name] = Camera(width, height, fps, "rgb", fovy)
    return found


def _source(name: str, camera: CameraSettings, scene: Scene | None) -> Callable[[], Source]:
    kind, device, where = camera.kind, camera.device, f"bridge.cameras.{name}"
    if kind == "emulator":
        if scene is None:
            raise UserError(f"{where}.kind: expected bridge.emulator.port beside '{kind}'")
        return scene.camera(name)
    if device is None:
        raise UserError(f"{where}.device: expected {DEVICES[kind]}, got none")
    if kind == "opencv":
        return partial(
            OpenCVCamera, device, camera.width, camera.height, camera.fps, camera.fourcc, camera.exposure,
            camera.white_balance,
        )  # fmt: skip
    if kind == "realsense":
        return partial(RealSenseCamera, device, camera.width, camera.height, camera.fps)
    store = EpisodeStore.open(device)
    if f"images_{name}" not in store.keys:
        raise UserError(f"{where}.device: expected a dataset with images_{name}, got {device}")
    return partial(ReplayCamera, _Images(store, f"images_{name}"), camera.fps)


class _Images(Sequence[np.ndarray]):
    """The images of a dataset, read a few at a time: all of them may exceed the memory."""

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

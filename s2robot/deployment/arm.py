"""The arm of a deployment and its cameras, real or emulated; the emulator is imported only if the config requires it."""

import importlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from copy import copy
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from s2robot.core.errors import reported, require
from s2robot.core.files import cache_dir
from s2robot.core.run_folder import locked
from s2robot.core.settings import read
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.settings import Bench, Bridge, CameraSettings
from s2robot.envs.errors import expect
from s2robot.envs.frames import ImageSize, size_of
from s2robot.envs.real.arms.description import BUILT_IN, ArmDescription
from s2robot.envs.real.arms.driver import ArmDriver, ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints, XArm7Points
from s2robot.envs.real.arms.sdk import EMULATED_IP, LOG_FILE
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras import camera as sources
from s2robot.envs.real.cameras.camera import CameraReader, part_seen

STAND_IN = "s2robot.envs.real.emulator.stand_in"
Scene = Any  # `StandIn` of that module: an emulated arm with cameras, table and operator
DEVICES = {
    "opencv": "a path such as /dev/v4l/by-id/...",
    "realsense": "a serial number",
    "replay": "a dataset folder",
    "lerobot": "the name of one of the robot's cameras",
}
START_S = 30.0  # s until a camera's first frame, and beyond the timeout of a connection
EXPOSURE_S = 1.0  # s for automatic exposure after a camera's first frame, which may be black
OK, WARNING, STOP = "ok", "warning", "stop"


class Finding(NamedTuple):
    level: str  # `ok`, `warning` or `stop`
    check: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<8}{self.check}: {self.text}"


class Camera(NamedTuple):
    """A camera's actual settings, which may differ from those requested."""

    width: int  # pixels, of the policy's frames, after cropping
    height: int
    fps: float
    fovy: float | None = None  # degrees, vertical field of view of those frames; None = unknown


class ConnectedArm:
    """An arm and its cameras, real or emulated: connected, not armed; `stack` closes them. Raises UserError, EnvError: no arm.

    Attributes: `scene` (None: a real arm), `readers` (the working cameras), `cameras` (properties of their frames), `failed`
    (findings for the other cameras).
    """

    def __init__(self, bench: Bench, cameras: Iterable[str], stack: ExitStack, image_size: ImageSize):
        self.bench, self.bridge, self.limits = bench, bench.bridge, bench.bridge.arm_limits()
        self.points = watched_points(bench)
        self.scene: Scene | None = None
        if (address := bench.ip or bench.port) and not bench.bridge.emulated:
            remedy = f"the one that uses the arm at {address} must end first"
            stack.enter_context(locked(cache_dir("arms") / quote(place_of(bench), safe=""), remedy))
        if port := bench.bridge.emulator["port"]:
            self.scene = importlib.import_module(STAND_IN).StandIn(port)
            stack.callback(self.scene.close)
        self.make_driver = driver_maker(bench, self.limits, self.scene)
        with reported("robot.driver: expected a class that can be created", kinds=(TypeError,)):
            self.driver = self.make_driver()
        stack.callback(self.driver.close)
        late = threading.Timer(bench.bridge.arm.connect_s + START_S, _give_up)
        late.daemon = True
        late.start()
        try:
            self.driver.connect(bench.bridge.arm.connect_s)
        finally:
            late.cancel()
        self.scene = self.driver if bench.bridge.simulated else self.scene
        # use the robot's own cameras unless the settings name another device
        chosen, views = dict(bench.bridge.cameras), self.driver.views
        for name in [name for name in views if name not in chosen or chosen[name].device is None]:
            values = chosen[name].model_dump() if name in chosen else {}
            own = values | {"kind": "lerobot", "device": name}
            chosen[name] = read(CameraSettings, own, f"bridge.cameras.{name}")
        bridge, scene = bench.bridge.replace(cameras=chosen), self.driver if views else self.scene
        self._start = partial(start_cameras, bridge, scene=scene)
        self.readers, self.cameras, self.failed = self._start(cameras, stack=stack, image_size=image_size)

    def shared(self, cameras: Iterable[str], stack: ExitStack, image_size: ImageSize) -> "ConnectedArm":
        """Return the same arm with the cameras of another policy; running cameras are reused."""
        other = copy(self)
        cameras_of_other = self._start(cameras, stack=stack, image_size=image_size, started=self.readers)
        other.readers, other.cameras, other.failed = cameras_of_other
        return other


def place_of(arm: ArmDescription) -> str:
    """Return where the arm is, however its address was typed: an IP address or a device."""
    try:
        return socket.gethostbyname(arm.ip) if arm.ip else os.path.realpath(str(arm.port))
    except OSError:
        return str(arm.ip)


def _give_up() -> None:
    """End the process, whatever blocks it: nothing has been armed."""
    expected = "expected connect() to return or raise within its timeout, got neither; nothing has moved"
    print(f"s2robot: error: robot.driver: {expected}", file=sys.stderr, flush=True)
    os._exit(2)


def watched_points(arm: ArmDescription) -> ArmPoints:
    """Return an arm's points for the safety filter. Raises EnvError, UserError: an unfit model, or no MuJoCo to read it."""
    if arm.model in (None, BUILT_IN):
        return XArm7Points() if arm.model else ArmPoints()
    require("mujoco", extra="sim")
    from s2robot.envs.real.arms.model import ModelPoints

    return ModelPoints(arm)


def driver_maker(bench: Bench, limits: ArmLimits, scene: Scene | None) -> Callable[..., ArmDriver]:
    """Return a picklable factory of unconnected drivers; with `gripper=False`, it makes one that only stops the arm.

    In each process, the output of the xArm's SDK goes to `LOG_FILE` in the run directory.
    """
    if bench.bridge.simulated:
        from s2robot.envs.real.simulated import SimulatedArm

        return partial(SimulatedArm, bench, limits)
    driver, grips = bench.driver_class(), bench.gripper is not None
    if driver.described:
        return partial(driver, bench, limits)
    if not issubclass(driver, XArmDriver):
        return partial(driver, bench.ip, limits, gripper=grips)
    ip, log = bench.ip or EMULATED_IP, bench.run_dir / LOG_FILE
    print(f"log of the arm's SDK: {log}", flush=True)
    ports = scene.ports if scene else None
    return partial(driver, ip, limits, bench.bridge.arm, ports=ports, gripper=grips, log=log)


def start_cameras(
    bridge: Bridge, names: Iterable[str], scene: Scene | None, stack: ExitStack, image_size: ImageSize = 256,
    started: Mapping[str, CameraReader] | None = None,
) -> tuple[dict[str, CameraReader], dict[str, Camera], list[Finding]]:  # fmt: skip
    """Start the cameras `names`, which `stack` closes; return also a finding for each one that does not work.

    image_size: of the policy's frames, cropped from the centre of a camera's frame.
    started: cameras that are already running.
    """
    readers, facts, failed = dict[str, CameraReader](), dict[str, Camera](), list[Finding]()
    for name in names:
        if problem := _problem(bridge, name):
            failed.append(Finding(STOP, f"camera {name}", problem))
            continue
        camera = bridge.cameras[name]
        try:
            if (reader := (started or {}).get(name)) is None:
                delay = bridge.rehearse["camera_delay"]
                reader = CameraReader(name, _source(name, camera, scene), camera.rotate, delay)
                stack.callback(reader.close)
                reader.start(START_S)
            readers[name] = reader
        except ValueError as error:  # EnvError, DatasetError
            failed.append(Finding(STOP, f"camera {name}", str(error)))
    if any(bridge.cameras[name].kind in ("opencv", "realsense") for name in readers):
        time.sleep(EXPOSURE_S)
    emulated = {name for name in readers if scene and bridge.cameras[name].kind == "emulator"}
    rate, geometry = scene.cameras() if scene and emulated else (0.0, {})
    for name, reader in readers.items():
        frame, camera = reader.latest(), bridge.cameras[name]
        assert frame is not None  # start has waited for it
        height, width = part_seen((frame.image.shape[0], frame.image.shape[1]), size_of(image_size, name))
        properties = (rate, geometry[name]["fovy"]) if name in emulated else (float(camera.fps), camera.fovy)
        facts[name] = Camera(width, height, *properties)
    return readers, facts, failed


def _problem(bridge: Bridge, name: str) -> str:
    """Return the error in the settings of a required camera, or ""."""
    where, camera = f"bridge.cameras.{name}", bridge.cameras.get(name)
    if camera is None:
        hint = f"(+{where}.kind=opencv +{where}.device=<path>)"
        return f"bridge.cameras: expected '{name}', got {', '.join(bridge.cameras)} {hint}"
    if camera.kind == "emulator":
        return "" if bridge.emulated else f"{where}.kind: 'emulator' requires bridge.emulator.port"
    return "" if camera.device else f"{where}.device: expected {DEVICES[camera.kind]}, got none"


def _source(name: str, camera: CameraSettings, scene: Scene | None) -> Callable[[], sources.Source]:
    kind, device = camera.kind, str(camera.device)
    if kind == "lerobot":
        views = getattr(scene, "views", {})
        expected = f"a camera of the robot: {', '.join(views) or 'none'}"
        expect(device in views, f"bridge.cameras.{name}.device", expected, device)
    if scene is not None and kind in ("emulator", "lerobot"):
        return scene.camera(name if kind == "emulator" else device)
    size = camera.width, camera.height, camera.fps
    if kind == "opencv":
        own = camera.fourcc, camera.exposure, camera.white_balance
        return partial(sources.OpenCVCamera, device, *size, *own)
    if kind == "realsense":
        return partial(sources.RealSenseCamera, device, *size)
    store = EpisodeStore.open(device)
    read = partial(store.read, f"images_{name}")
    read(0, 1)  # raises DatasetError if there are none
    return partial(sources.ReplayCamera, lambda i: read(i, i + 1)[0], store.num_steps, camera.fps)

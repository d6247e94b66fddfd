"""The arm of a deployment with its cameras: a real one, or the emulator where the config asks for it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from s2robot.core.errors import UserError
from s2robot.deployment.cameras import Cameras, Scene, find_scene, start_cameras
from s2robot.deployment.settings import Bench, Bridge
from s2robot.envs.frames import ImageSize
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.sdk import LOG_FILE
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader

JOINT_NAMES = tuple(f"joint{i}" for i in range(1, 8))


def driver_maker(bench: Bench, limits: ArmLimits, scene: Scene | None) -> Callable[..., XArmDriver]:
    """Return what makes unconnected drivers, with `gripper=False` for one that only stops; it can be pickled.

    In each process the SDK's own lines go to `LOG_FILE` in the run's folder.
    """
    ip = bench.robot.ip or (scene.host if scene is not None else None)
    if scene is not None and ip != scene.host:
        raise UserError(f"robot.ip: expected {scene.host} with bridge.emulator.port, got {ip}")
    arm, log = bench.bridge.arm, bench.run_dir / LOG_FILE
    print(f"log of the arm's SDK: {log}", flush=True)
    return partial(XArmDriver, str(ip), limits, arm, ports=scene.ports if scene else None, log=log)


@dataclass
class ConnectedArm:
    """An arm and its cameras, or the emulator's."""

    bench: Bench
    limits: ArmLimits
    scene: Scene | None  # None: a real arm
    make_driver: Callable[..., XArmDriver]
    driver: XArmDriver  # connected, not armed
    cameras: Cameras

    @classmethod
    def connect(
        cls, bench: Bench, cameras: Iterable[str], stack: ExitStack, image_size: ImageSize
    ) -> "ConnectedArm":
        """Connect arm and cameras, move nothing; `stack` closes them. UserError or EnvError: no arm."""
        limits = bench.bridge.arm_limits()
        scene = find_scene(bench.bridge, stack)
        make_driver = driver_maker(bench, limits, scene)
        driver = make_driver()
        stack.callback(driver.close)
        driver.connect(bench.bridge.arm.connect_s)
        started = start_cameras(bench.bridge, cameras, scene, stack, image_size)
        return cls(bench, limits, scene, make_driver, driver, started)

    @property
    def bridge(self) -> Bridge:
        return self.bench.bridge

    @property
    def readers(self) -> dict[str, CameraReader]:
        """The cameras that give frames."""
        return self.cameras.readers

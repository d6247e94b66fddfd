"""Policy, arm and cameras, connected and checked; the control loop that joins them."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.settings import DemosSettings, read
from s2robot.deployment.arm import driver_maker
from s2robot.deployment.cameras import Cameras, start_cameras
from s2robot.deployment.check import check_all
from s2robot.deployment.policy import Policy, make_policy
from s2robot.deployment.scene import Scene, find_scene
from s2robot.deployment.settings import Bench, read_bench, read_policy
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyFilter


@dataclass
class Rig:
    """What a deployment works with."""

    cfg: DictConfig
    bench: Bench
    policy: Policy
    limits: ArmLimits
    scene: Scene | None  # None: a real arm
    make_driver: Callable[..., XArmDriver]
    driver: XArmDriver  # connected, not armed
    cameras: Cameras

    @classmethod
    def connect(cls, cfg: DictConfig, stack: ExitStack) -> "Rig":
        """Reach everything, move nothing; `stack` lets go of it.

        Raises:
            UserError, EnvError: a wrong setting, no policy, no arm.
        """
        bench, source = read_bench(cfg), read_policy(cfg)
        limits = bench.bridge.arm_limits()
        policy = make_policy(source, bench.bridge, stack)  # before anything is looked for on the bench
        scene = find_scene(bench.bridge, stack)
        make_driver = driver_maker(bench, limits, scene)
        driver = make_driver()
        stack.callback(driver.close)
        driver.connect(bench.bridge.arm.connect_s)
        cameras = start_cameras(bench.bridge, policy.contract["cameras"], scene, stack)
        return cls(cfg, bench, policy, limits, scene, make_driver, driver, cameras)

    @property
    def readers(self) -> dict[str, CameraReader]:
        """The cameras that give frames."""
        return self.cameras.readers

    def loop_config(self, live: bool) -> LoopConfig:
        """How the control loop runs for this policy."""
        hz = self.policy.rate_hz * self.bench.bridge.speed
        return self.bench.bridge.loop_config(hz, self.policy.image_size, live)

    def check(self, picture: Path) -> None:
        """The pre-flight, printed; the cameras' pictures go to `picture`.

        Raises:
            UserError: something forbids to go on.
        """
        findings = check_all(
            self.bench,
            self.policy,
            self.limits,
            self.driver.read(),
            self.cameras,
            read(DemosSettings, self.cfg.demos, "demos"),
            picture,
        )
        for finding in findings:
            print(finding)
        if self.readers:
            print(f"pictures: {picture}", flush=True)
        stops = sum(finding.stops for finding in findings)
        if stops:
            raise UserError(f"pre-flight: {stops} of {len(findings)} checks say stop; nothing has moved")

    def loop(self, live: bool, **callbacks: Callable) -> ControlLoop:
        """A control loop with a filter of its own."""
        bridge = self.bench.bridge
        safety = SafetyFilter(self.limits, ArmPoints(self.bench.robot.name), bridge.safety)
        return ControlLoop(
            self.driver, self.readers, self.policy.act, safety, self.loop_config(live), bridge.watchdog, **callbacks,
        )  # fmt: skip


class Stop:
    """The operator's wish to stop, from a key or a signal."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self.interrupted = False  # by a signal
        self.moving = False  # whether a stop is a matter of braking, not of ending at once
        self.stop: Callable[[], None] = lambda: None  # called when it is asked for

    def ask(self) -> None:
        """Brake and stop; from any thread."""
        self._asked.set()
        self.stop()

    def asked(self) -> bool:
        return self._asked.is_set()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM: the first brakes the arm, the second one, or one while it stands, ends at once."""

        def handle(number: int, frame: object) -> None:
            again, self.interrupted = self.interrupted, True
            if again or not self.moving:
                raise KeyboardInterrupt
            self.ask()

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old)

"""Policy, arm and cameras, connected and checked; the control loop that joins them."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.deployment import parts
from s2robot.deployment.check import check_all
from s2robot.deployment.preflight import Camera, Finding
from s2robot.deployment.scene import Scene, find_scene
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.loop import ControlLoop
from s2robot.envs.real.control.safety import SafetyFilter


@dataclass
class Rig:
    """What a deployment works with."""

    cfg: DictConfig
    policy: parts.Policy
    limits: ArmLimits
    scene: Scene | None  # None: a real arm
    make_driver: Callable[..., XArmDriver]
    driver: XArmDriver  # connected, not armed
    readers: dict[str, CameraReader]
    cameras: dict[str, Camera]
    failed: list[Finding]  # of cameras

    @classmethod
    def connect(cls, cfg: DictConfig, stack: ExitStack) -> "Rig":
        """Reach everything, move nothing; `stack` lets go of it.

        Raises:
            UserError, EnvError: a wrong setting, no policy, no arm.
        """
        limits = parts.make_limits(cfg)
        (
            parts.make_watchdog_limits(cfg),
            parts.make_safety_config(cfg),
        )  # wrong ones are told before the long waits
        scene = find_scene(cfg.bridge, stack)
        make_driver = parts.driver_maker(cfg, limits, scene)
        policy = parts.make_policy(cfg, stack)
        parts.make_loop_config(cfg, policy, live=False)
        driver = make_driver()
        stack.callback(driver.close)
        driver.connect(cfg.bridge.arm.connect_s)
        readers, cameras, failed = parts.start_cameras(cfg, policy.contract["cameras"], scene, stack)
        return cls(cfg, policy, limits, scene, make_driver, driver, readers, cameras, failed)

    def check(self, picture: Path) -> None:
        """The pre-flight, printed; the cameras' pictures go to `picture`.

        Raises:
            UserError: something forbids to go on.
        """
        findings = check_all(
            self.cfg,
            self.policy,
            self.limits,
            self.driver.read(),
            self.readers,
            self.cameras,
            self.failed,
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
        cfg = self.cfg
        safety = SafetyFilter(self.limits, ArmPoints(cfg.robot.name), parts.make_safety_config(cfg))
        return ControlLoop(
            self.driver, self.readers, self.policy.act, safety, parts.make_loop_config(cfg, self.policy, live),
            parts.make_watchdog_limits(cfg), **callbacks,
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

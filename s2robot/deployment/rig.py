"""Policy, arm and cameras, connected and checked; the runtime that joins them."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.settings import DemosSettings, read
from s2robot.deployment.arm import driver_maker
from s2robot.deployment.cameras import Cameras, start_cameras
from s2robot.deployment.check import check_all
from s2robot.deployment.policy import Policy, make_policy
from s2robot.deployment.scene import Scene, find_scene
from s2robot.deployment.settings import Bench, Bridge, PolicySettings, read_bench, read_policy
from s2robot.envs.frames import ImageSize
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.operator.prompts import Operator, TerminalOperator
from s2robot.envs.real.operator.stop import Stop
from s2robot.envs.real.runtime import ArmRuntime


@dataclass
class ConnectedArm:
    """An arm and its cameras, or what stands in for them."""

    bench: Bench
    limits: ArmLimits
    scene: Scene | None  # None: a real arm
    make_driver: Callable[..., XArmDriver]
    driver: XArmDriver  # connected, not armed
    cameras: Cameras

    @classmethod
    def reach(
        cls, bench: Bench, cameras: Iterable[str], stack: ExitStack, image_size: ImageSize
    ) -> "ConnectedArm":
        """Reach everything, move nothing; `stack` lets go of it.

        Raises:
            UserError, EnvError: a wrong setting, no arm.
        """
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
        """What stands before it."""
        return self.bench.bridge

    @property
    def readers(self) -> dict[str, CameraReader]:
        """The cameras that give frames."""
        return self.cameras.readers

    def runtime(
        self,
        act: Callable[[dict], np.ndarray],
        loop: LoopConfig,
        subscribers: Sequence[Subscriber],
        stop: Stop | None = None,
        disagreement: Callable[[], float] | None = None,
    ) -> ArmRuntime:
        """Return the runtime in which `act` drives this arm.

        Raises:
            UserError: the arm is to hold where members disagree, and nothing measures that.
        """
        bridge = self.bridge
        if disagreement is None and (found := bridge.watchdog.disagreement) is not None:
            raise UserError(
                f"bridge.watchdog.disagreement: expected null beside a person's actions, got {found}"
            )
        return ArmRuntime(
            self.driver, self.readers, act, ArmPoints(self.bench.robot.name), loop, bridge.watchdog, bridge.safety,
            subscribers, stop, home_speed=bridge.home.speed, disagreement=disagreement or (lambda: 0.0),
        )  # fmt: skip

    def watched(self, runtime: ArmRuntime) -> AbstractContextManager[None]:
        """Beside the supervisor, see `ArmRuntime.watched`."""
        return runtime.watched(partial(self.make_driver, gripper=False), self.bridge.supervisor_s)

    def operator(self, terminal: Callable[[], Operator] = TerminalOperator) -> Operator:
        """Who stands beside the arm: a person, or what answers for the stand-in."""
        return terminal() if self.scene is None else self.scene.operator()


@dataclass
class Rig:
    """What a deployment works with: a policy and an arm."""

    source: PolicySettings
    policy: Policy
    demos: DemosSettings
    arm: ConnectedArm

    @classmethod
    def connect(cls, cfg: DictConfig, stack: ExitStack) -> "Rig":
        """Load the policy and reach the arm, move nothing; `stack` lets go of it.

        Raises:
            UserError, EnvError: a wrong setting, no policy, no arm.
        """
        bench, source, demos = read_bench(cfg), read_policy(cfg), read(DemosSettings, cfg.demos, "demos")
        policy = make_policy(source, bench.bridge, stack)  # before anything is looked for on the bench
        arm = ConnectedArm.reach(bench, policy.contract["cameras"], stack, policy.image_size)
        return cls(source, policy, demos, arm)

    def check(self, picture: Path, live: bool = False) -> None:
        """The pre-flight, printed; the cameras' pictures go to `picture`. `live`: before the arm moves.

        Raises:
            UserError: something forbids to go on.
        """
        arm = self.arm
        findings = check_all(
            arm.bench, self.policy, arm.limits, arm.driver.read(), arm.cameras, self.demos, picture, live
        )
        for finding in findings:
            print(finding)
        if arm.readers:
            print(f"pictures: {picture}", flush=True)
        stops = sum(finding.stops for finding in findings)
        if stops:
            raise UserError(f"pre-flight: {stops} of {len(findings)} checks say stop; nothing has moved")

    def loop_config(self, live: bool) -> LoopConfig:
        """How the control loop runs for this policy."""
        bridge = self.arm.bridge
        return bridge.loop_config(self.policy.rate_hz * bridge.speed, self.policy.image_size, live)

    def runtime(self, live: bool, subscribers: Sequence[Subscriber], stop: Stop) -> ArmRuntime:
        """The policy drives the arm."""
        policy, loop = self.policy, self.loop_config(live)
        return self.arm.runtime(policy.act, loop, subscribers, stop, policy.disagreement)

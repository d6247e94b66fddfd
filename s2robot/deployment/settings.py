"""What a deployment is told: the nodes of its config, read once, checked, and handed on as frozen dataclasses.

    bench = read_bench(cfg)                  # robot, bridge, run folder
    source = read_policy(cfg)                # checkpoint or server, and where it computes

configs/bridge/default.yaml, configs/host and configs/robot say what every value is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.ranges import INFINITY, check_positive, check_ranges
from s2robot.common.settings import plain, read
from s2robot.core import settings
from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.frames import ImageSize
from s2robot.envs.real.arms.driver import XARM7_LIMITS, ArmLimits
from s2robot.envs.real.arms.xarm import ONLINE, SERVO
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.watchdog import WatchdogLimits
from s2robot.envs.robots import robot_spec

MODES = {"servo": SERVO, "online": ONLINE}


@dataclass(frozen=True)
class RobotSettings:
    """`robot`: an arm that there is a driver for."""

    name: str
    ip: str | None

    def __post_init__(self) -> None:
        if self.name != "xarm7":
            raise UserError(f"robot: found '{self.name}', expected xarm7: there is a driver for no other arm")

    @property
    def home(self) -> np.ndarray:
        """Joints at which an episode starts, rad.  # (7,)"""
        return np.array(robot_spec(self.name).home)


@dataclass(frozen=True)
class ArmSettings:
    """`bridge.arm`."""

    mode: str
    connect_s: float
    sensitivity: int
    speed: float
    acceleration: float
    payload: float | None
    tcp_offset: Any

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"bridge.arm.mode: found '{self.mode}', expected one of {', '.join(MODES)}")
        check_positive(self, "bridge.arm", "connect_s", "speed", "acceleration")
        check_ranges(self, "bridge.arm", payload=(0, 3.5))
        check_ranges(self, "bridge.arm", sensitivity=(1, 5))  # 0 would switch collision detection off

    @property
    def number(self) -> int:
        """The arm's own number of its mode."""
        return MODES[self.mode]


@dataclass(frozen=True)
class LimitSettings:
    """`bridge.limits`; what is of the type Any holds a number or seven, or a box, and is checked by `ArmLimits`."""

    dq_max: Any
    ddq_max: Any
    margin: float
    box: Any
    arm_box: Any
    table_z: float
    table_clearance: float
    point_speed: float
    step_max: float
    lag_max: float
    point_lag_max: float
    rate_hz: float


@dataclass(frozen=True)
class LoopSettings:
    """`bridge.loop`."""

    max_steps: int
    max_delta: float
    gripper_hold: int
    ready_s: float
    warm_up_s: float
    frozen_s: float
    frozen_motion: float

    def __post_init__(self) -> None:
        times = "ready_s", "warm_up_s", "frozen_s"
        check_positive(self, "bridge.loop", "max_delta", "frozen_motion", *times)
        check_ranges(self, "bridge.loop", max_steps=(1, INFINITY), gripper_hold=(0, INFINITY))


@dataclass(frozen=True)
class CameraSettings:
    """`bridge.cameras.<name>`."""

    kind: str = "opencv"
    device: str | None = None
    width: int = 640
    height: int = 480
    fps: int = 30
    fourcc: str = "MJPG"
    exposure: float | None = None
    white_balance: float | None = None
    rotate: int = 0
    fovy: float | None = None

    def __post_init__(self) -> None:
        check_positive(self, "bridge.cameras", "width", "height", "fps")
        check_ranges(self, "bridge.cameras", fovy=(1, 179), rotate=(0, 3))


@dataclass(frozen=True)
class HomeSettings:
    """`bridge.home`."""

    speed: float

    def __post_init__(self) -> None:
        check_positive(self, "bridge.home", "speed")


@dataclass(frozen=True)
class StandInSettings:
    """`bridge.emulator`."""

    port: int | None

    def __post_init__(self) -> None:
        check_ranges(self, "bridge.emulator", port=(1, 65535))


@dataclass(frozen=True)
class Pace:
    """The numbers of `bridge` itself."""

    speed: float
    supervisor_s: float

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1:
            raise UserError(f"bridge.speed: found {self.speed}, expected more than 0, at most 1")
        check_positive(self, "bridge", "supervisor_s")


@dataclass(frozen=True)
class Bridge(Pace):
    """`bridge`: what stands between a policy and an arm."""

    arm: ArmSettings
    limits: LimitSettings
    safety: SafetyConfig
    watchdog: WatchdogLimits
    loop: LoopSettings
    home: HomeSettings
    cameras: Mapping[str, CameraSettings]
    emulator: StandInSettings

    @property
    def stands_in(self) -> bool:
        """Whether this is no real arm."""
        return self.emulator.port is not None

    def arm_limits(self) -> ArmLimits:
        """Joint ranges are the arm's own, the rest is the config's.

        Where the box plans, the stream is never faster than what it is told to plan with: it would fall behind by
        `lag_max`, and that is a fault.
        """
        values = {name: _tuples(value) for name, value in asdict(self.limits).items()}
        for name, planned in (("dq_max", self.arm.speed), ("ddq_max", self.arm.acceleration)):
            if isinstance(values[name], int | float):
                values[name] = (float(values[name]),) * 7
            if not isinstance(values[name], tuple) or not all(
                isinstance(v, int | float) for v in values[name]
            ):
                raise UserError(f"bridge.limits.{name}: found {values[name]!r}, expected a number, or seven")
            if self.arm.number == ONLINE and planned > 0:
                values[name] = tuple(min(value, planned) for value in values[name])
        return ArmLimits(q_min=XARM7_LIMITS.q_min, q_max=XARM7_LIMITS.q_max, **values)

    def loop_config(self, policy_hz: float, image_size: ImageSize, live: bool, **changes: Any) -> LoopConfig:
        """How the control loop runs.

        Args:
            policy_hz: decisions a second.
            image_size: of the frames, pixels.
            changes: of values of `bridge.loop`.
        """
        values = {k: v for k, v in asdict(self.loop).items() if k != "max_steps"} | changes
        return LoopConfig(
            live=live, policy_hz=policy_hz, image_size=image_size, mode=self.arm.number, **values
        )

    def described(self) -> dict[str, Any]:
        """As it stands in summaries: all but what stands in."""
        return {k: v for k, v in asdict(self).items() if k != "emulator"}


@dataclass(frozen=True)
class Bench:
    """An arm and what stands before it."""

    robot: RobotSettings
    bridge: Bridge
    run_dir: Path


class Host(Settings, at="policy", file="host/default"):
    """`policy`: where the policy computes."""

    url: str | None = from_yaml()
    token_file: str | None = from_yaml()
    ca_file: str | None = from_yaml()
    deadline_s: float = from_yaml(gt=0)
    connect_s: float = from_yaml(gt=0)
    device: str = from_yaml()
    threads: int | None = from_yaml(ge=1)


@dataclass(frozen=True)
class PolicySettings:
    """Which policy acts."""

    checkpoint: str | None
    weights: str | None  # of the encoder, if they lie elsewhere than at training time
    host: Host

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.host.url is None):
            found = "none" if self.checkpoint is None else "both"
            raise UserError(f"found {found} of checkpoint and policy.url, expected one of them")

    @property
    def name(self) -> str:
        """Checkpoint or URL."""
        return self.checkpoint or str(self.host.url)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def read_bridge(node: DictConfig) -> Bridge:
    """`bridge` of a config.

    Raises:
        UserError, EnvError: a key or a value that is wrong.
    """
    rooms: dict[str, Any] = {
        "arm": ArmSettings, "limits": LimitSettings, "safety": SafetyConfig, "watchdog": WatchdogLimits,
        "loop": LoopSettings, "home": HomeSettings, "emulator": StandInSettings,
    }  # fmt: skip
    values = plain(node)
    cameras = {
        name: read(CameraSettings, camera, f"bridge.cameras.{name}")
        for name, camera in values.pop("cameras").items()
    }
    made = {name: read(cls, values.pop(name), f"bridge.{name}") for name, cls in rooms.items()}
    pace = read(Pace, values, "bridge")
    return Bridge(speed=pace.speed, supervisor_s=pace.supervisor_s, cameras=cameras, **made)


def read_bench(cfg: DictConfig) -> Bench:
    """Robot, bridge and run folder of a config; raises as `read_bridge`."""
    robot = read(RobotSettings, cfg.robot, "robot")
    bench = Bench(robot, read_bridge(cfg.bridge), Path(cfg.run_dir))
    bench.bridge.arm_limits()  # wrong ones are told at the door
    if robot.ip is None and not bench.bridge.stands_in:
        raise UserError("robot.ip: found none, expected the control box's address, such as 192.168.1.200")
    return bench


def read_policy(cfg: DictConfig) -> PolicySettings:
    """`checkpoint`, `encoder.checkpoint` and `policy` of a config; UserError for what is wrong."""
    return PolicySettings(cfg.checkpoint, cfg.encoder.checkpoint, settings.read(Host, cfg.policy))

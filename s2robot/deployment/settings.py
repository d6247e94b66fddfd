"""Settings of a deployment: the nodes `robot`, `bridge` and `policy` of its config.

configs/bridge/default.yaml, configs/host and configs/robot document each value and hold the defaults.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from omegaconf import DictConfig
from pydantic import Field, model_validator

from s2robot.config import plain
from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, from_yaml, invalid, read
from s2robot.envs.frames import ImageSize
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.sdk import EMULATED_IP
from s2robot.envs.real.arms.xarm import ArmSettings
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.watchdog import WatchdogLimits
from s2robot.envs.robots import robot_spec


class CameraSettings(Settings, at="bridge.cameras.hand", file="bridge/default"):
    """`bridge.cameras.<name>`."""

    kind: Literal["opencv", "realsense", "replay", "emulator"] = from_yaml()
    device: str | None = from_yaml()
    width: int = from_yaml(gt=0)
    height: int = from_yaml(gt=0)
    fps: int = from_yaml(gt=0)
    fourcc: str = from_yaml()
    exposure: float | None = from_yaml()
    white_balance: float | None = from_yaml()
    rotate: int = from_yaml(ge=0, le=3)
    fovy: float | None = from_yaml(ge=1, le=179)


class Bridge(Settings, at="bridge", file="bridge/default"):
    """`bridge`: what stands between a policy and an arm."""

    speed: float = from_yaml(gt=0, le=1)
    supervisor_s: float = from_yaml(gt=0, lt=10)
    arm: ArmSettings = from_yaml()
    limits: ArmLimits = from_yaml()
    safety: SafetyConfig = from_yaml()
    watchdog: WatchdogLimits = from_yaml()
    loop: LoopConfig = from_yaml()
    home: Mapping[Literal["speed"], Annotated[float, Field(gt=0)]] = from_yaml()
    cameras: Mapping[str, CameraSettings] = from_yaml()
    emulator: Mapping[Literal["port"], Annotated[int, Field(ge=1, le=65535)] | None] = from_yaml()

    @property
    def emulated(self) -> bool:
        """Whether an emulator stands in for the arm."""
        return self.emulator["port"] is not None

    def arm_limits(self) -> ArmLimits:
        """Return the limits; in mode online the stream is never faster than the box plans.

        It would fall behind by `lag_max`, which is a fault.
        """
        arm, limits = self.arm, self.limits
        if arm.mode == "servo":
            return limits
        slower = tuple(min(v, arm.speed) for v in limits.dq_max)
        return limits.replace(dq_max=slower, ddq_max=tuple(min(v, arm.acceleration) for v in limits.ddq_max))

    def loop_config(self, policy_hz: float, image_size: ImageSize, live: bool, **changes: Any) -> LoopConfig:
        """Return the settings of the control loop: decisions a second, frames in pixels, and changes of `bridge.loop`."""
        own = {"policy_hz": policy_hz, "image_size": image_size, "mode": self.arm.number}
        return self.loop.replace(live=live, **own, **changes)

    def described(self) -> dict[str, Any]:
        """Return what summaries store: all but the emulator."""
        return self.model_dump(mode="json", exclude={"emulator"})


class Bench(Settings, at="robot", file="robot/xarm7"):
    """`robot`, an arm that there is a driver for, with its bridge and the run folder."""

    name: Literal["xarm7"] = from_yaml()
    ip: str | None = from_yaml()
    bridge: Bridge
    run_dir: Path

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        emulated = self.bridge.emulated
        if self.ip not in (None, EMULATED_IP) if emulated else self.ip is None:
            real = "the control box's address, such as 192.168.1.200"
            raise invalid("ip", f"{EMULATED_IP} with bridge.emulator.port" if emulated else real, self.ip)
        return self

    @property
    def home(self) -> np.ndarray:
        """Joints at which an episode starts, rad.  # (7,)"""
        return np.array(robot_spec(self.name).home)


class PolicySettings(Settings, at="policy", file="host/default"):
    """Which policy acts, and `policy`: where it computes."""

    checkpoint: str | None = None
    weights: str | None = None  # of the encoder, if they lie elsewhere than at training time
    url: str | None = from_yaml()
    token_file: str | None = from_yaml()
    ca_file: str | None = from_yaml()
    deadline_s: float = from_yaml(gt=0)
    connect_s: float = from_yaml(gt=0)
    device: str = from_yaml()
    threads: int | None = from_yaml(ge=1)

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if (self.checkpoint is None) == (self.url is None):
            found = "neither" if self.url is None else "both"
            raise UserError(f"checkpoint: expected either it or policy.url, got {found}")
        return self

    @property
    def name(self) -> str:
        return self.checkpoint or str(self.url)


def read_bench(cfg: DictConfig) -> Bench:
    """Return robot, bridge and run folder of a config; UserError or EnvError for a wrong value."""
    return read(Bench, {**plain(cfg.robot), "bridge": read(Bridge, cfg.bridge), "run_dir": Path(cfg.run_dir)})


def read_policy(cfg: DictConfig) -> PolicySettings:
    """Return `checkpoint`, `encoder.checkpoint` and `policy` of a config; UserError for a wrong value."""
    own = {"checkpoint": cfg.checkpoint, "weights": cfg.encoder.checkpoint}
    return read(PolicySettings, {**plain(cfg.policy), **own})

"""Settings of a deployment: the nodes `robot`, `bridge` and `policy` of its config.

configs/bridge/default.yaml, configs/host and configs/robot document each value and hold the defaults.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from omegaconf import DictConfig
from pydantic import Field, model_validator

from s2robot.config import plain
from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, from_yaml, read
from s2robot.envs.errors import expect
from s2robot.envs.real.arms.description import BUILT_IN, ArmDescription
from s2robot.envs.real.arms.driver import ArmLimits
from s2robot.envs.real.arms.sdk import EMULATED_IP
from s2robot.envs.real.arms.xarm import ArmSettings
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.watchdog import WatchdogLimits


class CameraSettings(Settings, at="bridge.cameras.hand", file="bridge/default"):
    kind: Literal["opencv", "realsense", "replay", "emulator", "lerobot"] = from_yaml()
    device: str | None = from_yaml()
    width: int = from_yaml(gt=0)
    height: int = from_yaml(gt=0)
    fps: int = from_yaml(gt=0)
    fourcc: str = from_yaml()
    exposure: float | None = from_yaml()
    white_balance: float | None = from_yaml()
    rotate: int = from_yaml(ge=0, le=3)
    fovy: float | None = from_yaml(ge=1, le=179)

    def rules(self) -> Iterable[tuple[Any, ...]]:
        for key in ("exposure", "white_balance"):
            ignored = self.kind in ("realsense", "lerobot") and getattr(self, key) is not None
            yield key, not ignored, f"null with kind={self.kind}"


class Bridge(Settings, at="bridge", file="bridge/default"):
    speed: float = from_yaml(gt=0, le=1)
    plan_s: float | None = from_yaml(gt=0)
    supervisor_s: float = from_yaml(gt=0, lt=10)
    arm: ArmSettings = from_yaml()
    limits: ArmLimits = from_yaml()
    safety: SafetyConfig = from_yaml()
    watchdog: WatchdogLimits = from_yaml()
    loop: LoopConfig = from_yaml()
    home: Mapping[Literal["speed"], Annotated[float, Field(gt=0)]] = from_yaml()
    cameras: Mapping[str, CameraSettings] = from_yaml()
    simulated: bool = from_yaml()
    emulator: Mapping[Literal["port"], Annotated[int, Field(ge=1, le=65535)] | None] = from_yaml()
    rehearse: Mapping[Literal["inference_delay", "camera_delay"], Annotated[float, Field(ge=0)]] = from_yaml()

    def rules(self) -> Iterable[tuple[Any, ...]]:
        for name, delay in self.rehearse.items():
            yield f"rehearse.{name}", self.emulated or not delay, "0 on a real arm", delay

    @property
    def emulated(self) -> bool:
        """Whether an emulator or a simulation replaces the arm."""
        return self.simulated or self.emulator["port"] is not None

    def arm_limits(self) -> ArmLimits:
        """Return the limits; in mode "online", capped at the speed with which the control box plans.

        Otherwise the arm would fall behind by more than `lag_max`, which is a fault.
        """
        arm = self.arm
        return self.limits if arm.mode == "servo" else self.limits.at_most(arm.speed, arm.acceleration)

    def described(self) -> dict[str, Any]:
        """Return the settings that summaries store: all except those of an emulator or simulation."""
        return self.model_dump(mode="json", exclude={"emulator", "simulated"})


class Bench(ArmDescription, at="robot"):
    bridge: Bridge
    run_dir: Path

    def rules(self) -> Iterable[tuple[Any, ...]]:
        yield from super().rules()
        port, simulated = self.bridge.emulator["port"], self.bridge.simulated
        other = f"null with robot={self.name} or bridge=simulated, which simulates any arm with a model"
        expect(not port or (self.model == BUILT_IN and not simulated), "bridge.emulator.port", other, port)
        if port:
            yield "ip", self.ip in (None, EMULATED_IP), f"{EMULATED_IP} with bridge.emulator.port"
        elif self.type is None:
            modelled = self.model not in (None, BUILT_IN)
            yield "model", modelled or not simulated, "a file with bridge=simulated"
            address = "the arm's address (of LeRobot's robots: robot.type)"
            yield "ip", simulated or self.ip is not None, address


class HostSettings(Settings, at="policy", file="host/default"):
    """The policy, and `policy`: where it runs."""

    checkpoint: str | None = None
    weights: str | None = None  # of the encoder, if their location has changed since training
    url: str | None = from_yaml()
    token_file: str | None = from_yaml()
    ca_file: str | None = from_yaml()
    deadline_s: float = from_yaml(gt=0)
    connect_s: float = from_yaml(gt=0)
    instruction: str | None = from_yaml()
    device: str = from_yaml()
    threads: int | None = from_yaml(ge=1)

    @model_validator(mode="after")
    def _one_policy(self) -> Self:
        if (self.checkpoint is None) == (self.url is None):
            given = "neither" if self.url is None else "both"
            raise UserError(f"checkpoint: expected either checkpoint or policy.url, got {given}")
        return self

    @property
    def name(self) -> str:
        return self.checkpoint or str(self.url)


def read_bridge(cfg: DictConfig) -> Bridge:
    """Return `bridge`, with limits for the joints of `robot`. Raises UserError for an invalid value."""
    robot, node = read(ArmDescription, cfg.robot), plain(cfg.bridge)
    return read(Bridge, {**node, "limits": robot.limits(node["limits"])})


def read_bench(cfg: DictConfig) -> Bench:
    """Return robot, bridge and run directory of a config. Raises UserError or EnvError for an invalid value."""
    return read(Bench, {**plain(cfg.robot), "bridge": read_bridge(cfg), "run_dir": Path(cfg.run_dir)})


def read_policy(cfg: DictConfig) -> HostSettings:
    """Return `checkpoint`, `encoder.checkpoint` and `policy` of a config. Raises UserError for an invalid value."""
    own = {"checkpoint": cfg.checkpoint, "weights": cfg.encoder.checkpoint}
    return read(HostSettings, {**plain(cfg.policy), **own})

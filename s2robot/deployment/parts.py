"""What a deployment is made of, built from its config: policy, arm, limits, cameras, emulated scene."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from s2robot.common.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.deployment.preflight import STOP, Camera, Finding, Robot
from s2robot.deployment.scene import Scene
from s2robot.envs.cube_config import ACTION_FRAME
from s2robot.envs.real.arms.driver import XARM7_LIMITS, ArmLimits
from s2robot.envs.real.arms.sdk_log import LOG_FILE, log_to
from s2robot.envs.real.arms.xarm import ONLINE, SERVO, XArmDriver
from s2robot.envs.real.cameras.camera import (
    CameraReader,
    OpenCVCamera,
    RealSenseCamera,
    ReplayCamera,
    Source,
)
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig
from s2robot.envs.real.control.watchdog import WatchdogLimits
from s2robot.envs.robots import robot_spec
from s2robot.loading import load_actor
from s2robot.serving.remote import RemoteError, RemotePolicy
from s2robot.serving.token import read_token

JOINT_NAMES = tuple(f"joint{i}" for i in range(1, 8))
MODES = {"servo": SERVO, "online": ONLINE}
CAMERA_KINDS = ("opencv", "realsense", "replay", "emulator")
CAMERA_START_S = 30.0  # s until a camera's first frame; the emulator builds its renderer first
EXPOSURE_S = 1.0  # s that automatic exposure takes after a camera's first frame, which may be black


@dataclass
class Policy:
    """What acts: a checkpoint in this process, or a server's."""

    act: Callable[[Mapping], np.ndarray]  # observation -> float32 (8,)
    plan: Callable[[Mapping], np.ndarray]  # observation -> float32 (k, 8), for measuring
    reset: Callable[[], None]
    contract: dict[str, Any]
    image_size: int  # pixels, side of the frames that the encoder reads without resizing
    encoder: str | None  # fingerprint of the encoder that computes; None = the server's


def settings(node: Any) -> Any:
    """A config node as plain values, lists as tuples."""
    value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return _tuples(value)


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def make_policy(cfg: DictConfig, stack: ExitStack) -> Policy:
    """The policy of `checkpoint` or `policy.url`; it is closed with `stack`.

    Raises:
        UserError: neither or both are given, or what `load_actor` and `RemotePolicy` raise.
    """
    if (cfg.checkpoint is None) == (cfg.policy.url is None):
        found = "none" if cfg.checkpoint is None else "both"
        raise UserError(f"found {found} of checkpoint and policy.url, expected one of them")
    if cfg.policy.url is not None:
        hold = cfg.bridge.watchdog.policy_hold + 1.5 / cfg.bridge.speed / 10
        remote = RemotePolicy(
            cfg.policy.url, read_token(cfg.policy.token_file), cfg.policy.deadline_s, cfg.policy.connect_s
        )
        stack.callback(remote.close)
        act = partial(_hold_first, remote.act, hold)
        return Policy(act, remote.plan, remote.reset, remote.contract, remote.image_size, None)
    import torch

    if cfg.policy.threads:
        torch.set_num_threads(cfg.policy.threads)
    actor, encoder, contract = load_actor(cfg.checkpoint, cfg.policy.device, cfg.encoder.checkpoint)
    return Policy(actor.act, actor.plan, actor.reset, contract, encoder.image_size, encoder.fingerprint)


def _hold_first(act: Callable[[Mapping], np.ndarray], hold_s: float, observation: Mapping) -> np.ndarray:
    """`act`, whose failures come late enough that the loop holds first: the arm stands before the fault."""
    begin = time.monotonic()
    try:
        return act(observation)
    except RemoteError:
        time.sleep(max(0.0, begin + hold_s + 0.2 - time.monotonic()))
        raise


def make_limits(cfg: DictConfig) -> ArmLimits:
    """Joint ranges are the arm's own, the rest is the config's.

    Where the box plans, the stream is never faster than what it is told to plan with: it would fall behind by
    `lag_max`, and that is a fault.
    """
    if cfg.robot.name != "xarm7":
        raise UserError(
            f"robot: found '{cfg.robot.name}', expected xarm7: there is a driver for no other arm"
        )
    values = settings(cfg.bridge.limits)
    online = arm_mode(cfg) == ONLINE
    for name, planned in (("dq_max", cfg.bridge.arm.speed), ("ddq_max", cfg.bridge.arm.acceleration)):
        if isinstance(values[name], int | float):
            values[name] = (float(values[name]),) * 7
        if online and planned > 0:
            values[name] = tuple(min(value, planned) for value in values[name])
    return ArmLimits(q_min=XARM7_LIMITS.q_min, q_max=XARM7_LIMITS.q_max, **values)


def check_operator(cfg: DictConfig) -> None:
    """Refuse a real arm without a person at a terminal."""
    if cfg.bridge.emulator.port is None and not sys.stdin.isatty():
        raise UserError(
            "standard input is no terminal, expected one: the operator is asked before each episode"
        )


def make_loop_config(cfg: DictConfig, policy: Policy, live: bool) -> LoopConfig:
    """How the loop runs for this policy."""
    if not 0 < cfg.bridge.speed <= 1:
        raise UserError(f"bridge.speed: found {cfg.bridge.speed}, expected more than 0, at most 1")
    hz = float(policy.contract["rate_hz"]) * cfg.bridge.speed
    mode = arm_mode(cfg)
    return LoopConfig(
        live=live, policy_hz=hz, image_size=policy.image_size, mode=mode,
        **{k: v for k, v in settings(cfg.bridge.loop).items() if k != "max_steps"},
    )  # fmt: skip


def make_watchdog_limits(cfg: DictConfig) -> WatchdogLimits:
    return WatchdogLimits(**settings(cfg.bridge.watchdog))


def make_safety_config(cfg: DictConfig) -> SafetyConfig:
    return SafetyConfig(**settings(cfg.bridge.safety))


def arm_mode(cfg: DictConfig) -> int:
    """The number of `bridge.arm.mode`."""
    mode = cfg.bridge.arm.mode
    if mode not in MODES:
        raise UserError(f"bridge.arm.mode: found '{mode}', expected one of {', '.join(MODES)}")
    return MODES[mode]


def driver_maker(cfg: DictConfig, limits: ArmLimits, scene: Scene | None) -> Callable[..., XArmDriver]:
    """Makes unconnected drivers, with `gripper=False` for one that only stops; picklable.

    In whatever process it makes one, the SDK's own lines go to `LOG_FILE` in the run's folder; the name is printed.
    """
    ip = cfg.robot.ip or (scene.host if scene is not None else None)
    if ip is None:
        raise UserError("robot.ip: found none, expected the control box's address, such as 192.168.1.200")
    if scene is not None and ip != scene.host:
        raise UserError(
            f"robot.ip: found {ip} with bridge.{scene.name}.port, expected {scene.host}: no arm is meant"
        )
    arm, log = cfg.bridge.arm, Path(cfg.run_dir) / LOG_FILE
    print(f"what the arm's SDK says: {log}", flush=True)
    return partial(
        _logged_driver, log, str(ip), limits=limits, mode=arm_mode(cfg), ports=scene.ports if scene else None,
        sensitivity=arm.sensitivity, speed=arm.speed, acceleration=arm.acceleration,
    )  # fmt: skip


def _logged_driver(log: Path, *args: Any, **settings: Any) -> XArmDriver:
    log_to(log)
    return XArmDriver(*args, **settings)


def robot_of(limits: ArmLimits, rate_hz: float) -> Robot:
    """The arm as the pre-flight compares it; `rate_hz` is of the policy's steps at full speed."""
    return Robot("xarm7", JOINT_NAMES, rate_hz, ACTION_FRAME, limits.q_min, limits.q_max)


def home_of(cfg: DictConfig) -> np.ndarray:
    """Joints at which an episode starts, rad.  # (7,)"""
    return np.array(robot_spec(cfg.robot.name).home)


# ---------------------------------------------------------------- cameras


def start_cameras(
    cfg: DictConfig, names: Iterable[str], scene: Scene | None, stack: ExitStack
) -> tuple[dict[str, CameraReader], dict[str, Camera], list[Finding]]:
    """Readers and what their frames are, closed with `stack`; a finding for each of `names` that gives no frames."""
    configured = settings(cfg.bridge.cameras)
    readers, failed = {}, []
    for name in names:
        try:
            if name not in configured:
                raise UserError(
                    f"bridge.cameras: found {', '.join(configured)}, expected '{name}' among them"
                )
            rotate = configured[name]["rotate"]
            reader = CameraReader(name, _source(name, configured[name], scene), rotate)
            stack.callback(reader.close)
            reader.start(CAMERA_START_S)
            readers[name] = reader
        except ValueError as error:  # UserError, EnvError, DatasetError
            failed.append(Finding(STOP, f"camera {name}", str(error)))
    if any(configured[name]["kind"] in ("opencv", "realsense") for name in readers):
        time.sleep(EXPOSURE_S)
    scene_fps, geometry = scene.cameras() if scene is not None else (0.0, {})
    cameras = {}
    for name, reader in readers.items():
        frame = reader.latest()
        assert frame is not None  # start has waited for it
        side = min(frame.image.shape[:2])  # the middle square is what the policy sees
        emulated = configured[name]["kind"] == "emulator"
        fovy = geometry[name]["fovy"] if emulated else configured[name]["fovy"]
        fps = scene_fps if emulated else configured[name]["fps"]
        cameras[name] = Camera(side, side, fps, "rgb", fovy)
    return {name: readers[name] for name in cameras}, cameras, failed


def _source(name: str, c: Mapping[str, Any], scene: Scene | None) -> Callable[[], Source]:
    kind, where = c["kind"], f"bridge.cameras.{name}"
    if kind not in CAMERA_KINDS:
        raise UserError(f"{where}.kind: found '{kind}', expected one of {', '.join(CAMERA_KINDS)}")
    if kind == "emulator":
        if scene is None:
            raise UserError(f"{where}.kind: found 'emulator' without bridge.emulator.port, expected both")
        return scene.camera(name)
    if c["device"] is None:
        what = {"opencv": "a path such as /dev/v4l/by-id/...", "realsense": "a serial number"}
        raise UserError(f"{where}.device: found none, expected {what.get(kind, 'the folder of a dataset')}")
    device = str(c["device"])
    if kind == "opencv":
        return partial(
            OpenCVCamera, device, c["width"], c["height"], c["fps"], c["fourcc"], c["exposure"],
            c["white_balance"],
        )  # fmt: skip
    if kind == "realsense":
        return partial(RealSenseCamera, device, c["width"], c["height"], c["fps"])
    store = EpisodeStore.open(device)
    if f"images_{name}" not in store.keys:
        raise UserError(f"{where}.device: {device} holds no images_{name}, expected a dataset of pictures")
    return partial(ReplayCamera, _Pictures(store, f"images_{name}"), c["fps"])


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

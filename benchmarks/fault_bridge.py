"""The bridge that benchmarks/faults.py breaks: driver, loop, supervisor, camera, recorder, and a policy that swings.

All parts are the real ones, with the loop's default limits; the arm is the emulated box.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from s2robot.demos.store import EpisodeStore
from s2robot.envs.real.arms.driver import REFUSED
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.cameras.camera import CameraReader, ReplayCamera
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.subscriber import EpisodeRecorder, Subscriber
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from s2robot.envs.real.emulator.side import Ports
from s2robot.envs.real.emulator.stand_in import EmulatedCamera
from s2robot.envs.real.runtime import ArmRuntime

SWING = np.array((0.05, 0.0, 0.0, 0.0, 0.03, 0.0, 0.06, 1.0))  # an action: up to 0.6 rad/s
FLIPPED = np.array((-1,) * 7 + (1,))  # the gripper stays closed
TURN = 16  # actions in one direction, then as many back
MOVING = 0.2  # rad/s; a fault that meets a slower arm proves nothing
PATIENCE_S = 60.0  # s that anything beside the measured may take
SIZE = 16  # pixels of the replayed pictures


class Swing:
    """A policy that moves the arm to and fro, until it is given something `bad` to do."""

    def __init__(self, act: Callable[[dict], np.ndarray] | None = None):
        self._act, self.calls = act, 0
        self.bad: Callable[[], Any] | None = None
        self.bad_at: float | None = None  # s, when the first bad answer was under way

    def __call__(self, observation: dict) -> Any:
        self.calls += 1
        if self.bad is not None:
            self.bad_at = self.bad_at or time.monotonic()
            return self.bad()
        if self._act is not None:
            return self._act(observation)
        return SWING * (1 if self.calls // TURN % 2 == 0 else FLIPPED)


def note(safety: SafetyFilter) -> list[np.ndarray]:
    """A list to which a filter adds all joints (7,) that it lets through."""
    passed: list[np.ndarray] = []
    advance = safety._advance

    def advanced(q: np.ndarray, speed: np.ndarray, places: np.ndarray | None) -> None:
        advance(q, speed, places)
        passed.append(q)

    safety._advance = advanced  # type: ignore[method-assign]
    return passed


class Tampered:
    """The driver, with a place to change what the loop sends behind the filter's back."""

    def __init__(self, driver: XArmDriver):
        self._driver = driver
        self.change: Callable[[np.ndarray], np.ndarray] | None = None  # of the commands to come
        self.changed_at: float | None = None
        self.sent_at = self.stopped_at = -np.inf  # s, monotonic: the last command that left, the first stop
        self.heard_at = -np.inf  # s, the last command reached the box
        self.rushed = 0  # commands too soon after that

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def command(self, q: np.ndarray, gripper: float | None) -> Any:
        if self.change is not None:
            q, self.changed_at = self.change(q), self.changed_at or time.monotonic()
        sent_at = time.monotonic()
        done = self._driver.command(q, gripper)
        if done.code != REFUSED:
            self.rushed += done.t_sent < self.heard_at + 1 / self._driver.limits.rate_hz - 1e-4
            self.sent_at, self.heard_at = sent_at, done.t_heard
        return done

    def stop(self, reason: str) -> bool:
        self.stopped_at = time.monotonic() if self.stopped_at < 0 else self.stopped_at
        return self._driver.stop(reason)


class Ripe(Subscriber):
    """Calls `then` at full speed, half a second into the motion."""

    def __init__(self, loop: ControlLoop, policy: Swing, then: Callable[[], None]):
        self._loop, self._policy, self._then = loop, policy, then

    def on_period(self, now: float, state: State, safe: Any) -> None:
        speed = np.abs(self._loop.safety.dq_last).max()
        if state == State.RUNNING and 6 <= self._policy.calls <= 10 and speed > MOVING:
            self._then()


@dataclass
class Bridge:
    """What one episode runs on."""

    driver: Tampered
    runtime: ArmRuntime
    policy: Swing
    recorder: EpisodeRecorder
    passed: list[np.ndarray]  # joints that the filter let through


def assemble(
    stack: ExitStack, ports: Ports, path: Path, policy: Swing, patience: float, points: ArmPoints, scene: bool,
    on_ripe: Callable[[], None],
) -> Bridge:  # fmt: skip
    """Connect everything and arm the robot; `stack` closes it. `on_ripe`: see `Ripe`."""
    make = partial(XArmDriver, "127.0.0.1", ports=ports)
    starter = stack.enter_context(ThreadPoolExecutor(1))  # the supervisor starts while the driver connects
    starting = starter.submit(Supervisor, partial(make, gripper=False), limit_s=0.3 * patience)
    stack.callback(lambda: None if starting.exception() else starting.result().close())
    arm = stack.enter_context(make())
    arm.connect(PATIENCE_S)
    arm._sdk.clean_error()  # the operator's part; the driver never does
    arm._sdk.clean_warn()
    arm.arm()
    driver = Tampered(arm)
    noise = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    replay = partial(ReplayCamera, noise.__getitem__, len(noise), 30)
    open_camera = partial(EmulatedCamera, ports.side, "hand") if scene else replay
    camera = CameraReader("hand", open_camera)
    camera.start(PATIENCE_S)
    stack.callback(camera.close)
    supervisor = starting.result()
    recorder = EpisodeRecorder(stack.enter_context(EpisodeStore.open(path, "a")))
    usual = WatchdogLimits()
    limits = usual.replace(**{name: limit and limit * patience for name, limit in usual.model_dump().items()})
    safety = SafetyConfig(state_age_max=limits.state_hold)
    loop = LoopConfig(live=True, image_size=SIZE)
    runtime = ArmRuntime(
        cast(Any, driver), {"hand": camera}, policy, points, loop, limits, safety, [recorder], supervisor=supervisor
    )  # fmt: skip
    runtime.loop.subscribers.append(Ripe(runtime.loop, policy, on_ripe))
    return Bridge(driver, runtime, policy, recorder, note(runtime.loop.safety))

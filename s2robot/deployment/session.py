"""A session on an arm, shared by deployment, evaluation, recording and correction.

session = rig.session(subscribers)
with session.started():
    session.begin()
    session.ready(world, seed)                   # asks, moves to the start, stops, has the cube placed
    outcome = session.act(max_steps)             # the control loop; the arm is stopped afterwards
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.settings import read
from s2robot.deployment.arm import STOP, ConnectedArm
from s2robot.deployment.operator import Keys, WatchingOperator, keys
from s2robot.deployment.policy import by_name, make_policy
from s2robot.deployment.preflight import check_all
from s2robot.deployment.settings import HostSettings, read_bench, read_policy
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize
from s2robot.envs.real.control.loop import LoopConfig, Result
from s2robot.envs.real.control.subscriber import EpisodeRecorder, Subscriber
from s2robot.envs.real.control.supervisor import UNCONFIRMED, EndsLoop
from s2robot.envs.real.operator.prompts import Operator, Placing, Stop, TerminalOperator
from s2robot.envs.real.runtime import ArmRuntime


class Outcome(NamedTuple):
    cause: str  # "steps", "ended", "stopped" or "fault"
    fault: str = ""
    result: Result | None = None  # of the control loop, if it returned one


def reason_of(error: Exception) -> str:
    """Return the reason of a fault; print where a driver's or policy's own error is, for its author."""
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


class ArmSession(Subscriber):
    """Episodes on one connected arm.

    Args:
        act, loop, subscribers, disagreement: see `ControlLoop`; no `disagreement` if a person acts.
        operator: answers questions; default: a person on the terminal, or the emulator's operator.
        reset_policy: called before an episode's first observation, to drop plans of an earlier episode.
        read_keys, take_key: see `WatchingOperator`.
        over: called repeatedly; ends the control loop when it returns True.

    Attributes: `began`, s, monotonic, when the loop began to act; 0 before.
    """

    def __init__(
        self, arm: ConnectedArm, act: Callable[[dict], np.ndarray], loop: LoopConfig,
        subscribers: Sequence[Subscriber] = (), operator: Operator | None = None,
        reset_policy: Callable[[], None] = lambda: None, disagreement: Callable[[], float] | None = None,
        read_keys: Keys = keys, take_key: Callable[[str], None] | None = None,
        over: Callable[[], bool] | None = None,
    ):  # fmt: skip
        self.arm, self.stop, self.began, self._reset_policy = arm, Stop(), 0.0, reset_policy
        bridge = arm.bridge
        if disagreement is None and (limit := bridge.watchdog.disagreement) is not None:
            raise UserError(f"bridge.watchdog.disagreement: expected null when a person acts, got {limit}")
        self.runtime = ArmRuntime(
            arm.driver, arm.readers, act, arm.points, loop, bridge.watchdog, bridge.safety,
            [self, *subscribers], self.stop, home_speed=bridge.home["speed"], disagreement=disagreement or (lambda: 0.0),
        )  # fmt: skip
        if operator is None:
            operator = TerminalOperator() if arm.scene is None else arm.scene.operator()
        end = self.runtime.loop.request_end
        self.operator = WatchingOperator(operator, self.stop, end, read_keys, take_key)
        # the emulator's operator notices a lifted cube
        self._over = over or (None if operator.person else self.operator.ended)

    @contextmanager
    def started(self) -> Iterator[None]:
        """Run with a supervisor, and with signals that stop the arm; the arm is stopped at the end.

        Raises EnvError if the arm did not acknowledge that stop.
        """
        arm = self.arm
        stopping = EndsLoop if arm.driver.one_client else partial(arm.make_driver, gripper=False)
        try:
            with self.runtime.watched(stopping, self.arm.bridge.supervisor_s):
                try:
                    yield
                except UserError as error:
                    error.status = 1  # the input may be right: the arm was connected, and may have moved
                    raise
                finally:
                    self.operator.rest()
        finally:
            if not self.runtime.confirmed:  # said last, whatever else has failed
                unconfirmed = EnvError(UNCONFIRMED)
                unconfirmed.status = 1
                raise unconfirmed

    def begin(self) -> None:
        self.began = 0.0
        self.operator.begin()

    def go_to(self, goal: np.ndarray) -> bool:
        """Arm if necessary and move slowly to joints (N,), gripper open; False after a stop. Raises EnvError if not arrived."""
        if self.arm.driver.stopped:
            self.runtime.arm()
        return self.runtime.go_to(goal)

    def ready(self, world: CubePickConfig, seed: int) -> Placing:
        """Move the arm to the start of an episode, stop it, and have the cube placed, like `ArmRuntime.ready`."""
        placing = Placing.draw(world, seed)
        if self.arm.bench.home is not None:
            placing = placing._replace(start_joints=self.arm.bench.start)
        self.runtime.ready(self.operator, placing)
        return placing

    def act(self, max_steps: int) -> Outcome:
        """Run the control loop from the arm's joints, then stop the arm; keys have an effect until `operator.rest`.

        Raises EnvError before any motion if the arm cannot be armed, or something is not ready.
        """
        self.began = 0.0
        self.operator.watch()
        try:
            self.runtime.arm()
            with nullcontext() if self._over is None else self.runtime.ends_when(self._over):
                result = self.runtime.run(max_steps)
        except Exception as error:
            if not self.began:
                raise
            return Outcome("fault", reason_of(error))
        finally:
            confirmed = self.runtime.driver.stop("end of the episode")
        if not confirmed:  # latched: an operator must clear it
            self.runtime.loop.watchdog.fault(self.runtime.clock.now(), UNCONFIRMED)
        fault = "; ".join(self.runtime.fault)
        return Outcome("fault" if fault else result.cause, fault, result)

    def store(self, recorder: EpisodeRecorder, **meta: Any) -> None:
        """Store the recorded episode; a signal meanwhile takes effect afterwards."""
        self.stop.storing = True
        try:
            recorder.finish(**meta)
        finally:
            self.stop.storing = False

    def on_begin(self) -> None:
        self._reset_policy()
        self.began = time.monotonic()
        self.operator.acting = True

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt if the operator has requested a stop."""
        if self.stop.requested:
            raise KeyboardInterrupt


class Rig:
    """A policy and a connected arm, which has not moved; `stack` closes them. Raises UserError, EnvError: either is missing.

    beside: a rig of another policy, whose arm this one shares; only one of them acts at a time.
    """

    def __init__(
        self, cfg: DictConfig, stack: ExitStack, source: HostSettings | None = None, beside: "Rig | None" = None
    ):  # fmt: skip
        bench, self.source = read_bench(cfg), source or read_policy(cfg)
        self.demos = read(DemosSettings, cfg.demos, "demos")
        self.policy = make_policy(self.source, bench, stack)  # before connecting to the arm
        cameras = self.policy.contract["cameras"], stack, self.policy.image_size
        self.arm: ConnectedArm = beside.arm.shared(*cameras) if beside else ConnectedArm(bench, *cameras)
        if bench.type is not None and self.policy.contract["action_frame"] == "parts":
            self.policy = by_name(self.policy, bench, self.arm.driver)

    def check(self, image: Path, live: bool = False) -> None:
        """Print the pre-flight checks and plot the cameras' frames; `live`: the arm will move. Raises UserError on a "stop"."""
        findings = check_all(self.policy, self.arm, self.demos, image, live)
        for finding in findings:
            print(finding)
        if self.arm.readers:
            print(f"camera images: {image}", flush=True)
        if stops := sum(finding.level == STOP for finding in findings):
            raise UserError(f"pre-flight: {stops} of {len(findings)} checks failed (stop); nothing has moved")

    def loop_config(self, live: bool, image_size: ImageSize | None = None) -> LoopConfig:
        bridge, policy, size = self.arm.bridge, self.policy, image_size or self.policy.image_size
        own = {"policy_hz": policy.rate_hz * bridge.speed, "gripper": self.arm.bench.gripper, "live": live}
        return bridge.loop.replace(**own, image_size=size, absolute=policy.absolute)

    def session(self, subscribers: Sequence[Subscriber], live: bool = True, **settings: Any) -> ArmSession:
        """Return a session in which the policy acts; `settings` are arguments of `ArmSession`."""
        actor, options = self.policy.actor, dict[str, Any](act=self.policy.act, loop=self.loop_config(live))
        options |= {"disagreement": lambda: actor.disagreement, **settings}
        return ArmSession(
            self.arm, subscribers=[self.policy, *subscribers], reset_policy=self.policy.reset, **options
        )

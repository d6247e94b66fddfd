"""A session on an arm: what deployment, evaluation, recording and correction do alike.

session = rig.session(subscribers)
with session.started():
    session.begin()
    session.ready(world, seed)                   # asks, moves to the start, stops, asks for the cube
    outcome = session.act(max_steps)             # the control loop; the arm is stopped afterwards
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from s2robot.config import DemosSettings
from s2robot.core.errors import UserError
from s2robot.core.settings import read
from s2robot.deployment.arm import ConnectedArm
from s2robot.deployment.operator import Keys, WatchingOperator, keys
from s2robot.deployment.policy import by_name, make_policy
from s2robot.deployment.preflight import check_all
from s2robot.deployment.settings import HostSettings, read_bench, read_policy
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize
from s2robot.envs.real.control.loop import LoopConfig, Result
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.supervisor import EndsLoop
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.operator.prompts import Operator, Placing, Stop, TerminalOperator
from s2robot.envs.real.runtime import ArmRuntime
from s2robot.envs.robots import ROBOTS


@dataclass
class Outcome:
    cause: str  # "steps", "ended", "stopped" or "fault"
    fault: str = ""
    result: Result | None = None  # of the control loop, if it came to its end


class ArmSession(Subscriber):
    """Episodes on one connected arm.

    Args:
        act, loop, subscribers, disagreement: see `ControlLoop`; no `disagreement` where a person acts.
        operator: who is asked; a person on the terminal, or the emulator's, if not given.
        forget: called before an episode's first observation: what was planned belongs to another one.
        read_keys, take_key: see `WatchingOperator`.
        over: polled; ends the control loop's part of an episode.

    Attributes: `begun`, s, monotonic, when the loop began to act; 0 before.
    """

    def __init__(
        self, arm: ConnectedArm, act: Callable[[dict], np.ndarray], loop: LoopConfig,
        subscribers: Sequence[Subscriber] = (), operator: Operator | None = None,
        forget: Callable[[], None] = lambda: None, disagreement: Callable[[], float] | None = None,
        read_keys: Keys = keys, take_key: Callable[[str], None] | None = None,
        over: Callable[[], bool] | None = None,
    ):  # fmt: skip
        self.arm, self.stop, self.begun, self._forget = arm, Stop(), 0.0, forget
        bridge = arm.bridge
        if disagreement is None and (found := bridge.watchdog.disagreement) is not None:
            raise UserError(f"bridge.watchdog.disagreement: expected null where a person acts, got {found}")
        self.runtime = ArmRuntime(
            arm.driver, arm.readers, act, arm.points, loop, bridge.watchdog, bridge.safety,
            [self, *subscribers], self.stop, home_speed=bridge.home["speed"], disagreement=disagreement or (lambda: 0.0),
        )  # fmt: skip
        if operator is None:
            operator = TerminalOperator() if arm.scene is None else arm.scene.operator()
        end = self.runtime.loop.request_end
        self.operator = WatchingOperator(operator, self.stop, end, read_keys, take_key)
        # the emulator's sees a lifted cube
        self._over = over or (None if operator.person else self.operator.ended)

    @contextmanager
    def started(self) -> Iterator[None]:
        """A supervisor watches and signals stop the arm; it is stopped at the end."""
        arm = self.arm
        stopping = EndsLoop if arm.driver.one_client else partial(arm.make_driver, gripper=False)
        with self.runtime.watched(stopping, self.arm.bridge.supervisor_s):
            try:
                yield
            finally:
                self.operator.rest()

    def begin(self) -> None:
        self.begun = 0.0
        self.operator.begin()

    def go_to(self, goal: np.ndarray) -> bool:
        """Arm, and move slowly to joints (N,), the gripper open; False after a stop. EnvError: it did not arrive."""
        if self.arm.driver.stopped:
            self.runtime.arm()
        return self.runtime.go_to(goal)

    def ready(self, world: CubePickConfig, seed: int) -> Placing:
        """Bring the arm to the start of an episode, stop it, and have the cube placed.

        EnvError: the operator said no; the arm refuses, did not arrive or was stopped.
        """
        placing = Placing.draw(world, seed)
        if self.arm.bench.name not in ROBOTS:  # its start is the arm's own
            placing = replace(placing, start_joints=self.arm.bench.start)
        self.runtime.ready(self.operator, placing)
        return placing

    def act(self, max_steps: int) -> Outcome:
        """Run the control loop from where the arm is, and stop the arm; keys count until `operator.rest`.

        EnvError: the arm refuses, or something is not ready. Nothing has moved then.
        """
        self.begun = 0.0
        self.operator.watch()
        try:
            self.runtime.arm()
            with nullcontext() if self._over is None else self.runtime.ends_when(self._over):
                result = self.runtime.run(max_steps)
        except EnvError as error:
            if not self.begun:
                raise
            return Outcome("fault", str(error))
        finally:
            self.runtime.driver.stop("end of the episode")
        fault = "; ".join(result.reasons) if result.state == State.FAULT else ""
        return Outcome("fault" if fault else result.cause, fault, result)

    def on_begin(self) -> None:
        self._forget()
        self.begun = time.monotonic()
        self.operator.acting = True
        if self.stop.asked():  # arming has dropped the loop's own request
            self.runtime.loop.request_stop()

    def check_stop(self) -> None:
        """Raise KeyboardInterrupt if the operator has asked for a stop."""
        if self.stop.asked():
            raise KeyboardInterrupt


class Rig:
    """A policy and an arm, connected and not moved; `stack` closes them. UserError, EnvError: there is none.

    beside: a rig of another policy, whose arm this one shares; one of them acts at a time.
    """

    def __init__(
        self, cfg: DictConfig, stack: ExitStack, source: HostSettings | None = None, beside: "Rig | None" = None
    ):  # fmt: skip
        bench, self.source = read_bench(cfg), source or read_policy(cfg)
        self.demos = read(DemosSettings, cfg.demos, "demos")
        self.policy = make_policy(self.source, bench, stack)  # before the arm is looked for
        cameras = self.policy.contract["cameras"], stack, self.policy.image_size
        self.arm: ConnectedArm = beside.arm.shared(*cameras) if beside else ConnectedArm(bench, *cameras)
        if bench.type is not None and self.policy.contract["action_frame"] == "parts":
            self.policy = by_name(self.policy, bench, self.arm.driver)

    def check(self, picture: Path, live: bool = False) -> None:
        """Print the pre-flight and draw the cameras' frames; `live`: before the arm moves. UserError: a check stops."""
        findings = check_all(self.policy, self.arm, self.demos, picture, live)
        for finding in findings:
            print(finding)
        if self.arm.readers:
            print(f"pictures: {picture}", flush=True)
        if stops := sum(finding.stops for finding in findings):
            raise UserError(f"pre-flight: {stops} of {len(findings)} checks stop; nothing has moved")

    def loop_config(self, live: bool, image_size: ImageSize | None = None) -> LoopConfig:
        bridge, policy, size = self.arm.bridge, self.policy, image_size or self.policy.image_size
        own = {"policy_hz": policy.rate_hz * bridge.speed, "gripper": self.arm.bench.gripper, "live": live}
        return bridge.loop.replace(**own, image_size=size, absolute=policy.absolute)

    def session(self, subscribers: Sequence[Subscriber], live: bool = True, **settings: Any) -> ArmSession:
        """Return a session in which the policy acts; `settings` as of `ArmSession`."""
        actor, own = self.policy.actor, dict[str, Any](act=self.policy.act, loop=self.loop_config(live))
        own |= {"disagreement": lambda: actor.disagreement, **settings}
        return ArmSession(self.arm, subscribers=subscribers, forget=self.policy.forget, **own)

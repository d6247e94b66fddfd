"""RealCubePick: the simulated task's interface on an arm.

    env = gymnasium.make("s2robot/RealCubePick-v0", driver=driver, cameras=readers, loop=LoopConfig(live=True),
                         supervisor=supervisor)
    observation, info = env.reset(seed=0)      # asks the operator, moves to the start, asks for the cube
    observation, reward, terminated, truncated, info = env.step(action)

A control loop runs in a thread of its own and takes what `step` is given for its policy's answers, so each of its
rules holds: a step that comes late is a policy that is late (HOLD, then FAULT), an action that is no action is a
fault, and nothing reaches the arm but through the safety filter. `step` returns with the next observation, a period
later. Between two episodes the arm is stopped; a fault stays until the operator clears it at the next reset.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from s2robot.core.parts import MAX_DELTA
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import image_space, side_by_side, sizes_of
from s2robot.envs.real.arms.driver import ArmDriver, Array
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.clock import REAL, Clock
from s2robot.envs.real.control.loop import LoopConfig
from s2robot.envs.real.control.safety import Safe, SafetyConfig, Verdict
from s2robot.envs.real.control.senses import Camera
from s2robot.envs.real.control.subscriber import Silent, Subscriber
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.turns import Turns
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from s2robot.envs.real.people.operator import Operator, Placing, TerminalOperator
from s2robot.envs.real.people.stop import Stop
from s2robot.envs.real.runtime import ArmRuntime, RuntimeConfig
from s2robot.envs.robots import robot_spec


class RealCubePick(gymnasium.Env):
    """See the module. Spaces as of `s2robot.envs.cube_pick.CubePick`, with the cameras and the size that are given.

    Args:
        driver: connected; `reset` arms it if `loop.live`.
        cameras: name -> started reader, in the policy's order.
        config: robot, box of the cube, start noise, rate and length of an episode as in the simulated world. A seed
            means the same cube and start as there.
        operator: who is asked; on the terminal if not given.
        loop: `live=True` moves the arm; otherwise all happens but motion. Rate and image size are the config's.
        watchdog, safety: limits of the loop and of its filter.
        points: of the arm, for the filter; the config's robot's if not given.
        supervisor: stops the arm when this process no longer does; a live arm needs one (or `runtime.watched`).
        subscriber: hears of the loop's episodes: a recorder.
        home_speed: rad/s of the way to the start.
        stop: the operator's wish to stop, on that way and in an episode.
        clock: of the loop.
        act, disagreement: of a policy, as of `ControlLoop`. With it an episode is `ready` and then `runtime.run`, which is
            what a deployment runs; `reset` and `step` are for actions from outside.

    ``info``: `is_success`, `steps` (actions executed; one that came while the arm was held is not), `executed`
    (whether the last one was), `state` (the watchdog's: idle, running, hold, fault), `reasons` (of a fault, or why the
    arm has held), `held` (whether it did since the step before), `verdict` (the filter's worst since then) and
    `cube_asked` (x, y in m and yaw in rad: where the operator was asked to put it).

    Raises:
        EnvError: settings that do not fit each other.
    """

    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        driver: ArmDriver,
        cameras: Mapping[str, Camera],
        config: CubePickConfig | None = None,
        operator: Operator | None = None,
        loop: LoopConfig | None = None,
        watchdog: WatchdogLimits | None = None,
        safety: SafetyConfig | None = None,
        points: ArmPoints | None = None,
        supervisor: Supervisor | None = None,
        subscriber: Subscriber | None = None,
        home_speed: float = 0.3,
        stop: Stop | None = None,
        render_mode: str | None = None,
        clock: Clock = REAL,
        act: Callable[[dict], np.ndarray] | None = None,
        disagreement: Callable[[], float] = lambda: 0.0,
    ):
        self.config = config or CubePickConfig(cameras=tuple(cameras))
        self.render_mode = render_mode
        settings = loop or LoopConfig()
        _check(self.config, cameras, settings)
        self.operator = operator or TerminalOperator()
        self._home = np.array(robot_spec(self.config.robot).home)  # (7,)
        self._turns, self._notes = Turns(clock), _Notes(self)
        self.runtime = ArmRuntime(
            driver, cameras, act or self._turns.act, points or ArmPoints(self.config.robot),
            RuntimeConfig(settings, watchdog or WatchdogLimits(), safety or SafetyConfig(), home_speed),
            [*([self._turns] if act is None else []), self._notes, *([] if subscriber is None else [subscriber])],
            stop, supervisor, clock, disagreement,
        )  # fmt: skip
        self.loop = self.runtime.loop
        sizes = sizes_of(self.config.image_size, self.config.cameras)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": image_space(sizes),
                "proprio": gymnasium.spaces.Box(-10, 10, (8,), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(
            np.array([-MAX_DELTA] * 7 + [0], np.float32), np.array([MAX_DELTA] * 7 + [1], np.float32)
        )
        self._last: dict = {}  # observation returned last
        self._steps, self._executed, self._most = 0, False, self.config.max_steps
        self._over = True
        self._asked = np.zeros(3)

    # ---------------------------------------------------------------- gymnasium

    def reset(self, *, seed=None, options=None):
        """Ask, move to the start, ask for the cube, begin. Options as of `CubePick.reset`.

        Raises:
            EnvError: the operator said no or stopped the arm, it refuses or did not reach its start, or frames or
                joints are not fresh.
        """
        placing = self.ready(seed, options)
        self._asked = np.array([*placing.cube_xy, placing.cube_yaw])
        return self.resume(self.config.max_steps)

    def resume(self, steps: int) -> tuple[dict, dict]:
        """Begin where the arm is, for so many steps: after `close`, an episode goes on that somebody interrupted.

        Raises:
            EnvError: as `reset`.
        """
        self.runtime.arm()
        self._steps, self._executed, self._over, self._most = 0, False, False, steps
        self._turns.begin()
        # one more than is asked for: the observation after the last action is the episode's last
        self.runtime.start(steps + 1, self._turns.over)
        try:
            observation = self._wait()
        except BaseException:  # Ctrl-C
            self._end()
            raise
        if observation is None:
            self._end()
            raise self.runtime.error or EnvError(f"reset: {'; '.join(self.loop.watchdog.reasons)}")
        return observation, self._info(False)

    def ready(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Placing:
        """What `reset` does before an episode: the arm stands stopped at its start, the cube is laid."""
        self._end()
        if not self.runtime.confirmed:
            self.runtime.stand("before the operator comes near")
        super().reset(seed=seed)
        placing = self._sample(seed, options or {})
        fault = self.runtime.fault
        if fault or (self.runtime.live and not self.runtime.at(placing.start_joints)):
            if not self.operator.free(fault):
                raise EnvError("reset: the operator said no, expected a yes before the arm moves")
            self.runtime.clear()  # on the operator's word
            if self.runtime.live:
                self._go_to(placing.start_joints)
        if not self.operator.place(placing):
            raise EnvError("reset: the operator said no, expected a yes before the arm moves")
        return placing

    def step(self, action):
        """Hand over an action (8,) and wait for the next observation.

        At the end of an episode the arm is braked and stopped, and the operator is asked for success.

        Raises:
            EnvError: the episode is over.
        """
        if self._over:
            raise EnvError("step: the episode is over, expected reset first")
        try:
            self._turns.answer(action)
            observation = self._wait()
            self._executed, self._steps = self.loop.steps > self._steps, self.loop.steps
            if observation is None:  # the loop has ended by itself: a fault
                self._end()
                return copy.deepcopy(self._last), 0.0, True, False, self._info(False)
            truncated = self._steps >= self._most
            success = False
            if truncated or self.operator.ended():
                self._end()
                if fault := bool(self.runtime.fault or self.runtime.error):  # it came while braking
                    truncated = False
                success = not fault and self.operator.success()
            terminated = self._over and (success or not truncated)
            return observation, float(success), terminated, self._over and not terminated, self._info(success)
        except BaseException:  # Ctrl-C among them
            self._end()
            raise

    def render(self):
        """The cameras' last pictures side by side.  # uint8 (max H, sum of W, 3)"""
        if self.render_mode == "rgb_array" and self._last:
            return side_by_side(self._last["images"].values())
        return None

    def close(self):
        """Brake and stop the arm if an episode is under way; driver and cameras stay open."""
        self._end()

    # ---------------------------------------------------------------- inside

    def _sample(self, seed: int | None, options: Mapping[str, Any]) -> Placing:
        """The draws of `CubePick.reset`, in its order."""
        c, rng = self.config, self.np_random
        xy = np.array([rng.uniform(*c.box_x), rng.uniform(*c.box_y)])
        yaw = rng.uniform(*c.yaw)
        start = self._home + rng.uniform(-c.start_noise, c.start_noise, 7)
        x, y = map(float, options.get("cube_xy", xy))
        start = np.asarray(options.get("start_joints", start), float)
        return Placing(seed, (x, y), float(options.get("cube_yaw", yaw)), start)

    def _go_to(self, goal: Array) -> None:
        """To `goal` (7,) with the gripper open, and stop there: hands come near while the cube is placed."""
        self.runtime.arm()
        try:
            there = self.runtime.go_to(goal)
        finally:
            self.runtime.stand("at the start")
        if not there:
            raise EnvError("reset: stopped on the way to the start")

    def _wait(self) -> dict | None:
        """The next observation; None if the loop has ended."""
        observation = self._turns.wait(lambda: self.runtime.running)
        if observation is not None:
            self._last = observation
        return observation

    def _end(self) -> None:
        """Brake, stop, and wait for the loop's thread."""
        self._over = True
        # Not `request_stop`, which outlives the episode and would end the next one. Before the answer that ends the
        # wait, so that it is not executed.
        self.loop.request_end()
        self._turns.close()
        self.runtime.join()

    def _info(self, success: bool) -> dict:
        state, reasons = self.loop.watchdog.state, self.loop.watchdog.reasons
        if self.runtime.error is not None:  # the watchdog does not hear of it
            state, reasons = State.FAULT, (str(self.runtime.error),)
        held, verdict = self._notes.take()
        return {
            "is_success": success,
            "steps": self._steps,
            "executed": self._executed,
            "state": state.value,
            "reasons": reasons or held,
            "held": bool(held),
            "verdict": verdict.name,
            "cube_asked": self._asked.copy(),
        }


class _Notes(Silent):
    """What the loop did between two steps."""

    def __init__(self, env: RealCubePick):
        self._env = env
        self._held: tuple[str, ...] = ()
        self._verdict = Verdict.PASS

    def on_period(self, now: float, state: State, safe: Safe | None) -> None:
        """See `Subscriber`."""
        if state == State.HOLD:
            self._held = self._env.loop.watchdog.reasons
        if safe is not None:
            self._verdict = max(self._verdict, safe.verdict)

    def take(self) -> tuple[tuple[str, ...], Verdict]:
        """Why the arm has held, if it has, and the filter's worst verdict, since the last call."""
        found = self._held, self._verdict
        self._held, self._verdict = (), Verdict.PASS
        return found


def _check(config: CubePickConfig, cameras: Mapping[str, Any], loop: LoopConfig) -> None:
    """EnvError for cameras, rate or size that are not the world's."""
    if list(cameras) != list(config.cameras):
        raise EnvError(f"cameras: found {', '.join(cameras)}, expected {', '.join(config.cameras)}")
    if (loop.policy_hz, loop.image_size) != (config.rate_hz, config.image_size):
        raise EnvError(
            f"loop: found {loop.policy_hz:g} Hz and images of {loop.image_size}, expected the world's "
            f"{config.rate_hz:g} Hz and {config.image_size}"
        )

"""RealCubePick: the simulated task's interface on an arm.

    env = gymnasium.make("s2robot/RealCubePick-v0", driver=driver, cameras=readers, loop=LoopConfig(live=True))
    observation, info = env.reset(seed=0)      # asks the operator, moves to the start, asks for the cube
    observation, reward, terminated, truncated, info = env.step(action)

A control loop runs in a thread of its own and takes what `step` is given for its policy's answers, so each of its
rules holds: a step that comes late is a policy that is late (HOLD, then FAULT), an action that is no action is a
fault, and nothing reaches the arm but through the safety filter. `step` returns with the next observation, a period
later. Between two episodes the arm is stopped; a fault stays until the operator clears it at the next reset.
"""

import copy
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import gymnasium
import numpy as np

from s2robot.envs.cube_config import MAX_DELTA, CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import ArmDriver, Array
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig, Result
from s2robot.envs.real.control.move import move_slowly
from s2robot.envs.real.control.safety import Safe, SafetyConfig, SafetyFilter, Verdict
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.control.watchdog import State, WatchdogLimits
from s2robot.envs.real.people.operator import Operator, Placing, TerminalOperator
from s2robot.envs.robots import robot_spec

_AT_START = 0.02  # rad; within this the arm is at its start
_STAY = np.zeros(8)


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
        supervisor: stops the arm when this process no longer does.
        on_step: as of `ControlLoop`: a recorder.
        home_speed: rad/s of the way to the start.
        stopped: asked on that way, every period; True brakes and stops the arm.

    ``info``: `is_success`, `steps`, `state` (the watchdog's: idle, running, hold, fault), `reasons` (of a fault, or
    why the arm has held), `held` (whether it did since the step before), `verdict` (the filter's worst since then)
    and `cube_asked` (x, y in m and yaw in rad: where the operator was asked to put it).

    Raises:
        EnvError: settings that do not fit each other.
    """

    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Box
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        driver: ArmDriver,
        cameras: Mapping[str, CameraReader],
        config: CubePickConfig | None = None,
        operator: Operator | None = None,
        loop: LoopConfig | None = None,
        watchdog: WatchdogLimits | None = None,
        safety: SafetyConfig | None = None,
        points: ArmPoints | None = None,
        supervisor: Supervisor | None = None,
        on_step: Callable[[dict], None] = lambda step: None,
        home_speed: float = 0.3,
        stopped: Callable[[], bool] = lambda: False,
        render_mode: str | None = None,
    ):
        self.config = config or CubePickConfig(cameras=tuple(cameras))
        self.render_mode = render_mode
        if list(cameras) != list(self.config.cameras):
            raise EnvError(f"cameras: found {', '.join(cameras)}, expected {', '.join(self.config.cameras)}")
        settings = loop or LoopConfig()
        if (settings.policy_hz, settings.image_size) != (self.config.rate_hz, self.config.image_size):
            raise EnvError(
                f"loop: found {settings.policy_hz:g} Hz and images of {settings.image_size}, expected the world's "
                f"{self.config.rate_hz:g} Hz and {self.config.image_size}"
            )
        self.operator = operator or TerminalOperator()
        self.driver, self.live = driver, settings.live
        self._home = np.array(robot_spec(self.config.robot).home)  # (7,)
        self.loop = ControlLoop(
            driver, cameras, self._act, SafetyFilter(driver.limits, points or ArmPoints(self.config.robot), safety),
            settings, watchdog, self._begin, self._beat, on_step, self._note,
        )  # fmt: skip
        image = gymnasium.spaces.Box(0, 255, (self.config.image_size,) * 2 + (3,), np.uint8)
        self.observation_space = gymnasium.spaces.Dict(
            {
                "images": gymnasium.spaces.Dict({name: image for name in cameras}),
                "proprio": gymnasium.spaces.Box(-10, 10, (8,), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(
            np.array([-MAX_DELTA] * 7 + [0], np.float32), np.array([MAX_DELTA] * 7 + [1], np.float32)
        )
        self._supervisor, self._home_speed, self._stopped = supervisor, home_speed, stopped
        self._thread: threading.Thread | None = None
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._news = threading.Condition()  # guards the four below
        self._acting = False  # whether the loop's questions are step's to answer
        self._observation: dict | None = None  # for step, not yet taken
        self._action: Any = None  # for the loop, not yet taken
        self._last: dict = {}  # observation returned last
        self._steps = 0
        self._over = True
        self._held: tuple[str, ...] = ()
        self._verdict = Verdict.PASS
        self._asked = np.zeros(3)

    # ---------------------------------------------------------------- gymnasium

    def reset(self, *, seed=None, options=None):
        """Ask, move to the start, ask for the cube, begin. Options as of `CubePick.reset`.

        Raises:
            EnvError: the operator said no or stopped the arm, it refuses or did not reach its start, or frames or
                joints are not fresh.
        """
        placing = self.ready(seed, options)
        if self.live:
            self.driver.arm()
        self._steps, self._over, self._result, self._error = 0, False, None, None
        self._acting, self._observation, self._action = False, None, None
        self._asked = np.array([*placing.cube_xy, placing.cube_yaw])
        self._thread = threading.Thread(target=self._episode, daemon=True, name="control loop")
        self._thread.start()
        try:
            observation = self._wait()
        except BaseException:  # Ctrl-C
            self._end()
            raise
        if observation is None:
            self._end()
            raise self._error or EnvError(f"reset: {'; '.join(self.loop.watchdog.reasons)}")
        return observation, self._info(False)

    def ready(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Placing:
        """What `reset` does before an episode: the arm stands stopped at its start, the cube is laid."""
        self._end()
        super().reset(seed=seed)
        placing = self._sample(seed, options or {})
        watchdog = self.loop.watchdog
        fault = watchdog.reasons if watchdog.state == State.FAULT else ()
        if fault or (self.live and not self._at(placing.start_joints)):
            if not self.operator.free(fault):
                raise EnvError("reset: the operator said no, expected a yes before the arm moves")
            watchdog.clear(time.monotonic())  # on the operator's word
            if self.live:
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
            with self._news:
                self._action = np.array(action)  # what is no action is the loop's to refuse
                self._news.notify_all()
            observation = self._wait()
            self._steps += 1
            if observation is None:  # the loop has ended by itself: a fault
                self._end()
                return copy.deepcopy(self._last), 0.0, True, False, self._info(False)
            truncated = self._steps >= self.config.max_steps
            success = False
            if truncated or self.operator.ended():
                self._end()
                if fault := self.loop.watchdog.state == State.FAULT:  # it came while braking
                    truncated = False
                success = not fault and self.operator.success()
            terminated = self._over and (success or not truncated)
            return observation, float(success), terminated, self._over and not terminated, self._info(success)
        except BaseException:  # Ctrl-C among them
            self._end()
            raise

    def render(self):
        """The cameras' last pictures side by side.  # uint8 (S, S * cameras, 3)"""
        if self.render_mode == "rgb_array" and self._last:
            return np.concatenate(list(self._last["images"].values()), axis=1)
        return None

    def close(self):
        """Brake and stop the arm if an episode is under way; driver and cameras stay open."""
        self._end()

    # ---------------------------------------------------------------- between episodes

    def _sample(self, seed: int | None, options: Mapping[str, Any]) -> Placing:
        """The draws of `CubePick.reset`, in its order."""
        c, rng = self.config, self.np_random
        xy = np.array([rng.uniform(*c.box_x), rng.uniform(*c.box_y)])
        yaw = rng.uniform(*c.yaw)
        start = self._home + rng.uniform(-c.start_noise, c.start_noise, 7)
        x, y = map(float, options.get("cube_xy", xy))
        start = np.asarray(options.get("start_joints", start), float)
        return Placing(seed, (x, y), float(options.get("cube_yaw", yaw)), start)

    def _at(self, goal: Array) -> bool:
        state = self.driver.read()
        return bool(np.abs(state.q - goal).max() < _AT_START and state.gripper > 0.9)

    def _go_to(self, goal: Array) -> None:
        """To `goal` (7,) with the gripper open, and stop there: hands come near while the cube is placed."""
        self.driver.arm()
        try:
            there = move_slowly(
                self.driver, self.loop.safety, goal, 1.0, self._home_speed, self._beat, self._stopped
            )
        finally:
            self.driver.stop("at the start")
            self._rest()
        if not there:
            raise EnvError("reset: stopped on the way to the start")

    def _beat(self) -> None:
        if self._supervisor is not None:
            self._supervisor.beat()

    def _rest(self) -> None:
        if self._supervisor is not None:
            with suppress(EnvError):  # told by the next beat, before the next motion
                self._supervisor.rest()

    # ---------------------------------------------------------------- the loop's thread

    def _episode(self) -> None:
        try:
            # one more than is asked for: the observation after the last action is the episode's last
            self._result = self.loop.run(self.config.max_steps + 1)
        except BaseException as error:  # reset's or step's to raise
            self._error = error
        self._rest()
        with self._news:
            self._acting = False
            self._news.notify_all()

    def _begin(self) -> None:
        """The loop has had its first answer and begins."""
        with self._news:
            if self._over:
                raise EnvError("reset: interrupted")
            self._acting = True

    def _act(self, observation: dict) -> Array:
        """What the loop calls, in its policy's thread."""
        with self._news:
            if not self._acting:  # the answer that warms up is not executed
                return _STAY
            self._observation = observation
            self._news.notify_all()
            self._news.wait_for(lambda: self._action is not None or not self._acting)
            action, self._action = self._action, None
            return _STAY if action is None else action

    def _note(self, now: float, state: State, safe: Safe | None) -> None:
        if state == State.HOLD:
            self._held = self.loop.watchdog.reasons
        if safe is not None:
            self._verdict = max(self._verdict, safe.verdict)

    # ---------------------------------------------------------------- step's side

    def _wait(self) -> dict | None:
        """The next observation; None if the loop has ended."""
        assert self._thread is not None
        with self._news:
            self._news.wait_for(lambda: self._observation is not None or not self._running())
            observation, self._observation = self._observation, None
        if observation is not None:
            self._last = observation
        return observation

    def _running(self) -> bool:
        return self._result is None and self._error is None

    def _end(self) -> None:
        """Brake, stop, and wait for the loop's thread."""
        self._over = True
        if self._thread is None:
            return
        # Not `request_stop`, which outlives the episode and would end the next one. Before the answer that ends the
        # wait, so that it is not executed.
        self.loop.request_end()
        with self._news:
            self._acting = False
            self._news.notify_all()
        self._thread.join()
        self._thread = None
        if self.live:
            self.driver.stop("end of the episode")

    def _info(self, success: bool) -> dict:
        state, reasons = self.loop.watchdog.state, self.loop.watchdog.reasons
        if self._error is not None:
            reasons = (str(self._error),)
        info = {
            "is_success": success,
            "steps": self._steps,
            "state": state.value,
            "reasons": reasons or self._held,
            "held": bool(self._held),
            "verdict": self._verdict.name,
            "cube_asked": self._asked.copy(),
        }
        self._held, self._verdict = (), Verdict.PASS
        return info

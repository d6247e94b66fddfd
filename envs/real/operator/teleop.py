"""Teleoperation with keys or a SpaceMouse, alone or shared with a policy, and teaching by hand (`teach`).

Its actions pass through loop, interpolator and safety filter like a policy's.

Velocities are those of the point between the fingertips in the base's frame: x forward, y left, z up, and rotation
about the vertical; the gripper keeps its initial tilt. Nothing jumps at a handover: the person's motion starts at the
commanded joints, and the gripper keeps its last command.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from s2robot.core.errors import reported
from s2robot.envs.errors import EnvError
from s2robot.envs.real import import_extra
from s2robot.envs.real.arms.driver import ArmLimits, ArmState, Array
from s2robot.envs.real.arms.geometry import ToolIK, XArm7Points
from s2robot.envs.real.arms.xarm import MANUAL
from s2robot.envs.real.control.safety import SafetyFilter
from s2robot.envs.real.control.sensors import Sensors
from s2robot.envs.real.control.subscriber import Subscriber
from s2robot.envs.real.control.watchdog import State, Watchdog
from s2robot.envs.real.runtime import ArmRuntime

HELP = "w s: forward, back   a d: left, right   r f: up, down   q e: rotate"
CONTROLS_HELP = "space: gripper   Enter: end   x: end and discard   Ctrl-C: stop"
HANDOVER_HELP = "space: take over, give back   g: gripper   Enter: end   x: end and discard   Ctrl-C: stop"
_AHEAD = (0.04, 0.3)  # m and rad that the target may be ahead of the arm; any excess is dropped
_EDGE = 0.005  # m, distance kept from where the safety filter would stop the gripper
_HOLD_S = 0.15  # s of motion per key press: a held key repeats sooner, after the terminal's initial delay
_DEAD = 0.1  # dead zone: readings of the cap up to this count as 0
_STALE_S = 0.2  # s without a report after which the cap counts as released; while moved, it reports at 100 Hz
_KEYS = {
    "w": (1, 0, 0, 0), "s": (-1, 0, 0, 0), "a": (0, 1, 0, 0), "d": (0, -1, 0, 0),
    "r": (0, 0, 1, 0), "f": (0, 0, -1, 0), "q": (0, 0, 0, 1), "e": (0, 0, 0, -1),
}  # fmt: skip


class Controls:
    """A demonstrator's commands other than motion, from any thread.

    Attributes: `closed`, the gripper; `ended`, the episode; `discarded`, the episode; `person`, whether the person
    acts: always, unless the controls are `shared` with a policy.
    """

    def __init__(self, shared: bool = False) -> None:
        self._shared, self._gripper = shared, "g" if shared else " "
        self.reset()

    def reset(self) -> None:
        """Prepare the next episode: gripper open, not ended; with shared controls, the policy acts."""
        self.closed = self.ended = self.discarded = False
        self.person = not self._shared

    def on_key(self, key: str) -> None:
        """Handle a key of `CONTROLS_HELP`, or of `HANDOVER_HELP` if a policy shares the controls."""
        if key == self._gripper:
            self.closed ^= self.person
        elif key == " ":
            self.person = not self.person
        elif key in "\r\nx":
            self.discarded, self.ended = self.discarded or key == "x", True

    def on_button(self, button: int) -> None:
        """Handle a SpaceMouse button: 0 for the gripper, 1 for the end."""
        self.on_key((self._gripper, "\n")[button])


class Keyboard:
    """Motion by keys (`HELP`): a terminal reports only presses, so each moves for a short time. `controls` handles others."""

    def __init__(self, controls: Controls, clock: Callable[[], float] = time.monotonic):
        self._controls, self._clock = controls, clock
        self._pressed: dict[str, float] = {}

    def on_key(self, key: str) -> None:
        if key.lower() in _KEYS:
            self._pressed[key.lower()] = self._clock()
        else:
            self._controls.on_key(key)

    def velocity(self) -> Array:
        now = self._clock()
        held = [_KEYS[key] for key, since in self._pressed.copy().items() if now - since <= _HOLD_S]
        return np.clip(np.sum([(0, 0, 0, 0), *held], 0).astype(float), -1, 1)


class SpaceMouse:
    """A 3Dconnexion SpaceMouse through `pyspacemouse`: the cap moves, button 1 is the gripper, button 2 the end.

    Default: the first device on USB (EnvError without the library or a device). `device.read()` returns the newest state:
    x, y, z, yaw (-1 to 1), buttons, and `t`, which changes with each report.
    """

    def __init__(self, controls: Controls, device: Any = None):
        self._controls, self._device = controls, device
        if device is None:
            library = import_extra("pyspacemouse", "spacemouse")
            with reported("spacemouse: expected a device on USB, got none", kind=EnvError):
                self._device = library.open(axis_convention=library.AxisConvention.ROS)
        self._buttons: tuple[int, ...] = (0, 0)
        self._velocity = np.zeros(4)
        self._report, self._heard = None, -np.inf  # the last report's `t`, and its arrival, s
        self._error, self._ended = "", threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="spacemouse")
        self._thread.start()

    def velocity(self) -> Array:
        """Return the deflection. Raises EnvError if the device is lost: its last reading must not keep the arm moving."""
        if self._error:
            raise EnvError(f"spacemouse: {self._error}")
        return self._velocity if time.monotonic() - self._heard <= _STALE_S else np.zeros(4)

    def close(self) -> None:
        self._ended.set()
        self._thread.join(2.0)
        self._device.close()

    def _run(self) -> None:
        try:
            while not self._ended.wait(0.001):  # each call reads one report, and hundreds arrive per second
                self._update(self._device.read())
        except Exception as error:  # of any underlying library
            self._error = str(error) or type(error).__name__

    def _update(self, state: Any) -> None:
        if state.t != self._report:
            self._report, self._heard = state.t, time.monotonic()
        axes = np.clip([state.x, state.y, state.z, state.yaw], -1, 1).astype(float)
        self._velocity = np.sign(axes) * np.maximum(np.abs(axes) - _DEAD, 0) / (1 - _DEAD)
        before, self._buttons = self._buttons, tuple(state.buttons)[:2]
        for button, pressed in enumerate(self._buttons):
            if pressed and not before[button]:
                self._controls.on_button(button)


class Teleoperator:
    """Converts a person's motion to `rate_hz` actions per second; motion ends before the filter would stop the gripper.

    Args:
        mover: its `velocity()` is x, y, z and rotation about z, each a fraction -1 to 1 of full speed.  # (4,)
        speed, turn_speed: m/s and rad/s at full deflection.
        max_delta: rad that a joint may move per action.
    """

    def __init__(
        self, mover: Any, controls: Controls, ik: ToolIK, limits: ArmLimits, rate_hz: float = 10.0,
        speed: float = 0.1, turn_speed: float = 0.6, max_delta: float = 0.25,
    ):  # fmt: skip
        self._mover, self._controls, self._ik = mover, controls, ik
        self._full = np.array([speed, speed, speed, turn_speed]) / rate_hz  # m and rad per action
        self._max_delta, self._limits, self._points = max_delta, limits, XArm7Points()
        self._safety = SafetyFilter(limits, self._points)
        self._position: Array | None = None

    def reset(self) -> None:
        """Restart at the joints of the next action."""
        self._position = None

    def act(self, q: Array) -> Array:
        """Return the next action, to be added to commanded joints (7,) rad: `CommandStream.commanded`.  # float32 (8,)"""
        if np.isnan(q).any():  # the loop's warm-up: no command yet, and this action will not be executed
            return np.zeros(8, np.float32)
        if self._position is None:
            self._position, self._upright = self._ik.pose(q)
            self._turn = 0.0  # rad about the vertical, from the start
            self._low, self._high = self._room(q, self._position)
        step = self._mover.velocity() * self._full
        here, rotation = self._ik.pose(q)
        # if the arm was held or could not follow, drop the excess lag
        ahead = self._position - here
        self._position = here + ahead * min(1.0, _AHEAD[0] / max(float(np.linalg.norm(ahead)), 1e-9))
        turn = rotation @ self._upright.T
        # about the vertical, rad
        turned = float(np.arctan2(turn[1, 0] - turn[0, 1], turn[0, 0] + turn[1, 1]))
        behind = (self._turn - turned + np.pi) % (2 * np.pi) - np.pi
        self._turn = turned + np.clip(behind, -_AHEAD[1], _AHEAD[1])
        low, high = np.minimum(self._low, self._position), np.maximum(self._high, self._position)
        self._position = np.clip(self._position + step[:3], low, high)  # from outside, only inwards
        self._turn += step[3]
        cos, sin = np.cos(self._turn), np.sin(self._turn)
        goal = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ self._upright
        delta = self._ik.solve(q, self._position, goal) - q
        delta = delta / max(1.0, float(np.abs(delta).max()) / self._max_delta)
        # a pose may be reachable only with a point outside: allow no such step, and from outside only steps inwards
        if self._safety.beyond(q + delta) > max(-_EDGE / 2, self._safety.beyond(q)):
            delta, self._position, self._turn = np.zeros(7), here, turned
        return np.append(delta, float(self._controls.closed)).astype(np.float32)

    def _room(self, q: Array, position: Array) -> tuple[Array, Array]:
        """Return the tool's bounds, lower and upper, for the gripper's tilt at `q` and any rotation about z.  # 2 x (3,)"""
        p, limits = self._points, self._limits
        away = (p.at(q) - position)[p.in_box]  # (P, 3)
        radius = p.radius[p.in_box]
        wide = float((np.hypot(away[:, 0], away[:, 1]) + radius).max()) + _EDGE
        below, above = float((radius - away[:, 2]).max()) + _EDGE, float((radius + away[:, 2]).max()) + _EDGE
        (x0, x1), (y0, y1), (z0, z1) = limits.box
        floor = max(z0, limits.table_z + limits.table_clearance) + below
        return np.array([x0 + wide, y0 + wide, floor]), np.array([x1 - wide, y1 - wide, z1 - above])


class SharedControl(Subscriber):
    """The policy of a loop in which a person may take over; also a subscriber. `persons`: whether the person acted, per step.

    Args:
        reset_policy: called before the policy acts again, since it planned from another state.
        teleoperator: the person's actions; None if the person guides the arm by hand, outside the loop.
        commanded: returns the joints (7,) rad to which the next action is added.
    """

    def __init__(
        self, policy: Callable[[Mapping[str, Any]], Array], reset_policy: Callable[[], None], controls: Controls,
        teleoperator: Teleoperator | None, commanded: Callable[[], Array],
    ):  # fmt: skip
        self._policy, self._reset_policy, self._controls = policy, reset_policy, controls
        self._teleoperator, self._commanded = teleoperator, commanded
        self.begin()

    def begin(self) -> None:
        self._person = self._closed = False
        self.persons: list[bool] = []  # per executed step
        # (proprio, whether the person acted) of each answer since the last step
        self._acts: deque[tuple[Any, bool]] = deque()

    def act(self, observation: Mapping[str, Any]) -> Array:
        """Return the next action (8,) of the person or the policy, and hand over between them if necessary."""
        person = self._teleoperator if self._controls.person else None
        if (person is not None) != self._person:
            self._person = person is not None
            (self.take if self._person else self._reset_policy)()
        if person is not None:
            action = person.act(self._commanded())
        else:
            action = np.asarray(self._policy(observation), np.float32)
        first = np.atleast_2d(action)[0]  # of a plan
        self._closed = first.shape == (8,) and bool(first[7] >= 0.5)
        self._acts.append((observation["proprio"], self._person))
        return action

    def on_begin(self) -> None:
        self._reset_policy()
        self._person = False

    def on_step(self, step: dict) -> None:
        """Record who acted, per executed step: answers that arrived while the arm was held were not executed."""
        while (act := self._acts.popleft())[0] is not step["proprio"]:
            pass  # not executed
        self.persons.append(act[1])

    def take(self) -> None:
        """Start the person's part from where the policy's ended."""
        self._controls.closed = self._closed
        if self._teleoperator is not None:
            self._teleoperator.reset()

    def led(self, steps: int) -> None:
        """Record steps in which the person guided the arm by hand; the policy acts next."""
        self.persons += [True] * steps
        self._closed = self._controls.closed


def teach(runtime: ArmRuntime, controls: Controls, max_steps: int, subscriber: Subscriber) -> str:
    """Record one episode in which a person guides the arm by hand; return why it was aborted, empty after a regular end.

    A step's action moves the *commanded* joints, which start at the arm's joints, to the joints of the next reading; if
    the hand is faster than an action may be, the next steps catch up. The gripper command is that of the step's end.

    Args:
        runtime: its driver has `lead` and `grip`; the arm is stopped afterwards.
        controls: the gripper and the end of the person's part.
        subscriber: receives each step: images, proprio, action, time, time_action, camera_age.

    Raises EnvError if the arm rejects a call, or images or joints are not fresh.
    """
    driver: Any = runtime.driver
    try:
        driver.lead()
        return _record(runtime, driver, controls, max_steps, subscriber)
    finally:
        driver.stop("teaching has ended")
        runtime.rest()


def _record(
    runtime: ArmRuntime, driver: Any, controls: Controls, max_steps: int, subscriber: Subscriber
) -> str:
    clock, config, closed = runtime.clock, runtime.loop.config, controls.closed
    watchdog = Watchdog(runtime.loop.watchdog.limits, MANUAL)
    sensors = Sensors(runtime.driver, runtime.loop.sensors.cameras, watchdog, clock=clock)

    def watch() -> State:
        runtime.on_beat()
        sensors.clear()  # so that a failed reading leaves no joints
        return sensors.watch()

    def observe(state: ArmState) -> dict:
        seen, ages = sensors.observe(config.image_size), sensors.ages(clock.now())
        images = {f"images_{name}": image for name, image in seen["images"].items()}
        return {**images, "proprio": seen["proprio"], "time": state.t_mono, "camera_age": ages}

    state = sensors.wait_ready(watch, config.ready_s, "teaching")
    watchdog.start(clock.now())
    commanded, before = state.q, observe(state)
    period = 1 / config.policy_hz
    due = clock.now() + period
    for _ in range(max_steps):
        while (now := clock.now()) < due:
            runtime.on_beat()
            if controls.closed != closed:  # at once, not at the next step
                closed = controls.closed
                driver.grip(0.0 if closed else 1.0)
            clock.sleep(min(0.01, due - now))
        due = max(due + period, now + period / 2)
        running, reading = watch() == State.RUNNING, sensors.state
        if reading is None or not running:
            return "; ".join(watchdog.reasons) or "no joints"
        delta = np.clip(reading.q - commanded, -config.max_delta, config.max_delta)
        commanded = commanded + delta
        action = np.append(delta, float(closed)).astype(np.float32)
        subscriber.on_step({**before, "action": action, "time_action": clock.now()})
        if controls.ended or not controls.person:
            return ""
        before = observe(reading)
    return ""

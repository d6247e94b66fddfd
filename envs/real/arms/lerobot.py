"""A robot of LeRobot's behind `ArmDriver`: joints and gripper by name, converted from LeRobot's units; its cameras too.

A robot on a serial bus (`robot.bus`: SO-100, SO-101, Koch, OMX) is connected without `Robot.connect`, which switches its
torque off and on. Torque comes on in `arm`, with each goal at the measured position. Other robots connect as LeRobot does.
Errors: the servos' status bits; `LOST` after two observations in a row that failed. The supervisor opens the same serial
port beforehand, and uses it only when it has to stop the arm.

Tested against emulated servos only, see `s2robot.envs.real.emulator.servos`.
"""

import dataclasses
import importlib
import os
import pkgutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from glob import glob
from typing import Any

import numpy as np

from s2robot.core.errors import one_of, reported
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.real.arms import driver as arms
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.driver import ArmState, Array, CommandResult, DriverStatus
from s2robot.envs.real.control.clock import now

LOST = 256  # ArmState.error; smaller numbers are the servos' status bits
GONE = 1  # CommandResult.code: LeRobot raised an error instead of sending
LOCK_S = 0.2  # s that a stop waits for a transaction under way
CAMERA_S = (
    0.1  # s without a new frame after which a camera reads the robot itself, before the arm is first armed
)
CHECK_EVERY = 4  # observations between two checks of torque or status
REST = 0.02  # rad within which a robot without a bus stands still after a stop
SETTLE_S = 0.05  # s between the two readings that show this
STOPS = {
    "hold": "a stop holds the joints where they are and the gripper at its goal; the torque stays on after this command ends",
    "torque_off": "a stop switches the torque off, also after each episode: THE ARM FALLS unless something supports it",
}


class LeRobotArm(arms.ArmDriver):
    """The robot that `robot.type` and `robot.port` select. `gripper=False`: a driver that only stops it.

    Attributes: `names` (of joints, then the gripper), `views` (camera -> (H, W) of its frames).
    """

    described = True
    slack = 0.05

    def __init__(self, robot: ArmDescription, limits: arms.ArmLimits, gripper: bool = True):
        super().__init__(limits, limits.step_max)
        self._about, self._only_stops = robot, not gripper and robot.gripper is not None
        self.names = (*robot.joint_names, *[robot.gripper_joint] * (robot.gripper is not None))
        self.views: dict[str, tuple[int, int]] = {}
        self.stop_means = STOPS[str(robot.stop)]
        self._robot: Any = None
        self._bus: Any = None  # of a robot on a serial bus
        self._scale = np.ones(limits.joints)  # rad in one of LeRobot's units
        self._lock, self._news = threading.Lock(), threading.Condition()
        self._frames: dict[str, tuple[float, Any]] = {}
        self._heard, self._opening, self._seen = -np.inf, 1.0, 0
        self._misses, self._error, self._torque, self._configured = 0, 0, False, False

    # ---------------------------------------------------------------- units

    def to_arm(self, values: Array) -> Array:
        """Convert numbers in the order of `names` from LeRobot's units to rad and an opening.  # (..., N + 1), or (..., N)"""
        n, (closed, opened) = self.limits.joints, self._about.gripper_range
        return np.append(values[:n] * self._scale, (values[n:] - closed) / (opened - closed))

    def to_robot(self, values: Array) -> Array:
        """The reverse of `to_arm`."""
        n, (closed, opened) = self.limits.joints, self._about.gripper_range
        return np.append(values[:n] / self._scale, closed + values[n:] * (opened - closed))

    # ---------------------------------------------------------------- ArmDriver

    def connect(self, timeout_s: float) -> None:
        """See `ArmDriver`. Raises EnvError: no LeRobot, a wrong setting, port, calibration, or names of other joints."""
        about, what = self._about, f"lerobot {self._about.type}"
        robot = make_robot(about)
        bus = getattr(robot, "bus", None)
        bus = bus if hasattr(bus, "port_handler") else None
        self._check_names(robot)
        if about.port is not None and not self._only_stops:
            check_port(about.port)
        if bus is not None:
            file, hint = (
                robot.calibration_fpath,
                f"lerobot-calibrate --robot.type={about.type} --robot.id={about.id}",
            )
            expect(file.is_file(), "robot.id", f"a calibration file {file}", f"none; {hint}")

        def opened() -> Any:
            try:
                if bus is None:
                    if not self._only_stops:
                        robot.connect(calibrate=False)
                else:
                    bus.connect(handshake=not self._only_stops)  # a supervisor sends nothing on a bus in use
                    for camera in [] if self._only_stops else getattr(robot, "cameras", {}).values():
                        camera.connect()
            except Exception as error:  # LeRobot's have several lines
                raise RuntimeError(" ".join(str(error).split())[:300]) from None
            return robot

        self._robot, self._bus = arms.made_within(timeout_s, opened, _dropped, what), bus
        try:
            if not self._only_stops:
                with reported(what):
                    self._check_calibration()
                self.read()
        except BaseException:
            self.close()
            raise

    def _check_names(self, robot: Any) -> None:
        wanted = {f"{name}.pos" for name in self.names}
        for features in ("action_features", "observation_features"):
            given = getattr(robot, features)
            found = [key for key, value in given.items() if not isinstance(value, tuple)]
            fits = wanted == {*found} if features == "action_features" else wanted <= {*found}
            expected = f"{', '.join(sorted(found))}, as in {features} of {self._about.type}"
            expect(fits, "robot.joints and robot.gripper_joint", expected, ", ".join(self.names))
        self.views = {key: value[:2] for key, value in given.items() if isinstance(value, tuple)}

    def _check_calibration(self) -> None:
        """Raise EnvError unless servos, calibration file, `robot.units` and the joints' range fit each other."""
        about, bus = self._about, self._bus
        file = getattr(self._robot, "calibration_fpath", "its calibration file")
        expected = f"servos calibrated as in {file}"
        expect(
            self._robot.is_calibrated, "robot.id", expected, "another calibration; is it another arm's file?"
        )
        degrees, units = about.units == "degrees", about.units
        self._scale[:] = np.pi / 180 if degrees else 1.0
        if bus is None:
            expect(units != "normalised", "robot.units", "degrees or radians without a serial bus", units)
            return
        for i, name in enumerate(about.joint_names):
            motor, of_file = bus.motors[name], bus.calibration[name]
            mode = {"degrees": "degrees", "range_m100_100": "normalised"}.get(str(motor.norm_mode.value))
            expect(mode == units, "robot.units", f"{mode} as joint {name} has", units)
            turn = 2 * np.pi / (bus.model_resolution_table[motor.model] - 1)
            half = (of_file.range_max - of_file.range_min) / 2 * turn  # rad
            if not degrees:
                self._scale[i] = half / 100
            low, high = self.limits.q_min[i], self.limits.q_max[i]
            expected = f"{-half:.2f} to {half:.2f} rad at most for {name}, as calibrated"
            expect(
                -half <= low and high <= half, "robot.q_min and robot.q_max", expected, f"{low:g} to {high:g}"
            )

    def arm(self) -> None:
        """See `ArmDriver`. The first time, LeRobot's `configure` runs, during which servos that hold let go for a moment."""
        if error := self.read().error:
            expect(False, f"lerobot {self._about.type}", "no error", f"{error} pending; look at the arm")
        with self._arming():
            with self._lock, reported(f"lerobot {self._about.type}"):
                if (bus := self._bus) is not None:
                    bus.sync_write(
                        "Goal_Position", bus.sync_read("Present_Position", normalize=False), normalize=False
                    )
                    if not self._configured:
                        self._robot.configure()
                    bus.enable_torque()
                    self._configured = self._torque = True
            state = self.read()
            self._last, self.stopped, self._configured = state.q, "", True
            if np.isfinite(state.gripper):
                self._opening = float(np.clip(state.gripper, 0, 1))

    def read(self) -> ArmState:
        with self._lock:
            asked = now()
            values = self._observed(asked)
        n = self.limits.joints
        opening = float(values[n]) if len(values) > n else np.nan
        return ArmState(arms.measured("lerobot", values[:n]), opening, asked, self._mode, self._error)

    def _observed(self, asked: float) -> Array:
        try:
            seen = self._robot.get_observation()
            values = self.to_arm(np.array([seen[f"{name}.pos"] for name in self.names], float))
            self._seen += 1
            if self._bus is not None and self._seen % CHECK_EVERY == 0:
                self._check_servos()
        except Exception as error:  # of any robot
            self._misses += 1
            if self._misses > 1:
                self._error = LOST
            raise EnvError(f"lerobot {self._about.type}: expected an observation, got {error}") from None
        with self._news:
            for name in self.views:  # a frame is as old as the observation before it at most
                if (image := seen[name]) is not self._frames.get(name, (0.0, None))[1]:
                    self._frames[name] = (max(self._heard, asked - CAMERA_S), image)
            self._news.notify_all()
        self._heard, self._misses = asked, 0
        return values

    def _check_servos(self) -> None:
        """Read whether the torque is on, or the status bits of all servos, in turn."""
        if self._seen % (2 * CHECK_EVERY) == 0:
            self._torque = all(self._bus.sync_read("Torque_Enable", normalize=False).values())
            return
        tables = (self._bus.model_ctrl_table[motor.model] for motor in self._bus.motors.values())
        if all("Status" in table for table in tables):
            bits = self._bus.sync_read("Status", normalize=False).values()
            self._error = int(np.bitwise_or.reduce([int(value) for value in bits]))

    def command(self, q: Array, gripper: float | None) -> CommandResult:
        sent = now()
        with self._lock:
            if (target := self._sendable(q, gripper)) is None:
                return CommandResult(arms.REFUSED, sent, sent)
            self._opening = self._opening if gripper is None else float(gripper)
            values = self.to_robot(np.append(target, [self._opening] * (len(self.names) - len(target))))
            try:
                self._robot.send_action(
                    {f"{n}.pos": float(v) for n, v in zip(self.names, values, strict=True)}
                )
            except Exception:
                return CommandResult(GONE, sent, now())
            self._last = target
        return CommandResult(arms.OK, sent, now())

    def stop(self, reason: str) -> bool:
        """See `ArmDriver`, and `STOPS` for what it does; acknowledged by each servo, or measured to be at rest without a bus."""
        self._last_stop, self.stopped = object(), reason or "stopped"
        taken = self._lock.acquire(timeout=LOCK_S)
        try:
            return self._halt() if self._bus is not None else self._rest()
        except Exception:
            return False
        finally:
            if taken:
                self._lock.release()

    def _halt(self) -> bool:
        """Stop each servo by itself: a broadcast read ends at the first one that is silent."""
        bus, good = self._bus, True
        bus.port_handler.is_using = False  # a transaction that was interrupted never ended
        for name in bus.motors:
            try:
                if self._about.stop == "torque_off":
                    bus.disable_torque(name, num_retry=1)
                elif name != self._about.gripper_joint:
                    # sync reads leave out the status bits, which are no reason not to stop
                    ask = partial(bus.sync_read, motors=name, normalize=False, num_retry=1)
                    if ask("Torque_Enable")[name]:
                        goal = ask("Present_Position")[name]
                        bus.write("Goal_Position", name, goal, normalize=False, num_retry=1)
            except RuntimeError:  # the servo acknowledged it, with status bits
                continue
            except Exception:
                good = False
        return good

    def _rest(self) -> bool:
        """Stop a robot without a bus; it has acknowledged that when it is measured to stand."""
        robot, joints = self._robot, [f"{name}.pos" for name in self._about.joint_names]
        if self._only_stops and not robot.is_connected:
            robot.connect(calibrate=False)  # later than by the loop, whose connection may be the only one
        if self._about.stop == "torque_off":
            robot.disconnect()
            return not robot.is_connected
        before = robot.get_observation()
        robot.send_action({f"{name}.pos": before[f"{name}.pos"] for name in self.names})
        time.sleep(SETTLE_S)
        after = robot.get_observation()
        return bool(np.abs(self._scale * [after[key] - before[key] for key in joints]).max() < REST)

    def status(self) -> DriverStatus:
        port = self._about.port
        there = self._robot is not None and (port is None or os.path.exists(port))
        return DriverStatus(there, self._error, self._mode, now() - self._heard)

    def close(self) -> None:
        if not self.stopped:
            self.stop("closed")
        if self._robot is not None:
            with self._lock, suppress(Exception):
                _dropped(self._robot)
        self._robot = self._bus = None

    @property
    def _mode(self) -> int:
        return self.armed_mode if not self.stopped and (self._torque or self._bus is None) else 0

    def camera(self, name: str) -> Callable[[], "RobotCamera"]:
        """Return what makes the source of one of the robot's cameras."""
        return partial(RobotCamera, self, name)

    def next_frame(self, name: str, last: Any) -> tuple[float, Any]:
        """Wait for another frame of a camera than the image `last`; the time of its capture, and the image."""
        while True:
            with self._news:
                if self._news.wait_for(lambda: self._frames.get(name, (0.0, last))[1] is not last, CAMERA_S):
                    return self._frames[name]
            expect(self._robot is not None, f"camera {name}", "a connected robot", "none")
            if not self._configured:  # later the control loop alone reads
                self.read()


class RobotCamera:
    """A camera whose frames are part of a robot's observations."""

    def __init__(self, arm: LeRobotArm, name: str):
        self._next, self._last = partial(arm.next_frame, name), None

    def read(self) -> tuple[float, np.ndarray]:
        taken, self._last = self._next(self._last)
        return taken, np.asarray(self._last)

    def close(self) -> None: ...


def _dropped(robot: Any) -> None:
    """Disconnect without a change of the torque, where the robot has a bus."""
    bus = getattr(robot, "bus", None)
    if not hasattr(bus, "port_handler"):
        robot.disconnect()
        return
    if bus.is_connected:
        bus.disconnect(disable_torque=False)
    for camera in getattr(robot, "cameras", {}).values():
        with suppress(Exception):
            camera.disconnect()


def make_robot(about: ArmDescription) -> Any:
    """Return LeRobot's robot, not connected. Raises EnvError: no LeRobot, no robot of that type, a wrong option."""
    try:
        import draccus
        import lerobot.robots as robots
    except ImportError as error:
        hint = "install s2robot into LeRobot's environment (Python 3.12)"
        raise EnvError(
            f"robot.type: expected LeRobot 0.6 or later to be installed, got {error}; {hint}"
        ) from None
    modules = [f"lerobot.robots.{module.name}" for module in pkgutil.iter_modules(robots.__path__)]
    for module in (*modules, "lerobot.cameras.opencv", "lerobot.cameras.realsense"):
        if about.type not in robots.RobotConfig.get_known_choices() or "cameras" in module:
            with suppress(Exception):  # a package that this robot does not need may be missing
                importlib.import_module(module)
    if about.type not in robots.RobotConfig.get_known_choices():
        importlib.import_module("lerobot.utils.import_utils").register_third_party_plugins()
    known = robots.RobotConfig.get_known_choices()
    one_of("robot.type", about.type, known)
    fields = {field.name: field for field in dataclasses.fields(known[about.type])}
    own = {"id": about.id, "port": about.port, "use_degrees": about.units == "degrees", "num_read_retries": 0}
    last = {"disable_torque_on_disconnect": about.stop == "torque_off"}
    given = {key: value for key, value in {**own, **about.options, **last}.items() if value is not None}
    values = {key: value for key, value in given.items() if key in fields or key in about.options}
    for key, field in fields.items():
        free = field.default is field.default_factory is dataclasses.MISSING and key not in values
        where = "robot.port" if key == "port" else f"robot.options.{key}"
        expect(not free, where, f"a value for LeRobot's {about.type}", "none")
    with reported("robot.options"):
        return robots.make_robot_from_config(draccus.decode(known[about.type], values))


def check_port(port: str) -> None:
    """Raise EnvError for a serial port that is missing, that this user may not use, or that another process has open."""
    expect(
        os.path.exists(port),
        "robot.port",
        "a serial port (lerobot-find-port lists them)",
        f"'{port}', which is missing",
    )
    allowed = os.access(port, os.R_OK | os.W_OK)
    expect(
        allowed, "robot.port", f"permission to read and write {port} (is this user in group dialout?)", "none"
    )
    real = os.path.realpath(port)
    for link in glob("/proc/[0-9]*/fd/*"):
        with suppress(OSError):
            pid = link.split("/")[2]
            if os.readlink(link) == real and pid != str(os.getpid()):
                raise EnvError(f"robot.port: expected {port} to be free, got it in use by process {pid}")

"""An `ArmDriver` for LeRobot's robots: joints and gripper by name, converted from LeRobot's units, and the robot's cameras.

A robot on a serial bus (`robot.bus`: SO-100, SO-101, Koch, OMX) is connected without `Robot.connect`, which switches its
torque off and on. `arm` enables the torque, with each goal at the measured position. Other robots use `Robot.connect`.
The supervisor opens the same serial port in advance, and uses it only when it has to stop the arm.
Tested against emulated servos only (`s2robot.envs.real.emulator.servos`).
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

LOST = 256  # ArmState.error: two observations in a row failed; smaller numbers are the servos' status bits
GONE = 1  # CommandResult.code: LeRobot raised an error instead of sending
LATE_S = 0.2  # s after which a command may no longer leave: while this process was suspended, the arm may have been stopped
LOCK_S = 0.2  # s that a stop waits for an unfinished transaction
CAMERA_S = 0.1  # s by which a new frame may be older than its observation
CHECK_EVERY = 2  # observations between two checks of torque or status
AGREE = 200  # greatest difference, in steps, between two consecutive readings
TURN = 7.0  # rad, just over one turn
REST, SETTLE_S = 0.02, 0.05  # a stopped robot without a bus may move by this many rad within this many s
TRIES = 3  # for calls that send dozens of packets and do not retry
STOPS = {
    "hold": "the joints hold their position, the gripper keeps its goal; the torque stays on, even after this command ends",
    "torque_off": "the torque is switched off, also after each episode: THE ARM FALLS unless something supports it",
}
in_one_line = partial(reported, kind=EnvError)  # LeRobot's error messages have several lines


class LeRobotArm(arms.ArmDriver):
    """The robot that `robot.type` and `robot.port` select; with `gripper=False`, a driver that only stops it.

    Attributes: `names` (joints, then the gripper), `frames` (camera -> time and image of its newest frame), `news` (notified at
    each observation).
    """

    described = True
    slack = 0.05

    def __init__(self, robot: ArmDescription, limits: arms.ArmLimits, gripper: bool = True):
        super().__init__(limits, limits.step_max)
        self._about, self._only_stops, self._what = robot, not gripper, f"lerobot {robot.type}"
        self.names = (*robot.joint_names, *[robot.gripper_joint] * (robot.gripper is not None))
        self.stop_effect = STOPS[str(robot.stop)]
        self._robot: Any = None
        self._bus: Any = None  # only for a robot on a serial bus
        self._scale = np.full(limits.joints, np.pi / 180 if robot.units == "degrees" else 1.0)  # rad per unit
        self._lock, self.news, self._thread = threading.Lock(), threading.Condition(), threading.local()
        self.frames: dict[str, tuple[float, Any]] = {}
        self._heard, self._opening, self._seen = -np.inf, 1.0, 0
        self._misses, self._error, self._torque, self._configured = 0, 0, False, False

    def to_arm(self, values: Array) -> Array:
        """Convert values in the order of `names` from LeRobot's units to rad and an opening.  # (N + 1,), or (N,)"""
        n, (closed, opened) = self.limits.joints, self._about.gripper_range
        return np.append(values[:n] * self._scale, (values[n:] - closed) / (opened - closed))

    def to_robot(self, values: Array) -> Array:
        """Invert `to_arm`."""
        n, (closed, opened) = self.limits.joints, self._about.gripper_range
        return np.append(values[:n] / self._scale, closed + values[n:] * (opened - closed))

    def connect(self, timeout_s: float) -> None:
        """See `ArmDriver`. Raises EnvError if LeRobot is missing, or for a wrong setting, port, calibration or joint name."""
        about, robot = self._about, make_robot(self._about)
        bus = getattr(robot, "bus", None)
        bus = bus if hasattr(bus, "port_handler") else None
        self._check_names(robot)
        expect(bus or about.stop == "hold", "robot.stop", "hold for a robot without a serial bus", about.stop)
        if about.port is not None and not self._only_stops:
            check_port(about.port)
        if bus is not None:
            expected = f"a calibration file {robot.calibration_fpath} (lerobot-calibrate)"
            expect(robot.calibration_fpath.is_file(), "robot.id", expected, "none")

        def opened() -> Any:
            with in_one_line(self._what):
                if bus is not None and self._only_stops:
                    bus.connect(handshake=False)  # send nothing on a bus that the loop uses
                elif bus is not None:
                    _tried(partial(_connect, bus))
                    port, write, own = bus.port_handler, bus.port_handler.writePort, self._thread
                    port.writePort = lambda data: 0 if now() > getattr(own, "until", np.inf) else write(data)
                    for camera in robot.cameras.values():
                        camera.connect()
                elif not self._only_stops:
                    robot.connect(calibrate=False)
            return robot

        self._robot, self._bus = arms.made_within(timeout_s, opened, _disconnect, self._what), bus
        try:
            if not self._only_stops:
                with in_one_line(self._what):
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
        """Raise EnvError unless servos, calibration file, `robot.units` and joint ranges are consistent."""
        about, bus, units = self._about, self._bus, self._about.units
        expected = f"servos calibrated as in {getattr(self._robot, 'calibration_fpath', 'its file')}"
        fits = _tried(lambda: self._robot.is_calibrated)
        expect(fits, "robot.id", expected, "another calibration, perhaps of another arm")
        if bus is None:
            expect(units != "normalised", "robot.units", "degrees or radians without a serial bus", units)
            return
        for i, name in enumerate(about.joint_names):
            motor, found = bus.motors[name], bus.calibration[name]
            mode = {"degrees": "degrees", "range_m100_100": "normalised"}.get(motor.norm_mode.value)
            expect(mode == units, "robot.units", f"{mode} as LeRobot has for {name}", units)
            half = np.pi * (found.range_max - found.range_min) / (bus.model_resolution_table[motor.model] - 1)
            self._scale[i] = self._scale[i] if units == "degrees" else half / 100
            low, high = self.limits.q_min[i], self.limits.q_max[i]
            expected = f"{-half:.2f} to {half:.2f} rad at most for {name}, as calibrated"
            expect(-half <= low < high <= half, "robot.q_min, q_max", expected, f"{low:g} to {high:g}")

    def arm(self) -> None:
        """See `ArmDriver`. The first time, LeRobot's `configure` switches the torque off for a moment."""
        self._error *= self._error != LOST  # a lost connection is over if the next reading succeeds
        expect(not (error := self.read().error), self._what, "no error", f"{error}; inspect the arm")
        with self._arming():
            with self._lock, in_one_line(self._what):
                if (bus := self._bus) is not None:
                    bus.sync_write("Goal_Position", _tried(self._places), normalize=False)
                    if not self._configured:
                        _tried(self._robot.configure)
                    bus.enable_torque(num_retry=TRIES)
                self._configured = self._torque = True
            state = self.read()
            self._last, self._opening = state.q, float(np.clip(np.nan_to_num(state.gripper), 0, 1))
            self.stopped = ""

    def read(self) -> ArmState:
        """See `ArmDriver`. Raises EnvError if the robot's observation fails."""
        with self._lock:
            asked = now()
            try:
                with in_one_line(f"{self._what}: no observation"):
                    if self._bus is not None:
                        self._drain()
                    seen = self._robot.get_observation()
                    values = self.to_arm(np.array([seen[f"{name}.pos"] for name in self.names], float))
                    # a late answer to another read looks like a position
                    expect(np.abs(values).max() < TURN, "places", "all within a turn", values)
                    self._seen += 1
                if self._bus is not None and self._seen % CHECK_EVERY == 0:
                    with suppress(Exception):  # on a dead bus, the next observation fails too
                        self._check_servos()
            except EnvError:
                self._misses += 1
                self._error = LOST if self._misses > 1 else self._error
                raise
        with self.news:
            for name in self.views:  # a new frame is at most slightly older than the last observation
                if (image := seen[name]) is not self.frames.get(name, (0.0, None))[1]:
                    self.frames[name] = (max(self._heard, asked - CAMERA_S), image)
            self.news.notify_all()
        self._heard, self._misses, n = asked, 0, self.limits.joints
        opening = float(values[n]) if len(values) > n else np.nan
        return ArmState(arms.measured(self._what, values[:n]), opening, asked, self._mode, self._error)

    def _check_servos(self) -> None:
        """Read, alternately, the torque and the status bits of all servos; a fault is read twice, as an answer may be a late one."""
        bus = self._drain()
        read = partial(bus.sync_read, normalize=False)
        if self._seen % (2 * CHECK_EVERY) == 0:
            self._torque = any(all(read("Torque_Enable").values()) for _ in range(2))
        elif all("Status" in bus.model_ctrl_table[motor.model] for motor in bus.motors.values()):
            bits = (int(np.bitwise_or.reduce([*read("Status").values()])) for _ in range(2))
            self._error = next(bits) and next(bits)

    def command(self, q: Array, gripper: float | None) -> CommandResult:
        sent = now()
        with self._lock:
            if (target := self._sendable(q, gripper)) is None:
                return CommandResult(arms.REFUSED, sent, sent)
            self._opening = self._opening if gripper is None else float(gripper)
            values = self.to_robot(np.append(target, self._opening)).tolist()
            self._thread.until = sent + LATE_S
            try:  # without a gripper, zip drops the opening
                self._robot.send_action({f"{n}.pos": x for n, x in zip(self.names, values, strict=False)})
            except Exception:
                return CommandResult(GONE, sent, now())
            finally:
                self._thread.until = np.inf
            self._last = target
        return CommandResult(arms.OK, sent, now())

    def stop(self, reason: str) -> bool:
        """See `ArmDriver`, and `STOPS` for the effect. True if each servo acknowledges, or a robot without a bus is at rest."""
        self._last_stop, self.stopped = object(), reason or "stopped"
        acquired = self._lock.acquire(timeout=LOCK_S)
        try:
            return self._halt() if self._bus else self._rest()
        except Exception:
            return False
        finally:
            if acquired:
                self._lock.release()

    def _halt(self) -> bool:
        """Stop each servo separately, since a broadcast read ends at the first silent one; retry those that fail."""
        missed = [name for name in self._bus.motors if not self._halted(name)]
        return not missed or (len(missed) < len(self._bus.motors) and all(map(self._halted, missed)))

    def _halted(self, name: str) -> bool:
        try:
            if self._about.stop == "torque_off":
                self._drain().disable_torque(name)
            elif name != self._about.gripper_joint:
                self._bus.write("Goal_Position", name, self._places(name)[name], normalize=False)
        except RuntimeError:  # it acknowledged, with status bits set
            return True
        except Exception:
            return False
        return True

    def _places(self, motors: str | None = None) -> dict[str, int]:
        """Return measured positions, in steps, safe to use as goals: two that agree, as calibrated, without the status bits.

        LeRobot mistakes a late answer for the answer to the next read, and returns 0 for one without data.
        """
        self._drain()
        read = partial(self._bus.sync_read, "Present_Position", motors, normalize=False)
        first, second = read(), read()
        for name, place in second.items():
            ends = self._bus.calibration[name]
            inside = ends.range_min - AGREE <= place <= ends.range_max + AGREE and place
            if not inside or abs(first[name] - place) > AGREE:
                raise ConnectionError(f"positions {first} and {second} disagree or leave the calibration")
        return second

    def _drain(self) -> Any:
        """Drop late answers and an interrupted transaction; return the bus."""
        self._bus.port_handler.ser.reset_input_buffer()
        self._bus.port_handler.is_using = False
        return self._bus

    def _rest(self) -> bool:
        """Stop a robot without a bus; return whether its measured joints are then at rest."""
        robot, joints = self._robot, [f"{name}.pos" for name in self._about.joint_names]
        if self._only_stops and not robot.is_connected:
            robot.connect(calibrate=False)  # not earlier: the robot may accept only the loop's connection
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
                _disconnect(self._robot)
        self._robot = self._bus = None

    @property
    def _mode(self) -> int:
        return self.armed_mode if self._torque and not self.stopped else 0

    def camera(self, name: str) -> Callable[[], "RobotCamera"]:
        """Return a factory for the source of one of the robot's cameras."""
        return partial(RobotCamera, self, name)


class RobotCamera:
    def __init__(self, arm: LeRobotArm, name: str):
        self._arm, self._name, self._last = arm, name, None

    def read(self) -> tuple[float, np.ndarray]:
        arm, name = self._arm, self._name
        with arm.news:
            while not arm.news.wait_for(lambda: arm.frames[name][1] is not self._last, CAMERA_S):
                expect(arm.status().connected, f"camera {name}", "a connected robot", "none")
            captured, self._last = arm.frames[name]
        return captured, np.asarray(self._last)

    def close(self) -> None: ...


def _tried(call: Callable[[], Any]) -> Any:
    """Return `call()`, retried because LeRobot gives up after a lost packet."""
    for _ in range(TRIES - 1):
        with suppress(ConnectionError, RuntimeError):
            return call()
    return call()


def _connect(bus: Any) -> None:
    if bus.is_connected:  # the handshake failed
        bus.disconnect(disable_torque=False)
    bus.connect()


def _disconnect(robot: Any) -> None:
    """Disconnect; on a serial bus, leave the torque as it is."""
    bus: Any = getattr(robot, "bus", None)
    if not hasattr(bus, "port_handler"):
        robot.disconnect()
        return
    if bus.is_connected:
        bus.disconnect(disable_torque=False)
    for camera in robot.cameras.values():
        with suppress(Exception):
            camera.disconnect()


def make_robot(about: ArmDescription) -> Any:
    """Return LeRobot's robot, not connected. Raises EnvError if LeRobot is missing, or for an unknown type or option."""
    hint = "; install s2robot into LeRobot's environment (Python 3.12)"
    with reported("robot.type: expected LeRobot 0.6 or later, got", hint, (ImportError,), EnvError):
        import draccus
        import lerobot.robots as robots
    known = robots.RobotConfig.get_known_choices  # covers only modules already imported
    modules = [f"lerobot.robots.{module.name}" for module in pkgutil.iter_modules(robots.__path__)]
    for module in ("lerobot.cameras.opencv", "lerobot.cameras.realsense", "lerobot.cameras.zmq", *modules):
        if about.type not in known():
            with suppress(Exception):  # a package that this robot does not need may be missing
                importlib.import_module(module)
    if about.type not in known():
        importlib.import_module("lerobot.utils.import_utils").register_third_party_plugins()
    one_of("robot.type", about.type, known())
    config = known()[str(about.type)]
    fields = {field.name for field in dataclasses.fields(config)}
    own = {"id": about.id, "port": about.port, "use_degrees": about.units == "degrees", "num_read_retries": 0}
    values = {key: value for key, value in own.items() if key in fields and value is not None}
    values |= dict(about.options)
    if "disable_torque_on_disconnect" in fields:  # LeRobot also disconnects on garbage collection
        values["disable_torque_on_disconnect"] = about.stop == "torque_off"
    missing = "port" in fields and "port" not in values
    expect(not missing, "robot.port", f"the serial port of LeRobot's {about.type}", "none")
    with in_one_line("robot.options"):
        return robots.make_robot_from_config(draccus.decode(config, values))


def check_port(port: str) -> None:
    """Raise EnvError if a serial port is missing, not accessible to this user, or open in another process."""
    found = f"'{port}', which does not exist"
    expect(os.path.exists(port), "robot.port", "a serial port (lerobot-find-port lists them)", found)
    allowed = os.access(port, os.R_OK | os.W_OK)
    expect(allowed, "robot.port", f"permission for {port} (add the user to the group dialout)", "none")
    real = os.path.realpath(port)
    for link in glob("/proc/[0-9]*/fd/*"):
        with suppress(OSError):
            pid = link.split("/")[2]
            used = os.readlink(link) == real and pid != str(os.getpid())
            expect(not used, "robot.port", f"{port} free", f"it in use by process {pid}")

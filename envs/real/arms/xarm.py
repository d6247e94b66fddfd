"""UFACTORY's xArm7, or an xArm with fewer joints, and its gripper, through the vendor's SDK (`pip install 's2robot[xarm]'`).

Properties of the SDK (1.18.4) shape this driver. It sends NaN to the arm, so the driver checks every value first. `connect`
may take four minutes, so the driver enforces its own deadline. Requests on one connection wait for each other, so stops
and the gripper have separate connections. Before a gripper call the SDK may reboot the tool and clear errors: that check is
off. Readings come from `get_joint_states`, because reports may contain commanded joints.

The native limits set by `arm` are a second line of defence; `close` restores the old ones. Nothing here is an emergency stop.
"""

import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2robot.core.errors import reported
from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.real.arms import driver as arms
from s2robot.envs.real.arms import sdk as vendor
from s2robot.envs.real.arms.driver import ArmLimits, ArmState, Array, CommandResult, DriverStatus
from s2robot.envs.real.control.clock import now

SERVO, ONLINE = 1, 6  # modes: stream of set points; the control box plans with limited speed and acceleration
MANUAL = 2  # mode: an operator guides the arm by hand
STOPPED = 4  # state; higher ones are not ready either
GRIPPER_LOST = 2.0  # s without an answer from the gripper
# s, timeout of an answer: longer than the stalls of 0.19 s that users report, shorter than the 0.3 s without a beat
# after which the supervisor stops the arm. Meanwhile the arm rests at its last target, at most a period away
WIRE_TIMEOUT = 0.25


class ArmSettings(Settings, at="bridge.arm", file="bridge/default"):
    mode: Literal["servo", "online"] = from_yaml()
    connect_s: float = from_yaml(gt=0)
    sensitivity: int = from_yaml(ge=1, le=5)  # 0 would switch collision detection off
    speed: float = from_yaml(gt=0, le=3.14)
    acceleration: float = from_yaml(gt=0, le=20)
    payload: float | None = from_yaml(ge=0, le=3.5)
    tcp_offset: tuple[float, float, float, float, float, float] | None = from_yaml()

    @property
    def number(self) -> int:
        return {"servo": SERVO, "online": ONLINE}[self.mode]


class XArmDriver(arms.ArmDriver):
    """An xArm whose control box has the address `ip`; `limits` determine its number of joints.

    Args:
        limits: `command` never exceeds their joint range.
        ports: of the control box, if not its standard ports.
        gripper: False for a driver that only stops the arm: it ignores the gripper, and the opening is NaN.
        log: file for the SDK's output; None: standard output.
    """

    def __init__(
        self, ip: str, limits: ArmLimits = arms.XARM7_LIMITS, settings: ArmSettings | None = None,
        ports: vendor.BoxPorts | None = None, gripper: bool = True, log: Path | None = None,
    ):  # fmt: skip
        # five periods at full speed: a larger step is not part of a stream
        super().__init__(limits, 5 * np.array(limits.dq_max) / limits.rate_hz)
        self.ip, self.settings, self.ports = ip, settings or ArmSettings(), ports
        self.armed_mode = self.settings.number
        self._has_gripper, self._log = gripper, log
        self._sdk: Any = None  # streams and reads
        self._stopper: Any = None  # stops
        self._led, self._stop_lock, self._redirected = False, threading.Lock(), ExitStack()
        self._gripper: vendor.XArmGripper | None = None
        self._limits_before: vendor.Calls | None = None  # restore the control box's original limits

    def connect(self, timeout_s: float) -> None:
        """See `ArmDriver`; clears no error. Raises EnvError without the SDK or a control box that answers in time, or for
        another number of joints."""
        if self._log is not None:
            vendor.log_to(self._log)
        end = time.monotonic() + timeout_s
        config = vendor.import_sdk("xarm.core.config.x_config").XCONF.SocketConf
        default_timeout = socket.getdefaulttimeout()  # the SDK changes it for the whole process
        try:
            if self.ports is not None:
                self._redirected.enter_context(vendor.client_ports(self.ports))
            vendor.probe(self.ip, config.TCP_CONTROL_PORT, end)
            self._sdk = vendor.connect(self.ip, WIRE_TIMEOUT, end, report_type="rich")
            n = self.limits.joints
            expect(self._sdk.axis == n, f"xarm {self.ip}", f"an arm with {n} joints", self._sdk.axis)
            self._stopper = vendor.connect(self.ip, WIRE_TIMEOUT, end, enable_report=False)
            if self._has_gripper:
                may_move = lambda: self._led or not self.stopped  # noqa: E731
                self._gripper = vendor.XArmGripper(self.ip, self._sdk, may_move, 2 * WIRE_TIMEOUT, end)
        except BaseException:
            self.close()
            raise
        finally:
            socket.setdefaulttimeout(default_timeout)

    def close(self) -> None:
        """Stop the arm if it is armed, restore the control box's own limits, and close all connections."""
        if self._sdk is not None and (self._led or not self.stopped):
            self.stop("closed")
        if self._gripper is not None:
            self._gripper.close()
        with suppress(Exception):  # the connection may be broken
            for step in self._limits_before or ():
                if vendor.call(self._sdk, *step) not in vendor.DONE:
                    break
        self._limits_before = None
        for arm in (self._sdk, self._stopper):
            if arm is not None:
                with suppress(Exception):
                    arm.disconnect()
        self._sdk = self._stopper = self._gripper = None
        self._redirected.close()

    def arm(self) -> None:
        """Enable the motors, set the native limits and the mode, and get ready; the arm does not move.

        Raises EnvError and leaves the arm stopped: an error is pending, the box rejects a call, or `stop` was called.
        """
        with self._arming():
            self._enable(self.settings.number)
            self._last, self.stopped = self.read().q, ""

    def lead(self) -> None:
        """Let an operator guide the arm by hand until `stop`; `command` is rejected, `grip` moves the gripper. Raises as `arm`.

        The control box compensates the weight correctly only if payload and mounting are set correctly: check them first.
        """
        with self._arming():
            self.stopped = "guided by hand"
            self._enable(MANUAL)
            self._led = True

    def grip(self, opening: float) -> None:
        """Move the gripper of an arm guided by hand, 0 closed to 1 open. Raises EnvError for anything else."""
        if not self._led or self._gripper is None or not 0 <= opening <= 1:
            raise EnvError(f"xarm {self.ip}: expected an opening of 0 to 1 in manual mode, got {opening}")
        self._gripper.set_target(opening)

    def _enable(self, mode: int) -> None:
        self._led = False
        sdk = self._connected()
        code, error = self._pending_error()
        self._check("get_err_warn_code", code)
        hint = "inspect the arm, then clear the error in UFACTORY Studio"
        expect(not error, f"xarm {self.ip}", "no error", f"error {error} pending; {hint}")
        vendor.check_tool(self.ip, sdk, self.settings.payload, self.settings.tcp_offset)
        if self._limits_before is None:
            self._limits_before = vendor.present_limits(sdk)
        for name, *args in (
            ("set_state", STOPPED),
            ("motion_enable", True),
            *vendor.wanted_limits(self.limits, self.settings.sensitivity),
            *(vendor.GRIPPER_STEPS if self._gripper is not None else ()),
            ("set_mode", mode),
            ("set_state", 0),
        ):
            self._check(name, vendor.call(sdk, name, *args))
        code, state = sdk.get_state()
        self._check("get_state", code)
        end = time.monotonic() + 2.0  # reports, five per second, contain the mode
        while state < STOPPED and sdk.mode != mode and time.monotonic() < end:
            time.sleep(0.01)
        ready, actual = state < STOPPED and sdk.mode == mode, f"mode {sdk.mode} and state {state}"
        expect(ready, f"xarm {self.ip}", f"mode {mode} and a state below {STOPPED} after arming", actual)

    def _check(self, name: str, code: int) -> None:
        expect(code in (0, 2), f"xarm {self.ip}: {name}", "code 0", code)  # 2: done, and a warning is pending

    def _pending_error(self) -> tuple[int, int]:
        """Return the code of the call, and the box's error."""
        code, codes = self._connected().get_err_warn_code()  # without a connection, `codes` is a text
        return code, 0 if isinstance(codes, str) else int(codes[0])

    def _connected(self) -> Any:
        expect(self._sdk is not None, f"xarm {self.ip}", "connect first", "no connection")
        return self._sdk

    def read(self) -> ArmState:
        """See `ArmDriver`; the gripper's opening is up to 0.2 s old. Raises EnvError also if the gripper is silent for 2 s."""
        sdk, requested = self._connected(), now()
        with reported(f"xarm {self.ip}: joints (firmware 1.9.0 or later)", kind=EnvError):  # a short answer
            code, states = sdk.get_joint_states(num=3)
        self._check("get_joint_states", code)
        gripper = self._gripper
        opening, silent = (np.nan, 0.0) if gripper is None else (gripper.opening, requested - gripper.heard)
        q = np.array(states[0][: self.limits.joints], float)  # the box sends seven numbers for any arm
        q = arms.measured(f"xarm {self.ip}", q, silent, GRIPPER_LOST)
        error = int(sdk.error_code)
        if sdk._arm.arm_cmd.has_err_warn:  # flagged in an answer; the report may come 0.2 s later
            code, newest = self._pending_error()
            error = newest if code == 0 else error
        return ArmState(q, opening, requested, sdk.mode, error)

    def status(self) -> DriverStatus:
        if (sdk := self._sdk) is None:
            return DriverStatus(False, 0, -1, np.inf)
        age = time.monotonic() - sdk._arm._last_report_time
        return DriverStatus(bool(sdk.connected), int(sdk.error_code), int(sdk.mode), age)

    def command(self, q: Array, gripper: float | None) -> CommandResult:
        begin, target = now(), self._sendable(q, gripper)
        if target is None:
            return CommandResult(arms.REFUSED, begin, begin)
        if gripper is not None and self._gripper is not None:
            self._gripper.set_target(gripper)
        sdk, joints, box, sent = self._connected(), target.tolist(), self.settings, now()
        if box.number == SERVO:
            code = sdk.set_servo_angle_j(joints)
        else:
            # the SDK's own set_servo_angle may wait for reports forever
            joints += [0.0] * (7 - len(joints))  # set_servo_angle_j pads by itself
            answer = sdk._arm.arm_cmd.move_joint(joints, box.speed, box.acceleration, 0)
            code = sdk._arm._check_code(answer[0], is_move_cmd=True, mode=ONLINE)
        self._last = target
        return CommandResult(arms.OK if code in (0, 2) else int(code), sent, now())

    def stop(self, reason: str) -> bool:
        """See `ArmDriver`: set state 4 over the connection reserved for stops, or over the other if that one fails."""
        self._last_stop = object()
        self.stopped, self._led = reason or "stopped", False
        if (gripper := self._gripper) is not None:
            gripper.set_target(None)
        with self._stop_lock:
            for arm in (self._stopper, self._sdk, self._stopper):
                if arm is None or not arm.connected:
                    continue
                with suppress(Exception):
                    if arm._arm.arm_cmd.set_state(STOPPED)[0] in vendor.DONE:
                        return True
        return False

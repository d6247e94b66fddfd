"""UFACTORY's xArm7, or an xArm of fewer joints, with its gripper, on the vendor's SDK (`pip install 's2robot[xarm]'`).

What of the SDK (1.18.4) shapes this file: it sends NaN to the arm, so nothing reaches it unchecked. `connect` may take
four minutes, so it runs against our own clock. Requests on a connection wait for each other, so stopping has one of
its own, and so has the gripper. Before a gripper call it may reboot the tool and clear errors: that check is off.
Readings come from `get_joint_states`, because reports may hold commanded joints.

The native limits that `arm` sets are a second line; `close` puts back what was there. Nothing here is an emergency stop.
"""

import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.real.arms import driver as arms
from s2robot.envs.real.arms import sdk as vendor
from s2robot.envs.real.arms.driver import ArmLimits, ArmState, Array, CommandResult, DriverStatus
from s2robot.envs.real.control.clock import now

SERVO, ONLINE = 1, 6  # modes: stream of set points; planned by the box with limited speed and acceleration
MANUAL = 2  # mode: a person leads the arm by hand
STOPPED = 4  # state; greater ones are not ready either
GRIPPER_LOST = 2.0  # s without a word from the gripper
# s, an answer later than this is none: longer than the stalls of 0.19 s that users report, shorter than the 0.3 s
# after which the supervisor misses the loop. Meanwhile the arm stands at its last target, a period away at most
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
    """An xArm, of as many joints as its limits, whose control box has the address `ip`.

    Args:
        limits: `command` never exceeds their range and step.
        ports: where the box listens, if not at its own ports.
        gripper: False for one that only stops: it leaves the gripper alone, and its opening is NaN.
        log: the file that the SDK's output goes to; None: standard output.
    """

    def __init__(
        self, ip: str, limits: ArmLimits = arms.XARM7_LIMITS, settings: ArmSettings | None = None,
        ports: vendor.BoxPorts | None = None, gripper: bool = True, log: Path | None = None,
    ):  # fmt: skip
        # five periods at full speed: more is no stream, whatever asks for it
        super().__init__(limits, 5 * np.array(limits.dq_max) / limits.rate_hz)
        self.ip, self.settings, self.ports = ip, settings or ArmSettings(), ports
        self.armed_mode = self.settings.number
        self._has_gripper, self._log = gripper, log
        self._sdk: Any = None  # streams and reads
        self._stopper: Any = None  # stops
        self._led, self._stop_lock, self._redirected = False, threading.Lock(), ExitStack()
        self._gripper: vendor.XArmGripper | None = None
        self._limits_before: vendor.Calls | None = None  # put back the limits that the box had

    def connect(self, timeout_s: float) -> None:
        """See `ArmDriver`; clears nothing. Raises EnvError: no SDK, no box, no answer in time, or other joints."""
        if self._log is not None:
            vendor.log_to(self._log)
        end = time.monotonic() + timeout_s
        config = vendor.import_sdk("xarm.core.config.x_config").XCONF.SocketConf
        default_timeout = socket.getdefaulttimeout()  # the SDK sets it for the whole process, and may again
        try:
            if self.ports is not None:
                self._redirected.enter_context(vendor.client_ports(self.ports))
            vendor.probe(self.ip, config.TCP_CONTROL_PORT, end)
            self._sdk = vendor.connect(self.ip, WIRE_TIMEOUT, end, report_type="rich")
            n = self.limits.joints
            expect(self._sdk.axis == n, f"xarm {self.ip}", f"an arm of {n} joints", self._sdk.axis)
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
        """Stop, if it was armed, put the box's own limits back, and close all connections."""
        if self._sdk is not None and (self._led or not self.stopped):
            self.stop("closed")
        if self._gripper is not None:
            self._gripper.close()
        with suppress(Exception):  # the connection may be gone
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
        """Motors on, native limits, mode, ready; the arm stands still.

        Raises EnvError, with the arm stopped: an error is pending, the box refuses a step, or `stop` was called meanwhile.
        """
        with self._arming():
            self._enable(self.settings.number)
            self._last, self.stopped = self.read().q, ""

    def lead(self) -> None:
        """Let a person lead the arm by hand until `stop`; `command` refuses, `grip` moves the gripper. Raises as `arm`.

        The box holds the arm's weight only if payload and mounting are set right: check them before.
        """
        with self._arming():
            self.stopped = "led by hand"
            self._enable(MANUAL)
            self._led = True

    def grip(self, opening: float) -> None:
        """Move the gripper of an arm that is led, 0 closed to 1 open. Raises EnvError for anything else."""
        if not self._led or self._gripper is None or not 0 <= opening <= 1:
            raise EnvError(f"xarm {self.ip}: expected 0 to 1 of an arm that is led, got {opening}")
        self._gripper.want(opening)

    def _enable(self, mode: int) -> None:
        self._led = False
        sdk = self._connected()
        code, (error, _) = sdk.get_err_warn_code()
        self._check("get_err_warn_code", code)
        hint = "look at the arm, then clear it in UFACTORY Studio"
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
        end = time.monotonic() + 2.0  # the mode comes with a report, five times a second
        while state < STOPPED and sdk.mode != mode and time.monotonic() < end:
            time.sleep(0.01)
        ready, found = state < STOPPED and sdk.mode == mode, f"mode {sdk.mode} and state {state}"
        expect(ready, f"xarm {self.ip}", f"mode {mode} and a state below {STOPPED} after arming", found)

    def _check(self, name: str, code: int) -> None:
        expect(code in (0, 2), f"xarm {self.ip}: {name}", "code 0", code)  # 2: done, and a warning is pending

    def _connected(self) -> Any:
        expect(self._sdk is not None, f"xarm {self.ip}", "connect first", "no connection")
        return self._sdk

    def read(self) -> ArmState:
        """See `ArmDriver`; the gripper's opening is up to 0.2 s old. EnvError: also no answer from it for 2 s."""
        sdk, asked = self._connected(), now()
        code, states = sdk.get_joint_states(num=3)
        self._check("get_joint_states", code)
        gripper = self._gripper
        opening, silent = (np.nan, 0.0) if gripper is None else (gripper.opening, asked - gripper.heard)
        q = np.array(states[0][: self.limits.joints], float)  # the box sends seven numbers of any arm
        q = arms.measured(f"xarm {self.ip}", q, silent, GRIPPER_LOST)
        error = int(sdk.error_code)
        if sdk._arm.arm_cmd.has_err_warn:  # an answer has mentioned one; its report may come 0.2 s later
            code, (newest, _) = sdk.get_err_warn_code()
            error = int(newest) if code == 0 else error
        return ArmState(q, opening, asked, sdk.mode, error)

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
            self._gripper.want(gripper)
        sdk, joints, box, sent = self._connected(), target.tolist(), self.settings, now()
        if box.number == SERVO:
            code = sdk.set_servo_angle_j(joints)
        else:
            # set_servo_angle itself may wait for reports for ever
            joints += [0.0] * (7 - len(joints))  # the other call does so by itself
            answer = sdk._arm.arm_cmd.move_joint(joints, box.speed, box.acceleration, 0)
            code = sdk._arm._check_code(answer[0], is_move_cmd=True, mode=ONLINE)
        self._last = target
        return CommandResult(arms.OK if code in (0, 2) else int(code), sent, now())

    def stop(self, reason: str) -> bool:
        """See `ArmDriver`: state 4 over the connection that nothing else uses, or over the other if that one fails."""
        self._last_stop = object()
        self.stopped, self._led = reason or "stopped", False
        if (gripper := self._gripper) is not None:
            gripper.want(None)
        with self._stop_lock:
            for arm in (self._stopper, self._sdk, self._stopper):
                if arm is None or not arm.connected:
                    continue
                with suppress(Exception):
                    if arm._arm.arm_cmd.set_state(STOPPED)[0] in vendor.DONE:
                        return True
        return False

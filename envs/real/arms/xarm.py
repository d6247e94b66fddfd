"""UFACTORY's xArm7 with its gripper, on the vendor's SDK (`pip install 's2robot[xarm]'`).

    with XArmDriver("192.168.1.200") as arm:
        arm.connect(10.0)
        arm.arm()                       # motors on; the arm does not move
        arm.command(arm.read().q, 1.0)

What of the SDK (1.18.4) shapes this file: it sends NaN to the arm, so nothing reaches it unchecked. `connect`
may take four minutes, so it runs against our own clock. One request at a time goes over a connection, and a
stop waits for its turn, so stopping has a connection of its own, and so has the gripper. Before a gripper call
it may reboot the tool and clear errors on the way: that check is off. Readings come from `get_joint_states`,
because reports may hold commanded joints. Units on its side are mm and 850 gripper pulses.

The native limits that `arm` sets are a second line; `close` puts back what was there. Nothing here is an emergency stop.
"""

import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import (
    OK,
    REFUSED,
    XARM7_LIMITS,
    ArmLimits,
    ArmState,
    Array,
    CommandResult,
    DriverStatus,
    arming,
)
from s2robot.envs.real.arms.sdk import BoxPorts, client_ports, connect, import_sdk, probe
from s2robot.envs.real.arms.xarm_box import PAYLOAD, TCP_OFFSET, BoxSettings
from s2robot.envs.real.arms.xarm_gripper import XArmGripper
from s2robot.envs.real.control.clock import now

SERVO, ONLINE = 1, 6  # modes: stream of set points; planned by the box with limited speed and acceleration
MANUAL = 2  # mode: a person leads the arm by hand
STOPPED = 4  # state; greater ones are not ready either
GRIPPER_LOST = 2.0  # s without a word from the gripper
# s, an answer later than this is none: longer than the stalls of 0.19 s that users report, shorter than the 0.3 s
# after which the supervisor misses the loop. Meanwhile the arm stands at its last target, a period away at most
WIRE_TIMEOUT = 0.25


class XArmDriver:
    """An `s2robot.envs.real.arms.driver.ArmDriver`.

    Args:
        ip: the control box's address.
        limits: what `command` never exceeds in range and step.
        mode: SERVO (a stream at `limits.rate_hz`) or ONLINE (slower to follow, limited by the box as well).
        ports: where the box listens, if not at its own ports.
        sensitivity: of the box's collision detection, 1 to 5.
        speed, acceleration: of ONLINE motions, rad/s and rad/s².
        gripper: False for one that only stops: it leaves the gripper alone, and its opening is NaN.
        payload, tcp_offset: kg; x, y, z (m), roll, pitch, yaw (rad): what the box has to be set to, or it is not armed;
            None: not compared.
    """

    def __init__(
        self,
        ip: str,
        limits: ArmLimits = XARM7_LIMITS,
        mode: int = SERVO,
        ports: BoxPorts | None = None,
        sensitivity: int = 3,
        speed: float = 0.8,
        acceleration: float = 4.0,
        gripper: bool = True,
        payload: float | None = PAYLOAD,
        tcp_offset: tuple[float, ...] | None = TCP_OFFSET,
    ):
        if tcp_offset is not None and (len(tcp_offset) != 6 or not np.isfinite(tcp_offset).all()):
            raise EnvError(f"bridge.arm.tcp_offset: expected 6 finite numbers, got {tcp_offset}")
        if mode not in (SERVO, ONLINE):
            raise EnvError(f"xarm.mode: found {mode}, expected {SERVO} (servo) or {ONLINE} (online planning)")
        if sensitivity not in range(1, 6):
            raise EnvError(
                f"xarm.sensitivity: found {sensitivity}, expected 1 to 5: collision detection stays on"
            )
        if not (0 < speed <= np.pi and 0 < acceleration <= 20):
            raise EnvError(
                f"xarm: found speed {speed} and acceleration {acceleration}, expected up to 3.14 and 20"
            )
        self.ip, self.limits, self.mode, self.ports = ip, limits, mode, ports
        self.sensitivity, self.speed, self.acceleration = sensitivity, speed, acceleration
        self._has_gripper, self.payload, self.tcp_offset = gripper, payload, tcp_offset
        # five periods at full speed: more is no stream, whatever asks for it
        self._step_max = 5 * np.array(limits.dq_max) / limits.rate_hz
        self._sdk: Any = None  # streams and reads
        self._stopper: Any = None  # stops
        self._last = np.full(7, np.nan)  # sent last
        self._stopped, self._led = "not armed", False
        self._last_stop = object()
        self._stop_lock = threading.Lock()
        self._redirected = ExitStack()
        self._gripper: XArmGripper | None = None

    def __enter__(self) -> "XArmDriver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- connect

    def connect(self, timeout_s: float) -> None:
        """Reach the box over three connections; moves, enables and clears nothing.

        Raises:
            EnvError: no SDK, no box, no answer within `timeout_s`, or another arm than an xArm7.
        """
        if self._sdk is not None:
            raise EnvError(f"xarm {self.ip}: found it connected already, expected one connect")
        end = time.monotonic() + timeout_s
        config = import_sdk("xarm.core.config.x_config").XCONF.SocketConf
        default_timeout = socket.getdefaulttimeout()  # the SDK sets it for the whole process, and may again
        try:
            if self.ports is not None:
                self._redirected.enter_context(client_ports(self.ports))
            probe(self.ip, config.TCP_CONTROL_PORT, end)
            self._sdk = connect(self.ip, WIRE_TIMEOUT, end, report_type="rich")
            self._box = BoxSettings(self.ip, self._sdk)
            if self._sdk.axis != 7:
                raise EnvError(f"xarm {self.ip}: found an arm of {self._sdk.axis} joints, expected 7")
            self._stopper = connect(self.ip, WIRE_TIMEOUT, end, enable_report=False)
            if self._has_gripper:
                self._gripper = XArmGripper(self.ip, self._sdk, self._ours, 2 * WIRE_TIMEOUT, end)
        except BaseException:
            self.close()
            raise
        finally:
            socket.setdefaulttimeout(default_timeout)

    def close(self) -> None:
        """Stop, if it was armed, put the box's own limits back, and let go of all connections."""
        if self._sdk is not None and (self._led or not self._stopped):
            self.stop("closed")
        if self._gripper is not None:
            self._gripper.close()
        if self._sdk is not None:
            self._box.restore()
        for arm in (self._sdk, self._stopper):
            if arm is not None:
                with suppress(Exception):
                    arm.disconnect()
        self._sdk = self._stopper = self._gripper = None
        self._redirected.close()

    # ---------------------------------------------------------------- arm

    def arm(self) -> None:
        """Motors on, native limits, mode, ready; the arm stands still.

        Raises:
            EnvError: an error is pending (clear it at the arm, after looking at it), the box refuses a step, or `stop`
                was called meanwhile. The arm is stopped then.
        """
        with arming(self.stop, lambda: self._last_stop):
            self._enable(self.mode)
            self._last = self.read().q
            self._stopped = ""

    def lead(self) -> None:
        """Motors on, and a person leads the arm by hand until `stop`; `command` refuses, `grip` moves the gripper.

        The box holds the arm's weight only if payload and mounting are set right: look at that before.

        Raises:
            EnvError: as `arm`.
        """
        with arming(self.stop, lambda: self._last_stop):
            self._stopped = "led by hand"
            self._enable(MANUAL)
            self._led = True

    def grip(self, opening: float) -> None:
        """Move the gripper of an arm that is led, 0 closed to 1 open.

        Raises:
            EnvError: the arm is not led, or another opening.
        """
        if not self._led or self._gripper is None or not 0 <= opening <= 1:
            raise EnvError(f"xarm {self.ip}: found opening {opening}, expected 0 to 1 of an arm that is led")
        self._gripper.want(opening)

    def _enable(self, mode: int) -> None:
        self._led = False
        sdk = self._connected()
        code, (error, _) = sdk.get_err_warn_code()
        self._check("get_err_warn_code", code)
        if error:
            raise EnvError(
                f"xarm {self.ip}: found error {error} pending; look at the arm, then clear it in UFACTORY Studio"
            )
        self._box.check_tool(self.payload, self.tcp_offset)
        for name, call in (
            ("set_state", lambda: sdk.set_state(STOPPED)),
            ("motion_enable", lambda: sdk.motion_enable(True)),
            *self._box.steps(self.limits, self.sensitivity),
            *(self._gripper.steps() if self._gripper is not None else ()),
            ("set_mode", lambda: sdk.set_mode(mode)),
            ("set_state", lambda: sdk.set_state(0)),
        ):
            self._check(name, call())
        code, state = sdk.get_state()
        self._check("get_state", code)
        if state >= STOPPED:
            raise EnvError(f"xarm {self.ip}: found state {state} after arming, expected ready")
        end = time.monotonic() + 2.0  # the mode comes with a report, five times a second
        while sdk.mode != mode:
            if time.monotonic() > end:
                raise EnvError(f"xarm {self.ip}: found mode {sdk.mode} after arming, expected {mode}")
            time.sleep(0.01)

    def _range(self) -> tuple[Array, Array]:
        return np.array(self.limits.q_min), np.array(self.limits.q_max)

    def _check(self, name: str, code: Any) -> None:
        code = code[0] if isinstance(code, list | tuple) else code  # some calls return what the bus returned
        if code not in (0, 2):  # 2: done, and a warning is pending
            raise EnvError(f"xarm {self.ip}: {name} found code {code}, expected 0")

    def _ours(self) -> bool:
        """Whether the gripper may move."""
        return self._led or not self._stopped

    def _connected(self) -> Any:
        if self._sdk is None:
            raise EnvError(f"xarm {self.ip}: found no connection, expected connect first")
        return self._sdk

    # ---------------------------------------------------------------- read

    def read(self) -> ArmState:
        """Measured joints, pose and the error, asked for now; the gripper's opening is up to 0.2 s old.

        Raises:
            EnvError: no answer in time, an answer that is no number, or no word from the gripper for 2 s.
        """
        sdk, asked = self._connected(), now()
        code, states = sdk.get_joint_states(num=3)
        self._check("get_joint_states", code)
        code, pose = sdk.get_position()
        self._check("get_position", code)
        q, dq, tau = (np.array(values, float) for values in states)
        tcp = np.array([*np.divide(pose[:3], 1000), *pose[3:]])
        if not all(np.isfinite(x).all() for x in (q, dq, tau, tcp)):
            raise EnvError(f"xarm {self.ip}: found measured joints {q.tolist()}, expected finite numbers")
        gripper = self._gripper
        if gripper is not None and asked - gripper.heard > GRIPPER_LOST:
            raise EnvError(f"xarm {self.ip}: found no answer from the gripper (code {gripper.code})")
        opening = np.nan if gripper is None else gripper.opening
        return ArmState(q, dq, tau, tcp, opening, asked, sdk.mode, self._error())

    def _error(self) -> int:
        """The arm's error, asked for as soon as any answer has mentioned one; reports tell 0.2 s later."""
        sdk = self._sdk
        if sdk._arm.arm_cmd.has_err_warn:
            code, (error, _) = sdk.get_err_warn_code()
            if code == 0:
                return int(error)
        return int(sdk.error_code)

    def status(self) -> DriverStatus:
        """From what is known already; no request."""
        sdk = self._sdk
        if sdk is None:
            return DriverStatus(False, 0, 0, -1, np.inf)
        age = time.monotonic() - sdk._arm._last_report_time
        return DriverStatus(bool(sdk.connected), int(sdk.error_code), int(sdk.warn_code), int(sdk.mode), age)

    # ---------------------------------------------------------------- move

    def command(self, q: Array, gripper: float | None) -> CommandResult:
        """Send joints (7,) rad and an opening; see `ArmDriver`.

        REFUSED, and nothing is sent: before `arm`, after `stop`, joints that are not 7 finite numbers or out of
        range, a step too wide for a stream, an opening that is not within 0 to 1.
        """
        begin = now()
        target = self._sendable(q)
        opening_ok = gripper is None or (isinstance(gripper, int | float | np.number) and 0 <= gripper <= 1)
        if self._stopped or target is None or not opening_ok:
            return CommandResult(REFUSED, begin, begin)
        if gripper is not None and self._gripper is not None:
            self._gripper.want(gripper)
        sdk, joints = self._connected(), target.tolist()
        sent = now()
        if self.mode == SERVO:
            code = sdk.set_servo_angle_j(joints)
        else:
            # set_servo_angle itself may wait for reports for ever
            inner = sdk._arm
            answer = inner.arm_cmd.move_joint(joints, self.speed, self.acceleration, 0)
            code = inner._check_code(answer[0], is_move_cmd=True, mode=ONLINE)
        self._last = target
        return CommandResult(OK if code in (0, 2) else int(code), sent, now())

    def _sendable(self, q: Any) -> Array | None:
        try:
            target = np.array(q, float)
        except (TypeError, ValueError):
            return None
        low, high = self._range()
        if target.shape != (7,) or not ((target >= low) & (target <= high)).all():  # NaN fails both
            return None
        return target if (np.abs(target - self._last) <= self._step_max).all() else None

    def stop(self, reason: str) -> bool:
        """State 4 over the connection that nothing else uses; over the other if that one fails. Never raises.

        Until `arm` is called again, `command` refuses.

        Returns: whether the box acknowledged it.
        """
        self._last_stop = object()
        self._stopped, self._led = reason or "stopped", False
        if (gripper := self._gripper) is not None:
            gripper.want(None)
        with self._stop_lock:
            for arm in (self._stopper, self._sdk, self._stopper):
                if arm is None or not arm.connected:
                    continue
                with suppress(Exception):
                    # errors and warnings pending (1, 2) and "not ready" (9) are answers: the box has stopped
                    if arm._arm.arm_cmd.set_state(STOPPED)[0] in (0, 1, 2, 9):
                        return True
        return False

    @property
    def stopped(self) -> str:
        """Why `command` refuses; empty if it does not."""
        return self._stopped

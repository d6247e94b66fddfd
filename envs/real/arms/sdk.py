"""The vendor's SDK of the xArm: import, connection, ports, output, the control box's own settings, and the gripper.

The SDK (1.18.4) stores its port numbers in a class: within `client_ports` every connection of this process uses other
ports. It writes to standard output through two loggers, with `print`, at import, and from threads.
"""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import reported
from s2robot.envs.errors import EnvError, expect
from s2robot.envs.real import import_extra
from s2robot.envs.real.arms.driver import ArmLimits, made_within
from s2robot.envs.real.control.clock import now

LOG_FILE = "xarm_sdk.log"  # in the run directory
EMULATED_IP = "127.0.0.1"  # where an emulated control box listens
_VERSION_REQUEST = bytes([0, 1, 0, 2, 0, 1, 1])  # transaction, protocol 2, length, function 1
DONE = (0, 1, 2, 9)  # codes that acknowledge a call: also "error pending", "warning pending" and "not ready"
HAND_REACH = 0.2  # m from the flange that the control box's limits leave for the hand
_PAYLOAD_OFF, _OFFSET_OFF = 0.1, 2e-3  # tolerances: kg; m and rad
_REPORT_S = 0.5  # s until a report contains the control box's values; it sends five per second

PULSES = 850  # position of the open gripper
PERIOD = 0.1  # s between two requests to the gripper
STROKE_S = 1.0  # s after a new target within which fingers at rest may still start to move
# the SDK calls that arm the gripper, with their arguments; the speed is the register's highest, pulses/s
GRIPPER_STEPS = (("set_gripper_enable", True), ("set_gripper_mode", 0), ("set_gripper_speed", 5000))
Calls = tuple[tuple[Any, ...], ...]  # names of the SDK's calls, each with its arguments


@dataclass(frozen=True)
class BoxPorts:
    """TCP ports of a control box; the defaults are the box's own."""

    control: int = 502
    report: int = 30002  # at 5 Hz

    @property
    def gripper(self) -> int:
        """The second control port, which the SDK derives by adding one."""
        return self.control + 1


def import_sdk(module: str = "xarm.wrapper") -> Any:
    """Import a module of the SDK. Raises EnvError if it is not installed."""
    # at import, the SDK (1.18.4) creates this folder if it is missing: if two processes do so at once,
    # the slower one fails with FileExistsError
    with suppress(OSError):
        os.makedirs(os.path.join(os.path.expanduser("~"), ".UFACTORY", "log", "xarm", "sdk"), exist_ok=True)
    return import_extra(module, "xarm")


def log_to(path: Path) -> None:
    """Append the SDK's output to a file from now on. Raises EnvError without the SDK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", buffering=1)
    with redirect_stdout(file):  # only for the import, before the panel is drawn
        import_sdk()
    loggers = import_sdk("xarm.core.utils.log")
    handler = logging.StreamHandler(file)  # the supervisor process writes to the same file
    handler.setFormatter(logging.Formatter("%(asctime)s %(processName)s %(levelname)s %(message)s"))
    for logger in (loggers.logger, loggers.origin_logger):
        logger.handlers[:] = [handler]
        logger.propagate = False
    for name, module in list(sys.modules.items()):
        if name.startswith("xarm."):
            vars(module)["print"] = partial(print, file=file)


def probe(ip: str, port: int, end: float) -> None:
    """Raise EnvError unless a control box answers by `end` (s, monotonic): a silent one would block the SDK for minutes."""
    kinds = (OSError, UnicodeError)  # UnicodeError: not a host name
    with reported(f"xarm {ip}:{port}: expected an answer, got no control box", kinds=kinds, kind=EnvError):
        with socket.create_connection((ip, port), timeout=max(end - time.monotonic(), 0.01)) as s:
            s.settimeout(max(end - time.monotonic(), 0.01))
            s.sendall(_VERSION_REQUEST)
            if not s.recv(1):
                raise OSError("it closed the connection")


def connect(ip: str, timeout_s: float, end: float, **settings: Any) -> Any:
    """Open an `XArmAPI` with a timeout for each answer. Raises EnvError if the SDK fails, or has not connected by `end`."""
    api = import_sdk().XArmAPI

    def make() -> Any:
        arm = api(ip, is_radian=True, forbid_uds=True, baud_checkset=False, **settings)
        arm.set_timeout(timeout_s)
        return arm

    return made_within(end - time.monotonic(), make, lambda arm: arm.disconnect(), f"xarm {ip}")


@contextmanager
def client_ports(ports: BoxPorts) -> Iterator[None]:
    """Redirect the SDK's connections of this process to `ports`. Raises EnvError without the SDK, or if already redirected."""
    conf = import_sdk("xarm.core.config.x_config").XCONF.SocketConf
    report = import_sdk("xarm.x3.report").ReportDataStructure
    before, create = (conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT), vars(report)["create"]
    own = BoxPorts.control, BoxPorts.report
    expect(before == own, "xarm", "one emulator per process", f"the SDK redirected to port {before[0]}")

    def create_by_port(sock_port: int, **kwargs: Any) -> Any:
        port = BoxPorts.report if sock_port == ports.report else sock_port  # the box's own number
        return create.__get__(None, report)(port, **kwargs)

    try:
        conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT = ports.control, ports.report
        report.create = staticmethod(create_by_port)
        yield
    finally:
        conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT = before
        report.create = create


def call(sdk: Any, name: str, *args: Any) -> int:
    # the SDK's own sensitivity call would wait for motion and also change the state
    sensitivity = name == "set_collision_sensitivity"
    answer = (sdk._arm.arm_cmd.set_collis_sens if sensitivity else getattr(sdk, name))(*args)
    return int(answer[0] if isinstance(answer, list | tuple) else answer)  # some calls return the raw answer


def check_tool(ip: str, sdk: Any, payload: float | None, tcp_offset: tuple[float, ...] | None) -> None:
    """Compare payload (kg) and TCP offset (m and rad) with the control box's; skip a value that is None.

    Raises EnvError if they differ: the box's collision detection, fence and manual mode depend on them.
    """
    end, wrong = time.monotonic() + _REPORT_S, "unknown"
    while wrong and time.monotonic() < end:
        weight, offset, wrong = float(sdk.tcp_load[0]), np.array(sdk.tcp_offset, float), ""
        offset[:3] /= 1000
        if payload is not None and abs(weight - payload) > _PAYLOAD_OFF:
            wrong = f"bridge.arm.payload: expected {weight:g} kg as in the control box, got {payload:g}"
        if tcp_offset is not None and np.abs(offset - tcp_offset).max() > _OFFSET_OFF:
            expected = f"{offset.tolist()} as in the control box"
            wrong = f"bridge.arm.tcp_offset: expected {expected}, got {list(tcp_offset)}"
        if sdk._arm._is_first_report:  # until then, the SDK's own initial values stand for the box's
            wrong = "expected reports, got none"
        if wrong:
            time.sleep(0.01)
    if wrong:
        raise EnvError(f"xarm {ip}: {wrong}; correct it in UFACTORY Studio or in this setting")


def present_limits(sdk: Any) -> Calls:
    """Return the calls that restore the control box's present limits; none for old firmware, which has fewer limits."""
    code, states = sdk.get_reduced_states()
    expect(code == 0, "xarm: get_reduced_states", "code 0", code)
    if len(states) <= 5:
        return ()
    return _limit_calls(states[:6], int(sdk.collision_sensitivity), bool(sdk.self_collision_params[0]))


def wanted_limits(limits: ArmLimits, sensitivity: int) -> Calls:
    """Return the calls that set the control box's limits."""
    joints = np.stack([limits.q_min, limits.q_max], 1).ravel().tolist()
    fence = np.array(limits.box)[:, ::-1] + [HAND_REACH, -HAND_REACH]  # m, (high, low), of the flange
    boundary, speed = (1000 * fence).ravel().tolist(), limits.point_speed * 1000
    return _limit_calls([True, boundary, speed, max(limits.dq_max), joints, True], sensitivity, True)


def _limit_calls(reduced: list[Any], sensitivity: int, self_collision: bool) -> Calls:
    """Return the calls for `reduced`: mode on, boundary mm, tool speed mm/s, joint speed rad/s, joint ranges rad, fence on."""
    on, boundary, tool_speed, joint_speed, ranges, fence = reduced
    return (
        ("set_collision_sensitivity", sensitivity), ("set_self_collision_detection", self_collision),
        ("set_reduced_max_joint_speed", joint_speed), ("set_reduced_max_tcp_speed", tool_speed),
        ("set_reduced_joint_range", ranges), ("set_reduced_tcp_boundary", boundary), ("set_reduced_mode", on),
        ("set_fence_mode", fence),
    )  # fmt: skip


class XArmGripper:
    """Sends a new target and reads the opening ten times a second, on a connection that never delays the arm's.

    Args:
        sdk: the arm's connection, whose second port this opens.
        may_move: whether the gripper may move now.
        timeout_s: for each answer. end: deadline of the first answer (EnvError), s, monotonic.

    Attributes: `opening` (measured, 0 closed to 1 open) and `heard` (s, time of that measurement).
    """

    def __init__(self, ip: str, sdk: Any, may_move: Callable[[], bool], timeout_s: float, end: float):
        self._sdk, self._may_move = sdk, may_move
        self._target: int | None = None  # pulses
        self.opening, self.heard, self._code = np.nan, -np.inf, sdk.set_rs485_use_503_port()
        self._closing, self._changed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="xarm gripper")
        if self._code == 0:
            sdk._arm.arm_cmd_503.set_timeout(timeout_s)
            self._thread.start()
        while self._thread.ident and not np.isfinite(self.opening) and time.monotonic() < end:
            time.sleep(0.01)
        if not np.isfinite(self.opening):
            self.close()
            hint = "check that it is plugged in, its bus runs at 2 Mbaud, and port 503 is open"
            raise EnvError(f"xarm {ip}: expected an answer from the gripper, got code {self._code}; {hint}")

    def set_target(self, opening: float | None) -> None:
        """Set the target, 0 closed to 1 open. None: no target; moving fingers halt, a grasp is kept."""
        self._target = None if opening is None else round(float(opening) * PULSES)
        self._changed.set()

    def close(self) -> None:
        self._closing.set()
        self._changed.set()
        if self._thread.ident:
            self._thread.join(2.0)

    def _run(self) -> None:
        sdk, sent, sent_at, before = self._sdk, None, -np.inf, None
        closing = False
        while not closing:
            self._changed.wait(PERIOD)
            self._changed.clear()
            closing = self._closing.is_set()  # an earlier stop is still executed
            try:
                target, may_move = self._target, self._may_move()
                if target != sent and target is not None and may_move and self._go_to(target):
                    sent, sent_at = target, time.monotonic()
                code, pulses = sdk.get_gripper_position(check_baud=False)
                if not may_move and sent is not None and code == 0 and pulses is not None:
                    moving = pulses != before or time.monotonic() - sent_at < STROKE_S
                    # moving fingers halt where they are
                    if pulses == sent or not moving or self._go_to(pulses):
                        sent = None
            except Exception:  # the SDK may raise anything for a malformed answer
                code, pulses = -1, None
            self._code, before = code, pulses
            if code == 0 and pulses is not None:
                self.opening = float(np.clip(pulses / PULSES, 0.0, 1.0))
                self.heard = now()

    def _go_to(self, pulses: int) -> bool:
        return self._sdk.set_gripper_position(pulses, wait=False, no_check=True) == 0

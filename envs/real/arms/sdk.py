"""The vendor's SDK of the xArm: import, connection, ports, where it prints, the box's own settings, and the gripper.

The SDK (1.18.4) keeps its port numbers in a class: within `client_ports` every connection of this process uses the
other ports. It writes to standard output through two loggers, by `print`, and while it is imported, also from threads.
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

from s2robot.envs.errors import EnvError, expect
from s2robot.envs.real import import_extra
from s2robot.envs.real.arms.driver import ArmLimits, made_within
from s2robot.envs.real.control.clock import now

LOG_FILE = "xarm_sdk.log"  # in a run's folder
EMULATED_IP = "127.0.0.1"  # where an emulated control box listens
_VERSION_REQUEST = bytes([0, 1, 0, 2, 0, 1, 1])  # transaction, protocol 2, length, function 1
DONE = (0, 1, 2, 9)  # codes of an answer: errors or warnings pending and "not ready" are answers, too
HAND_REACH = 0.2  # m from the flange to the farthest that the box's limits leave to the hand
_PAYLOAD_OFF, _OFFSET_OFF = 0.1, 2e-3  # kg; m and rad
_REPORT_S = 0.5  # s until a report says what the box has; five come a second

PULSES = 850  # the gripper's, open
PERIOD = 0.1  # s between two requests to it
STROKE_S = 1.0  # s after a target in which fingers that stand may be about to move
# the SDK's calls that arming takes, with their arguments; the speed is the highest of its register, pulses/s
GRIPPER_STEPS = (("set_gripper_enable", True), ("set_gripper_mode", 0), ("set_gripper_speed", 5000))
Calls = tuple[tuple[Any, ...], ...]  # names of the SDK's calls, each with its arguments


@dataclass(frozen=True)
class BoxPorts:
    """TCP ports of a control box; the defaults are the box's own."""

    control: int = 502
    report: int = 30002  # 5 Hz

    @property
    def gripper(self) -> int:
        """The second control port: the SDK adds one."""
        return self.control + 1


def import_sdk(module: str = "xarm.wrapper") -> Any:
    """Import a module of the SDK. Raises EnvError if it is not installed."""
    # while it is imported, the SDK (1.18.4) checks for this folder and makes it where it is missing: of two processes
    # that do so at once, the slower one would die of FileExistsError
    with suppress(OSError):
        os.makedirs(os.path.join(os.path.expanduser("~"), ".UFACTORY", "log", "xarm", "sdk"), exist_ok=True)
    return import_extra(module, "xarm")


def log_to(path: Path) -> None:
    """Append what the SDK prints from now on to a file. Raises EnvError without the SDK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", buffering=1)
    with redirect_stdout(file):  # for its import only, before anything is drawn
        import_sdk()
    loggers = import_sdk("xarm.core.utils.log")
    handler = logging.StreamHandler(file)  # the supervisor, a process of its own, writes to the same file
    handler.setFormatter(logging.Formatter("%(asctime)s %(processName)s %(levelname)s %(message)s"))
    for logger in (loggers.logger, loggers.origin_logger):
        logger.handlers[:] = [handler]
        logger.propagate = False
    for name, module in list(sys.modules.items()):
        if name.startswith("xarm."):
            vars(module)["print"] = partial(print, file=file)


def probe(ip: str, port: int, end: float) -> None:
    """EnvError unless a control box answers until `end` (s, monotonic): a silent one keeps the SDK busy for minutes."""
    try:
        with socket.create_connection((ip, port), timeout=max(end - time.monotonic(), 0.01)) as s:
            s.settimeout(max(end - time.monotonic(), 0.01))
            s.sendall(_VERSION_REQUEST)
            if not s.recv(1):
                raise OSError("it closed the connection")
    except (OSError, UnicodeError) as error:  # UnicodeError: not a host name
        raise EnvError(f"xarm {ip}:{port}: expected an answer, got no control box ({error})") from None


def connect(ip: str, timeout_s: float, end: float, **settings: Any) -> Any:
    """Open one `XArmAPI`, with a timeout for each answer. EnvError: what the SDK says, or nothing until `end`."""
    api = import_sdk().XArmAPI

    def make() -> Any:
        arm = api(ip, is_radian=True, forbid_uds=True, baud_checkset=False, **settings)
        arm.set_timeout(timeout_s)
        return arm

    return made_within(end - time.monotonic(), make, lambda arm: arm.disconnect(), f"xarm {ip}")


@contextmanager
def client_ports(ports: BoxPorts) -> Iterator[None]:
    """Send the SDK's connections of this process to `ports`. Raises EnvError: no SDK, or redirected already."""
    conf = import_sdk("xarm.core.config.x_config").XCONF.SocketConf
    report = import_sdk("xarm.x3.report").ReportDataStructure
    before, create = (conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT), vars(report)["create"]
    own = BoxPorts.control, BoxPorts.report
    expect(before == own, "xarm", "one emulator a process", f"the SDK redirected to port {before[0]} already")

    def create_by_port(sock_port: int, **kwargs: Any) -> Any:
        port = BoxPorts.report if sock_port == ports.report else sock_port  # the box's own number is expected
        return create.__get__(None, report)(port, **kwargs)

    try:
        conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT = ports.control, ports.report
        report.create = staticmethod(create_by_port)
        yield
    finally:
        conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT = before
        report.create = create


def call(sdk: Any, name: str, *args: Any) -> int:
    # its own call for the sensitivity would wait for motion and set the state by the way
    sensitivity = name == "set_collision_sensitivity"
    answer = (sdk._arm.arm_cmd.set_collis_sens if sensitivity else getattr(sdk, name))(*args)
    return int(answer[0] if isinstance(answer, list | tuple) else answer)  # some return what the bus returned


def check_tool(ip: str, sdk: Any, payload: float | None, tcp_offset: tuple[float, ...] | None) -> None:
    """Compare payload (kg) and TCP offset (m and rad) with the box's; None is not compared.

    Raises EnvError if they differ: the box's collision detection, its fence and an arm led by hand depend on them.
    """
    end, wrong = time.monotonic() + _REPORT_S, "unknown"
    while wrong and time.monotonic() < end:
        weight, offset, wrong = float(sdk.tcp_load[0]), np.array(sdk.tcp_offset, float), ""
        offset[:3] /= 1000
        if payload is not None and abs(weight - payload) > _PAYLOAD_OFF:
            wrong = f"bridge.arm.payload: expected the box's {weight:g} kg, got {payload:g}"
        if tcp_offset is not None and np.abs(offset - tcp_offset).max() > _OFFSET_OFF:
            wrong = f"bridge.arm.tcp_offset: expected the box's {offset.tolist()}, got {list(tcp_offset)}"
        if wrong:  # a report may still be under way
            time.sleep(0.01)
    if wrong:
        raise EnvError(f"xarm {ip}: {wrong}; set it in UFACTORY Studio, or give the box's value here")


def present_limits(sdk: Any) -> Calls:
    """Return the calls that put back the limits that the box has now; none for old firmware, which knows fewer."""
    code, states = sdk.get_reduced_states()
    if code != 0 or len(states) <= 5:
        return ()
    return _limit_calls(states[:6], int(sdk.collision_sensitivity), bool(sdk.self_collision_params[0]))


def wanted_limits(limits: ArmLimits, sensitivity: int) -> Calls:
    """Return the calls that set the box's own limits."""
    joints = np.stack([limits.q_min, limits.q_max], 1).ravel().tolist()
    fence = np.array(limits.box)[:, ::-1] + [HAND_REACH, -HAND_REACH]  # m, (high, low), of the flange
    boundary, speed = (1000 * fence).ravel().tolist(), limits.point_speed * 1000
    return _limit_calls([True, boundary, speed, max(limits.dq_max), joints, True], sensitivity, True)


def _limit_calls(reduced: list[Any], sensitivity: int, self_collision: bool) -> Calls:
    """`reduced`: on, boundary in mm, tool speed in mm/s, joint speed in rad/s, joint ranges in rad, fence on."""
    on, boundary, tool_speed, joint_speed, ranges, fence = reduced
    return (
        ("set_collision_sensitivity", sensitivity), ("set_self_collision_detection", self_collision),
        ("set_reduced_max_joint_speed", joint_speed), ("set_reduced_max_tcp_speed", tool_speed),
        ("set_reduced_joint_range", ranges), ("set_reduced_tcp_boundary", boundary), ("set_reduced_mode", on),
        ("set_fence_mode", fence),
    )  # fmt: skip


class XArmGripper:
    """Sends a changed target and reads the opening, ten times a second, on a connection that never holds up the arm's.

    Args:
        sdk: the arm's connection, whose second port this opens.
        ours: whether the gripper may move now.
        timeout_s, end: for an answer; s, monotonic, when the first one must be there (EnvError).

    Attributes: `opening` (measured, 0 closed to 1 open) and `heard` (s, when it was).
    """

    def __init__(self, ip: str, sdk: Any, ours: Callable[[], bool], timeout_s: float, end: float):
        self._sdk, self._ours = sdk, ours
        self._wanted: int | None = None  # pulses
        self.opening, self.heard, self._code = np.nan, -np.inf, sdk.set_rs485_use_503_port()
        self._closing, self._news = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._tend, daemon=True, name="xarm gripper")
        if self._code == 0:
            sdk._arm.arm_cmd_503.set_timeout(timeout_s)
            self._thread.start()
        while self._thread.ident and not np.isfinite(self.opening) and time.monotonic() < end:
            time.sleep(0.01)
        if not np.isfinite(self.opening):
            self.close()
            hint = "is it plugged in, its bus at 2 Mbaud, and port 503 open?"
            raise EnvError(f"xarm {ip}: expected an answer from the gripper, got code {self._code}; {hint}")

    def want(self, opening: float | None) -> None:
        """The target, 0 closed to 1 open; None: none, and fingers under way halt (those that hold something stay)."""
        self._wanted = None if opening is None else round(float(opening) * PULSES)
        self._news.set()

    def close(self) -> None:
        self._closing.set()
        self._news.set()
        if self._thread.ident:
            self._thread.join(2.0)

    def _tend(self) -> None:
        sdk, sent, sent_at, before = self._sdk, None, -np.inf, None
        closing = False
        while not closing:
            self._news.wait(PERIOD)
            self._news.clear()
            closing = self._closing.is_set()  # a stop that came before is still obeyed
            try:
                wanted, ours = self._wanted, self._ours()
                if wanted != sent and wanted is not None and ours and self._go_to(wanted):
                    sent, sent_at = wanted, time.monotonic()
                code, pulses = sdk.get_gripper_position(check_baud=False)
                if not ours and sent is not None and code == 0 and pulses is not None:
                    under_way = pulses != before or time.monotonic() - sent_at < STROKE_S
                    # fingers under way halt where they are
                    if pulses == sent or not under_way or self._go_to(pulses):
                        sent = None
            except Exception:  # whatever the SDK makes of a broken answer
                code, pulses = -1, None
            self._code, before = code, pulses
            if code == 0 and pulses is not None:
                self.opening = float(np.clip(pulses / PULSES, 0.0, 1.0))
                self.heard = now()

    def _go_to(self, pulses: int) -> bool:
        return self._sdk.set_gripper_position(pulses, wait=False, no_check=True) == 0

"""The vendor's SDK of the xArm: where it is imported, how it connects, and the ports that it is told to use.

    sdk = import_sdk()                    # the module xarm.wrapper, with XArmAPI
    with client_ports(ports):             # a control box at other ports: behind a tunnel, or emulated
        arm = sdk.XArmAPI("127.0.0.1", is_radian=True, forbid_uds=True)

The SDK keeps its port numbers in a class; for as long as the context lasts, every connection of this process
goes to the other ports, those of other arms included.
"""

import importlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from s2robot.envs.errors import EnvError

_VERSION_REQUEST = bytes([0, 1, 0, 2, 0, 1, 1])  # transaction, protocol 2, length, function 1
_REPORT_NUMBERS = {"report_normal": 30001, "report_rich": 30002, "report_real": 30003}


@dataclass(frozen=True)
class BoxPorts:
    """TCP ports of a control box; the defaults are the box's own."""

    control: int = 502
    gripper: int = 503  # the SDK takes the control port plus one
    report_normal: int = 30001  # 5 Hz
    report_rich: int = 30002  # 5 Hz
    report_real: int = 30003  # 100 Hz

    def __post_init__(self) -> None:
        if self.gripper != self.control + 1:
            raise EnvError(
                f"ports: found control {self.control} and gripper {self.gripper}, "
                "expected gripper = control + 1 (the SDK adds one)"
            )


def import_sdk(module: str = "xarm.wrapper") -> Any:
    """A module of the SDK.

    Raises:
        EnvError: it is not installed.
    """
    # while it is imported, the SDK (1.18.4) looks for this folder and makes it where it is missing: of two processes that
    # do so at once, the slower one would die of FileExistsError
    with suppress(OSError):
        os.makedirs(os.path.join(os.path.expanduser("~"), ".UFACTORY", "log", "xarm", "sdk"), exist_ok=True)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise EnvError("xarm: found no xarm-python-sdk, expected it (pip install 's2robot[xarm]')") from None


def probe(ip: str, port: int, end: float) -> None:
    """Ask a control box for its version: one that accepts and never answers would keep the SDK busy for minutes.

    Raises:
        EnvError: no answer until `end` (s, monotonic).
    """
    try:
        with socket.create_connection((ip, port), timeout=max(end - time.monotonic(), 0.01)) as s:
            s.settimeout(max(end - time.monotonic(), 0.01))
            s.sendall(_VERSION_REQUEST)
            if not s.recv(1):
                raise OSError("it closed the connection")
    except (OSError, UnicodeError) as error:  # UnicodeError: what is no name of a computer
        raise EnvError(f"xarm {ip}:{port}: found no control box ({error}), expected one") from None


def connect(ip: str, timeout_s: float, end: float, **settings: Any) -> Any:
    """One connection, an `XArmAPI`; it is made in a thread of its own because the SDK cannot be told to give up.

    Args:
        timeout_s: for each answer.
        end: s, monotonic, until when it has to stand.
        settings: more of `XArmAPI`.

    Raises:
        EnvError: what the SDK says, or no complete answer in time.
    """
    api = import_sdk().XArmAPI
    made: list[Any] = []
    failed: list[BaseException] = []
    late = threading.Event()

    def build() -> None:
        try:
            arm = api(ip, is_radian=True, forbid_uds=True, baud_checkset=False, **settings)
            arm.set_timeout(timeout_s)
            made.append(arm)
            if late.is_set():
                arm.disconnect()
        except BaseException as error:  # the SDK raises bare Exceptions
            failed.append(error)

    thread = threading.Thread(target=build, daemon=True, name="xarm connect")
    thread.start()
    thread.join(max(end - time.monotonic(), 0.0))
    if failed:
        raise EnvError(f"xarm {ip}: cannot connect ({failed[0]})") from None
    if not made:
        late.set()
        raise EnvError(f"xarm {ip}: found no complete answer in time, expected a control box")
    return made[0]


@contextmanager
def client_ports(ports: BoxPorts) -> Iterator[None]:
    """Send the SDK's connections of this process to ``ports``.

    Raises:
        EnvError: the SDK is not installed, is not laid out as expected, or is redirected to other ports already.
    """
    conf = import_sdk("xarm.core.config.x_config").XCONF.SocketConf
    report = import_sdk("xarm.x3.report").ReportDataStructure
    wanted = {
        "TCP_CONTROL_PORT": ports.control,
        "TCP_REPORT_NORM_PORT": ports.report_normal,
        "TCP_REPORT_RICH_PORT": ports.report_rich,
        "TCP_REPORT_REAL_PORT": ports.report_real,
    }
    missing = [name for name in wanted if not hasattr(conf, name)]
    if missing or "create" not in vars(report):
        raise EnvError(
            f"xarm: found an SDK without {', '.join(missing) or 'ReportDataStructure.create'}, "
            "expected xarm-python-sdk 1.18"
        )
    before = {name: getattr(conf, name) for name in wanted}
    if before["TCP_CONTROL_PORT"] != BoxPorts.control:
        raise EnvError(
            f"xarm: found the SDK redirected to port {before['TCP_CONTROL_PORT']}, expected its own "
            f"{BoxPorts.control}; one emulator a process"
        )
    create = vars(report)["create"]
    numbers = {getattr(ports, name): number for name, number in _REPORT_NUMBERS.items()}

    def create_by_port(sock_port, **kwargs):  # the original compares with the box's own numbers
        return create.__get__(None, report)(numbers.get(sock_port, sock_port), **kwargs)

    try:
        for name, port in wanted.items():
            setattr(conf, name, port)
        report.create = staticmethod(create_by_port)
        yield
    finally:
        for name, port in before.items():
            setattr(conf, name, port)
        report.create = create

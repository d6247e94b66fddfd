"""The vendor's SDK of the xArm: where it is imported, how it connects, its ports, and where it prints.

    sdk = import_sdk()                    # the module xarm.wrapper, with XArmAPI
    with client_ports(ports):             # a control box at other ports: behind a tunnel, or emulated
        arm = sdk.XArmAPI("127.0.0.1", is_radian=True, forbid_uds=True)
    log_to("run/xarm_sdk.log")            # in each process that connects

The SDK keeps its port numbers in a class; while the context lasts, every connection of this process goes to the other
ports, those of other arms included. It (1.18.4) writes to standard output through two loggers, by `print`, and while
it is imported; its threads do so in the middle of a panel that is being drawn.
"""

import importlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import made_within

LOG_FILE = "xarm_sdk.log"  # in a run's folder
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
            raise EnvError(f"ports.gripper: expected control + 1 (the SDK adds one), got {self.gripper}")


def import_sdk(module: str = "xarm.wrapper") -> Any:
    """Import a module of the SDK. Raises EnvError if it is not installed."""
    # while it is imported, the SDK (1.18.4) checks for this folder and makes it where it is missing: of two processes
    # that do so at once, the slower one would die of FileExistsError
    with suppress(OSError):
        os.makedirs(os.path.join(os.path.expanduser("~"), ".UFACTORY", "log", "xarm", "sdk"), exist_ok=True)
    try:
        return importlib.import_module(module)
    except ImportError:
        raise EnvError("xarm: found no xarm-python-sdk, expected it (pip install 's2robot[xarm]')") from None


def log_to(path: Path) -> None:
    """Append what the SDK prints from now on to a file; does nothing without the SDK, as connecting raises then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a", buffering=1)
    try:
        with redirect_stdout(file):  # for its import only, before anything is drawn
            import_sdk()
    except EnvError:
        return
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
    """Ask a control box for its version: one that accepts and never answers would keep the SDK busy for minutes.

    Raises EnvError: no answer until `end` (s, monotonic).
    """
    try:
        with socket.create_connection((ip, port), timeout=max(end - time.monotonic(), 0.01)) as s:
            s.settimeout(max(end - time.monotonic(), 0.01))
            s.sendall(_VERSION_REQUEST)
            if not s.recv(1):
                raise OSError("it closed the connection")
    except (OSError, UnicodeError) as error:  # UnicodeError: not a host name
        raise EnvError(f"xarm {ip}:{port}: found no control box ({error}), expected one") from None


def connect(ip: str, timeout_s: float, end: float, **settings: Any) -> Any:
    """Open one connection, an `XArmAPI`, with a timeout for each answer.

    Raises EnvError: what the SDK says, or no complete answer until `end` (s, monotonic).
    """
    api = import_sdk().XArmAPI

    def make() -> Any:
        arm = api(ip, is_radian=True, forbid_uds=True, baud_checkset=False, **settings)
        arm.set_timeout(timeout_s)
        return arm

    return made_within(end - time.monotonic(), make, lambda arm: arm.disconnect(), f"xarm {ip}")


@contextmanager
def client_ports(ports: BoxPorts) -> Iterator[None]:
    """Send the SDK's connections of this process to ``ports``.

    Raises:
        EnvError: the SDK is not installed, is another version, or is redirected already.
    """
    conf = import_sdk("xarm.core.config.x_config").XCONF.SocketConf
    report = import_sdk("xarm.x3.report").ReportDataStructure
    wanted = {
        "TCP_CONTROL_PORT": ports.control,
        "TCP_REPORT_NORM_PORT": ports.report_normal,
        "TCP_REPORT_RICH_PORT": ports.report_rich,
        "TCP_REPORT_REAL_PORT": ports.report_real,
    }
    try:
        before = {name: getattr(conf, name) for name in wanted}
        create = vars(report)["create"]
    except (AttributeError, KeyError) as error:
        raise EnvError(f"xarm: found an SDK without {error}, expected xarm-python-sdk 1.18") from None
    if before["TCP_CONTROL_PORT"] != BoxPorts.control:
        raise EnvError(
            f"xarm: found the SDK redirected to port {before['TCP_CONTROL_PORT']} already; one emulator a process"
        )
    numbers = {getattr(ports, name): number for name, number in _REPORT_NUMBERS.items()}

    def create_by_port(
        sock_port: int, **kwargs: Any
    ) -> Any:  # the original compares with the box's own numbers
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

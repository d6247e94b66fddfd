"""The emulator's ports, and how the vendor's SDK is told to use them.

with client_ports(ports):
    arm = XArmAPI("127.0.0.1", is_radian=True, forbid_uds=True)

The SDK keeps its port numbers in a class; for as long as the context lasts, every connection of this process
goes to the emulator's ports, those of other arms included.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields

from s2robot.envs.errors import EnvError

HOST = "127.0.0.1"
_REPORT_NUMBERS = {"report_normal": 30001, "report_rich": 30002, "report_real": 30003}


@dataclass(frozen=True)
class Ports:
    """Where the emulator listens on loopback; the defaults need no privilege."""

    control: int = 15502  # the box's 502
    gripper: int = 15503  # its 503: the SDK takes the control port plus one
    report_normal: int = 15301  # 30001, 5 Hz
    report_rich: int = 15302  # 30002, 5 Hz
    report_real: int = 15303  # 30003, 100 Hz
    side: int = 15800  # faults, journal and scene, as JSON lines
    frames: int = 15801  # camera frames

    def __post_init__(self):
        numbers = [getattr(self, f.name) for f in fields(self)]
        if self.gripper != self.control + 1:
            raise EnvError(
                f"ports: found control {self.control} and gripper {self.gripper}, "
                "expected gripper = control + 1 (the SDK adds one)"
            )
        if len(set(numbers)) != len(numbers) or not all(1 <= n <= 65535 for n in numbers):
            raise EnvError(f"ports: found {numbers}, expected different numbers from 1 to 65535")

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Ports":
        """The inverse of :meth:`to_json`; EnvError for anything else."""
        try:
            return cls(**{name: int(number) for name, number in json.loads(line).items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise EnvError(
                f"ports: found {line[:200]!r}, expected a JSON object of ports ({error})"
            ) from None


def free_ports() -> Ports:
    """Ports that nobody uses now."""
    for _ in range(100):
        with ExitStack() as held:
            numbers = [_hold(held, 0) for _ in range(6)]
            if numbers[0] < 65535 and numbers[0] + 1 not in numbers:
                try:
                    _hold(held, numbers[0] + 1)
                except OSError:
                    continue
                return Ports(numbers[0], numbers[0] + 1, *numbers[1:])
    raise EnvError("ports: found no two adjacent free ports on loopback in 100 tries")


def _hold(held: ExitStack, port: int) -> int:
    s = held.enter_context(socket.socket())
    s.bind((HOST, port))
    return s.getsockname()[1]


@contextmanager
def client_ports(ports: Ports) -> Iterator[None]:
    """Send the vendor SDK's connections of this process to ``ports``.

    Raises:
        EnvError: the SDK is not installed, is not laid out as expected, or is redirected to other ports already.
    """
    try:
        from xarm.core.config.x_config import XCONF
        from xarm.x3.report import ReportDataStructure
    except ImportError:
        raise EnvError("xarm: found no xarm-python-sdk, expected it (pip install 's2robot[xarm]')") from None
    wanted = {
        "TCP_CONTROL_PORT": ports.control,
        "TCP_REPORT_NORM_PORT": ports.report_normal,
        "TCP_REPORT_RICH_PORT": ports.report_rich,
        "TCP_REPORT_REAL_PORT": ports.report_real,
    }
    conf = XCONF.SocketConf
    missing = [name for name in wanted if not hasattr(conf, name)]
    if missing or "create" not in vars(ReportDataStructure):
        raise EnvError(
            f"xarm: found an SDK without {', '.join(missing) or 'ReportDataStructure.create'}, "
            "expected xarm-python-sdk 1.18"
        )
    before = {name: getattr(conf, name) for name in wanted}
    if before["TCP_CONTROL_PORT"] != 502:
        raise EnvError(
            f"xarm: found the SDK redirected to port {before['TCP_CONTROL_PORT']}, expected its own 502; "
            "one emulator a process"
        )
    create = vars(ReportDataStructure)["create"]
    numbers = {getattr(ports, name): number for name, number in _REPORT_NUMBERS.items()}

    def create_by_port(sock_port, **kwargs):  # the original compares with the box's own numbers
        return create.__get__(None, ReportDataStructure)(numbers.get(sock_port, sock_port), **kwargs)

    try:
        for name, port in wanted.items():
            setattr(conf, name, port)
        ReportDataStructure.create = staticmethod(create_by_port)
        yield
    finally:
        for name, port in before.items():
            setattr(conf, name, port)
        ReportDataStructure.create = create

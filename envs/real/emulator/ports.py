"""The emulator's ports on loopback; `s2robot.envs.real.arms.sdk.client_ports` makes the vendor's SDK use them."""

import json
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.sdk import BoxPorts

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports(BoxPorts):
    """Where the emulator listens on loopback; the defaults need no privilege."""

    control: int = 15502  # the box's 502
    gripper: int = 15503  # its 503: the SDK takes the control port plus one
    report_normal: int = 15301  # 30001, 5 Hz
    report_rich: int = 15302  # 30002, 5 Hz
    report_real: int = 15303  # 30003, 100 Hz
    side: int = 15800  # faults, journal and scene, as JSON lines
    frames: int = 15801  # camera frames

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = [getattr(self, f.name) for f in fields(self)]
        whole = all(type(n) is int and 1 <= n <= 65535 for n in numbers)
        if not whole or len(set(numbers)) != len(numbers):
            raise EnvError(f"ports: expected different whole numbers from 1 to 65535, got {numbers}")

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Ports":
        """The inverse of :meth:`to_json`; EnvError for anything else."""
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise EnvError(f"ports: expected a JSON object of ports, got {line[:200]!r} ({error})") from None


def free_ports() -> Ports:
    """Return ports that are free now."""
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

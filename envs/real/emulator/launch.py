"""Start the emulator as a process of its own and end it again.

with launch("kinematic") as emulator, client_ports(emulator.ports):
    arm = XArmAPI("127.0.0.1", is_radian=True, forbid_uds=True)
    emulator.side.fault("error", code=31)
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.ports import Ports
from s2robot.envs.real.emulator.side import SideChannel


@dataclass(frozen=True)
class Launched:
    """A running emulator."""

    process: subprocess.Popen
    ports: Ports
    side: SideChannel


@contextmanager
def launch(plant: str = "mujoco", *arguments: str, ports: Ports | None = None) -> Iterator[Launched]:
    """A running emulator; it ends with the context, and with this process if that is killed.

    Args:
        plant: "mujoco" or "kinematic".
        arguments: more of ``python -m s2robot.envs.real.emulator``.
        ports: where it listens; free ones if not given.

    Raises:
        EnvError: it does not start.
    """
    where = ports.to_json() if ports else "free"
    command = [sys.executable, "-m", "s2robot.envs.real.emulator", "--plant", plant, "--ports", where]
    root = str(Path(__file__).parents[4])  # not resolved: a link in a clone
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with subprocess.Popen(
        [*command, "--until-stdin-closes", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            if not (line := process.stdout.readline()):
                raise EnvError(f"emulator: expected its ports, got an end with status {process.wait()}")
            found = Ports.from_json(line)
            with SideChannel(found.side) as side:
                yield Launched(process, found, side)
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()

"""The emulator as a process of its own, for tests and benchmarks; users have `s2robot emulate`.

with launch("kinematic") as emulator, client_ports(emulator.ports):
    arm = XArmAPI("127.0.0.1", is_radian=True, forbid_uds=True)
    emulator.side.fault("error", code=31)
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.emulator import EmulatorConfig, serve
from s2robot.envs.real.emulator.ports import Ports, free_ports
from s2robot.envs.real.emulator.side import SideChannel


@dataclass(frozen=True)
class Launched:
    """A running emulator."""

    process: subprocess.Popen
    ports: Ports
    side: SideChannel


@contextmanager
def launch(plant: str = "mujoco", **settings: Any) -> Iterator[Launched]:
    """A running emulator on free ports; it ends with the context, and with this process if that is killed.

    Args:
        plant: "mujoco" or "kinematic".
        settings: more of `EmulatorConfig`.

    Raises:
        EnvError: it does not start.
    """
    root = str(Path(__file__).parents[4])  # not resolved: a link in a clone
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps({"plant": plant, **settings})],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths},
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


def _stdin_closes() -> None:
    while os.read(0, 4096):  # sys.stdin's lock, held at exit, would abort the interpreter
        pass


if __name__ == "__main__":
    chosen = free_ports()
    config = EmulatorConfig(**json.loads(sys.argv[1]))
    asyncio.run(serve(config, chosen, lambda: print(chosen.to_json(), flush=True), _stdin_closes))

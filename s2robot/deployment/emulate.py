"""`s2robot emulate`: an emulated xArm7 with cameras on loopback, to rehearse `s2robot deploy` without an arm.

s2robot emulate                         # in one terminal; prints the ports and the command for the other
s2robot emulate emulator.ports=free     # beside another one
"""

import asyncio
import signal
from dataclasses import asdict, dataclass

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.extras import require_simulator
from s2robot.common.ranges import INFINITY, check_ranges
from s2robot.common.settings import plain, read
from s2robot.envs.real.emulator.emulator import Emulator, EmulatorConfig
from s2robot.envs.real.emulator.ports import HOST, Ports, free_ports

PORTS = {"default": Ports, "free": free_ports}


@dataclass(frozen=True)
class EmulateSettings:
    """`emulator` of configs/emulate.yaml, where every value is explained."""

    seed: int
    fps: float
    ports: str

    def __post_init__(self) -> None:
        check_ranges(self, "emulator", seed=(0, INFINITY))
        if self.ports not in PORTS:
            raise UserError(f"emulator.ports: found '{self.ports}', expected one of {', '.join(PORTS)}")


def run_emulate(cfg: DictConfig) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        UserError, EnvError: a wrong setting, no simulator, or a port that is taken.
    """
    if cfg.robot.name != "xarm7":
        raise UserError(
            f"robot: found '{cfg.robot.name}', expected 'xarm7': the control box emulated is its own"
        )
    emulator = read(EmulateSettings, cfg.emulator, "emulator")
    require_simulator()
    config = EmulatorConfig(
        "mujoco", emulator.seed, emulator.fps, {"robot": cfg.robot.name, **plain(cfg.env)}
    )
    asyncio.run(_serve(config, PORTS[emulator.ports]()))
    print("emulator: stopped")


async def _serve(config: EmulatorConfig, ports: Ports) -> None:
    emulator = Emulator(config, ports)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, emulator.stop)
    await emulator.run(started=lambda: print(_greeting(ports), flush=True))


def _greeting(ports: Ports) -> str:
    port = "" if ports.side == Ports.side else f" bridge.emulator.port={ports.side}"
    numbers = ", ".join(f"{name} {number}" for name, number in asdict(ports).items())
    return (
        f"emulated xArm7 on {HOST}: {numbers}\n"
        "In another terminal, a dry run; add --live and the arm moves:\n"
        f"    s2robot deploy checkpoint=<folder> robot=xarm7 robot.ip={HOST} bridge=emulator{port}\n"
        "Ctrl-C ends it."
    )

"""`s2robot emulate`: an emulated xArm7 with cameras on loopback, to rehearse `s2robot deploy` without an arm.

s2robot emulate                         # in one terminal; prints the ports and the command for the other
s2robot emulate emulator.ports=free     # beside another one
"""

import asyncio
from dataclasses import asdict

from omegaconf import DictConfig

from s2robot.core.errors import one_of
from s2robot.core.settings import plain, read
from s2robot.envs.gl import require_simulator
from s2robot.envs.real.emulator.emulator import EmulatorConfig, serve
from s2robot.envs.real.emulator.side import HOST, Ports, free_ports

PORTS = {"default": Ports, "free": free_ports}


def run_emulate(cfg: DictConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. UserError, EnvError: a wrong setting, no simulator, or a port that is taken."""
    node = plain(cfg.emulator)
    one_of("robot", cfg.robot.name, ["xarm7"], ", the arm of the emulated control box")
    one_of("emulator.ports", which := node.pop("ports"), PORTS)
    config = read(EmulatorConfig, {**node, "env": {"robot": cfg.robot.name, **plain(cfg.env)}})
    require_simulator()
    ports = PORTS[which]()
    port = "" if ports.side == Ports.side else f" bridge.emulator.port={ports.side}"
    numbers = ", ".join(f"{name} {number}" for name, number in asdict(ports).items())
    greeting = (
        f"emulated xArm7 on {HOST}: {numbers}\n"
        "In another terminal, a dry run; add --live and the arm moves:\n"
        f"    s2robot deploy checkpoint=<folder> robot=xarm7 robot.ip={HOST} bridge=emulator{port}\n"
        "Ctrl-C ends it."
    )
    asyncio.run(serve(config, ports, lambda: print(greeting, flush=True)))
    print("emulator: stopped")

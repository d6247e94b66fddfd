"""The complete emulator: `s2robot emulate`, for rehearsing `s2robot deploy` without an arm.

s2robot emulate                         # prints the ports and the command for a second terminal
s2robot emulate emulator.ports=free     # while another emulator is running
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from omegaconf import DictConfig
from pydantic import Field

from s2robot.core.errors import one_of
from s2robot.core.settings import Settings, from_yaml, plain, read
from s2robot.envs.gl import require_simulator
from s2robot.envs.real.emulator.controller import Controller, Journal, KinematicPlant, Plant
from s2robot.envs.real.emulator.server import Faults, Server
from s2robot.envs.real.emulator.side import HOST, Operation, Ports, SideChannel, free_ports, side_handler
from s2robot.envs.robots import robot_spec

Small = Annotated[float, Field(gt=-10, lt=10)]
Joints = Annotated[tuple[Small, ...], Field(min_length=7, max_length=7)]


class EmulatorConfig(Settings, at="emulator", file="emulate"):
    """Settings of the emulator; configs/emulate.yaml documents those not described here."""

    # "mujoco": CubePick's scene with cameras; "kinematic": joints only, starts at once
    plant: Literal["mujoco", "kinematic"] = "mujoco"
    seed: int = from_yaml(ge=0)
    fps: float = from_yaml(gt=0, le=240)
    ports: Literal["default", "free"] = from_yaml()
    env: dict[str, Any] = {}  # settings of CubePickConfig, for instance a checkpoint's env_config


class Emulator:
    """One emulated control box on `ports`; create it inside a running event loop."""

    def __init__(self, config: EmulatorConfig, ports: Ports):
        self.scene: Any = None
        self.frames: Any = None
        plant: Plant = KinematicPlant(np.array(robot_spec("xarm7").home))
        if config.plant == "mujoco":
            # mujoco and robosuite take seconds to import
            from s2robot.envs.cube_config import CubePickConfig
            from s2robot.envs.real.emulator.scene import FrameServer, ScenePlant

            plant = self.scene = ScenePlant(CubePickConfig(**config.env), config.seed)
        self.journal = Journal()
        self.controller = box = Controller(plant, self.journal)
        faults = Faults(box, tuple(self.scene.env.config.cameras) if self.scene else ())
        operations: dict[str, Operation] = {
            "ports": lambda: asdict(ports), "cameras": lambda: {"fps": config.fps}, "status": self._status,
            "clear": faults.clear, "clear_error": box.clean_error,  # as in UFACTORY Studio
            "commands": self._commands, "motion": lambda since: {"motion": self.journal.motion_since(since)},
            "hand": self._hand, "place_arm": self._place_arm, "fault drop": self._drop,
        }  # fmt: skip
        operations |= {f"fault {name}": getattr(faults, name) for name in faults.NAMES}
        if self.scene:
            self.frames = FrameServer(self.scene, config.fps, faults)
            operations["frame"], operations["scene"] = self.frames.frame, self.scene.describe
            operations["reset_scene"] = self._reset_scene
        self.server = Server(box, faults, ports, side_handler(operations))

    def _status(self) -> dict:
        box, server = self.controller, self.server
        return {
            "mode": box.mode, "state": box.state, "error": box.error, "ready": box.ready,
            "joints": box.plant.joints.tolist(), "velocities": box.plant.velocities.tolist(),
            "opening": box.plant.opening, "connections": server.connections(),
            "unsupported": server.commands.unsupported,
        }  # fmt: skip

    def _commands(self, since: float = 0.0) -> dict:
        """Return the commands that have reached the box since a time, s; see `Journal.command`."""
        return {"commands": [c for c in self.journal.commands if c["time"] >= since]}

    def _drop(self, clients: list[int] | None = None) -> None:
        self.server.drop(clients)

    def _hand(self, joints: Joints) -> dict:
        """Emulate an operator who guides the arm; possible only in manual mode (2)."""
        return {"led": self.controller.hand(np.array(joints))}

    def _place_arm(self, joints: Joints) -> None:
        """Put the arm at `joints` at once: for setup, not for use during a deployment."""
        self.controller.place(np.array(joints))

    def _reset_scene(
        self, seed: Annotated[int, Field(ge=0)] | None = None, cube_xy: tuple[Small, Small] | None = None,
        cube_yaw: Small | None = None,
    ) -> dict:  # fmt: skip
        """Place the cube as given (m and rad) or as CubePick's reset samples it; see `ScenePlant.reset`."""
        cube = {"cube_xy": cube_xy, "cube_yaw": cube_yaw}
        start = self.scene.reset(seed, **{name: value for name, value in cube.items() if value is not None})
        return {"start_joints": start.tolist()} | self.scene.describe()


async def serve(
    config: EmulatorConfig, ports: Ports, started: Callable[[], None], guarded: bool = False
) -> None:
    """Serve an emulator until SIGINT or SIGTERM or, if `guarded`, until stdin closes; see `Server.run`."""
    loop, emulator = asyncio.get_running_loop(), Emulator(config, ports)
    server = emulator.server
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    if guarded:
        # descriptor 0, not sys.stdin, whose lock would abort the interpreter at exit; nothing is ever written to it
        loop.add_reader(0, server.stop)
    try:
        await server.run(started)
    finally:
        if emulator.frames is not None:
            emulator.frames.close()


def run_emulate(cfg: DictConfig) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises UserError or EnvError: a wrong setting, no simulator, or a port in use."""
    one_of("robot", cfg.robot.name, ["xarm7"], ", the arm of the emulated control box")
    config = read(EmulatorConfig, {**plain(cfg.emulator), "env": {"robot": cfg.robot.name, **plain(cfg.env)}})
    require_simulator()
    ports = free_ports() if config.ports == "free" else Ports()
    port = "" if ports.side == Ports.side else f" bridge.emulator.port={ports.side}"
    numbers = ", ".join(f"{name} {number}" for name, number in asdict(ports).items())
    greeting = (
        f"emulated xArm7 on {HOST}: {numbers}\n"
        "In another terminal, start a dry run; with --live, the emulated arm moves:\n"
        f"    s2robot deploy checkpoint=<folder> robot=xarm7 robot.ip={HOST} bridge=emulator{port}\n"
        "Press Ctrl-C to stop the emulator."
    )
    asyncio.run(serve(config, ports, lambda: print(greeting, flush=True)))
    print("emulator: stopped")


@dataclass(frozen=True)
class Launched:
    process: subprocess.Popen
    ports: Ports
    side: SideChannel


@contextmanager
def launch(plant: str = "mujoco", **settings: Any) -> Iterator[Launched]:
    """Run an emulator on free ports until the context or this process ends. `settings`: see `EmulatorConfig`."""
    root = str(Path(__file__).parents[4])  # not resolved: the package may be a symbolic link
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    with subprocess.Popen(
        [sys.executable, "-m", __name__, json.dumps({"plant": plant, **settings})],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths},
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            ports = Ports.from_json(process.stdout.readline())  # empty if the emulator failed to start
            with SideChannel(ports.side) as side:
                yield Launched(process, ports, side)
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    chosen, config = free_ports(), EmulatorConfig(**json.loads(sys.argv[1]))
    asyncio.run(serve(config, chosen, lambda: print(chosen.to_json(), flush=True), guarded=True))

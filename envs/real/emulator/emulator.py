"""All parts of the emulator put together: plant, controller, sockets, side channel, cameras."""

import asyncio
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from s2robot.core.settings import Settings, from_yaml
from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.controller import Controller
from s2robot.envs.real.emulator.faults import Faults
from s2robot.envs.real.emulator.frames import FrameServer
from s2robot.envs.real.emulator.journal import Journal
from s2robot.envs.real.emulator.motion import KinematicPlant, Plant
from s2robot.envs.real.emulator.ports import Ports
from s2robot.envs.real.emulator.server import Handler, Server
from s2robot.envs.real.emulator.side import Operation, side_handler
from s2robot.envs.robots import robot_spec

Small = Annotated[float, Field(gt=-10, lt=10)]
Joints = Annotated[tuple[Small, ...], Field(min_length=7, max_length=7)]


class EmulatorConfig(Settings, at="emulator", file="emulate"):
    """What is emulated besides the box; configs/emulate.yaml documents seed and fps."""

    plant: Literal["mujoco", "kinematic"] = (
        "mujoco"  # CubePick's scene with cameras; joints alone, starts at once
    )
    seed: int = from_yaml(ge=0)
    fps: float = from_yaml(gt=0, le=240)
    env: dict[str, Any] = {}  # settings of CubePickConfig, for instance a checkpoint's env_config


class Emulator:
    """One emulated box on ``ports``; to be made inside a running event loop."""

    def __init__(self, config: EmulatorConfig, ports: Ports):
        self.config, self.ports = config, ports
        self.faults = Faults()
        self.journal = Journal()
        self.scene = self.frames = None
        plant: Plant = KinematicPlant(np.array(robot_spec("xarm7").home))
        services: dict[int, Handler] = {}
        if config.plant == "mujoco":
            # mujoco and robosuite take seconds to import
            from s2robot.envs.cube_config import CubePickConfig
            from s2robot.envs.real.emulator.scene import ScenePlant, SceneRenderer

            plant = self.scene = scene = ScenePlant(CubePickConfig(**config.env), config.seed)
            self.frames = FrameServer(
                scene.env.config.cameras,
                lambda: scene.positions,
                lambda: SceneRenderer(scene),
                config.fps,
                self.faults,
            )
            self.faults.known_cameras = self.frames.cameras
            services[ports.frames] = self.frames.serve
        self.controller = Controller(plant, self.journal)
        services[ports.side] = side_handler(self._operations())
        self.server = Server(self.controller, self.faults, ports, services)

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until :meth:`stop`; see :meth:`Server.run`."""
        if self.frames is not None:
            self.frames.start()
        try:
            await self.server.run(started)
        finally:
            if self.frames is not None:
                self.frames.close()

    def stop(self) -> None:
        """End :meth:`run`."""
        self.server.stop()

    # --------------------------------------------------------------------------------------- side channel

    def _operations(self) -> dict[str, Operation]:
        return {
            "ports": lambda: asdict(self.ports),
            "cameras": lambda: {"fps": self.config.fps},
            "status": self._status,
            "fault": self.faults.inject,
            "clear": self.faults.clear,
            "clear_error": self.controller.clean_error,  # as a person does in UFACTORY Studio
            "commands": self._commands,
            "motion": self._motion,
            "hand": self._hand,
            "place_arm": self._place_arm,
            "scene": lambda: self._need_scene().describe(),
            "reset_scene": self._reset_scene,
            "shutdown": self.stop,
        }

    def _status(self) -> dict:
        box, server = self.controller, self.server
        return {
            "mode": box.mode, "state": box.state, "error": box.error, "warning": box.warning,
            "enabled": box.enabled, "ready": box.ready,
            "joints": box.plant.joints.tolist(), "velocities": box.plant.velocities.tolist(),
            "opening": box.plant.opening, "tcp": box.tool_pose().tolist(), "contact": box.plant.contact,
            "tcp_speed": box.tcp_speed, "slipped_s": server.slipped_s, "connections": server.connections(),
            "unsupported": server.commands.unsupported,
        }  # fmt: skip

    def _commands(self, since: float = 0.0, number: int = 0) -> dict:
        return {"commands": self.journal.commands_since(since, number)}

    def _motion(self, since: float) -> dict:
        return {"motion": self.journal.motion_since(since)}

    def _hand(self, joints: Joints) -> dict:
        """A person leads the arm, which only manual mode (2) lets them."""
        return {"led": self.controller.hand(np.array(joints))}

    def _place_arm(self, joints: Joints) -> None:
        """The arm stands at ``joints`` at once: for setting up, not for a running deployment."""
        if self.controller.limit_flags(np.array(joints)):
            raise EnvError(f"joints: expected them within their limits, got {joints}")
        self.controller.place(np.array(joints))

    def _need_scene(self):
        if self.scene is None:
            raise EnvError("scene: expected plant mujoco, got kinematic")
        return self.scene

    def _reset_scene(
        self,
        seed: Annotated[int, Field(ge=0)] | None = None,
        cube_xy: tuple[Small, Small] | None = None,
        cube_yaw: Small | None = None,
    ) -> dict:
        """A new cube position, as CubePick's reset samples or as given, m and rad; the arm stays where it is.

        The answer's ``start_joints`` are those of the simulated episode.
        """
        scene, given = self._need_scene(), {"cube_xy": cube_xy, "cube_yaw": cube_yaw}
        start = scene.reset(seed, **{name: value for name, value in given.items() if value is not None})
        return {"start_joints": start.tolist()} | scene.describe()


async def serve(
    config: EmulatorConfig,
    ports: Ports,
    started: Callable[[], None],
    ended: Callable[[], None] | None = None,
) -> None:
    """Serve an emulator until SIGINT, SIGTERM, the op "shutdown", or ``ended`` returns in a thread of its own."""
    loop, emulator = asyncio.get_running_loop(), Emulator(config, ports)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, emulator.stop)
    if ended is not None:

        def watch() -> None:
            ended()
            loop.call_soon_threadsafe(emulator.stop)

        threading.Thread(target=watch, daemon=True).start()
    await emulator.run(started)

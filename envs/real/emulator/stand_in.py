"""A running emulator in the place of arm, cameras, table and operator: what a deployment rehearses with.

stand_in = StandIn(15800)                          # the emulator's side port
make = partial(XArmDriver, stand_in.host, ports=stand_in.ports)
reader = CameraReader("hand", stand_in.camera("hand"))
operator = stand_in.operator()
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.camera import EmulatedCamera, opened
from s2robot.envs.real.emulator.operator import EmulatedOperator
from s2robot.envs.real.emulator.ports import HOST, Ports
from s2robot.envs.real.emulator.side import SideChannel


class StandIn:
    """An `s2robot.deployment.scene.Scene`. Its operator may be asked from any thread.

    Args:
        port: the emulator's side port on this machine.

    Raises:
        EnvError: nothing listens there, or something else.
    """

    name = "emulator"
    host = HOST

    def __init__(self, port: int):
        try:
            self.side = SideChannel(port)
        except OSError as error:
            raise EnvError(
                f"found nothing at {HOST}:{port} ({error.strerror or error}), expected a running `s2robot emulate`"
            ) from None
        try:
            answer = self.side("ports")
        except EnvError:
            self.side.close()
            raise
        self.ports = Ports(**{f.name: answer[f.name] for f in fields(Ports)})

    def operator(self) -> EmulatedOperator:
        """Who says yes, lays cubes and judges."""
        return EmulatedOperator(self.side)

    def camera(self, name: str) -> Callable[[], EmulatedCamera]:
        """Makes the source of a camera."""
        return partial(opened, self.ports.frames, name)

    def cameras(self) -> tuple[float, dict[str, dict]]:
        """Frames a second; camera -> size and field of view."""
        return self.side("cameras")["fps"], self.side("scene")["env"]["camera_geometry"]

    def world(self) -> dict[str, Any]:
        """Settings of the emulated scene, as `CubePickConfig` has them."""
        return self.side("scene")["env"]["env_config"]

    def close(self) -> None:
        """Let go of the emulator, which goes on."""
        self.side.close()

"""A running emulator in the place of arm, cameras, table and operator, to rehearse a deployment with.

stand_in = StandIn(15800)                          # the emulator's side port
make = partial(XArmDriver, stand_in.host, ports=stand_in.ports)
reader = CameraReader("hand", stand_in.camera("hand"))
operator = stand_in.operator()
"""

import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.emulator.camera import EmulatedCamera
from s2robot.envs.real.emulator.ports import HOST, Ports
from s2robot.envs.real.emulator.side import SideChannel
from s2robot.envs.real.operator.prompts import Placing
from s2robot.envs.robots import robot_spec

START_S = 30.0  # s until a camera's first frame
_HEARD_S = 1.0  # s; a cleared error reaches a driver with the next report, five a second


class EmulatedOperator:
    """An `Operator` that answers yes, lays the cube where it is asked for, and judges by the emulated scene.

    Args:
        side: the emulator's side channel.
        scene: whether it has a scene with a cube (the MuJoCo plant).

    Attributes: `closest`, the least distance (m) of grip and cube since the cube was placed, of the moments at which
    `ended` was asked; None if it was not.
    """

    person = False

    def __init__(self, side: SideChannel, scene: bool = True):
        self._side, self._scene = side, scene
        self.closest: float | None = None

    def wait_to_start(self, episode: int, episodes: int) -> bool:
        """Yes."""
        return True

    def lay(self, seed: int) -> Array | None:
        """Lays the cube as the simulated episode `seed` has it; the joints (7,) at which that one starts."""
        return np.array(self._side("reset_scene", seed=seed)["start_joints"]) if self._scene else None

    def free(self, fault: tuple[str, ...]) -> bool:
        """Yes; after a fault the arm is led away from what it may press on and its error cleared, as a person would."""
        if fault:
            self._side("place_arm", joints=list(robot_spec("xarm7").home))
            self._side("clear_error")
            time.sleep(_HEARD_S)
        return True

    def place(self, placing: Placing) -> bool:
        """Lays the cube there."""
        self.closest = None
        if self._scene:
            xy, yaw = list(placing.cube_xy), placing.cube_yaw
            self._side("reset_scene", seed=placing.seed, cube_xy=xy, cube_yaw=yaw)
        return True

    def ended(self) -> bool:
        """When the cube has been lifted."""
        if not self._scene:
            return False
        scene = self._side("scene")
        self.closest = min(scene["distance"], np.inf if self.closest is None else self.closest)
        return bool(scene["is_success"])

    def success(self) -> bool:
        """As the simulated world judges it; never without a scene."""
        return bool(self._scene and self._side("scene")["is_success"])

    def stage(self) -> str:
        """The furthest stage since the cube was placed; the first one without a scene."""
        return str(self._side("scene")["stage"]) if self._scene else "approach"

    def keep(self) -> bool:
        """Yes."""
        return True


class StandIn:
    """An `s2robot.deployment.arm.Scene`. Its operator may be asked from any thread.

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
        """Return who answers yes, lays cubes and judges."""
        return EmulatedOperator(self.side)

    def camera(self, name: str) -> Callable[[], EmulatedCamera]:
        """Makes the source of a camera."""
        return partial(EmulatedCamera, self.ports.frames, name, START_S)

    def cameras(self) -> tuple[float, dict[str, dict]]:
        """Frames a second; camera -> size and field of view."""
        return self.side("cameras")["fps"], self.side("scene")["env"]["camera_geometry"]

    def world(self) -> dict[str, Any]:
        """Settings of the emulated scene, as `CubePickConfig` has them."""
        return self.side("scene")["env"]["env_config"]

    def close(self) -> None:
        """Let go of the emulator, which goes on."""
        self.side.close()

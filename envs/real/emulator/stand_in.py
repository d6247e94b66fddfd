"""A running emulator that replaces arm, cameras, table and operator, for rehearsing a deployment."""

import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.control.clock import from_monotonic
from s2robot.envs.real.emulator.side import Ports, SideChannel
from s2robot.envs.real.operator.prompts import Operator, Placing
from s2robot.envs.robots import robot_spec

_FRAME_S = 30.0  # s, timeout for a camera's next frame; on a starved machine the watchdog is to stop the arm, not this
_REPORTED_S = 1.0  # s until a report, five per second, has informed a driver of a cleared error


class EmulatedOperator(Operator):
    """Answers yes, places the cube as requested, and judges success by the emulated scene."""

    def __init__(self, side: SideChannel):
        self._side = side

    def lay(self, seed: int) -> Array:
        return np.array(self._side("reset_scene", seed=seed)["start_joints"])

    def free(self, fault: tuple[str, ...]) -> bool:
        if fault:  # move the arm away from any contact and clear its error, as an operator would
            self._side("place_arm", joints=list(robot_spec("xarm7").home))
            self._side("clear_error")
            time.sleep(_REPORTED_S)
        return True

    def place(self, placing: Placing) -> bool:
        self.closest = None
        xy, yaw = list(placing.cube_xy), placing.cube_yaw
        self._side("reset_scene", seed=placing.seed, cube_xy=xy, cube_yaw=yaw)
        return True

    def ended(self) -> bool:
        """Return whether the cube has been lifted."""
        scene = self._side("scene")
        self.closest = min(scene["distance"], np.inf if self.closest is None else self.closest)
        return bool(scene["is_success"])

    def success(self) -> bool:
        return bool(self._side("scene")["is_success"])

    def stage(self) -> str:
        return str(self._side("scene")["stage"])


class EmulatedCamera:
    """A camera of the emulator at a side port; its times are on this machine's clock.

    `start_s`: timeout of the first frame, which includes creating a renderer. Raises EnvError without such a camera or frame.
    """

    def __init__(self, port: int, camera: str, start_s: float = 30.0):
        self._camera, self._seq = camera, 0
        with SideChannel(port, start_s) as self._side:
            self.read()
        self._side = SideChannel(port, _FRAME_S)

    def read(self) -> tuple[float, np.ndarray]:
        """Return the next frame's time, s, and image. Raises EnvError if none arrives within 30 s."""
        frame = self._side("frame", camera=self._camera, after=self._seq)
        self._seq = frame["seq"]
        return from_monotonic(frame["time"]), np.frombuffer(frame["data"], np.uint8).reshape(frame["shape"])

    def close(self) -> None:
        self._side.close()


class StandIn:
    """The emulator at a side port of this machine. Raises EnvError if no emulator answers there."""

    def __init__(self, port: int):
        self.side = SideChannel(port)
        answer = self.side("ports")
        self.ports = Ports(**{f.name: answer[f.name] for f in fields(Ports)})

    def operator(self) -> EmulatedOperator:
        return EmulatedOperator(self.side)

    def camera(self, name: str) -> Callable[[], EmulatedCamera]:
        return partial(EmulatedCamera, self.ports.side, name)

    def cameras(self) -> tuple[float, dict[str, dict]]:
        """Return the frames per second, and each camera's size and field of view."""
        return self.side("cameras")["fps"], self.side("scene")["env"]["camera_geometry"]

    def world(self) -> dict[str, Any]:
        """Return the settings of the emulated scene, in the form of `CubePickConfig`."""
        return self.side("scene")["env"]["env_config"]

    def close(self) -> None:
        """Disconnect from the emulator, which keeps running."""
        self.side.close()

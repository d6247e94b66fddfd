"""Who stands beside the emulated arm: says yes, lays the cube, and knows what the scene knows."""

import time

import numpy as np

from s2robot.envs.real.arms.driver import Array
from s2robot.envs.real.emulator.side import SideChannel
from s2robot.envs.real.operator.prompts import Placing
from s2robot.envs.robots import robot_spec

_HEARD_S = 1.0  # s; a driver hears of a cleared error with the next report, five a second


class EmulatedOperator:
    """An `Operator` that says yes, lays the cube where it is wanted, and knows of success what the emulated scene knows.

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

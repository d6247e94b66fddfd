"""What stands in for arm, cameras, table and operator, where the config asks for it; a real bench has none of it.

Nothing here, and nothing that drives an arm, imports a stand-in: its room is named below and looked up when asked for.
"""

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from s2robot.common.errors import UserError
from s2robot.deployment.settings import Bridge
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.sdk import BoxPorts
from s2robot.envs.real.cameras.camera import Source
from s2robot.envs.real.operator.prompts import Operator

STAND_INS = {
    "emulator": "s2robot.envs.real.emulator.stand_in:StandIn"
}  # by the node of `bridge` that asks for it


class Scene(Protocol):
    """A bench of which this computer knows all."""

    name: str  # what stands in: "emulator"
    host: str  # the control box's address
    ports: BoxPorts  # and its ports

    def operator(self) -> Operator:
        """Who stands beside it."""

    def camera(self, name: str) -> Callable[[], Source]:
        """Makes the source of a camera; it waits for the first frame."""

    def cameras(self) -> tuple[float, dict[str, dict]]:
        """Frames a second; camera -> size and field of view."""

    def world(self) -> dict[str, Any]:
        """Settings of the scene, as `CubePickConfig` has them."""

    def close(self) -> None:
        """Let go of it."""


def find_scene(bridge: Bridge, stack: ExitStack) -> Scene | None:
    """What stands in by `bridge`, closed with `stack`; None for a real arm.

    Raises:
        UserError: it is not there.
    """
    for kind, entry in STAND_INS.items():
        if (port := getattr(bridge, kind).port) is not None:
            room, _, name = entry.partition(":")
            try:
                scene: Scene = getattr(importlib.import_module(room), name)(port)
            except EnvError as error:
                raise UserError(f"bridge.{kind}.port: {error}") from None
            stack.callback(scene.close)
            return scene
    return None

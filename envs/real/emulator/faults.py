"""What can be made to go wrong, by name; the server, the controller and the cameras look here."""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StrictInt

from s2robot.envs.errors import EnvError

if TYPE_CHECKING:
    from s2robot.envs.real.emulator.controller import Controller

Seconds = Annotated[float, Field(ge=0, le=3600)]


class Faults:
    """The active faults; the method of a name in `NAMES` injects one, with arguments as pydantic checks them.

    Every fault lasts until `clear`, but `drop` and `error`, which happen once, and `stall`.
    """

    NAMES = (
        "drop", "hang", "stall", "half_open", "silent_reports", "delay", "error", "mode", "freeze_joints",
        "camera_freeze", "camera_stale",
    )  # fmt: skip

    def __init__(self, controller: "Controller", cameras: tuple[str, ...] = ()):
        self._controller, self._known = controller, cameras
        self.close_connections: Callable[[list[int] | None], None] = lambda clients: None  # set by the server
        self.clear()

    def clear(self) -> None:
        """End all faults; an error of the controller stays until a client cleans it."""
        self._hung_until = -math.inf  # s, monotonic
        self.answers_new = self.reports = True
        self.delay_s = 0.0
        self._cameras: dict[str, tuple[str, ...]] = {}  # fault -> whom it strikes
        self._controller.freeze_report(False)

    def drop(self, clients: list[int] | None = None) -> None:
        """Close every connection, or those that clients have made from the ports `clients`."""
        self.close_connections(clients)

    def hang(self) -> None:
        """The box stops answering, reporting and obeying; the arm goes on to its last target.

        What arrives meanwhile waits in the sockets and is handled when the fault ends, as TCP would have it.
        """
        self._hung_until = math.inf

    def stall(self, seconds: Seconds) -> None:
        """As `hang`, and it goes on by itself after so long."""
        self._hung_until = time.monotonic() + seconds

    @property
    def hung(self) -> bool:
        """Whether the box answers, reports and obeys nothing now."""
        return time.monotonic() < self._hung_until

    def half_open(self) -> None:
        """New connections are accepted and never answered."""
        self.answers_new = False

    def silent_reports(self) -> None:
        """The report sockets stay open and carry nothing."""
        self.reports = False

    def delay(self, seconds: Seconds) -> None:
        """Each reply comes so much later."""
        self.delay_s = seconds

    def error(self, code: Annotated[StrictInt, Field(ge=1, le=255)]) -> None:
        """The controller raises an error now: 1 emergency stop, 23 joint limit, 24 overspeed, 31 collision, ..."""
        self._controller.raise_error(code)

    def mode(self, mode: Literal[0, 1, 2, 6] = 0) -> None:
        """Another client changed the mode behind our back, and made the arm ready again."""
        self._controller.force_mode(mode)

    def freeze_joints(self) -> None:
        """The reported joint angles, velocities and poses stay as they are; the arm moves."""
        self._controller.freeze_report()

    def camera_freeze(self, camera: str | None = None) -> None:
        """Frames keep coming with new numbers and times and the same picture. `camera`: one, or all (None)."""
        self._strike("camera_freeze", camera)

    def camera_stale(self, camera: str | None = None) -> None:
        """No new frames."""
        self._strike("camera_stale", camera)

    def strikes(self, fault: str, camera: str) -> bool:
        """Whether a camera's fault is active."""
        return camera in self._cameras.get(fault, ())

    def _strike(self, fault: str, camera: str | None) -> None:
        struck = self._known if camera is None else (camera,)
        if not struck or not set(struck) <= set(self._known):
            known = ", ".join(self._known) or "cameras, which the plant mujoco has"
            raise EnvError(f"fault {fault}: expected one of {known}, got {camera!r}")
        self._cameras[fault] = struck

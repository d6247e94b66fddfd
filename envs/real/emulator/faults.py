"""What can be made to go wrong, by name; the server, the controller and the cameras look here."""

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StrictInt, validate_call

from s2robot.envs.errors import EnvError

if TYPE_CHECKING:
    from s2robot.envs.real.emulator.controller import Controller

NAMES = (
    "drop", "hang", "stall", "half_open", "silent_reports", "delay", "error", "mode", "freeze_joints",
    "camera_freeze", "camera_stale", "camera_slow",
)  # fmt: skip
Seconds = Annotated[float, Field(ge=0, le=3600)]


class Faults:
    """The active faults; a method for each of ``NAMES`` injects it.

    Every fault lasts until :meth:`clear`, but ``drop`` and ``error`` (unless held), which happen once, and ``stall``.
    """

    def __init__(self) -> None:
        self.controller: Controller | None = None
        self.known_cameras: tuple[str, ...] = ()  # set by the emulator
        self.close_connections: Callable[[list[int] | None], None] = lambda clients: None  # set by the server
        self.clear()

    def clear(self) -> None:
        """End all faults; an error of the controller stays until a client cleans it."""
        self._hung_until = -math.inf  # s, monotonic
        self.answers_new = True
        self.accepts = True
        self.reports = True
        self.delay_s = 0.0
        self.cameras: dict[str, dict] = {}  # fault -> its settings
        if self.controller is not None:
            self.controller.release_error()

    def inject(self, name: str, **settings) -> None:
        """Inject the fault ``name``; EnvError or ValueError for an unknown one or wrong settings."""
        if name not in NAMES:
            raise EnvError(f"fault: expected one of {', '.join(NAMES)}, got '{name}'")
        validate_call(getattr(self, name))(**settings)

    # --------------------------------------------------------------------------------------------- network

    def drop(self, refuse: bool = False, clients: list[int] | None = None) -> None:
        """Close every connection, or those that clients have made from the ports ``clients``; with ``refuse``, new
        ones too until cleared."""
        self.accepts = not refuse
        self.close_connections(clients)

    def hang(self) -> None:
        """The box stops answering, reporting and obeying; the arm goes on to its last target.

        What arrives meanwhile waits in the sockets and is handled when the fault ends, as TCP would have it.
        """
        self._hung_until = math.inf

    def stall(self, seconds: Seconds) -> None:
        """As ``hang``, and it goes on by itself after so long."""
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

    # ---------------------------------------------------------------------------------------------- the arm

    def error(self, code: Annotated[StrictInt, Field(ge=1, le=255)], hold: bool = False) -> None:
        """The controller raises an error now: 1 emergency stop, 22 self-collision, 23 joint limit, 24 overspeed,
        31 collision, 35 safety boundary. With ``hold`` it comes back until the fault is cleared."""
        self._arm().raise_error(code, hold)

    def mode(self, mode: StrictInt = 0, state: StrictInt = 2) -> None:
        """Another client changed the mode behind our back, and made the arm ready again (``state`` 2) or not (5)."""
        self._arm().force_mode(mode, state)

    def freeze_joints(self) -> None:
        """The reported joint angles, velocities and poses stay as they are; the arm moves."""
        self._arm().freeze_report()

    # ---------------------------------------------------------------------------------------------- cameras

    def camera_freeze(self, camera: str | None = None) -> None:
        """Frames keep coming with new numbers and times and the same picture. ``camera``: one, or all (None)."""
        self._strike("camera_freeze", camera)

    def camera_stale(self, camera: str | None = None) -> None:
        """No new frames."""
        self._strike("camera_stale", camera)

    def camera_slow(self, seconds: Seconds, camera: str | None = None) -> None:
        """Frames come so much later, with the time at which they were taken."""
        self._strike("camera_slow", camera, seconds=seconds)

    def camera(self, fault: str, camera: str) -> dict | None:
        """The settings of a camera fault if it strikes ``camera``."""
        settings = self.cameras.get(fault)
        return settings if settings is not None and settings["camera"] in (None, camera) else None

    def _strike(self, fault: str, camera: str | None, **settings) -> None:
        if camera not in (None, *self.known_cameras) or not self.known_cameras:
            known = ", ".join(self.known_cameras) or "cameras, which the plant mujoco has"
            raise EnvError(f"fault {fault}: expected one of {known}, got {camera!r}")
        self.cameras[fault] = {"camera": camera, **settings}

    def _arm(self) -> "Controller":
        assert self.controller is not None
        return self.controller

"""What can be made to go wrong, by name; the server, the controller and the cameras look here."""

import inspect
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from s2robot.envs.errors import EnvError

if TYPE_CHECKING:
    from s2robot.envs.real.emulator.controller import Controller

NAMES = (
    "drop", "hang", "stall", "half_open", "silent_reports", "delay", "error", "mode", "freeze_joints",
    "camera_freeze", "camera_stale", "camera_slow",
)  # fmt: skip


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
        """Inject the fault ``name``; EnvError for an unknown one or wrong settings."""
        if name not in NAMES:
            raise EnvError(f"fault: found '{name}', expected one of {', '.join(NAMES)}")
        method = getattr(self, name)
        try:
            inspect.signature(method).bind(**settings)
        except TypeError as error:
            expected = ", ".join(inspect.signature(method).parameters) or "no settings"
            raise EnvError(f"fault {name}: {error}; expected {expected}") from None
        method(**settings)

    # --------------------------------------------------------------------------------------------- network

    def drop(self, refuse: bool = False, clients: list[int] | None = None) -> None:
        """Close every connection, or those that clients have made from the ports ``clients``; with ``refuse``, new
        ones too until cleared."""
        if clients is not None and not isinstance(clients, list):
            raise EnvError(f"fault drop: found clients {clients!r}, expected a list of ports")
        self.accepts = not refuse
        self.close_connections(clients)

    def hang(self) -> None:
        """The box stops answering, reporting and obeying; the arm goes on to its last target.

        What arrives meanwhile waits in the sockets and is handled when the fault ends, as TCP would have it.
        """
        self._hung_until = math.inf

    def stall(self, seconds: float) -> None:
        """As ``hang``, and it goes on by itself after so long."""
        self._hung_until = time.monotonic() + _seconds(seconds)

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

    def delay(self, seconds: float) -> None:
        """Each reply comes so much later."""
        self.delay_s = _seconds(seconds)

    # ---------------------------------------------------------------------------------------------- the arm

    def error(self, code: int, hold: bool = False) -> None:
        """The controller raises an error now: 1 emergency stop, 22 self-collision, 23 joint limit, 24 overspeed,
        31 collision, 35 safety boundary. With ``hold`` it comes back until the fault is cleared."""
        if not isinstance(code, int) or not 1 <= code <= 255:
            raise EnvError(f"fault error: found code {code!r}, expected 1 to 255")
        self._arm().raise_error(code, hold=bool(hold))

    def mode(self, mode: int = 0, state: int = 2) -> None:
        """Another client changed the mode behind our back, and made the arm ready again (``state`` 2) or not (5)."""
        self._arm().force_mode(mode, state)

    def freeze_joints(self) -> None:
        """Joint angles, velocities and poses that the box tells stay as they are; the arm moves."""
        self._arm().freeze_told()

    # ---------------------------------------------------------------------------------------------- cameras

    def camera_freeze(self, camera: str | None = None) -> None:
        """Frames keep coming with new numbers and times and the same picture. ``camera``: one, or all (None)."""
        self._strike("camera_freeze", camera)

    def camera_stale(self, camera: str | None = None) -> None:
        """No new frames."""
        self._strike("camera_stale", camera)

    def camera_slow(self, seconds: float, camera: str | None = None) -> None:
        """Frames come so much later, with the time at which they were taken."""
        self._strike("camera_slow", camera, seconds=_seconds(seconds))

    def camera(self, fault: str, camera: str) -> dict | None:
        """The settings of a camera fault if it strikes ``camera``."""
        settings = self.cameras.get(fault)
        return settings if settings is not None and settings["camera"] in (None, camera) else None

    def _strike(self, fault: str, camera: str | None, **settings) -> None:
        if not self.known_cameras:
            raise EnvError(f"fault {fault}: found no cameras, expected --plant mujoco")
        if camera is not None and camera not in self.known_cameras:
            expected = ", ".join(self.known_cameras)
            raise EnvError(f"fault {fault}: found camera {camera!r}, expected one of {expected}")
        self.cameras[fault] = {"camera": camera, **settings}

    def _arm(self) -> "Controller":
        assert self.controller is not None
        return self.controller


def _seconds(value: float) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 3600:
        raise EnvError(f"fault: found {value!r} seconds, expected 0 to 3600")
    return float(value)

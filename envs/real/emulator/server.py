"""The emulator's sockets and its clock: one asyncio loop that ticks the controller in real time; and its faults.

Nothing that a client sends may end it: a frame that cannot be one closes its connection, all else is answered.
"""

import asyncio
import contextlib
import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, StrictInt

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator import wire
from s2robot.envs.real.emulator.commands import Commands
from s2robot.envs.real.emulator.controller import Controller
from s2robot.envs.real.emulator.side import HOST, Handler, Ports

TICK, REPORT_S = 0.004, 0.2  # s
MAX_BEHIND = 0.2  # s; a computer that falls further behind real time loses the rest
MAX_CONNECTIONS = 64  # per port
MAX_UNSENT = 1 << 16  # bytes; reports to a client that does not read are left out


class Faults:
    """The active faults; the method of a name in `NAMES` injects one, with arguments as pydantic checks them.

    Every fault lasts until `clear`, but `error`, which happens once, and `stall`. `Server.drop` is one more.
    """

    NAMES = (
        "hang", "stall", "half_open", "silent_reports", "delay", "error", "mode", "freeze_joints", "camera_freeze",
        "camera_stale",
    )  # fmt: skip

    def __init__(self, controller: Controller, cameras: tuple[str, ...] = ()):
        self._controller, self.cameras = controller, cameras
        self.clear()

    def clear(self) -> None:
        """End all faults; an error of the controller stays until a client cleans it."""
        self._hung_until = -math.inf  # s, monotonic
        self.answers_new = self.reports = True
        self.delay_s = 0.0
        self.frozen: tuple[str, ...] = ()  # cameras
        self.stale: tuple[str, ...] = ()
        self._controller.freeze_report(False)

    def hang(self) -> None:
        """The box stops answering, reporting and obeying; the arm goes on to its last target.

        What arrives meanwhile waits in the sockets and is handled when the fault ends, as TCP would have it.
        """
        self.stall(math.inf)

    def stall(self, seconds: Annotated[float, Field(ge=0)]) -> None:
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

    def delay(self, seconds: Annotated[float, Field(ge=0)]) -> None:
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
        self.frozen = self._cameras("camera_freeze", camera)

    def camera_stale(self, camera: str | None = None) -> None:
        """No new frames."""
        self.stale = self._cameras("camera_stale", camera)

    def _cameras(self, fault: str, camera: str | None) -> tuple[str, ...]:
        if camera not in (None, *self.cameras):
            raise EnvError(f"{fault}: expected one of {', '.join(self.cameras)}, got {camera}")
        return self.cameras if camera is None else (camera,)


class Server:
    """Serves one controller, and its side channel, on `ports` of loopback until `stop`."""

    def __init__(self, controller: Controller, faults: Faults, ports: Ports, side: Handler):
        self.controller, self.faults, self.ports, self._side = controller, faults, ports, side
        self.commands = Commands(controller)
        self._writers: dict[int, set[asyncio.StreamWriter]] = {}
        self._half_open: set[asyncio.StreamWriter] = set()  # of those, who gets neither answers nor reports
        self._clients = 0
        self._stop = asyncio.Event()

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until `stop`; `started` is called once all ports listen. EnvError: a port is taken."""
        p, control = self.ports, self._control
        handlers = {p.control: control, p.gripper: control, p.report: self._ignore, p.side: self._side}
        servers = []
        try:
            for port, handler in handlers.items():
                try:
                    servers.append(await asyncio.start_server(self._accept(port, handler), HOST, port))
                except OSError as error:
                    why = error.strerror or error
                    raise EnvError(f"port {port}: {why}, expected it to be free") from None
            tasks = [asyncio.ensure_future(loop) for loop in (self._tick_forever(), self._report_forever())]
            stopped = asyncio.ensure_future(self._stop.wait())
            started()
            await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # a fault of the emulator itself is not hidden
                task.cancel()
        finally:
            self._stop.set()
            for server in servers:
                server.close()
            for writer in [writer for writers in self._writers.values() for writer in writers]:
                writer.transport.abort()

    def stop(self) -> None:
        """End `run`."""
        self._stop.set()

    def connections(self) -> dict[int, int]:
        """Open connections by port."""
        return {port: len(writers) for port, writers in self._writers.items()}

    def drop(self, clients: list[int] | None = None) -> None:
        """Close every connection of the box itself, or those that clients have made from the ports `clients`."""
        linger = struct.pack("ii", 1, 0)  # a reset, as when a cable is pulled
        for port in self._writers.keys() - {self.ports.side}:
            for writer in list(self._writers[port]):
                if clients is None or writer.get_extra_info("peername")[1] in clients:
                    peer = writer.get_extra_info("socket")
                    with contextlib.suppress(OSError):
                        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()

    def _accept(self, port: int, handler: Handler) -> Handler:
        writers = self._writers.setdefault(port, set())

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(writers) >= MAX_CONNECTIONS:
                writer.transport.abort()
                return
            writers.add(writer)
            try:
                if port != self.ports.side and not self.faults.answers_new:
                    self._half_open.add(writer)
                    await self._unanswered(reader)  # and then closed: its handshake is long over
                else:
                    await handler(reader, writer)
            except (OSError, ValueError):
                pass  # the peer went away or does not speak the protocol: this connection ends
            except asyncio.CancelledError:  # the loop ends; asyncio would print one traceback per connection
                if not self._stop.is_set():
                    raise
            finally:
                writers.discard(writer)
                self._half_open.discard(writer)
                writer.close()

        return serve

    async def _unanswered(self, reader: asyncio.StreamReader) -> None:
        """Read, or the end of the connection would stay behind what was sent on it and never be seen."""
        while not self.faults.answers_new:
            with contextlib.suppress(TimeoutError):
                if not await asyncio.wait_for(reader.read(4096), 0.02):
                    return

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        client, buffer = self._clients, bytearray()
        while data := await reader.read(4096):
            await self._while_hung(writer)
            buffer += data
            for request in wire.split_frames(buffer):
                await self._while_hung(writer)
                if self.faults.delay_s:
                    await asyncio.sleep(self.faults.delay_s)
                if writer.is_closing():
                    return  # dropped meanwhile, and what it had sent with it
                if answer := self.commands.answer(request, client):
                    writer.write(answer)
                    await writer.drain()

    async def _while_hung(self, writer: asyncio.StreamWriter) -> None:
        while self.faults.hung and not writer.is_closing():
            await asyncio.sleep(0.005)

    async def _ignore(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass  # on the report port

    async def _report_forever(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            if self.faults.hung or not self.faults.reports:
                continue
            frame = wire.report_rich(self.controller)
            for writer in self._writers[self.ports.report] - self._half_open:
                if not writer.is_closing() and writer.transport.get_write_buffer_size() < MAX_UNSENT:
                    writer.write(frame)

    async def _tick_forever(self) -> None:
        emulated = time.monotonic()
        while True:
            behind = time.monotonic() - emulated
            if behind > MAX_BEHIND:
                emulated, behind = time.monotonic() - TICK, TICK
            for _ in range(min(int(behind / TICK), 5)):  # others get their turn in between
                self.controller.tick(TICK)
                emulated += TICK
            await asyncio.sleep(max(0.0, emulated + TICK - time.monotonic()))

"""The emulator's sockets and clock in one asyncio loop, the answers to requests, and injected faults.

No client can crash it: an invalid frame closes its connection, and every other request is answered.
"""

import asyncio
import contextlib
import math
import socket
import struct
import time
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, StrictInt

from s2robot.core.errors import one_of
from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator import wire
from s2robot.envs.real.emulator.controller import JOINT_LIMIT, ONLINE_JOINT, SERVO, Controller, Gripper
from s2robot.envs.real.emulator.side import HOST, Handler, Ports
from s2robot.envs.real.emulator.wire import Fn

TICK, REPORT_S = 0.004, 0.2  # s
MAX_BEHIND = 0.2  # s; if emulated time falls further behind real time, it skips ahead
MAX_UNSENT = 1 << 16  # bytes; reports to a client that does not read are dropped
VERSION = b"7,7,XI130000000001,AC130000000001,v2.5.5\0"
TOOL_HOST = 9  # address of the tool's RS485 bus
BAUD_REGISTER, BAUD_2M = b"\x0a\x0b", 11
JUMP = 0.15  # rad from the last target: more than full speed covers in two periods at 50 Hz
_MODES = {Fn.MOVE_JOINT: ONLINE_JOINT, Fn.SERVO_J: SERVO}
# settings by their attribute of the controller: numbers, and switches
_NUMBERS = {Fn.REDUCED_TCP_SPEED: "reduced_tcp_speed", Fn.REDUCED_JOINT_SPEED: "reduced_joint_speed"}
_SWITCHES = {Fn.SET_REDUCED: "reduced", Fn.FENCE: "fence", Fn.SELF_COLLISION: "self_collision"}

Answer = tuple[bool, bytes]  # whether the request is valid; data


class Faults:
    """The active faults; each method listed in `NAMES` injects one, with arguments validated by pydantic.

    Every fault lasts until `clear`, except `error`, which happens once, and `stall`. `Server.drop` is another fault.
    """

    NAMES = (
        "hang", "stall", "half_open", "silent_reports", "delay", "error", "mode", "freeze_joints", "camera_freeze",
        "camera_stale",
    )  # fmt: skip

    def __init__(self, controller: Controller, cameras: tuple[str, ...] = ()):
        self._controller, self.cameras = controller, cameras
        self.clear()

    def clear(self) -> None:
        """End all faults; an error of the controller stays until a client clears it."""
        self._hung_until = -math.inf  # s, monotonic
        self.answers_new = self.reports = True
        self.delay_s = 0.0
        self.frozen: tuple[str, ...] = ()  # cameras
        self.stale: tuple[str, ...] = ()
        self._controller.freeze_report(False)

    def hang(self) -> None:
        """Stop answering, reporting and executing; requests wait in the sockets until the fault ends."""
        self.stall(math.inf)

    def stall(self, seconds: Annotated[float, Field(ge=0)]) -> None:
        """Hang for this time, then resume."""
        self._hung_until = time.monotonic() + seconds

    @property
    def hung(self) -> bool:
        """Whether the box now neither answers, reports nor executes anything."""
        return time.monotonic() < self._hung_until

    def half_open(self) -> None:
        """Accept new connections and never answer on them."""
        self.answers_new = False

    def silent_reports(self) -> None:
        """Send no reports; their sockets stay open."""
        self.reports = False

    def delay(self, seconds: Annotated[float, Field(ge=0)]) -> None:
        """Delay each reply by this time."""
        self.delay_s = seconds

    def error(self, code: Annotated[StrictInt, Field(ge=1, le=255)]) -> None:
        """Raise a controller error now: 1 emergency stop, 23 joint limit, 24 overspeed, 31 collision, ..."""
        self._controller.raise_error(code)

    def mode(self, mode: Literal[0, 1, 2, 6] = 0) -> None:
        """Emulate another client that changes the mode unnoticed and makes the arm ready again."""
        self._controller.force_mode(mode)

    def freeze_joints(self) -> None:
        """Freeze the reported joint angles, velocities and poses while the arm moves."""
        self._controller.freeze_report()

    def camera_freeze(self, camera: str | None = None) -> None:
        """Send the same image with new frame numbers and times. `camera`: one, or None for all."""
        self.frozen = self._cameras("camera_freeze", camera)

    def camera_stale(self, camera: str | None = None) -> None:
        """Send no new frames."""
        self.stale = self._cameras("camera_stale", camera)

    def _cameras(self, fault: str, camera: str | None) -> tuple[str, ...]:
        if camera is None:
            return self.cameras
        one_of(fault, camera, self.cameras)
        return (camera,)


class Commands:
    def __init__(self, controller: Controller):
        self.box = controller
        self.unsupported: dict[int, int] = {}  # function -> requests; none is rejected silently

    def answer(self, request: wire.Request, client: int) -> bytes | None:
        """Return the reply frame for connection number `client`; None if the protocol expects none."""
        if request.protocol == wire.HEARTBEAT:
            return None
        if request.protocol == wire.MODBUS_TCP:
            return wire.modbus_exception(request)
        box, function, valid, data = self.box, request.function, False, b""
        if function in list(Fn):
            with contextlib.suppress(wire.WireError, struct.error, IndexError):  # a short payload
                valid, data = self._do(Fn(function), request.payload, client)
        else:
            self.unsupported[function] = self.unsupported.get(function, 0) + 1
        status = 0 if valid else wire.STATUS_INVALID
        status |= wire.STATUS_ERROR if box.error else 0
        status |= 0 if box.ready else wire.STATUS_NOT_READY
        return wire.reply(request, status, data)

    def _do(self, fn: Fn, p: bytes, client: int) -> Answer:
        if fn in _MODES:
            return self._move(fn, p, client), b""
        if (answer := self._read(fn, p, client)) is not None:
            return answer
        done = self._configure(fn, p)
        kind = "stop" if fn == Fn.SET_STATE and p[0] in (4, 6) else "state"
        self.box.journal.command(kind, fn.name, p[:8], client, done)
        return done, b""

    def _configure(self, fn: Fn, p: bytes) -> bool:
        """Apply a setting. Return False if it is invalid."""
        box = self.box
        if fn in _NUMBERS or fn == Fn.REDUCED_RANGES:
            values = wire.floats(p, 1 if fn in _NUMBERS else 14)
            if not np.isfinite(values).all():
                return False
            if fn in _NUMBERS:
                setattr(box, _NUMBERS[fn], float(values[0]))
            else:
                box.reduced_ranges = values
        elif fn in _SWITCHES:
            setattr(box, _SWITCHES[fn], bool(p[0]))
        elif fn == Fn.COLLISION_SENSITIVITY:
            if p[0] > 5:
                return False
            box.collision_sensitivity = p[0]
        elif fn == Fn.BOUNDARY:
            boundary = struct.unpack_from("<6i", p)
            if max(map(abs, boundary)) > 32767:
                return False
            box.boundary = boundary
        elif fn == Fn.ENABLE:
            return box.enable(p[0], bool(p[1]))
        elif fn == Fn.SET_STATE:
            return box.set_state(p[0])
        elif fn == Fn.SET_MODE:
            return box.set_mode(p[0])
        elif fn == Fn.CLEAN_ERROR:
            box.clean_error()
        return True

    def _read(self, fn: Fn, p: bytes, client: int) -> Answer | None:
        """Answer a query; return None if `fn` is a setting."""
        if fn == Fn.RS485:
            return self._rs485(p, client)
        box, motion = self.box, self.box.reported()
        kinds = ("joints", "velocities", "torques")[: min(max(p[0] & 0x0F, 1), 3) if p else 1]
        answers = {
            Fn.VERSION: VERSION,
            Fn.GET_STATE: bytes([box.state]),
            Fn.COMMAND_COUNT: bytes([0, box.motion.kind == "plan"]),
            Fn.ERROR: bytes([box.error, 0]),
            Fn.TCP_POSE: wire.pack_floats(wire.pose_of(motion["joints"])),
            Fn.JOINTS: wire.pack_floats(np.concatenate([motion[kind] for kind in kinds])),
            Fn.REDUCED_STATES: bytes([box.reduced]) + wire.reduced_states(box),
            Fn.TOOL_READ16: struct.pack(">i", BAUD_2M if p[1:3] == BAUD_REGISTER else 0),
        }
        return (True, answers[fn]) if fn in answers else None

    def _rs485(self, p: bytes, client: int) -> Answer:
        """Forward a frame to the tool's bus; the answer starts with the address of that bus."""
        gripper = self.box.gripper
        if p[0] != TOOL_HOST or (reply := gripper.answer(p[1:])) is None:
            return False, b""
        if p[2] == Gripper.WRITE:
            targets = p[3:5] == Gripper.TARGET.to_bytes(2, "big")
            kind, values = ("gripper", [gripper.target]) if targets else ("state", p[1:9])
            self.box.journal.command(kind, "RS485", values, client, len(reply) == 6)
        return True, bytes([TOOL_HOST]) + reply

    def _move(self, fn: Fn, p: bytes, client: int) -> bool:
        """Record a motion command, then execute it if mode, state and values allow. Return False if it is invalid."""
        box, values = self.box, wire.floats(p, 10)
        planned, joints = fn == Fn.MOVE_JOINT, values[:7]
        flags = [] if np.isfinite(values[7:] if planned else values).all() else ["nonfinite"]
        if planned:  # positive infinity: keep that joint's last target
            joints = np.where(np.isposinf(joints), box.motion.goal, joints)
        flags += [f for f in box.limit_flags(joints) if f not in flags]
        if not planned and "nonfinite" not in flags:
            flags += ["jump"] if np.abs(joints - box.motion.goal).max() > JUMP else []
        checks = {"error": box.error, "not_ready": not box.ready, "mode": box.mode != _MODES[fn]}
        flags += [flag for flag, failed in checks.items() if failed]
        # NaN and infinity never move the arm [assumed]; targets outside the limits raise an error of the box
        blocked = {"nonfinite", "error", "not_ready", "mode"} & set(flags)
        accepted = not blocked and "limit" not in flags
        box.journal.command("motion", fn.name, values, client, accepted, flags)
        if blocked:
            wrong_mode = "mode" in flags and box.ready  # [assumed]: "not ready" comes before "invalid"
            return not (wrong_mode or "nonfinite" in flags)
        if "limit" in flags:
            box.raise_error(JOINT_LIMIT)
        elif planned:
            box.motion.plan(joints, values[7], values[8])
        else:
            box.motion.servo(joints)
        return True


class Server:
    """Serves one controller and its side channel on the loopback `ports` until `stop`."""

    def __init__(self, controller: Controller, faults: Faults, ports: Ports, side: Handler):
        self.controller, self.faults, self.ports, self._side = controller, faults, ports, side
        self.commands = Commands(controller)
        self._writers: dict[int, set[asyncio.StreamWriter]] = {}
        self._half_open: set[asyncio.StreamWriter] = set()  # connections without answers or reports
        self._clients = 0
        self._stop = asyncio.Event()

    async def run(self, started: Callable[[], None]) -> None:
        """Serve until `stop`; call `started` once all ports listen. Raises EnvError if a port is in use."""
        p, control = self.ports, self._control
        handlers = {p.control: control, p.gripper: control, p.report: self._ignore, p.side: self._side}
        servers = []
        try:
            for port, handler in handlers.items():
                try:
                    servers.append(await asyncio.start_server(self._accept(port, handler), HOST, port))
                except OSError as error:
                    why = error.strerror or error
                    raise EnvError(f"port {port}: expected a free port, got {why}") from None
            tasks = [asyncio.ensure_future(loop) for loop in (self._tick_forever(), self._report_forever())]
            stopped = asyncio.ensure_future(self._stop.wait())
            started()
            await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()  # raise a failure of the emulator itself
                task.cancel()
        finally:
            self._stop.set()
            for server in servers:
                server.close()
            for writer in [writer for writers in self._writers.values() for writer in writers]:
                writer.transport.abort()

    def stop(self) -> None:
        self._stop.set()

    def connections(self) -> dict[int, int]:
        return {port: len(writers) for port, writers in self._writers.items()}

    def drop(self, clients: list[int] | None = None) -> None:
        """Close all connections to the box, or only those from the clients' local ports `clients`."""
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
            writers.add(writer)
            try:
                if port != self.ports.side and not self.faults.answers_new:
                    self._half_open.add(writer)
                    await self._unanswered(reader)  # closed afterwards: its handshake has timed out
                else:
                    await handler(reader, writer)
            except (OSError, ValueError):
                pass  # the peer disconnected or does not follow the protocol: close this connection
            except asyncio.CancelledError:  # at shutdown, asyncio would print one traceback per connection
                if not self._stop.is_set():
                    raise
            finally:
                writers.discard(writer)
                self._half_open.discard(writer)
                writer.close()

        return serve

    async def _unanswered(self, reader: asyncio.StreamReader) -> None:
        while not self.faults.answers_new:  # read, to notice when the connection closes
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
                    return  # dropped meanwhile, with its pending requests
                if answer := self.commands.answer(request, client):
                    writer.write(answer)
                    await writer.drain()

    async def _while_hung(self, writer: asyncio.StreamWriter) -> None:
        while self.faults.hung and not writer.is_closing():
            await asyncio.sleep(0.005)

    async def _ignore(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass  # clients send nothing of interest on the report port

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
            for _ in range(min(int(behind / TICK), 5)):  # other tasks run in between
                self.controller.tick(TICK)
                emulated += TICK
            await asyncio.sleep(max(0.0, emulated + TICK - time.monotonic()))

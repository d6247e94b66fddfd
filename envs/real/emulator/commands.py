"""The function table: what each request of the protocol asks of the controller, and its answer."""

import struct
from contextlib import suppress

import numpy as np

from s2robot.envs.real.emulator import wire
from s2robot.envs.real.emulator.controller import JOINT_LIMIT, ONLINE_JOINT, SERVO, Controller, Gripper
from s2robot.envs.real.emulator.wire import Fn

VERSION = b"7,7,XI130000000001,AC130000000001,v2.5.5\0"
TOOL_HOST = 9  # address of the tool's RS485 bus
BAUD_REGISTER, BAUD_2M = b"\x0a\x0b", 11
JUMP = 0.15  # rad from the last target: more than full speed covers in two periods at 50 Hz
_MODES = {Fn.MOVE_JOINT: ONLINE_JOINT, Fn.SERVO_J: SERVO}
# settings by the controller's name for them: numbers, and switches
_NUMBERS = {Fn.REDUCED_TCP_SPEED: "reduced_tcp_speed", Fn.REDUCED_JOINT_SPEED: "reduced_joint_speed"}
_SWITCHES = {Fn.SET_REDUCED: "reduced", Fn.FENCE: "fence", Fn.SELF_COLLISION: "self_collision"}

Answer = tuple[bool, bytes]  # understood and valid; data


class Commands:
    """Answers requests to one controller."""

    def __init__(self, controller: Controller):
        self.box = controller
        self.unsupported: dict[int, int] = {}  # function -> requests; none is rejected in silence

    def answer(self, request: wire.Request, client: int) -> bytes | None:
        """The reply frame to the connection number `client`; None where the protocol expects none."""
        if request.protocol == wire.HEARTBEAT:
            return None
        if request.protocol == wire.MODBUS_TCP:
            return wire.modbus_exception(request)
        box, function, valid, data = self.box, request.function, False, b""
        if function in list(Fn):
            with suppress(wire.WireError, struct.error, IndexError):  # a payload that is too short
                valid, data = self._do(Fn(function), request.payload, client)
        else:
            self.unsupported[function] = self.unsupported.get(function, 0) + 1
        status = 0 if valid else wire.STATUS_INVALID
        status |= wire.STATUS_ERROR if box.error else 0
        status |= wire.STATUS_WARNING if box.warning else 0
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
        """Obey a setting. False: invalid."""
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
        elif fn == Fn.CLEAN_WARNING:
            box.warning = 0
        return True

    def _read(self, fn: Fn, p: bytes, client: int) -> Answer | None:
        """Answer a question; None if `fn` is a setting."""
        box = self.box
        match fn:
            case Fn.VERSION:
                return True, VERSION
            case Fn.GET_STATE:
                return True, bytes([box.state])
            case Fn.COMMAND_COUNT:
                return True, bytes([0, box.queued])
            case Fn.ERROR:
                return True, bytes([box.error, box.warning])
            case Fn.TCP_POSE:
                return True, wire.pack_floats(wire.pose_of(box.reported()["joints"]))
            case Fn.JOINTS:
                count, told = min(max(p[0] & 0x0F, 1), 3) if p else 1, box.reported()
                parts = [told[name] for name in ("joints", "velocities", "torques")[:count]]
                return True, wire.pack_floats(np.concatenate(parts))
            case Fn.REDUCED_STATES:
                return True, bytes([box.reduced]) + wire.reduced_states(box)
            case Fn.TOOL_READ16:
                return True, struct.pack(">i", BAUD_2M if p[1:3] == BAUD_REGISTER else 0)
            case Fn.RS485:
                return self._rs485(p, client)
        return None

    def _rs485(self, p: bytes, client: int) -> Answer:
        """Pass a frame on to the tool's bus; the answer holds the bus it came from."""
        gripper = self.box.gripper
        if p[0] != TOOL_HOST or (reply := gripper.answer(p[1:])) is None:
            return False, b""
        if p[2] == Gripper.WRITE:
            targets = p[3:5] == Gripper.TARGET.to_bytes(2, "big")
            kind, values = ("gripper", [gripper.target]) if targets else ("state", p[1:9])
            self.box.journal.command(kind, "RS485", values, client, len(reply) == 6)
        return True, bytes([TOOL_HOST]) + reply

    def _move(self, fn: Fn, p: bytes, client: int) -> bool:
        """Take a motion command down, then obey it if mode, state and numbers allow. False: invalid."""
        box, values = self.box, wire.floats(p, 10)
        planned, joints = fn == Fn.MOVE_JOINT, values[:7]
        flags = [] if np.isfinite(values[7:] if planned else values).all() else ["nonfinite"]
        if planned:  # positive infinity: leave that joint where the last motion put it
            joints = np.where(np.isposinf(joints), box.motion.goal, joints)
        flags += [f for f in box.limit_flags(joints) if f not in flags]
        if not planned and "nonfinite" not in flags:
            flags += ["jump"] if np.abs(joints - box.motion.goal).max() > JUMP else []
        found = {"error": box.error, "not_ready": not box.ready, "mode": box.mode != _MODES[fn]}
        flags += [flag for flag, wrong in found.items() if wrong]
        # NaN and infinity never move the arm [assumed]; targets out of limits raise the box's own error
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

"""The function table: what each request of the protocol asks of the controller, and its answer."""

import struct

import numpy as np

from s2robot.envs.real.emulator import wire
from s2robot.envs.real.emulator.controller import ONLINE_JOINT, SERVO, Controller
from s2robot.envs.real.emulator.journal import JUMP
from s2robot.envs.real.emulator.wire import Fn

VERSION = b"7,7,XI130000000001,AC130000000001,v2.5.5\0"
SERIAL = b"XI130000000001\0AC130000000001\0"
TOOL_HOST = 9  # address of the tool's RS485 bus
BAUD_REGISTER, BAUD_2M = 0x0A0B, 11
_MODES = {Fn.MOVE_JOINT: ONLINE_JOINT, Fn.SERVO_J: SERVO}
# settings that are accepted and change nothing here
_STORED = {
    Fn.TCP_JERK, Fn.TCP_MAX_ACC, Fn.JOINT_JERK, Fn.JOINT_MAX_ACC, Fn.CLEAN_CONFIG, Fn.SAVE_CONFIG, Fn.BRAKE,
    Fn.COLLISION_TOOL, Fn.TOOL_TIMEOUT, Fn.RS485_TIMEOUT, Fn.FEEDBACK_CHECK, Fn.FEEDBACK_TYPE, Fn.TOOL_WRITE16,
}  # fmt: skip
# settings that are numbers, by their name in the report, with their count; likewise switches
_NUMBERS = {
    Fn.TCP_OFFSET: ("tcp_offset", 6), Fn.LOAD: ("load", 4), Fn.GRAVITY: ("gravity", 3),
    Fn.REDUCED_TCP_SPEED: ("reduced_tcp_speed", 1), Fn.REDUCED_JOINT_SPEED: ("reduced_joint_speed", 1),
    Fn.REDUCED_RANGES: ("reduced_ranges", 14),
}  # fmt: skip
_SWITCHES = {
    Fn.SET_REDUCED: "reduced", Fn.FENCE: "fence", Fn.REBOUND: "rebound", Fn.SELF_COLLISION: "self_collision",
}  # fmt: skip
_SENSITIVITIES = {
    Fn.COLLISION_SENSITIVITY: "collision_sensitivity",
    Fn.TEACH_SENSITIVITY: "teach_sensitivity",
}

Answer = tuple[bool, bytes]  # understood and valid; data


class Commands:
    """Answers requests to one controller."""

    def __init__(self, controller: Controller):
        self.box = controller
        self.unsupported: dict[int, int] = {}  # function -> requests; none is rejected in silence

    def answer(self, request: wire.Request, client: int) -> bytes | None:
        """The reply frame to the connection number ``client``; None where the protocol expects none."""
        if request.protocol == wire.HEARTBEAT:
            return None
        if request.protocol == wire.MODBUS_TCP:
            return wire.modbus_exception(request)
        try:
            valid, data = self._do(request, client)
        except wire.WireError:
            valid, data = False, b""
        box = self.box
        status = 0 if valid else wire.STATUS_INVALID
        status |= wire.STATUS_ERROR if box.error else 0
        status |= wire.STATUS_WARNING if box.warning else 0
        status |= 0 if box.ready else wire.STATUS_NOT_READY
        return wire.reply(request, status, data)

    def _do(self, request: wire.Request, client: int) -> Answer:
        if request.function not in list(Fn):
            self.unsupported[request.function] = self.unsupported.get(request.function, 0) + 1
            return False, b""
        function = Fn(request.function)
        if function in _MODES:
            return self._move(function, request.payload, client), b""
        if function in _STORED:
            return True, b""
        answer = self._configure(function, request.payload, client)
        return self._read(function, request.payload, client) if answer is None else (answer, b"")

    # ------------------------------------------------------------------------------------------- settings

    def _configure(self, fn: Fn, p: bytes, client: int) -> bool | None:
        """Obey a setting; None if ``fn`` is a question."""
        box, s, done = self.box, self.box.settings, True
        if fn in _NUMBERS:
            name, count = _NUMBERS[fn]
            values = wire.floats(p, count)
            if done := _finite(values):
                setattr(s, name, float(values[0]) if count == 1 else values)
        elif fn in _SWITCHES:
            setattr(s, _SWITCHES[fn], bool(wire.byte(p)))
        elif fn in _SENSITIVITIES:
            if done := wire.byte(p) <= 5:
                setattr(s, _SENSITIVITIES[fn], p[0])
        elif fn == Fn.BOUNDARY:
            if done := len(p) >= 24 and all(abs(v) <= 32767 for v in struct.unpack_from("<6i", p)):
                s.boundary = struct.unpack_from("<6i", p)
        elif fn == Fn.ENABLE:
            done = box.enable(wire.byte(p), bool(wire.byte(p, 1)))
        elif fn == Fn.SET_STATE:
            done = box.set_state(wire.byte(p))
        elif fn == Fn.SET_MODE:
            done = box.set_mode(wire.byte(p))
        elif fn == Fn.CLEAN_ERROR:
            box.clean_error()
        elif fn == Fn.CLEAN_WARNING:
            box.warning = 0
        else:
            return None
        kind = "stop" if fn == Fn.SET_STATE and p[:1] in (b"\x04", b"\x06") else "state"
        box.journal.command(kind, fn.name, p[:8], client, done)
        return done

    # ------------------------------------------------------------------------------------------ questions

    def _read(self, fn: Fn, p: bytes, client: int) -> Answer:
        box, s = self.box, self.box.settings
        match fn:
            case Fn.VERSION:
                return True, VERSION
            case Fn.SERIAL:
                return True, SERIAL
            case Fn.GET_STATE:
                return True, bytes([box.state])
            case Fn.COMMAND_COUNT:
                return True, bytes([0, box.motion.kind == "plan"])
            case Fn.ERROR:
                return True, bytes([box.error, box.warning])
            case Fn.TCP_POSE:
                return True, wire.pack_floats(wire.millimetres(box.report().pose))
            case Fn.JOINTS:
                r = box.report()
                count = min(max(wire.byte(p) & 0x0F, 1), 3) if p else 1
                return True, wire.pack_floats(np.concatenate([r.joints, r.velocities, r.torques][:count]))
            case Fn.TORQUES:
                return True, wire.pack_floats(box.report().torques)
            case Fn.GET_REDUCED:
                return True, bytes([s.reduced])
            case Fn.REDUCED_STATES:
                return True, bytes([s.reduced]) + wire.reduced_states(s)
            case Fn.RS485:
                return self._rs485(p, client)
            case Fn.TOOL_READ16:
                register = struct.unpack_from(">H", p, 1)[0] if len(p) >= 3 else -1
                value = BAUD_2M if register == BAUD_REGISTER else 0
                return register >= 0, struct.pack(">i", value)
            case Fn.TOOL_ERROR:
                return True, bytes([0, box.gripper.error & 0xFF])
            case Fn.HARDWARE_TYPES:
                return True, bytes([1, 1])
        return False, b""

    def _rs485(self, p: bytes, client: int) -> Answer:
        """Pass a frame on to the tool's bus; the answer holds the bus it came from."""
        gripper = self.box.gripper
        if wire.byte(p) != TOOL_HOST:
            return False, b""
        before = gripper.target
        reply = gripper.answer(p[1:])
        if len(p) > 2 and p[2] == wire.WRITE_REGISTERS:
            accepted = reply is not None and len(reply) == 6
            values = [gripper.target] if gripper.target != before else p[1:9]
            kind = "gripper" if gripper.target != before or p[3:5] == b"\x07\x00" else "state"
            self.box.journal.command(kind, "RS485", values, client, accepted)
        return (False, b"") if reply is None else (True, bytes([TOOL_HOST]) + reply)

    # --------------------------------------------------------------------------------------------- motion

    def _move(self, fn: Fn, p: bytes, client: int) -> bool:
        """Take a motion command down, then obey it if mode, state and numbers allow. False: invalid."""
        box, values = self.box, wire.floats(p, 10)
        planned, joints = fn == Fn.MOVE_JOINT, values[:7]
        flags = [] if _finite(values[7:] if planned else values) else ["nonfinite"]
        if planned:  # positive infinity: leave that joint where the last motion put it
            joints = np.where(np.isposinf(joints), box.motion.goal, joints)
        flags += [f for f in box.limit_flags(joints) if f not in flags]
        if not planned and "nonfinite" not in flags:
            flags += ["jump"] if np.abs(joints - box.motion.goal).max() > JUMP else []
        flags += ["error"] if box.error else []
        flags += [] if box.ready else ["not_ready"]
        flags += [] if box.mode == _MODES[fn] else ["mode"]
        # NaN and infinity never move the arm [assumed]; targets out of limits raise the box's own error
        blocked = {"nonfinite", "error", "not_ready", "mode"} & set(flags)
        box.journal.command(
            "motion", fn.name, values, client, not blocked and "limit" not in flags, tuple(flags)
        )
        if blocked:
            wrong_mode = "mode" in flags and box.ready  # [assumed]: "not ready" comes before "invalid"
            return not (wrong_mode or "nonfinite" in flags)
        if planned:
            box.plan(joints, float(values[7]), float(values[8]))
        else:
            box.servo(joints)
        return True


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())

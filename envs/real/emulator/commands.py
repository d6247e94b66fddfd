"""The function table: what each request of the protocol asks of the controller, and its answer."""

import struct
from collections.abc import Callable

import numpy as np

from s2robot.envs.real.arms import kinematics as kin
from s2robot.envs.real.emulator import reach, wire
from s2robot.envs.real.emulator.controller import (
    CARTESIAN_VELOCITY,
    JOINT_VELOCITY,
    ONLINE_JOINT,
    POSITION,
    SERVO,
    Controller,
)
from s2robot.envs.real.emulator.journal import JUMP
from s2robot.envs.real.emulator.motion import MAX_QUEUED
from s2robot.envs.real.emulator.wire import Fn

VERSION = b"7,7,XI130000000001,AC130000000001,v2.5.5\0"
SERIAL = b"XI130000000001\0AC130000000001\0"
TOOL_HOST = 9  # address of the tool's RS485 bus
BAUD_REGISTER, BAUD_2M = 0x0A0B, 11
_MODES = {
    Fn.MOVE_JOINT: (POSITION, ONLINE_JOINT), Fn.MOVE_HOME: (POSITION,), Fn.SERVO_J: (SERVO,),
    Fn.SERVO_CARTESIAN: (SERVO,), Fn.JOINT_VELOCITY: (JOINT_VELOCITY,),
    Fn.CARTESIAN_VELOCITY: (CARTESIAN_VELOCITY,),
}  # fmt: skip
# settings that are accepted and change nothing here
_STORED = {
    Fn.TCP_JERK, Fn.TCP_MAX_ACC, Fn.JOINT_JERK, Fn.JOINT_MAX_ACC, Fn.CLEAN_CONFIG, Fn.SAVE_CONFIG, Fn.BRAKE,
    Fn.COLLISION_TOOL, Fn.TOOL_TIMEOUT, Fn.RS485_TIMEOUT, Fn.FEEDBACK_CHECK, Fn.TOOL_WRITE16,
}  # fmt: skip

Answer = tuple[bool, bytes]  # understood and valid; data


class Client:
    """One connection: how to send it unasked-for frames, and which it wants."""

    def __init__(self, number: int, send: Callable[[bytes], None]):
        self.number, self.send = number, send
        self.feedback = 0  # bits of wanted feedback


class Commands:
    """Answers requests to one controller."""

    def __init__(self, controller: Controller):
        self.box = controller
        self.unsupported: dict[int, int] = {}  # function -> requests; none is refused in silence

    def answer(self, request: wire.Request, client: Client) -> bytes | None:
        """The reply frame; None where the protocol wants none."""
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

    def _do(self, request: wire.Request, client: Client) -> Answer:
        known = request.function in list(Fn)
        if not known or _in_tool_frame(request):
            self.unsupported[request.function] = self.unsupported.get(request.function, 0) + 1
            return False, b""
        function = Fn(request.function)
        if function in wire.MOTION:
            return self._move(function, request, client), b""
        if function in _STORED:
            return True, b""
        answer = self._configure(function, request.payload, client)
        return self._read(function, request.payload, client) if answer is None else (answer, b"")

    # ------------------------------------------------------------------------------------------- settings

    def _configure(self, fn: Fn, p: bytes, client: Client) -> bool | None:
        """Obey a setting; None if ``fn`` is a question."""
        box, s, done = self.box, self.box.settings, True
        match fn:
            case Fn.ENABLE:
                done = box.enable(wire.byte(p), bool(wire.byte(p, 1)))
            case Fn.SET_STATE:
                done = box.set_state(wire.byte(p))
            case Fn.SET_MODE:
                done = box.set_mode(wire.byte(p))
            case Fn.CLEAN_ERROR:
                box.clean_error()
            case Fn.CLEAN_WARNING:
                box.warning = 0
            case Fn.TCP_OFFSET:
                done = _finite(values := wire.floats(p, 6))
                s.tcp_offset = values if done else s.tcp_offset
            case Fn.LOAD:
                done = _finite(values := wire.floats(p, 4))
                s.load = values if done else s.load
            case Fn.GRAVITY:
                done = _finite(values := wire.floats(p, 3))
                s.gravity = values if done else s.gravity
            case Fn.COLLISION_SENSITIVITY:
                if done := wire.byte(p) <= 5:
                    s.collision_sensitivity = p[0]
            case Fn.TEACH_SENSITIVITY:
                if done := wire.byte(p) <= 5:
                    s.teach_sensitivity = p[0]
            case Fn.REDUCED_TCP_SPEED:
                done = _finite(values := wire.floats(p, 1))
                s.reduced_tcp_speed = float(values[0]) if done else s.reduced_tcp_speed
            case Fn.REDUCED_JOINT_SPEED:
                done = _finite(values := wire.floats(p, 1))
                s.reduced_joint_speed = float(values[0]) if done else s.reduced_joint_speed
            case Fn.REDUCED_RANGES:
                done = _finite(values := wire.floats(p, 14))
                s.reduced_ranges = values if done else s.reduced_ranges
            case Fn.SET_REDUCED:
                s.reduced = bool(wire.byte(p))
            case Fn.BOUNDARY:
                done = len(p) >= 24 and all(abs(v) <= 32767 for v in struct.unpack_from("<6i", p))
                s.boundary = struct.unpack_from("<6i", p) if done else s.boundary
            case Fn.FENCE:
                s.fence = bool(wire.byte(p))
            case Fn.REBOUND:
                s.rebound = bool(wire.byte(p))
            case Fn.SELF_COLLISION:
                s.self_collision = bool(wire.byte(p))
            case Fn.SIMULATION:
                done = not wire.byte(p)  # the emulator is a robot to its client, never a simulated one
            case Fn.FEEDBACK_TYPE:
                client.feedback = wire.byte(p)
            case _:
                return None
        kind = "stop" if fn == Fn.SET_STATE and p[:1] in (b"\x03", b"\x04", b"\x06") else "state"
        box.journal.command(kind, fn.name, p[:8], client.number, done)
        return done

    # ------------------------------------------------------------------------------------------ questions

    def _read(self, fn: Fn, p: bytes, client: Client) -> Answer:
        box, s = self.box, self.box.settings
        match fn:
            case Fn.VERSION:
                return True, VERSION
            case Fn.SERIAL:
                return True, SERIAL
            case Fn.GET_STATE:
                return True, bytes([box.state])
            case Fn.COMMAND_COUNT:
                return True, struct.pack(">H", box.motion.queued)
            case Fn.ERROR:
                return True, bytes([box.error, box.warning])
            case Fn.TCP_POSE:
                pose = box.report().pose
                return True, wire.pack_floats([*(pose[:3] * 1000), *pose[3:]])
            case Fn.JOINTS:
                r = box.report()
                count = min(max(wire.byte(p) & 0x0F, 1), 3) if p else 1
                return True, wire.pack_floats(np.concatenate([r.joints, r.velocities, r.torques][:count]))
            case Fn.TORQUES:
                return True, wire.pack_floats(box.report().torques)
            case Fn.FORWARD:
                joints = wire.floats(p, 7)
                if not _finite(joints):
                    return False, bytes(24)
                pose = kin.forward(joints)
                return True, wire.pack_floats([*(pose[:3] * 1000), *pose[3:]])
            case Fn.INVERSE:
                found = self._inverse(wire.floats(p, 6), box.plant.joints)
                return (False, bytes(28)) if found is None else (True, wire.pack_floats(found))
            case Fn.IS_JOINT_LIMIT:
                return True, bytes([bool(box.limit_flags(wire.floats(p, 7)))])
            case Fn.GET_REDUCED:
                return True, bytes([s.reduced])
            case Fn.REDUCED_STATES:
                speeds = [s.reduced_tcp_speed, s.reduced_joint_speed, *s.reduced_ranges]
                limits = struct.pack(">6h", *s.boundary) + wire.pack_floats(speeds)
                return True, bytes([s.reduced]) + limits + bytes([s.fence, s.rebound])
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

    def _rs485(self, p: bytes, client: Client) -> Answer:
        """Pass a frame on to the tool's bus; the answer says which bus it came from."""
        gripper = self.box.gripper
        if wire.byte(p) != TOOL_HOST:
            return False, b""
        before = gripper.target
        reply = gripper.answer(p[1:])
        if len(p) > 2 and p[2] == wire.WRITE_REGISTERS:
            accepted = reply is not None and len(reply) == 6
            values = [gripper.target] if gripper.target != before else p[1:9]
            kind = "gripper" if gripper.target != before or p[3:5] == b"\x07\x00" else "state"
            self.box.journal.command(kind, "RS485", values, client.number, accepted)
        return (False, b"") if reply is None else (True, bytes([TOOL_HOST]) + reply)

    # --------------------------------------------------------------------------------------------- motion

    def _move(self, fn: Fn, request: wire.Request, client: Client) -> bool:
        """Take a motion command down, then obey it if mode, state and numbers allow. False: invalid."""
        box, p = self.box, request.payload
        count = {Fn.MOVE_JOINT: 10, Fn.SERVO_J: 10, Fn.SERVO_CARTESIAN: 9, Fn.JOINT_VELOCITY: 7}
        values = wire.floats(p, count.get(fn, 3 if fn == Fn.MOVE_HOME else 6))
        joints = None
        velocity = fn in (Fn.JOINT_VELOCITY, Fn.CARTESIAN_VELOCITY)
        seconds = _seconds(p, 4 * len(values) + 1) if velocity else 0.0
        numbers = np.array([*(values[7:] if fn == Fn.MOVE_JOINT else values), seconds])
        flags = [] if _finite(numbers) else ["nonfinite"]
        if fn == Fn.SERVO_J:
            joints = values[:7]
        elif fn == Fn.MOVE_JOINT:  # positive infinity: leave that joint where the last motion put it
            joints = np.where(np.isposinf(values[:7]), box.motion.goal, values[:7])
        elif fn == Fn.MOVE_HOME:
            joints = np.zeros(7)
        elif fn == Fn.SERVO_CARTESIAN and not flags:
            joints = self._inverse(values[:6], box.motion.goal)
            flags += ["limit"] if joints is None else []
        if joints is not None:
            flags += [f for f in box.limit_flags(joints) if f not in flags]
            if fn in (Fn.SERVO_J, Fn.SERVO_CARTESIAN) and "nonfinite" not in flags:
                flags += ["jump"] if np.abs(joints - box.motion.goal).max() > JUMP else []
        flags += ["error"] if box.error else []
        flags += [] if box.ready else ["not_ready"]
        flags += [] if box.mode in _MODES[fn] else ["mode"]
        flags += ["full"] if box.motion.queued >= MAX_QUEUED else []
        # a number that is none never moves the arm [assumed]; targets out of limits raise the box's own error
        unreachable = fn == Fn.SERVO_CARTESIAN and joints is None
        blocked = unreachable or {"nonfinite", "error", "not_ready", "mode", "full"} & set(flags)
        obeyed = not blocked and "limit" not in flags
        box.journal.command("motion", fn.name, values, client.number, obeyed, tuple(flags))
        if blocked:
            wrong_mode = "mode" in flags and box.ready  # [assumed]: "not ready" comes before "invalid"
            return not (unreachable or wrong_mode or {"nonfinite", "full"} & set(flags))
        duration = seconds if seconds > 0 else None
        if fn in (Fn.SERVO_J, Fn.SERVO_CARTESIAN):
            assert joints is not None
            box.servo(joints)
        elif fn in (Fn.MOVE_JOINT, Fn.MOVE_HOME):
            assert joints is not None
            speed, acceleration = values[-3:-1] if fn == Fn.MOVE_JOINT else values[:2]
            box.plan(joints, float(speed), float(acceleration), self._finished(request, client))
        elif fn == Fn.JOINT_VELOCITY:
            box.go_velocity(values, duration)
        else:
            j = kin.jacobian(box.frames, box.frames[-1][:3, 3])
            twist = np.concatenate([values[:3] / 1000, values[3:]])
            box.go_velocity(j.T @ np.linalg.solve(j @ j.T + 1e-4 * np.eye(6), twist), duration)
        return True

    def _finished(self, request: wire.Request, client: Client) -> Callable[[int], None] | None:
        if not client.feedback & 2:  # bit 1: tell when a motion has ended
            return None
        return lambda code: client.send(wire.feedback(request.transaction, 2, request.function, code))

    @staticmethod
    def _inverse(pose: np.ndarray, start: np.ndarray) -> np.ndarray | None:
        return reach.inverse(np.concatenate([pose[:3] / 1000, pose[3:]]), start)


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


def _in_tool_frame(request: wire.Request) -> bool:
    """Whether a Cartesian command means the tool's frame, which is not emulated: only the base's is."""
    p = request.payload
    if request.function == Fn.CARTESIAN_VELOCITY:
        return len(p) > 24 and p[24] != 0
    if request.function == Fn.SERVO_CARTESIAN:
        flag = wire.floats(p, 9)[8]  # where other motions have their duration
        return bool(np.isfinite(flag) and flag != 0)
    return False


def _seconds(p: bytes, offset: int) -> float:
    """The watchdog of a velocity command; 0, as when it is absent: for ever."""
    return wire.floats(p[offset:], 1)[0] if len(p) >= offset + 4 else 0.0

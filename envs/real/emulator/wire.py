"""Bytes of the control box: request and reply frames, report frames, Modbus RTU of the gripper.

Header (big-endian): u16 transaction, u16 protocol, u16 length (counted from the function byte), u8 function.
A reply echoes all but the length and puts a status byte before its data. Floats are little-endian f32, integers
big-endian except where a comment says otherwise; radians and millimetres.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

HEADER = struct.Struct(">HHHB")
PRIVATE = (2, 3)  # protocol numbers; 3 once the SDK has seen firmware 1.8.6 or later
MODBUS_TCP = 0
HEARTBEAT = 1  # what the SDK's optional heartbeat thread puts there; it expects no answer
MAX_LENGTH = 1024  # the longest request of the SDK has about 180 bytes

STATUS_ERROR, STATUS_WARNING, STATUS_NOT_READY, STATUS_INVALID = 0x40, 0x20, 0x10, 0x08


class Fn(IntEnum):
    """Function bytes that the emulator answers."""

    VERSION = 1
    SERIAL = 2
    ENABLE = 11
    SET_STATE = 12
    GET_STATE = 13
    COMMAND_COUNT = 14
    ERROR = 15
    CLEAN_ERROR = 16
    CLEAN_WARNING = 17
    BRAKE = 18
    SET_MODE = 19
    MOVE_JOINT = 23
    SERVO_J = 29
    TCP_JERK = 31
    TCP_MAX_ACC = 32
    JOINT_JERK = 33
    JOINT_MAX_ACC = 34
    TCP_OFFSET = 35
    LOAD = 36
    COLLISION_SENSITIVITY = 37
    TEACH_SENSITIVITY = 38
    CLEAN_CONFIG = 39
    SAVE_CONFIG = 40
    TCP_POSE = 41
    JOINTS = 42
    REDUCED_TCP_SPEED = 47
    REDUCED_JOINT_SPEED = 48
    GET_REDUCED = 49
    SET_REDUCED = 50
    GRAVITY = 51
    BOUNDARY = 52
    REDUCED_STATES = 53
    TORQUES = 55
    REDUCED_RANGES = 58
    FENCE = 59
    REBOUND = 60
    SELF_COLLISION = 77
    COLLISION_TOOL = 78
    TOOL_TIMEOUT = 123
    RS485 = 124
    TOOL_ERROR = 125
    TOOL_WRITE16 = 127
    TOOL_READ16 = 128
    HARDWARE_TYPES = 141
    RS485_TIMEOUT = 240
    FEEDBACK_CHECK = 253
    FEEDBACK_TYPE = 254


class WireError(ValueError):
    """Bytes that cannot be a frame; the connection that sent them is out of step and has to be closed."""


@dataclass(frozen=True)
class Request:
    """One decoded request."""

    transaction: int
    protocol: int
    function: int
    payload: bytes


def split_frames(buffer: bytearray) -> list[Request]:
    """Take all complete requests off the front of ``buffer``.

    Raises:
        WireError: a header that no client sends (unknown protocol, no function byte, too long).
    """
    requests = []
    while len(buffer) >= HEADER.size:
        transaction, protocol, length, function = HEADER.unpack_from(buffer)
        if protocol not in (*PRIVATE, MODBUS_TCP, HEARTBEAT):
            raise WireError(f"protocol: found {protocol}, expected 0 to 3")
        if not 1 <= length <= MAX_LENGTH:
            raise WireError(f"length: found {length}, expected 1 to {MAX_LENGTH}")
        end = HEADER.size - 1 + length
        if len(buffer) < end:
            break
        requests.append(Request(transaction, protocol, function, bytes(buffer[HEADER.size : end])))
        del buffer[:end]
    return requests


def request(transaction: int, function: int, payload: bytes = b"", protocol: int = 2) -> bytes:
    """The bytes of a request."""
    return HEADER.pack(transaction, protocol, len(payload) + 1, function) + payload


def reply(to: Request, status: int, data: bytes = b"") -> bytes:
    """The bytes that answer ``to``."""
    return HEADER.pack(to.transaction, to.protocol, len(data) + 2, to.function) + bytes([status]) + data


def modbus_exception(to: Request) -> bytes:
    """The standard answer "illegal function": the emulator has no standard Modbus TCP registers."""
    function = to.payload[0] if to.payload else 0
    return HEADER.pack(to.transaction, MODBUS_TCP, 3, to.function) + bytes([function | 0x80 & 0xFF, 1])


def pack_floats(values: Sequence[float] | np.ndarray) -> bytes:
    """Little-endian f32."""
    return np.asarray(values, "<f4").tobytes()


def floats(payload: bytes, count: int) -> np.ndarray:
    """``count`` little-endian f32 of a request.  # float64 (count,)

    Raises:
        WireError: the payload is too short.
    """
    if len(payload) < 4 * count:
        raise WireError(f"payload: found {len(payload)} bytes, expected at least {4 * count}")
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return np.frombuffer(payload, "<f4", count).astype(float)


def byte(payload: bytes, index: int = 0) -> int:
    """One byte of a request; WireError if there is none."""
    if len(payload) <= index:
        raise WireError(f"payload: found {len(payload)} bytes, expected at least {index + 1}")
    return payload[index]


# -------------------------------------------------------------------------------------------------- reports


@dataclass
class Report:
    """What report frames say. SI units at this boundary: joints rad, pose m and rad (x, y, z, roll, pitch, yaw)."""

    mode: int = 0
    state: int = 4
    commands: int = 0  # queued
    joints: np.ndarray = field(default_factory=lambda: np.zeros(7))
    pose: np.ndarray = field(default_factory=lambda: np.zeros(6))
    torques: np.ndarray = field(default_factory=lambda: np.zeros(7))  # Nm
    velocities: np.ndarray = field(default_factory=lambda: np.zeros(7))  # rad/s
    tcp_speed: float = 0.0  # m/s
    brakes: int = 0  # bit per joint, 1 = released
    enabled: int = 0  # bit per joint
    error: int = 0
    warning: int = 0
    tcp_offset: np.ndarray = field(default_factory=lambda: np.zeros(6))  # mm and rad, as the client sent it
    load: np.ndarray = field(default_factory=lambda: np.zeros(4))  # kg, mm
    collision_sensitivity: int = 3
    teach_sensitivity: int = 3
    gravity: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, -1.0]))
    reduced: bool = False
    boundary: tuple[int, ...] = (0, 0, 0, 0, 0, 0)  # mm: x max, x min, y max, y min, z max, z min
    reduced_tcp_speed: float = 1000.0  # mm/s; reported, not enforced
    reduced_joint_speed: float = np.pi  # rad/s
    reduced_ranges: np.ndarray = field(default_factory=lambda: np.zeros(14))  # rad: low, high per joint
    fence: bool = False
    rebound: bool = False
    self_collision: bool = True


def millimetres(pose: np.ndarray) -> np.ndarray:
    """A pose (6,) in m and rad, in mm and rad."""
    return np.concatenate([pose[:3] * 1000, pose[3:]])


def _head(r: Report, size: int) -> bytes:
    state = (r.mode & 0x0F) << 4 | r.state & 0x0F
    body = pack_floats(np.concatenate([r.joints, millimetres(r.pose), r.torques]))
    return struct.pack(">IBH", size, state, r.commands & 0xFFFF) + body  # 87 bytes


def report_real(r: Report) -> bytes:
    """The frame of port 30003.  # 135 bytes; it has no error code"""
    return _head(r, 135) + bytes(48)  # a force-torque sensor that is not there


def _normal(r: Report, size: int) -> bytes:
    return (
        _head(r, size)
        + bytes([r.brakes, r.enabled, r.error & 0xFF, r.warning & 0xFF])
        + pack_floats(np.concatenate([r.tcp_offset, r.load]))
        + bytes([r.collision_sensitivity, r.teach_sensitivity])
        + pack_floats(r.gravity)
    )


def report_normal(r: Report) -> bytes:
    """The frame of port 30001.  # 145 bytes"""
    return _normal(r, 145)


def reduced_states(r: Report) -> bytes:
    """Boundary, speeds, ranges and switches of the reduced mode."""
    speeds = pack_floats([r.reduced_tcp_speed, r.reduced_joint_speed, *r.reduced_ranges])
    return struct.pack(">6h", *r.boundary) + speeds + bytes([r.fence, r.rebound])


def report_rich(r: Report) -> bytes:
    """The frame of port 30002.  # 587 bytes"""
    fault = 1 if 10 <= r.error <= 17 else 0
    flags = r.reduced | r.fence << 1
    return b"".join(
        [
            _normal(r, 587),
            bytes([7, 7, 1, 1, 1, 7]),  # arm type, axes, bus addresses
            b"v2.5.5".ljust(30, b"\0"),
            pack_floats([1000, 1, 50000, 0.1, 1000]),  # tcp: jerk, least and most acceleration and speed
            pack_floats([20, 0.01, 20, 0.01, np.pi]),  # joints: the same
            pack_floats([2.3, 2.7]),  # rotation: jerk, most acceleration
            bytes([fault, r.error if fault else 0] * 7 + [0, 0]),
            bytes([35] * 7),  # temperatures, °C
            pack_floats([r.tcp_speed * 1000, *r.velocities]),
            struct.pack(">I", 0),
            bytes(24 + 2),  # world offset; what resets the outputs
            bytes([0, r.self_collision, 0]) + bytes(24),  # simulation, self-collision check, tool model
            struct.pack(">7H", *[4800] * 7) + bytes(28),  # V/100 and A
            bytes(2 + 16 + 32),  # inputs and outputs
            bytes(48 + 1 + 12),  # force-torque sensor, identification, axis-angle
            bytes([flags, r.reduced]),
            reduced_states(r),
            bytes(4 + 1 + 2 + 6),
        ]
    )


# --------------------------------------------------------------------------------------- Modbus RTU (no CRC)

READ_REGISTERS, WRITE_REGISTERS = 0x03, 0x10
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3


def rtu_exception(slave: int, function: int, code: int) -> bytes:
    """An exception reply of a Modbus slave."""
    return bytes([slave, function | 0x80, code])

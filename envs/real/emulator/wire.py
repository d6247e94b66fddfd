"""The control box's wire format: request and reply frames, and the report frame.

Header (big-endian): u16 transaction, u16 protocol, u16 length (counted from the function byte), u8 function.
A reply echoes all but the length and puts a status byte before its data. Floats are little-endian f32, integers
big-endian unless a comment says otherwise; units are radians and millimetres.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from s2robot.envs.real.arms import geometry as kin

HEADER = struct.Struct(">HHHB")
MODBUS_TCP, HEARTBEAT = 0, 1  # protocol numbers other than the box's own (2, or 3 from firmware 1.8.6 on)
MAX_LENGTH = 1024  # the longest request of the SDK has about 180 bytes
STATUS_ERROR, STATUS_NOT_READY, STATUS_INVALID = 0x40, 0x10, 0x08


class Fn(IntEnum):
    """Functions that the emulator supports; any other is invalid."""

    VERSION = 1
    ENABLE = 11
    SET_STATE = 12
    GET_STATE = 13
    COMMAND_COUNT = 14
    ERROR = 15
    CLEAN_ERROR = 16
    CLEAN_WARNING = 17
    SET_MODE = 19
    MOVE_JOINT = 23
    SERVO_J = 29
    COLLISION_SENSITIVITY = 37
    TCP_POSE = 41
    JOINTS = 42
    REDUCED_TCP_SPEED = 47
    REDUCED_JOINT_SPEED = 48
    SET_REDUCED = 50
    BOUNDARY = 52
    REDUCED_STATES = 53
    REDUCED_RANGES = 58
    FENCE = 59
    SELF_COLLISION = 77
    RS485 = 124
    TOOL_READ16 = 128


class WireError(ValueError):
    """Bytes that cannot be a frame; their connection is out of sync and must be closed."""


class Request(NamedTuple):
    transaction: int
    protocol: int
    function: int
    payload: bytes


def split_frames(buffer: bytearray) -> list[Request]:
    """Remove and return all complete requests at the front of `buffer`. Raises WireError for an invalid header."""
    requests = []
    while len(buffer) >= HEADER.size:
        transaction, protocol, length, function = HEADER.unpack_from(buffer)
        if protocol > 3 or not 1 <= length <= MAX_LENGTH:
            actual = f"protocol {protocol} and length {length}"
            raise WireError(f"header: expected protocol 0 to 3 and 1 to {MAX_LENGTH} bytes, got {actual}")
        end = HEADER.size - 1 + length
        if len(buffer) < end:
            break
        requests.append(Request(transaction, protocol, function, bytes(buffer[HEADER.size : end])))
        del buffer[:end]
    return requests


def reply(to: Request, status: int, data: bytes = b"") -> bytes:
    return HEADER.pack(to.transaction, to.protocol, len(data) + 2, to.function) + bytes([status]) + data


def modbus_exception(to: Request) -> bytes:
    """Return the standard answer "illegal function": the emulator has no standard Modbus TCP registers."""
    function = to.payload[0] if to.payload else 0
    return HEADER.pack(to.transaction, MODBUS_TCP, 3, to.function) + bytes([function | 0x80, 1])


def pack_floats(values: Sequence[float] | np.ndarray) -> bytes:
    """Encode values as little-endian f32."""
    return np.asarray(values, "<f4").tobytes()


def floats(payload: bytes, count: int) -> np.ndarray:
    """Decode `count` little-endian f32 of a request. Raises WireError if there are fewer.  # float64 (count,)"""
    if len(payload) < 4 * count:
        raise WireError(f"payload: expected at least {4 * count} bytes, got {len(payload)}")
    with np.errstate(invalid="ignore"):  # for signalling NaNs
        return np.frombuffer(payload, "<f4", count).astype(float)


def pose_of(joints: np.ndarray) -> np.ndarray:
    """Return the flange's pose at joints (7,), in mm and rad.  # (6,)"""
    return kin.forward(joints) * ([1000] * 3 + [1] * 3)


def reduced_states(r: Any) -> bytes:
    """Encode boundary, speeds, ranges and switches of the reduced mode; see `report_rich`."""
    speeds = pack_floats([r.reduced_tcp_speed, r.reduced_joint_speed, *r.reduced_ranges])
    return struct.pack(">6h", *r.boundary) + speeds + bytes([r.fence, 0])


def report_rich(r: Any) -> bytes:
    """Encode the report frame of port 30002 for a `Controller`.  # 587 bytes"""
    motion = r.reported()
    fault = 1 if 10 <= r.error <= 17 else 0
    tool = [0] * 6 + [0.82, 0, 0, 48]  # offset (mm, rad), load (kg, mm): its own gripper
    return b"".join(
        [
            struct.pack(">IBH", 587, (r.mode & 0x0F) << 4 | r.state & 0x0F, r.motion.kind == "plan"),
            pack_floats(np.concatenate([motion["joints"], pose_of(motion["joints"]), motion["torques"]])),
            bytes([r.enabled, r.enabled, r.error & 0xFF, 0]) + pack_floats(tool),
            bytes([r.collision_sensitivity, 3]) + pack_floats([0, 0, -1]),  # also for teaching; gravity
            bytes([7, 7, 1, 1, 1, 7]),  # arm type, axes, bus addresses
            b"v2.5.5".ljust(30, b"\0"),
            # jerk, min and max acceleration and speed of TCP and joints; jerk and max acceleration of rotation
            pack_floats([1000, 1, 50000, 0.1, 1000, 20, 0.01, 20, 0.01, np.pi, 2.3, 2.7]),
            bytes([fault, r.error if fault else 0] * 7 + [0, 0]) + bytes([35] * 7),  # temperatures, °C
            pack_floats([motion["tcp_speed"] * 1000, *motion["velocities"]]),
            bytes(4 + 24 + 2),  # a counter; world offset; flags that reset the outputs
            bytes([0, r.self_collision, 0]) + bytes(24),  # simulation, self-collision check, tool model
            struct.pack(">7H", *[4800] * 7) + bytes(28),  # V/100 and A
            bytes(50 + 61),  # inputs and outputs; force-torque sensor, identification, axis-angle
            bytes([r.reduced | r.fence << 1, r.reduced]) + reduced_states(r) + bytes(13),
        ]
    )

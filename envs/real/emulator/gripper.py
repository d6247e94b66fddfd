"""The xArm gripper as a Modbus slave on the tool's RS485 bus.

Positions are the box's pulses, 0 closed to 850 open; the bus carries frames without their checksum.
"""

import struct

from s2robot.envs.real.emulator import wire

SLAVE = 8
STROKE = 850  # pulses
FULL_SPEED = 5000  # the register's highest value
_PULSES_PER_SPEED = 2 * STROKE / FULL_SPEED  # per s: at full speed the stroke takes 0.5 s, as in CubePick

STATUS, ERROR, ENABLE, MODE, CLEAR = 0x0000, 0x000F, 0x0100, 0x0101, 0x0109
SPEED, TARGET, POSITION, VERSION = 0x0303, 0x0700, 0x0702, 0x0801
_WRITABLE = {ENABLE, MODE, CLEAR, SPEED, TARGET, TARGET + 1}


class Gripper:
    """Registers, and the commanded opening over time."""

    def __init__(self) -> None:
        self.enabled = False
        self.error = 0
        self.speed = FULL_SPEED
        self.target = STROKE  # pulses
        self.commanded = float(STROKE)  # on its way to the target
        self.measured = float(STROKE)
        self._still = 1.0  # s without measured motion
        self._mode = 0

    @property
    def moving(self) -> bool:
        return self.commanded != self.target or self._still < 0.1

    def advance(self, dt: float) -> float:
        """The commanded opening ``dt`` later, 0 closed to 1 open."""
        step = self.speed * _PULSES_PER_SPEED * dt
        self.commanded += min(max(self.target - self.commanded, -step), step)
        return self.commanded / STROKE

    def observe(self, opening: float, dt: float) -> None:
        """Take note of the measured opening, 0 to 1."""
        pulses = opening * STROKE
        self._still = self._still + dt if abs(pulses - self.measured) < 0.2 else 0.0
        self.measured = pulses

    def stop(self) -> None:
        """Hold the present position."""
        self.target = round(self.commanded)
        self.commanded = float(self.target)

    # --------------------------------------------------------------------------------------------- Modbus

    def answer(self, frame: bytes) -> bytes | None:
        """The reply to one RTU frame without checksum; None if no slave of that address is on the bus."""
        if len(frame) < 2 or frame[0] != SLAVE:
            return None
        function = frame[1]
        if function not in (wire.READ_REGISTERS, wire.WRITE_REGISTERS):
            return wire.rtu_exception(SLAVE, function & 0x7F, wire.ILLEGAL_FUNCTION)
        if len(frame) < 6:
            return wire.rtu_exception(SLAVE, function, wire.ILLEGAL_VALUE)
        address, count = struct.unpack_from(">HH", frame, 2)
        if function == wire.READ_REGISTERS:
            return self._read(address, count)
        data = frame[7 : 7 + 2 * count]
        if not 1 <= count <= 123 or len(frame) < 7 or frame[6] != 2 * count or len(data) != 2 * count:
            return wire.rtu_exception(SLAVE, function, wire.ILLEGAL_VALUE)
        if any(address + i not in _WRITABLE for i in range(count)):
            return wire.rtu_exception(SLAVE, function, wire.ILLEGAL_ADDRESS)
        self._write(address, struct.unpack(f">{count}H", data))
        return frame[:6]

    def _read(self, address: int, count: int) -> bytes:
        registers = self._registers()
        if not 1 <= count <= 125:
            return wire.rtu_exception(SLAVE, wire.READ_REGISTERS, wire.ILLEGAL_VALUE)
        wanted = range(address, address + count)
        if any(a not in registers for a in wanted):
            return wire.rtu_exception(SLAVE, wire.READ_REGISTERS, wire.ILLEGAL_ADDRESS)
        values = struct.pack(f">{count}H", *(registers[a] & 0xFFFF for a in wanted))
        return bytes([SLAVE, wire.READ_REGISTERS, len(values)]) + values

    def _registers(self) -> dict[int, int]:
        position, target = round(self.measured), self.target
        blocked = abs(position - target) > 10  # it stopped short of its target: it holds something
        return {
            STATUS: 1 if self.moving else 2 if blocked else 0, ERROR: self.error, ENABLE: int(self.enabled),
            MODE: self._mode, SPEED: self.speed, TARGET: target >> 16, TARGET + 1: target, POSITION: position >> 16,
            POSITION + 1: position, VERSION: 3, VERSION + 1: 4, VERSION + 2: 3,
        }  # fmt: skip

    def _write(self, address: int, values: tuple[int, ...]) -> None:
        written = dict(enumerate(values, address))
        self.enabled = bool(written.get(ENABLE, self.enabled))
        self._mode = written.get(MODE, self._mode)
        self.error = 0 if CLEAR in written else self.error
        self.speed = min(max(written.get(SPEED, self.speed), 1), FULL_SPEED)
        if {TARGET, TARGET + 1} & written.keys() and self.enabled and not self.error:
            high = written.get(TARGET, (self.target >> 16) & 0xFFFF)
            low = written.get(TARGET + 1, self.target & 0xFFFF)
            (target,) = struct.unpack(">i", struct.pack(">HH", high, low))
            self.target = min(max(target, 0), STROKE)

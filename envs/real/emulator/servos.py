"""Emulated Feetech STS3215 servos on a pseudo-terminal: the bus of an SO-101 without the arm.

    python -m s2robot.envs.real.emulator.servos emulated.json   # prints settings for `deploy`; Ctrl-C stops it

LeRobot's `SOFollower` and `feetech-servo-sdk` work with it unchanged. There is no arm behind it, unlike in examples/so101: each
joint follows its goal with a lag and a limited speed, sags slightly, and falls back to its start without torque.
Packets follow the manufacturer's manual: FF FF, id, length, instruction or status bits, data, inverted sum.
"""

import json
import math
import os
import random
import select
import sys
import threading
import time
import tty
from contextlib import suppress
from pathlib import Path
from typing import Self

PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 1, 2, 3, 0x82, 0x83
ALL = 0xFE  # the id of a broadcast
# registers: address, bytes
MODEL, ID, LOWEST, HIGHEST, HOTTEST, OFFSET = (3, 2), (5, 1), (9, 2), (11, 2), (13, 1), (31, 2)
TORQUE, GOAL, POSITION, SPEED, LOAD = (40, 1), (42, 2), (56, 2), (58, 2), (60, 2)
VOLTAGE, TEMPERATURE, STATUS = (62, 1), (63, 1), (65, 1)
SIGN = {OFFSET: 11, GOAL: 15, POSITION: 15, SPEED: 15, LOAD: 10}  # register -> the bit that holds the sign
MEASURED = range(56, 71)  # read-only addresses
OVERHEAT, OVERLOAD = 4, 32  # status bits; on either, a servo switches its torque off
TICKS = 4096  # per turn
FASTEST, FALL = 3000.0, 1500.0  # ticks/s with torque, and falling without it
SAG = 12.0  # ticks from the goal, under its weight
LAG_S, OVERLOAD_S = 0.03, 1.0  # time constant; time after which a jammed servo reports an overload
STEP_S = 0.005  # s, time step of the simulation
SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
REST = (2048, 1266, 2830, 2634, 2048, 1400)  # ticks, arm folded half-way
FALLING = (2, 3, 4)  # servos that fall back there without torque


def clipped(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


class Servo:
    """One servo: its registers and its joint.

    Attributes: `place` (ticks, before the offset), `rest` (ticks to which it falls; None: it does not fall), `written` (all
    goals received), `silent` (it dropped off the bus), `jammed`.
    """

    def __init__(self, number: int, place: float, falls: bool):
        self.memory, self.written = bytearray(128), list[int]()
        self.place, self.rest = float(place), place if falls else None
        self.silent, self.jammed, self._pushed = False, False, 0.0
        self[MODEL], self[ID], self[HIGHEST], self[HOTTEST] = 777, number, TICKS - 1, 70
        self[VOLTAGE], self[TEMPERATURE] = 120, 30  # 0.1 V, °C
        self.advance(0.0)
        self[GOAL] = self[POSITION]

    def __getitem__(self, register: tuple[int, int]) -> int:
        value = int.from_bytes(self.memory[register[0] : sum(register)], "little")
        sign = 1 << SIGN.get(register, 16)
        return sign - value if value & sign else value

    def __setitem__(self, register: tuple[int, int], value: float) -> None:
        raw = int(value) if value >= 0 else int(-value) | 1 << SIGN[register]
        self.memory[register[0] : sum(register)] = raw.to_bytes(register[1], "little")

    def write(self, address: int, data: bytes) -> None:
        for i, value in enumerate(data, address):
            if i not in MEASURED and i < len(self.memory):
                self.memory[i] = value
        if address <= GOAL[0] < address + len(data):
            self.written.append(self[GOAL])

    # the commanded position, ticks, before the offset
    goal = property(lambda self: min(max(self[GOAL], self[LOWEST]), self[HIGHEST]) + self[OFFSET])

    def moved(self, goal: float, seconds: float) -> float:
        """Return how far the joint moves, ticks; a subclass may simulate it."""
        if not self[TORQUE]:
            return 0.0 if self.rest is None else clipped(self.rest - self.place, FALL * seconds)
        if self.rest is not None:
            goal += clipped(self.rest - goal, SAG)
        step = 0.0 if self.jammed else (goal - self.place) * (1 - math.exp(-seconds / LAG_S))
        return clipped(step, FASTEST * seconds)

    def advance(self, seconds: float) -> None:
        if self[STATUS]:
            self[TORQUE] = 0
        goal, before = self.goal, self.place
        self.place += self.moved(goal, seconds)
        pushes = self.jammed and self[TORQUE] and abs(goal - before) > 50
        self._pushed = self._pushed + seconds if pushes else 0.0
        hot, overload = self[TEMPERATURE] >= self[HOTTEST], self._pushed > OVERLOAD_S
        self[STATUS] = OVERHEAT * hot | OVERLOAD * overload | self[STATUS] & OVERLOAD
        self[POSITION] = round(self.place) - self[OFFSET]
        self[SPEED] = clipped((self.place - before) / (seconds or 1.0), 32767)
        self[LOAD] = clipped(goal - self.place, 1000) if self[TORQUE] else 0


class ServoBus:
    """Servos numbered 1, 2, ... on a pseudo-terminal: `with ServoBus() as bus` serves `bus.port`.

    Attributes: `servos`; `noise`, the fraction of corrupted answers; `mute`, no servo answers; `packets`, number received.
    """

    def __init__(self) -> None:
        self.servos = {i: Servo(i, place, i in FALLING) for i, place in enumerate(REST, 1)}
        self.noise, self.mute, self.packets = 0.0, False, 0
        self._random, self._ended = random.Random(0), threading.Event()
        self._terminal, client_end = os.openpty()
        tty.setraw(client_end)
        self.port = os.ttyname(client_end)
        os.close(client_end)  # so that the port is in use only while a client has it open
        os.set_blocking(self._terminal, False)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="servos")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def unplug(self, *_: object) -> None:
        """Remove the port; may be called repeatedly."""
        self._ended.set()
        self._thread.join(5.0)
        if self._terminal >= 0:
            os.close(self._terminal)
        self._terminal = -1

    __exit__ = unplug

    def values(self, register: tuple[int, int]) -> list[int]:
        return [servo[register] for servo in self.servos.values()]

    def calibrate(self, file: Path, margin: int = 700) -> None:
        """Write LeRobot's calibration file for an SO-101, with ranges `margin` ticks from both ends of a turn, and apply it."""
        motors = {}
        for name, (i, servo) in zip(SO101, self.servos.items(), strict=True):
            low = 0 if name == "wrist_roll" else margin
            servo[LOWEST], servo[HIGHEST] = low, TICKS - 1 - low
            ranges = {"range_min": low, "range_max": TICKS - 1 - low}
            motors[name] = {"id": i, "drive_mode": 0, "homing_offset": servo[OFFSET], **ranges}
        file.write_text(json.dumps(motors, indent=4))

    def _serve(self) -> None:
        waiting, last = b"", time.monotonic()
        while not self._ended.is_set():
            try:
                if select.select([self._terminal], [], [], STEP_S)[0]:
                    waiting += os.read(self._terminal, 4096)
            except OSError:  # no client has the port open
                self._ended.wait(STEP_S)
            last = max(last, time.monotonic() - 1)
            while time.monotonic() - last >= STEP_S:
                last += STEP_S
                self.advance(STEP_S)
            answer, waiting = self.take(waiting)
            with suppress(OSError):
                os.write(self._terminal, answer)

    def advance(self, seconds: float) -> None:
        for servo in self.servos.values():
            servo.advance(seconds)

    def take(self, received: bytes) -> tuple[bytes, bytes]:
        """Return the answers to the complete packets in `received`, and the bytes of an incomplete one."""
        answers = b""
        while (begin := received.find(b"\xff\xff")) >= 0 and len(received) >= begin + 4:
            end = begin + 4 + received[begin + 3]
            if len(received) < end:
                break
            body, received = received[begin + 2 : end], received[end:]
            if len(body) >= 4 and ~sum(body[:-1]) & 0xFF == body[-1]:
                self.packets += 1
                answers += self._answer(body[0], body[2], body[3:-1])
        return answers, received

    def _answer(self, number: int, instruction: int, data: bytes) -> bytes:
        servos = {i: s for i, s in self.servos.items() if number in (i, ALL) and not (s.silent or self.mute)}
        if instruction == SYNC_READ:
            return b"".join(self._status(servos[i], *data[:2]) for i in data[2:] if i in servos)
        if instruction == SYNC_WRITE:
            for at in range(2, len(data), data[1] + 1):
                if (servo := servos.get(data[at])) is not None:
                    servo.write(data[0], data[at + 1 : at + 1 + data[1]])
            return b""
        for servo in servos.values():
            if instruction == WRITE:
                servo.write(data[0], data[1:])
        if number == ALL and instruction != PING:
            return b""
        requested = data[:2] if instruction == READ else (0, 0)
        return b"".join(self._status(servo, *requested) for servo in servos.values())

    def _status(self, servo: Servo, address: int, size: int) -> bytes:
        body = bytes([servo[ID], size + 2, servo[STATUS], *servo.memory[address : address + size]])
        corruption = 0x55 if self._random.random() < self.noise else 0
        return b"\xff\xff" + body + bytes([~sum(body) & 0xFF ^ corruption])


if __name__ == "__main__":
    with ServoBus() as served, suppress(KeyboardInterrupt):
        served.calibrate(calibration := Path(sys.argv[1]).resolve())
        options = f"robot.id={calibration.stem} +robot.options.calibration_dir={calibration.parent}"
        print(f"robot=lerobot robot.type=so101_follower robot.port={served.port} {options}", flush=True)
        threading.Event().wait()

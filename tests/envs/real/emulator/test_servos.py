"""The packets of the emulated servos, and what is behind them."""

import os
import select
import time
import tty

import pytest

from s2robot.envs.real.emulator.servos import (
    ALL,
    GOAL,
    LOAD,
    OFFSET,
    OVERHEAT,
    OVERLOAD,
    PING,
    POSITION,
    READ,
    REST,
    STATUS,
    SYNC_READ,
    SYNC_WRITE,
    TEMPERATURE,
    TORQUE,
    VOLTAGE,
    WRITE,
    ServoBus,
)
from tests.envs.real.patience import PATIENCE


@pytest.fixture
def bus():
    bus = ServoBus()
    yield bus
    bus._thread.ident or os.close(bus._ours)


def packet(number, instruction, *data):
    body = bytes([number, len(data) + 2, instruction, *data])
    return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


def ask(bus, *words):
    answer, rest = bus.take(packet(*words))
    assert rest == b""
    return answer


def test_packets_are_those_of_the_manual(bus):
    assert packet(1, PING) == bytes.fromhex("ff ff 01 02 01 fb")
    assert ask(bus, 1, PING) == bytes.fromhex("ff ff 01 02 00 fc")
    assert ask(bus, 2, READ, *VOLTAGE) == bytes.fromhex("ff ff 02 03 00 78 82")
    assert ask(bus, 1, READ, 3, 2) == bytes.fromhex("ff ff 01 04 00 09 03 ee")  # model 777
    assert ask(bus, 1, WRITE, GOAL[0], 0x18, 0x05) == packet(1, 0)
    assert bus.servos[1][GOAL] == 0x518 and bus.servos[1].written == [0x518]
    assert ask(bus, ALL, SYNC_WRITE, *GOAL, 1, 1, 2, 3, 3, 4) == b""
    assert [bus.servos[i][GOAL] for i in (1, 3)] == [0x201, 0x403]
    answers = [ask(bus, i, READ, *POSITION) for i in (3, 1)]
    assert ask(bus, ALL, SYNC_READ, *POSITION, 3, 1) == b"".join(answers)
    assert len(ask(bus, ALL, PING)) == 6 * len(bus.servos)
    assert ask(bus, ALL, WRITE, *TORQUE) == b"" and bus.values(TORQUE) == [1] * 6
    ask(bus, 1, WRITE, POSITION[0], 1, 1)
    assert bus.servos[1][POSITION] == REST[0] and not ask(bus, 9, PING)


def test_bytes_may_come_in_pieces_with_noise_between_and_broken_packets_are_dropped(bus):
    whole, broken = packet(1, PING), packet(2, PING)[:-1] + b"\0"
    sent, waiting, got = b"\x07" + broken + whole + whole, b"", b""
    for i in range(len(sent)):
        answer, waiting = bus.take(waiting + sent[i : i + 1])
        got += answer
    assert got == packet(1, 0) * 2 and bus.packets == 2
    bus.noise = 1.0
    assert ask(bus, 1, PING)[:-1] == packet(1, 0)[:-1] != ask(bus, 1, PING)
    bus.servos[2].silent = True
    assert not ask(bus, 2, PING) and len(ask(bus, ALL, SYNC_READ, *TORQUE, 1, 2, 3)) == 2 * 7
    bus.mute = True
    assert not ask(bus, 1, PING)


def test_a_servo_follows_its_goal_sags_falls_without_torque_and_protects_itself(bus):
    servo, pan = bus.servos[2], bus.servos[1]

    def run(seconds):
        for _ in range(round(seconds / 0.005)):
            servo.advance(0.005)
            pan.advance(0.005)

    servo[OFFSET] = -100  # measured = place - offset
    servo[TORQUE] = pan[TORQUE] = 1
    servo[GOAL], pan[GOAL] = 2000, 2500
    run(1.0)
    assert (
        pan[POSITION] == 2500
        and 0 < 2000 - servo[POSITION] < 20
        and servo.place == pytest.approx(1888, abs=1)
    )
    servo[TORQUE] = pan[TORQUE] = 0
    run(2.0)
    assert servo.place == REST[1] and pan[POSITION] == 2500
    servo[TORQUE], servo.jammed, servo[GOAL] = 1, True, 2500
    run(0.5)
    assert servo[LOAD] == 1000 and servo[STATUS] == 0
    run(1.0)
    assert servo[STATUS] == OVERLOAD and not servo[TORQUE]
    pan[TORQUE], pan[TEMPERATURE] = 1, 80
    run(0.02)
    assert pan[STATUS] == OVERHEAT and not pan[TORQUE] and ask(bus, 1, PING)[4] == OVERHEAT


def test_a_terminal_serves_it_until_it_is_unplugged():
    with ServoBus() as bus:
        client = os.open(bus.port, os.O_RDWR)
        tty.setraw(client)
        os.write(client, packet(1, PING))
        assert select.select([client], [], [], PATIENCE)[0] and os.read(client, 99) == packet(1, 0)
        os.write(client, packet(1, WRITE, *TORQUE) + packet(1, WRITE, GOAL[0], 0, 8))
        end = time.monotonic() + PATIENCE
        while bus.values(POSITION)[0] != 2048 and time.monotonic() < end:
            time.sleep(0.01)
        assert bus.values(POSITION)[0] == 2048
        bus.unplug()
        assert not os.path.exists(bus.port)
        os.close(client)

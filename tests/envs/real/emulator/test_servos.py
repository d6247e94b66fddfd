"""The packets and the simulated motion of the emulated servos."""

import os
import select
import tty

import pytest

from s2robot.envs.real.emulator import servos as s
from tests.envs.real.patience import PATIENCE, wait_for


@pytest.fixture
def bus():
    with s.ServoBus() as bus:
        yield bus


def packet(number, instruction, *data):
    body = bytes([number, len(data) + 2, instruction, *data])
    return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


def test_packets_match_the_manual(bus):
    ask = lambda *words: bus.take(packet(*words))[0]  # noqa: E731
    assert packet(1, s.PING) == bytes.fromhex("ff ff 01 02 01 fb")
    assert ask(1, s.PING) == bytes.fromhex("ff ff 01 02 00 fc")
    assert ask(2, s.READ, *s.VOLTAGE) == bytes.fromhex("ff ff 02 03 00 78 82")
    assert ask(1, s.READ, 3, 2) == bytes.fromhex("ff ff 01 04 00 09 03 ee")  # model 777
    assert ask(1, s.WRITE, s.GOAL[0], 0x18, 0x05) == packet(1, 0) and bus.servos[1].written == [0x518]
    assert ask(s.ALL, s.SYNC_WRITE, *s.GOAL, 1, 1, 2, 3, 3, 4) == b""
    assert [bus.servos[i][s.GOAL] for i in (1, 3)] == [0x201, 0x403]
    assert ask(s.ALL, s.SYNC_READ, *s.VOLTAGE, 3, 1) == b"".join(ask(i, s.READ, *s.VOLTAGE) for i in (3, 1))
    bus.servos[2].silent = True
    assert not ask(2, s.PING) and len(ask(s.ALL, s.PING)) == 5 * 6
    bus.noise = 1.0
    assert ask(1, s.PING)[:-1] == packet(1, 0)[:-1] and ask(1, s.PING) != packet(1, 0)
    bus.mute = True
    assert not ask(1, s.PING)


def test_split_packets_are_joined_and_broken_ones_dropped(bus):
    valid, pending, answers = packet(1, s.PING), b"", b""
    for byte in b"\x07" + packet(2, s.PING)[:-1] + b"\0" + valid + valid:
        answer, pending = bus.take(pending + bytes([byte]))
        answers += answer
    assert answers == packet(1, 0) * 2 and bus.packets == 2


def test_servo_tracks_sags_falls_without_torque_and_protects_itself():
    servo, pan = s.Servo(1, 1266, True), s.Servo(2, 2048, False)

    def run(seconds):
        for _ in range(round(seconds / 0.005)):
            servo.advance(0.005)
            pan.advance(0.005)

    servo[s.OFFSET] = -100  # measured = place - offset
    servo[s.TORQUE] = pan[s.TORQUE] = 1
    servo[s.GOAL], pan[s.GOAL] = 2000, 2500
    run(1.0)
    assert pan[s.POSITION] == 2500 and servo[s.POSITION] == 1988 and servo.place == pytest.approx(1888, abs=1)
    servo[s.TORQUE] = pan[s.TORQUE] = 0
    run(2.0)
    assert servo.place == 1266 and pan[s.POSITION] == 2500
    servo[s.TORQUE], servo.jammed, servo[s.GOAL] = 1, True, 2500
    run(0.5)
    assert servo[s.LOAD] == 1000 and servo[s.STATUS] == 0
    run(1.0)
    pan[s.TORQUE], pan[s.TEMPERATURE] = 1, 80
    run(0.02)
    assert [one[s.STATUS] for one in (servo, pan)] == [s.OVERLOAD, s.OVERHEAT]
    assert not servo[s.TORQUE] and not pan[s.TORQUE]


def test_pseudo_terminal_serves_the_bus_until_unplugged(bus):
    client = os.open(bus.port, os.O_RDWR)
    tty.setraw(client)
    os.write(client, packet(1, s.PING))
    assert select.select([client], [], [], PATIENCE)[0] and os.read(client, 99) == packet(1, 0)
    os.write(client, packet(1, s.WRITE, *s.TORQUE) + packet(1, s.WRITE, s.GOAL[0], 0, 9))
    wait_for(lambda: bus.values(s.POSITION)[0] == 0x900, "motion")
    bus.unplug()
    assert not os.path.exists(bus.port)
    os.close(client)

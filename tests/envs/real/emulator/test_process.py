"""The emulator as a process: ports, start and end, bytes that are no frames."""

import asyncio
import json
import signal
import socket
from contextlib import suppress

import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.sdk import client_ports
from s2robot.envs.real.emulator.emulator import EmulatorConfig, launch, serve
from s2robot.envs.real.emulator.side import HOST, Ports, SideChannel, free_ports
from s2robot.envs.real.emulator.stand_in import StandIn

ANSWER_S = 30.0


def ask(port: int, data: bytes, size: int) -> bytes:
    """What the emulator answers to `data`, up to `size` bytes; b"" if it closes the connection."""
    with socket.create_connection((HOST, port), timeout=ANSWER_S) as s, suppress(ConnectionResetError):
        s.sendall(data)
        return s.recv(size, socket.MSG_WAITALL)
    return b""


def test_client_ports_change_the_sdk_and_put_it_back():
    conf = pytest.importorskip("xarm.core.config.x_config").XCONF.SocketConf
    report = pytest.importorskip("xarm.x3.report").ReportDataStructure
    create = vars(report)["create"]
    with client_ports(Ports()):
        assert (conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT) == (15502, 15302)
        assert len(report.create(15302, is_radian=True)) == 587
        with pytest.raises(EnvError, match="redirected to port 15502"):
            with client_ports(Ports()):
                pass
    assert (conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT) == (502, 30002)
    assert vars(report)["create"] is create


def test_a_taken_port_is_one_clear_line(emulator):
    with pytest.raises(EnvError, match=f"^port {emulator.ports.control}: "):
        asyncio.run(serve(EmulatorConfig(plant="kinematic"), emulator.ports, lambda: None))


@pytest.mark.parametrize("how", ["SIGTERM", "stdin"])
def test_ends_cleanly(how):
    with launch("kinematic") as emulator:
        assert Ports.from_json(emulator.ports.to_json()) == emulator.ports != free_ports()
        with socket.create_connection((HOST, emulator.ports.control)) as s:
            if how == "stdin":
                emulator.process.stdin.close()
            else:
                emulator.process.send_signal(signal.SIGTERM)
            assert emulator.process.wait(60) == 0
            with suppress(ConnectionResetError):
                assert s.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, emulator.ports.control))


def test_a_side_channel_goes_on_after_an_answer_that_came_late(emulator):
    with SideChannel(emulator.ports.side, 0.5) as side:
        emulator.process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(EnvError, match="no answer to 'cameras'"):
                side("cameras")
        finally:
            emulator.process.send_signal(signal.SIGCONT)
        side._timeout_s = ANSWER_S
        assert side("status")["mode"] == 0 and side("ports")["side"] == emulator.ports.side


def test_another_port_of_the_emulator_is_one_clear_line(emulator):
    for port in (emulator.ports.control, emulator.ports.report):
        with pytest.raises(EnvError, match="^[^\n]*expected a running .*, got no [^\n]*$"):
            StandIn(port)


def test_impossible_headers_close_the_connection_only(emulator):
    for data in ("00010009000101", "0001000200000d", "0001 0002 ffff 0d", "ff" * 64):
        assert ask(emulator.ports.control, bytes.fromhex(data), 1) == b""
    assert emulator.side("status")["ok"]


def test_standard_modbus_and_heartbeats(emulator):
    data = bytes.fromhex("0000 0001 0002 00 00  0009 0000 0006 01 03 0000 0001")
    assert ask(emulator.ports.control, data, 9) == bytes.fromhex("0009 0000 0003 01 83 01")


def test_side_channel_answers_anything(emulator):
    with socket.create_connection((HOST, emulator.ports.side), timeout=ANSWER_S) as s:
        lines = s.makefile("rb")
        for line in (b"{", b"[]", b'{"op": []}', b"\xff\xfe", b'{"op": "motion"}', b"[" * 9000):
            s.sendall(line + b"\n")
            answer = json.loads(lines.readline())
            assert answer["ok"] is False and "\n" not in answer["error"]


def test_a_client_that_never_reads_does_not_hold_up_others(emulator):
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((HOST, emulator.ports.control))
        deaf.setblocking(False)
        joints = bytes.fromhex("0001 0002 0002 2a 03")
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                deaf.sendall(joints * 100)
        with SideChannel(emulator.ports.side, ANSWER_S) as side:
            assert side("status")["ok"]
        assert len(ask(emulator.ports.control, joints, 92)) == 92

"""The emulator as a process: ports, shutdown, malformed bytes; and its faults, observed through the vendor's SDK."""

import asyncio
import json
import logging
import signal
import socket
import time
from contextlib import suppress

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.sdk import client_ports
from s2robot.envs.real.emulator.emulator import EmulatorConfig, launch, serve
from s2robot.envs.real.emulator.side import HOST, Ports, SideChannel, free_ports
from s2robot.envs.real.emulator.stand_in import StandIn
from tests.envs.real import home
from tests.envs.real.patience import arrived, wait_for
from tests.errors import fails

ANSWER_S = 30.0
HOME = home.HOME.tolist()  # JSON and the SDK require lists


def ask(port: int, data: bytes, size: int) -> bytes:
    """Return the emulator's answer to `data`, up to `size` bytes; b"" if it closes the connection."""
    with socket.create_connection((HOST, port), timeout=ANSWER_S) as s, suppress(ConnectionResetError):
        s.sendall(data)
        return s.recv(size, socket.MSG_WAITALL)
    return b""


def test_client_ports_patch_and_restore_the_sdk():
    conf = pytest.importorskip("xarm.core.config.x_config").XCONF.SocketConf
    report = pytest.importorskip("xarm.x3.report").ReportDataStructure
    create = vars(report)["create"]
    with client_ports(Ports()):
        assert (conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT) == (15502, 15302)
        assert len(report.create(15302, is_radian=True)) == 587
        with pytest.raises(EnvError, match="redirected to port 15502"), client_ports(Ports()):
            pass
    assert (conf.TCP_CONTROL_PORT, conf.TCP_REPORT_RICH_PORT) == (502, 30002)
    assert vars(report)["create"] is create


def test_port_in_use_is_one_error_line(emulator):
    with pytest.raises(EnvError, match=f"^port {emulator.ports.control}: "):
        asyncio.run(serve(EmulatorConfig(plant="kinematic"), emulator.ports, lambda: None))


@pytest.mark.parametrize("how", ["SIGTERM", "stdin"])
def test_emulator_ends_cleanly(how):
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


def test_side_channel_recovers_after_a_late_answer(emulator):
    with SideChannel(emulator.ports.side, 0.5) as side:
        emulator.process.send_signal(signal.SIGSTOP)
        try:
            fails("no answer to 'cameras'", side, "cameras")
        finally:
            emulator.process.send_signal(signal.SIGCONT)
        side._timeout_s = ANSWER_S
        assert side("status")["mode"] == 0 and side("ports")["side"] == emulator.ports.side


def test_wrong_emulator_port_is_one_error_line(emulator):
    for port in (emulator.ports.control, emulator.ports.report):
        fails("^[^\n]*expected a running .*, got no [^\n]*$", StandIn, port)


def test_bad_headers_close_only_their_connection_and_modbus_is_answered(emulator):
    for data in ("00010009000101", "0001000200000d", "0001 0002 ffff 0d", "ff" * 64):
        assert ask(emulator.ports.control, bytes.fromhex(data), 1) == b""
    data = bytes.fromhex("0000 0001 0002 00 00  0009 0000 0006 01 03 0000 0001")  # after a heartbeat
    assert ask(emulator.ports.control, data, 9) == bytes.fromhex("0009 0000 0003 01 83 01")


def test_side_channel_answers_any_input(emulator):
    with socket.create_connection((HOST, emulator.ports.side), timeout=ANSWER_S) as s:
        lines = s.makefile("rb")
        for line in (b"{", b"[]", b'{"op": []}', b"\xff\xfe", b'{"op": "motion"}', b"[" * 9000):
            s.sendall(line + b"\n")
            answer = json.loads(lines.readline())
            assert answer["ok"] is False and "\n" not in answer["error"]


@pytest.fixture
def arm(emulator):
    """Return the SDK's arm, ready for a stream of joints."""
    wrapper = pytest.importorskip("xarm.wrapper")
    logging.getLogger("xarm.core.utils.log").setLevel(logging.CRITICAL)
    emulator.side("clear")
    with client_ports(emulator.ports):
        arm = wrapper.XArmAPI("127.0.0.1", is_radian=True, forbid_uds=True)
        arm.set_timeout(10)
        arm.clean_error()
        emulator.side("place_arm", joints=HOME)
        assert (arm.motion_enable(True), arm.set_mode(1), arm.set_state(0)) == (0, 0, 0)
        yield arm
        emulator.side("clear")
        arm.disconnect()


def joints(arm):
    code, states = arm.get_joint_states()
    assert code == 0
    return np.array(states[0])


def test_commands_that_the_sdk_lets_through(arm, emulator):
    begin, targets = time.monotonic(), [np.array(HOME) + 0.001 * k for k in range(1, 11)]
    for target in targets:
        assert arm.set_servo_angle_j(list(target)) == 0
        time.sleep(0.01)
    wait_for(lambda: np.abs(joints(arm) - targets[-1]).max() < 1e-3, "the motion")
    sent = arrived(emulator, begin)
    assert [c["name"] for c in sent] == ["SERVO_J"] * 10
    np.testing.assert_allclose([c["values"][:7] for c in sent], targets, atol=1e-6)
    assert all(c["accepted"] and not c["unsafe"] for c in sent)
    begin = time.monotonic()
    assert arm.set_servo_angle_j([0, 0, 0, -0.5, 0, 0, 0]) == -8  # the SDK's range check
    assert arrived(emulator, begin) == []
    for value in (float("nan"), float("inf")):  # the SDK's check misses both
        assert arm.set_servo_angle_j([value, *HOME[1:]]) == 10
    assert [c["flags"] for c in arrived(emulator, begin)] == [["nonfinite"]] * 2
    np.testing.assert_allclose(joints(arm), targets[-1], atol=1e-3)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("no", {}, "KeyError: 'fault no'"), ("delay", {"seconds": -1}, "seconds"), ("mode", {"mode": 9}, "mode"),
        ("camera_stale", {"camera": "hand"}, "camera_stale: expected"), ("drop", {"clients": 1}, "clients"),
    ],
)  # fmt: skip
def test_unknown_faults_and_settings_are_one_error_line(emulator, name, settings, message):
    fails(message, emulator.side.fault, name, **settings)


def test_commands_of_a_dropped_connection_to_a_hung_box_never_execute(arm, emulator):
    arm.set_timeout(0.3)
    when = emulator.side.fault("hang")
    assert arm.set_servo_angle_j([0.01, *HOME[1:]]) == 3
    emulator.side.fault("drop")
    control = str(emulator.ports.control)
    wait_for(lambda: emulator.side("status")["connections"][control] == 0, "the end of the connection")
    assert not arrived(emulator, when)


def test_frozen_joints_are_reported_while_the_arm_moves(arm, emulator):
    emulator.side.fault("freeze_joints")
    assert arm.set_servo_angle_j([0.05, *HOME[1:]]) == 0
    wait_for(lambda: abs(emulator.side("status")["joints"][0] - 0.05) < 1e-3, "the motion")
    assert joints(arm)[0] == 0
    emulator.side("clear")
    assert abs(joints(arm)[0] - 0.05) < 1e-3

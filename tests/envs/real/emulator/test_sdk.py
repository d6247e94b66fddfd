"""The vendor's unmodified SDK against the emulator in its own process, and each of its faults. Waits are long."""

import logging
import socket
import time

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms import geometry as kin
from s2robot.envs.real.arms.sdk import client_ports
from tests.envs.real import home
from tests.envs.real.patience import wait_for

wrapper = pytest.importorskip("xarm.wrapper")

HOME = home.HOME.tolist()  # JSON and the SDK want lists


@pytest.fixture
def arm(emulator):
    """Ready for a stream of joints."""
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


def at(arm, target, tolerance=1e-3):
    wait_for(lambda: np.abs(joints(arm) - target).max() < tolerance, "the motion")


def arrived(emulator, since=0.0):
    """Motion commands that have reached the box."""
    return [c for c in emulator.side("commands", since=since)["commands"] if c["kind"] == "motion"]


def test_connects_and_tells_who_and_where_it_is(arm):
    assert arm.connected and arm.axis == 7 and arm.version_number == (2, 5, 5)
    assert arm.get_state() == (0, 2) and arm.get_err_warn_code() == (0, [0, 0])
    np.testing.assert_allclose(arm.get_servo_angle(is_real=True)[1], HOME, atol=1e-6)
    pose = kin.forward(np.array(HOME))
    np.testing.assert_allclose(arm.get_position()[1][:3], pose[:3] * 1000, atol=1e-3)
    wait_for(lambda: np.abs(np.array(arm.angles) - HOME).max() < 1e-5, "a report")


def test_servo_stream_at_100_hz_reaches_the_wire_and_the_joints(arm, emulator):
    began = time.monotonic()
    targets = [np.array(HOME) + 0.001 * k for k in range(1, 51)]
    for k, target in enumerate(targets):
        assert arm.set_servo_angle_j(list(target)) == 0
        time.sleep(max(0.0, began + 0.01 * (k + 1) - time.monotonic()))
    at(arm, targets[-1])
    sent = arrived(emulator, began)
    assert [c["name"] for c in sent] == ["SERVO_J"] * 50
    np.testing.assert_allclose([c["values"][:7] for c in sent], targets, atol=1e-6)
    assert all(c["accepted"] and not c["unsafe"] for c in sent)


def test_what_the_sdk_lets_through(arm, emulator):
    began = time.monotonic()
    assert arm.set_servo_angle_j([0, 0, 0, -0.5, 0, 0, 0]) == -8  # its own range check
    assert arrived(emulator, began) == []
    for value in (float("nan"), float("inf")):  # it compares with neither
        assert arm.set_servo_angle_j([value, *HOME[1:]]) == 10
    assert [c["flags"] for c in arrived(emulator, began)] == [["nonfinite"]] * 2
    np.testing.assert_allclose(joints(arm), HOME, atol=1e-6)


@pytest.mark.parametrize(
    "name, settings, said",
    [
        ("no", {}, "KeyError: 'fault no'"), ("delay", {"seconds": -1}, "seconds"), ("mode", {"mode": 9}, "mode"),
        ("camera_stale", {"camera": "hand"}, "camera_stale: expected"), ("drop", {"clients": 1}, "clients"),
    ],
)  # fmt: skip
def test_unknown_faults_and_settings_are_one_clear_line(emulator, name, settings, said):
    with pytest.raises(EnvError, match=said) as caught:
        emulator.side.fault(name, **settings)
    assert "\n" not in str(caught.value)


def test_what_a_dropped_connection_sent_to_a_hung_box_is_never_obeyed(arm, emulator):
    arm.set_timeout(0.3)
    when = emulator.side.fault("hang")
    assert arm.set_servo_angle_j([0.01, *HOME[1:]]) == 3
    emulator.side.fault("drop")
    control = str(emulator.ports.control)
    wait_for(lambda: emulator.side("status")["connections"][control] == 0, "the end of the connection")
    assert not arrived(emulator, when)


def test_a_stall_ends_by_itself_and_what_was_sent_is_obeyed_then(arm, emulator):
    target, begin = [0.01, *HOME[1:]], time.monotonic()
    when = emulator.side.fault("stall", seconds=0.4)
    assert arm.set_servo_angle_j(target) == 0  # the SDK waits for 10 s here
    assert time.monotonic() - begin >= 0.4
    (first,) = arrived(emulator, when)
    assert first["time"] - when >= 0.4
    arm.set_timeout(0.1)
    emulator.side.fault("stall", seconds=0.3)
    assert arm.set_servo_angle_j([0.02, *HOME[1:]]) == 3
    arm.set_timeout(10)  # a late answer is not taken for a later request's
    at(arm, [0.02, *HOME[1:]])


def test_half_open_connections_get_no_answer_and_no_reports_and_end_with_their_client(arm, emulator):
    control, report = str(emulator.ports.control), str(emulator.ports.report)
    before = emulator.side("status")["connections"]
    emulator.side.fault("half_open")
    for port, data in (
        (emulator.ports.report, b""),
        (emulator.ports.control, bytes.fromhex("0001 0002 0001 0d")),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=0.5) as s:
            s.sendall(data)
            with pytest.raises(TimeoutError):
                s.recv(16)
            assert emulator.side("status")["connections"][str(port)] == before[str(port)] + 1
    assert arm.set_servo_angle_j(HOME) == 0  # those from before go on
    ports = {control: before[control], report: before[report]}
    wait_for(lambda: ports.items() <= emulator.side("status")["connections"].items(), "their end")


def test_frozen_joints_are_told_while_the_arm_moves(arm, emulator):
    emulator.side.fault("freeze_joints")
    assert arm.set_servo_angle_j([0.05, *HOME[1:]]) == 0
    wait_for(lambda: abs(emulator.side("status")["joints"][0] - 0.05) < 1e-3, "the motion")
    assert joints(arm)[0] == 0
    emulator.side("clear")
    assert abs(joints(arm)[0] - 0.05) < 1e-3

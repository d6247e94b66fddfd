"""Each fault, as the vendor's SDK sees it."""

import socket
import time

import pytest

from s2robot.envs.errors import EnvError
from tests.envs.real import home
from tests.envs.real.patience import wait_for

pytest.importorskip("xarm")

HOME = home.HOME.tolist()  # JSON and the SDK want lists


@pytest.fixture
def arm(emulator, connect):
    emulator.side("clear")
    arm = connect()
    arm.clean_error()
    emulator.side("place_arm", joints=HOME)
    arm.motion_enable(True)
    arm.set_mode(1)
    arm.set_state(0)
    yield arm
    emulator.side("clear")
    arm.disconnect()


def arrived(emulator, since):
    """Motion commands that have reached the box."""
    return [c for c in emulator.side("commands", since=since)["commands"] if c["kind"] == "motion"]


@pytest.mark.parametrize(
    "name, settings, said",
    [
        ("no", {}, "fault: expected one of drop, hang"), ("delay", {}, "seconds"), ("delay", {"seconds": -1}, "seconds"),
        ("error", {"code": 0}, "code"), ("mode", {"mode": 9}, "mode"), ("mode", {"mode": 6.0}, "mode"),
        ("camera_stale", {"camera": "hand"}, "camera_stale: expected"), ("drop", {"clients": 1}, "clients"),
    ],
)  # fmt: skip
def test_unknown_faults_and_settings_are_one_clear_line(emulator, name, settings, said):
    with pytest.raises(EnvError, match=said) as caught:
        emulator.side.fault(name, **settings)
    assert "\n" not in str(caught.value)


def test_drop(arm, emulator):
    arm.set_timeout(0.5)
    at = emulator.side.fault("drop")
    wait_for(lambda: arm.set_servo_angle_j(HOME) == -1, "the loss of the connection")
    assert not arm.connected
    assert not any(c["accepted"] for c in arrived(emulator, at))


def test_drop_and_refuse(arm, emulator, connect):
    emulator.side.fault("drop", refuse=True)
    wait_for(lambda: not arm.connected, "the loss of the connection")
    with pytest.raises(Exception, match="connect socket failed|failed to check version"):
        connect()


def test_hang_blocks_and_what_was_sent_is_obeyed_late(arm, emulator):
    arm.set_timeout(0.3)
    at = emulator.side.fault("hang")
    assert arm.set_servo_angle_j([0.01, *HOME[1:]]) == 3
    assert not arrived(emulator, at)
    emulator.side("clear")
    wait_for(lambda: any(c["accepted"] for c in arrived(emulator, at)), "the late command")


def test_what_a_dropped_connection_sent_to_a_hung_box_is_never_obeyed(arm, emulator):
    arm.set_timeout(0.3)
    at = emulator.side.fault("hang")
    assert arm.set_servo_angle_j([0.01, *HOME[1:]]) == 3
    emulator.side.fault("drop")
    control = str(emulator.ports.control)
    wait_for(lambda: emulator.side("status")["connections"][control] == 0, "the end of the connection")
    assert not arrived(emulator, at)
    emulator.side("clear")


def test_a_stall_ends_by_itself_and_what_was_sent_is_obeyed_then(arm, emulator):
    target, begin = [0.01, *HOME[1:]], time.monotonic()
    at = emulator.side.fault("stall", seconds=0.4)
    assert arm.set_servo_angle_j(target) == 0  # the SDK waits for 10 s here
    assert time.monotonic() - begin >= 0.4
    (first,) = arrived(emulator, at)
    assert first["time"] - at >= 0.4
    begin = time.monotonic()
    assert arm.set_servo_angle_j(target) == 0 and time.monotonic() - begin < 0.4


def test_a_late_answer_is_not_taken_for_a_later_command_s(arm, emulator):
    arm.set_timeout(0.1)
    emulator.side.fault("stall", seconds=0.3)
    assert arm.set_servo_angle_j([0.01, *HOME[1:]]) == 3
    emulator.side("clear")
    arm.set_timeout(10)
    code, (joints, _, _) = arm.get_joint_states(num=3)
    assert code == 0 and len(joints) == 7
    wait_for(lambda: abs(arm.get_joint_states(num=3)[1][0][0] - 0.01) < 1e-3, "the motion")


def test_half_open_connections_get_no_answer_and_no_reports_and_end_with_their_client(arm, emulator):
    emulator.side.fault("half_open")
    with socket.create_connection(("127.0.0.1", emulator.ports.report_real), timeout=1.0) as s:
        with pytest.raises(TimeoutError):
            s.recv(1)
        assert emulator.side("status")["connections"][str(emulator.ports.report_real)] == 1
    before = emulator.side("status")["connections"][str(emulator.ports.control)]
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", emulator.ports.control), timeout=0.2) as s:
            s.sendall(bytes.fromhex("0001 0002 0001 0d"))
            with pytest.raises(TimeoutError):
                s.recv(16)
    assert arm.set_servo_angle_j(HOME) == 0  # those from before go on
    ports = {str(emulator.ports.control): before, str(emulator.ports.report_real): 0}
    wait_for(lambda: ports.items() <= emulator.side("status")["connections"].items(), "their end")
    emulator.side("clear")


def test_silent_reports_leave_the_sdk_with_stale_joints(arm, emulator):
    wait_for(lambda: abs(arm.angles[3] - HOME[3]) < 1e-5, "a report")
    emulator.side.fault("silent_reports")
    target = [0.05, *HOME[1:]]
    assert arm.set_servo_angle_j(target) == 0
    wait_for(lambda: abs(arm.get_joint_states()[1][0][0] - 0.05) < 1e-3, "the motion")
    assert abs(arm.angles[0]) < 1e-3
    emulator.side("clear")
    wait_for(lambda: abs(arm.angles[0] - 0.05) < 1e-3, "reports again")


def test_delay(arm, emulator):
    emulator.side.fault("delay", seconds=0.5)
    began = time.monotonic()
    assert arm.set_servo_angle_j(HOME) == 0
    assert time.monotonic() - began >= 0.5


def test_mode_changed_behind_our_back(arm, emulator):
    at = emulator.side.fault("mode", mode=0)
    assert arm.set_servo_angle_j([0.02, *HOME[1:]]) == 10
    wait_for(lambda: arm.mode == 0, "the report of the mode")
    assert not any(c["accepted"] for c in arrived(emulator, at))


def test_frozen_joints_are_told_while_the_arm_moves(arm, emulator):
    emulator.side.fault("freeze_joints")
    assert arm.set_servo_angle_j([0.05, *HOME[1:]]) == 0
    wait_for(lambda: abs(emulator.side("status")["joints"][0] - 0.05) < 1e-3, "the motion")
    assert arm.get_joint_states()[1][0][0] == 0
    emulator.side("clear")
    assert abs(arm.get_joint_states()[1][0][0] - 0.05) < 1e-3

"""The vendor's unmodified SDK against the emulator in its own process. Waits are long: machines are busy."""

import time

import numpy as np
import pytest

from s2robot.envs.real.arms import kinematics as kin
from tests.envs.real import home
from tests.envs.real.patience import wait_for

pytest.importorskip("xarm")

HOME = home.HOME.tolist()  # JSON and the SDK want lists


@pytest.fixture
def arm(emulator, connect):
    emulator.side("clear")
    arm = connect()
    arm.set_state(4)
    arm.clean_error()
    emulator.side("place_arm", joints=HOME)
    yield arm
    arm.disconnect()


def make_ready(arm, mode):
    assert arm.motion_enable(True) == 0
    assert arm.set_mode(mode) == 0
    assert arm.set_state(0) == 0


def joints(arm):
    code, states = arm.get_joint_states()
    assert code == 0
    return np.array(states[0])


def stands_at(arm, target, tolerance=1e-3):
    return lambda: np.abs(joints(arm) - target).max() < tolerance


def motion_commands(emulator, since=0.0):
    return [c for c in emulator.side("commands", since=since)["commands"] if c["kind"] == "motion"]


def test_connects_and_tells_who_and_where_it_is(arm):
    assert arm.connected and arm.axis == 7 and arm.version_number == (2, 5, 5)
    assert arm.get_state() == (0, 4) and arm.get_err_warn_code() == (0, [0, 0])
    np.testing.assert_allclose(arm.get_servo_angle(is_real=True)[1], HOME, atol=1e-6)
    pose = kin.forward(np.array(HOME))
    np.testing.assert_allclose(arm.get_position()[1][:3], pose[:3] * 1000, atol=1e-3)
    wait_for(lambda: np.abs(np.array(arm.angles) - HOME).max() < 1e-5, "a report")


def test_servo_stream_at_100_hz_reaches_the_wire_and_the_joints(arm, emulator):
    make_ready(arm, 1)
    began = time.monotonic()
    targets = [np.array(HOME) + 0.001 * k for k in range(1, 101)]
    for k, target in enumerate(targets):
        assert arm.set_servo_angle_j(list(target)) == 0
        time.sleep(max(0.0, began + 0.01 * (k + 1) - time.monotonic()))
    wait_for(stands_at(arm, targets[-1]), "the last target")
    sent = motion_commands(emulator, began)
    assert [c["name"] for c in sent] == ["SERVO_J"] * 100
    np.testing.assert_allclose([c["values"][:7] for c in sent], targets, atol=1e-6)
    assert all(c["accepted"] and not c["unsafe"] for c in sent)


def test_what_the_sdk_lets_through(arm, emulator):
    make_ready(arm, 1)
    began = time.monotonic()
    assert arm.set_servo_angle_j([0, 0, 0, -0.5, 0, 0, 0]) == -8  # its own range check
    assert motion_commands(emulator, began) == []
    for value in (float("nan"), float("inf")):  # it compares with neither
        assert arm.set_servo_angle_j([value, *HOME[1:]]) == 10
    assert [c["flags"] for c in motion_commands(emulator, began)] == [["nonfinite"]] * 2
    np.testing.assert_allclose(joints(arm), HOME, atol=1e-6)


@pytest.mark.parametrize("use_503", [False, True])
def test_gripper(arm, use_503):
    if use_503:
        arm.set_rs485_use_503_port()
    assert arm.set_gripper_mode(0) == 0
    assert arm.set_gripper_enable(True) == 0
    assert arm.set_gripper_speed(5000) == 0
    for target in (200, 850):
        assert arm.set_gripper_position(target, wait=False) == 0
        wait_for(lambda target=target: arm.get_gripper_position() == (0, target), f"gripper at {target}")
    assert arm.get_gripper_err_code() == (0, 0)


def test_limits_of_the_box_can_be_set_and_read(arm):
    assert arm.set_collision_sensitivity(4) == 0
    assert arm.set_reduced_max_joint_speed(0.5) == 0
    assert arm.set_reduced_tcp_boundary([600, -600, 500, -500, 700, 0]) == 0
    assert arm.set_fence_mode(True) == [0]  # as this version of the SDK has it
    code, states = arm.get_reduced_states()
    assert code == 0 and states[5] == 1
    assert list(states[1]) == [600, -600, 500, -500, 700, 0]
    wait_for(lambda: arm.collision_sensitivity == 4, "the report of the sensitivity")
    assert arm.set_fence_mode(False) == [0] and arm.set_collision_sensitivity(3) == 0


def test_errors_stop_the_arm_until_the_operator_clears_them(arm, emulator):
    code = 31
    make_ready(arm, 1)
    errors = []
    arm.register_error_warn_changed_callback(lambda item: errors.append(item["error_code"]))
    emulator.side.fault("error", code=code)
    assert arm.set_servo_angle_j(HOME) == 1
    wait_for(lambda: code in errors, "the report of the error")
    assert arm.get_err_warn_code() == (0, [code, 0])
    assert arm.set_state(0) == 0 and arm.get_state()[1] == 4  # the SDK says 0; the arm stays stopped
    arm.clean_error()
    make_ready(arm, 1)
    assert arm.set_servo_angle_j(HOME) == 0


def test_a_second_connection_can_stop_the_arm(arm, emulator, connect):
    make_ready(arm, 1)
    second = connect()
    try:
        assert arm.set_servo_angle_j(HOME) == 0
        assert second.set_state(4) == 0
        assert arm.set_servo_angle_j(HOME) == 9
    finally:
        second.disconnect()

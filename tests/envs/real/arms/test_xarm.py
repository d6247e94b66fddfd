"""The driver with the vendor's SDK against the emulated control box, over loopback."""

import importlib
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import OK, REFUSED, XARM7_LIMITS
from s2robot.envs.real.arms.xarm import ArmSettings, XArmDriver
from s2robot.envs.real.control.clock import now
from s2robot.envs.real.emulator.side import free_ports
from tests.envs.real.home import HOME
from tests.envs.real.patience import PATIENCE, arrived, wait_for
from tests.errors import fails

pytest.importorskip("xarm")


@pytest.fixture
def arm(driver):
    driver.arm()
    return driver


def test_connecting_moves_and_enables_nothing(driver, emulator):
    driver.close()
    socket.setdefaulttimeout(None)
    driver.connect(PATIENCE)
    assert socket.getdefaulttimeout() is None  # the SDK sets it for the whole process
    count, state = len(arrived(emulator)), driver.read()
    np.testing.assert_allclose(state.q, HOME, atol=1e-4)
    assert driver.command(state.q, None).code == REFUSED and driver.stopped == "not armed"
    assert len(arrived(emulator)) == count
    assert driver.status().connected and driver.status().report_age_s < PATIENCE


@pytest.mark.parametrize("mode", ["servo", "online"])
def test_arm_follows_a_stream_of_small_steps(driver, mode):
    driver.settings = ArmSettings(mode=mode)
    driver.arm()
    goal = HOME + 0.1
    for part in np.linspace(0, 1, 40):
        assert driver.command(HOME + part * 0.1, None).code == OK
        time.sleep(0.005)
    wait_for(lambda: np.abs(driver.read().q - goal).max() < 5e-3, "the goal")
    state = driver.read()
    assert state.error == 0 and state.mode == driver.settings.number
    assert 0 <= now() - state.t_mono < PATIENCE


@pytest.mark.parametrize("end", ["stop", "close"])
def test_stop_and_close_halt_moving_fingers(driver, emulator, end):
    for _ in range(5):  # a busy machine may be too late
        driver.close()
        driver.connect(PATIENCE)
        driver.arm()
        driver.command(HOME, 1.0)
        wait_for(lambda: driver.read().gripper > 0.95, "opening")
        driver.command(HOME, 0.0)
        wait_for(lambda: driver.read().gripper < 0.9, "closing")
        driver.stop("test") if end == "stop" else driver.close()
        time.sleep(0.7)  # closing fully takes 0.5 s
        box = emulator.side("status")
        assert box["state"] >= 4
        if box["opening"] > 0.02:
            break
    assert box["opening"] > 0.02
    driver.close()
    assert driver.status().connected is False
    fails("expected connect first", driver.read)


def test_gripper_command_is_sent_on_change_and_after_a_stop_only(arm, emulator):
    for opening in (1.0, 0.0):
        arm.command(HOME, opening)
        wait_for(lambda target=opening: abs(arm.read().gripper - target) < 0.02, "the opening")
    arm.stop("test")
    arm.arm()
    count = len(arrived(emulator, kind="gripper"))
    arm.command(HOME, 0.0)  # the same opening counts as a new command
    wait_for(lambda: len(arrived(emulator, kind="gripper")) > count, "a command")
    time.sleep(0.5)
    count = len(arrived(emulator, kind="gripper"))
    for _ in range(3):
        arm.command(HOME, 0.0)
        time.sleep(0.1)
    arm.stop("test")  # a held object stays held
    time.sleep(0.4)
    assert len(arrived(emulator, kind="gripper")) == count


def test_arming_fails_if_the_box_is_set_to_another_tool(driver, emulator):
    for tool, text in (
        ({"payload": 0.2}, "bridge.arm.payload: expected 0.82 kg as in the control box, got 0.2"),
        ({"tcp_offset": (0, 0, 0.172, 0, 0, 0)}, r"bridge.arm.tcp_offset: expected \[0.0, 0.0, 0"),
    ):
        driver.settings = ArmSettings(**tool)
        for arm in (driver.arm, driver.lead):
            fails(text, arm)
        assert driver.command(HOME, None).code == REFUSED
    assert emulator.side("status")["state"] >= 4
    driver.settings = ArmSettings(payload=None, tcp_offset=None)  # not compared
    driver.arm()


@pytest.mark.parametrize("on", [False, True])
def test_native_limits_are_set_and_the_previous_ones_restored(driver, on):
    def reported(collision, itself):
        sdk = driver._sdk
        wait_for(lambda: sdk.collision_sensitivity == collision, "a report of the sensitivity")
        wait_for(lambda: bool(sdk.self_collision_params[0]) == itself, "a report of the check")
        code, states = sdk.get_reduced_states()
        assert code == 0
        return states

    def reconnect():
        driver.close()
        driver.connect(PATIENCE)

    sdk = driver._sdk
    sdk.set_reduced_max_tcp_speed(321), sdk.set_reduced_max_joint_speed(1.25)
    sdk.set_reduced_tcp_boundary([700, -700, 600, -600, 500, -500])
    sdk.set_reduced_mode(on), sdk.set_fence_mode(on), sdk.set_collision_sensitivity(4)
    assert sdk.set_self_collision_detection(False) == 0  # as an earlier user may have left it
    before = reported(4, False)
    reconnect()
    driver.arm()
    active = reported(3, True)  # the filter does not check self-collision
    assert active[0] == 1 and active[1] != before[1]
    assert active[2:4] == pytest.approx([1000 * XARM7_LIMITS.point_speed, max(XARM7_LIMITS.dq_max)], abs=1e-3)
    driver.stop("test")
    driver.arm()  # closing restores the values from before the first arming
    reconnect()
    after = reported(4, False)
    assert after[:2] == before[:2] and after[2:4] == pytest.approx(before[2:4])
    assert after[4] == pytest.approx(before[4]) and bool(after[5]) == on
    driver._sdk.set_reduced_mode(False), driver._sdk.set_fence_mode(False)


def test_stop_only_driver_leaves_the_gripper_alone(arm, emulator):
    arm.command(HOME, None)
    with XArmDriver("127.0.0.1", ports=None, gripper=False) as other:  # this process is redirected already
        other.connect(PATIENCE)
        assert np.isnan(other.read().gripper) and other._gripper is None
        other.stop("test")
    assert emulator.side("status")["state"] >= 4
    assert arm.command(HOME, None).code not in (OK, REFUSED)


def test_invalid_targets_and_openings_are_not_sent(arm, emulator):
    count, third = len(arrived(emulator)), np.arange(7) == 2
    for q in (
        np.full(7, np.nan), *(np.where(third, bad, HOME) for bad in (np.nan, np.inf, -np.inf)), HOME[:6], HOME[None],
        None, "home", [None] * 7, np.where(np.arange(7) == 3, 4.0, HOME), HOME + np.eye(7)[0],
    ):  # fmt: skip
        assert arm.command(q, None).code == REFUSED, q
    for gripper in (np.nan, np.inf, -0.1, 1.1, "open"):
        assert arm.command(HOME, gripper).code == REFUSED, gripper
    assert len(arrived(emulator)) == count


def test_stop_is_immediate_repeatable_and_thread_safe(arm, emulator):
    """A stop works even while a command blocks the streaming connection, because it has its own."""
    assert arm.command(HOME, None).code == OK
    threads = [threading.Thread(target=arm.stop, args=("test",)) for _ in range(4)]
    with arm._sdk._arm.arm_cmd.lock:
        for t in threads:
            t.start()
        for t in threads:
            t.join(PATIENCE)
    assert not any(t.is_alive() for t in threads) and emulator.side("status")["state"] >= 4
    assert arm.stopped == "test" and arm.command(HOME, None).code == REFUSED
    arm.arm()
    assert arm.command(HOME, None).code == OK


@pytest.mark.parametrize("method", ["arm", "lead"])
def test_failed_arming_stops_the_arm_and_a_concurrent_stop_is_not_lost(driver, emulator, monkeypatch, method):
    """The box is ready and in the requested mode, but its report of the mode never arrives."""
    driver._sdk.set_mode(0)
    settled = time.monotonic() + 0.3  # reports come five times a second
    wait_for(lambda: driver._sdk._arm._last_report_time > settled and driver._sdk.mode == 0)
    emulator.side.fault("silent_reports")
    fails("after arming, got mode 0", getattr(driver, method))
    box = emulator.side("status")
    assert box["mode"] != 0 and box["state"] >= 4 and not box["ready"]
    assert driver.stopped == "could not be armed"

    emulator.side("clear")
    get_state = driver._sdk.get_state

    def stopped_meanwhile():
        answer = get_state()
        thread = threading.Thread(target=driver.stop, args=("operator",))
        thread.start()
        thread.join()
        return answer

    monkeypatch.setattr(driver._sdk, "get_state", stopped_meanwhile)
    fails("^arm: stopped while it was being armed", getattr(driver, method))
    assert emulator.side("status")["state"] >= 4
    assert driver.stopped and driver.command(HOME, None).code == REFUSED
    fails("expected an opening of 0 to 1", driver.grip, 1.0)


def test_arm_error_is_reported_and_never_cleared(arm, emulator):
    arm.command(HOME, None)
    emulator.side.fault("error", code=31)
    assert arm.command(HOME + 0.001, None).code not in (OK, REFUSED)
    assert arm.read().error == 31
    assert arm.stop("error")
    fails("error 31 pending", arm.arm)
    assert emulator.side("status")["error"] == 31
    states = arm._sdk.get_joint_states

    def lost_after(num):  # the connection breaks between the two requests of `read`
        answer = states(num=num), emulator.side("fault drop"), wait_for(lambda: not arm._sdk.connected)
        return answer[0]

    arm._sdk.get_joint_states = lost_after
    assert arm.read().error == 31
    fails("get_err_warn_code: expected code 0, got -1", arm.arm)


def test_short_answer_is_an_error_of_the_arm(arm, monkeypatch):
    """The SDK raises ValueError when it unpacks seven numbers, the angles alone, instead of 21."""
    unpack = importlib.import_module("xarm.core.utils.bytes_data").BytesData.to_fp32_list
    monkeypatch.setattr(arm._sdk._arm.arm_cmd, "get_joint_states", lambda **_: unpack([0] * 28, 21))
    fails(r"joints \(firmware 1.9.0 or later\): ", arm.read)


def test_hung_box_delays_calls_by_the_timeout_only(arm, emulator):
    for sdk in (arm._sdk, arm._stopper):
        sdk.set_timeout(0.1)
    emulator.side.fault("hang")
    begin = time.monotonic()
    assert arm.command(HOME, None).code == 3
    fails("got 3", arm.read)
    assert not arm.stop("hung")
    assert time.monotonic() - begin < 30.0


def test_connect_times_out_on_a_silent_box():
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        ports = replace(free_ports(), control=mute.getsockname()[1])
        fails("no control box: timed out", XArmDriver("127.0.0.1", ports=ports).connect, 0.5)
    assert time.monotonic() - begin < 30.0


@pytest.mark.parametrize("ip", ["127.0.0.1", "192.168..1.200", "x" * 70])
def test_missing_box_or_bad_address_is_one_error_line(ip):
    with pytest.raises(EnvError, match=f"^xarm {ip}:[0-9]+: expected an answer, got no control box: "):
        XArmDriver(ip, ports=free_ports()).connect(2.0)


SPEAK = """
import sys
from pathlib import Path
from s2robot.envs.real.arms.sdk import log_to
{before}
print("ours before")
log_to(Path(sys.argv[1], "first.log"))
log_to(Path(sys.argv[1], "run", "second.log"))
from xarm.core.utils.log import logger, origin_logger
from xarm.x3 import base, gripper
logger.error("failed [%s]", "a call")
origin_logger.warning("ControllerWarning, code: 7")
base.print("ROBOT_IP:", 1, sep="=")
gripper.print("two\\nlines")
print("ours after")
"""


def alone(code, folder):
    """Run the code in its own process and home folder."""
    root = Path(__file__).resolve().parents[4]
    environment = os.environ | {"HOME": str(folder), "PYTHONPATH": str(root)}
    command, options = [sys.executable, "-c", code, str(folder)], {"capture_output": True, "text": True}
    done = subprocess.run(command, cwd=root, timeout=120, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("before", ["", "import xarm.wrapper"])
def test_sdk_output_goes_to_the_log_file_and_ours_to_stdout(tmp_path, before):
    done = alone(SPEAK.format(before=before), tmp_path)
    shown = done.stdout.splitlines()
    assert shown[-2:] == ["ours before", "ours after"] and done.stderr == ""
    assert len(shown) == (3 if before else 2)  # an earlier import has printed the version
    log = (tmp_path / "run" / "second.log").read_text()
    own = "MainProcess ERROR failed [a call]", "MainProcess WARNING ControllerWarning, code: 7"
    for text in (*own, "ROBOT_IP:=1", "two\nlines\n"):
        assert log.count(text) == 1, log
    assert "SDK_VERSION" in (tmp_path / "first.log").read_text() or before


RIVAL = """
import os, sys
from pathlib import Path
makedirs = os.makedirs
def rival(name, mode=0o777, exist_ok=False):  # another process creates the folder between the check and this call
    makedirs(name, mode, exist_ok=True)
    makedirs(name, mode, exist_ok=exist_ok)
os.makedirs = rival
from s2robot.envs.real.arms.sdk import log_to
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.errors import EnvError
try:
    XArmDriver("127.0.0.1").connect(0.01)  # whether or not something listens there
except EnvError as error:
    assert "found no xarm" not in str(error), error
assert Path.home().joinpath(".UFACTORY").is_dir()
"""


def test_processes_on_a_fresh_machine_do_not_race_for_the_sdk_folder(tmp_path):
    alone(RIVAL, tmp_path)

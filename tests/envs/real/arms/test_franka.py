"""The Franka driver against franky-sim, in a separate environment (its pinocchio requires numpy 2):

python3 -m venv franka-venv
franka-venv/bin/pip install franky-control franky-sim gymnasium omegaconf pydantic pytest scipy
franka-venv/bin/python -m pytest --noconftest -m slow tests/envs/real/arms/test_franka.py

franky-sim accepts commands that an arm rejects and has no error model: these tests prove nothing about safety.
"""

import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from s2robot.envs.real.arms.driver import OK, REFUSED
from s2robot.envs.real.arms.franka import GONE, MOVING, FrankaDriver
from tests.envs.real.home import described
from tests.envs.real.patience import wait_for
from tests.errors import fails

HOME, LIMITS = described("panda").start, described("panda").limits()


def test_missing_franky_is_one_error_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "franky", None)
    driver = FrankaDriver("192.0.2.1", LIMITS)
    fails(r"^franky: expected .*pip install 's2robot\[franka\]'", driver.connect, 1.0)
    fails("expected connect first", driver.read)
    assert driver.command(HOME, None).code == REFUSED and not driver.status().connected
    assert not driver.stop("never raises")
    driver.close()


@pytest.fixture(scope="module")
def server():
    why = "requires franky-control and franky-sim in a separate environment; see the module docstring"
    pytest.importorskip("franky", reason=why)
    pytest.importorskip("franky_sim", reason=why)
    # a separate process, like a real arm: franky holds the interpreter lock while it waits
    command = [sys.executable, "-u", "-m", "franky_sim.run_server", "-s", "mujoco"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timeout = threading.Timer(120.0, process.kill)
    timeout.start()
    try:
        address = next((m for line in process.stdout if (m := re.search(r"using '([\d.]+)'", line))), None)
        timeout.cancel()
        assert address, "franky-sim did not start"
        yield address[1]
    finally:
        timeout.cancel()
        process.terminate()
        process.wait(30.0)


@pytest.fixture
def arm(server):
    with FrankaDriver(server, LIMITS, realtime=False) as arm:
        arm.connect(60.0)
        yield arm


@pytest.mark.slow
def test_arm_follows_joint_stream_and_gripper_until_a_stop(arm):
    state = arm.read()
    assert state.q.shape == (7,) and state.error == 0
    assert arm.command(state.q, None).code == REFUSED and arm.stopped == "not armed"
    arm.arm()
    start = arm.read().q
    goal = start + np.array([0.1, -0.1, 0.1, 0.1, -0.1, 0.1, 0.1])
    for part in np.linspace(0, 1, 100):
        assert arm.command(start + part * (goal - start), None).code == OK
        time.sleep(0.01)
    wait_for(lambda: np.abs(arm.read().q - goal).max() < 0.05, "the goal")
    assert arm.status().mode == MOVING and arm.status().report_age_s < 1.0
    assert arm.stop("test")
    assert arm.stop("again")
    assert arm.command(goal, None).code == REFUSED and arm.stopped == "again"
    wait_for(lambda: np.abs(arm._robot.state.dq).max() < 0.02, "rest")
    wait_for(lambda: not arm._robot.is_in_control, "the end of the controller")
    arm.arm()
    for opening, near in ((0.0, lambda o: o < 0.1), (1.0, lambda o: o > 0.9)):
        assert arm.command(arm.read().q, opening).code == OK
        wait_for(lambda near=near: near(arm.read().gripper), f"opening {opening}")


@pytest.mark.slow
def test_lost_controller_or_gripper_is_reported(arm, monkeypatch):
    arm.arm()
    q = arm.read().q
    arm._robot.stop()  # ends the controller as an error or the user stop does
    wait_for(lambda: arm.command(q, None).code == GONE, "the end of the controller")
    monkeypatch.setattr(arm, "_hand", object())  # every reading fails
    monkeypatch.setattr("s2robot.envs.real.arms.franka.GRIPPER_LOST", 0.3)
    time.sleep(0.5)
    fails("expected an answer from the gripper within 0.3 s", arm.read)


@pytest.mark.slow
def test_stop_during_arming_is_not_lost(arm, monkeypatch):
    start = arm._start
    monkeypatch.setattr(arm, "_start", lambda: (start(), arm.stop("operator")))
    fails("^arm: stopped while it was being armed", arm.arm)
    assert arm.stopped and arm.command(arm.read().q, None).code == REFUSED

"""A loop that hangs or is killed, against the emulated box."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.control.supervisor import UNCONFIRMED, Supervisor, WatchedArm
from s2robot.envs.real.emulator.side import free_ports
from tests.envs.real.patience import PATIENCE, wait_for

pytest.importorskip("xarm")

ROOT = str(Path(__file__).resolve().parents[4])
VICTIM = """
import sys
from functools import partial
from s2robot.envs.real.emulator.side import Ports
from s2robot.envs.real.control.supervisor import Supervisor
from s2robot.envs.real.arms.xarm import XArmDriver
if __name__ == "__main__":
    with Supervisor(partial(XArmDriver, "127.0.0.1", ports=Ports.from_json(sys.argv[1]), gripper=False)) as s:
        s.beat()
        print(s.process.pid, flush=True)
        s.rest()
        sys.stdin.read()
"""


@pytest.fixture
def moving(driver, emulator):
    """The emulator with an arm that the loop's own driver has made ready to move."""
    driver.arm()
    return emulator


def make(emulator):
    return partial(XArmDriver, "127.0.0.1", ports=emulator.ports, gripper=False)


def ready(emulator):
    return emulator.side("status")["ready"]


def beats(supervisor, seconds=PATIENCE):
    for _ in range(int(seconds / 0.01)):
        supervisor.beat()
        time.sleep(0.01)


def test_a_loop_that_hangs_is_stopped(moving):
    with Supervisor(make(moving), limit_s=2.0) as supervisor:
        assert ready(moving)  # nothing is watched before the first beat
        beats(supervisor, 0.2)
        assert ready(moving)
        wait_for(lambda: not ready(moving), "a stop")
        supervisor.process.join(PATIENCE)
        with pytest.raises(EnvError, match="found it gone"):
            beats(supervisor)


def test_one_that_has_lost_the_arm_says_so(moving):
    with Supervisor(make(moving), limit_s=9.0) as supervisor:
        supervisor.beat()
        moving.side.fault("drop")
        with pytest.raises(EnvError, match="found it gone"):
            beats(supervisor)


def test_one_that_hangs_is_not_taken_for_a_watch(moving):
    supervisor = Supervisor(make(moving), limit_s=1.0)
    try:
        os.kill(supervisor.process.pid, signal.SIGSTOP)
        with pytest.raises(EnvError, match="found no answer for 2 s"):
            beats(supervisor)
    finally:
        supervisor.process.kill()
        supervisor.close()


def test_pauses_before_the_first_beat_are_no_lack_of_answers(moving, monkeypatch):
    monkeypatch.setattr("s2robot.envs.real.control.supervisor.ANSWER_S", -1.9)  # 0.1 s
    with Supervisor(make(moving), limit_s=2.0) as supervisor:
        time.sleep(0.5)
        supervisor.beat()
        time.sleep(0.5)  # and later ones count from the first that has no answer
        supervisor.beat()


def test_a_regular_end_stops_nothing_and_one_without_a_confirmed_stop_does(moving):
    supervisor = Supervisor(make(moving), limit_s=5.0)
    supervisor.beat()
    supervisor.close()
    supervisor.close()
    assert ready(moving)
    supervisor = Supervisor(make(moving), limit_s=9.0)
    supervisor.close(confirmed=False)
    assert not ready(moving)


@contextmanager
def victim(emulator):
    """A loop in a process group of its own, whose beats the supervisor has heard."""
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, emulator.ports.to_json()], cwd=ROOT, env=os.environ | {"PYTHONPATH": ROOT},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0,
    )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, b"")
        wait_for(lambda: next(lines).strip().isdigit(), "the victim")
        assert ready(emulator)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_loop_that_is_killed_while_it_rests_leaves_no_arm_enabled(moving):
    with victim(moving) as process:
        time.sleep(1.0)
        assert ready(moving)
        process.kill()
        wait_for(lambda: not ready(moving), "a stop")


def test_a_stop_that_nobody_acknowledges_is_said(driver, moving, capsys):
    with Supervisor(make(moving), limit_s=9.0) as supervisor:
        arm = WatchedArm(driver, lambda: supervisor)
        moving.side.fault("drop")
        wait_for(lambda: not driver.status().connected, "the loss")
        assert not arm.stop("operator") and not arm.confirmed and ready(moving)
        assert not arm.stop("once more")
        assert capsys.readouterr().err.splitlines() == [UNCONFIRMED]


def test_a_supervisor_outlives_the_request_to_end_that_everybody_gets(moving):
    supervisor = Supervisor(make(moving), limit_s=2.0)
    supervisor.beat()
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT", "SIGTSTP", "SIGTTIN", "SIGTTOU"):
        os.kill(supervisor.process.pid, signal.Signals[name])
    assert os.getsid(supervisor.process.pid) == supervisor.process.pid
    wait_for(lambda: not ready(moving), "a stop")  # it misses the beats as before
    supervisor.close()


def test_no_arm_is_one_line():
    with pytest.raises(EnvError, match="found xarm 127.0.0.1:.*no control box"):
        Supervisor(partial(XArmDriver, "127.0.0.1", ports=free_ports(), gripper=False))


def test_its_process_loads_no_more_than_the_arm_needs():
    """It watches from the first moment on; torch alone would take seconds."""
    code = "import sys, s2robot.envs.real.arms.xarm, s2robot.envs.real.control.supervisor as s; " \
        "print(*sorted({'torch', 'zarr', 'cv2', 'hydra', 'mujoco'} & set(sys.modules)))"  # fmt: skip
    environment = os.environ | {"PYTHONPATH": ROOT}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr

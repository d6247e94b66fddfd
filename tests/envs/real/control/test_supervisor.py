"""The supervisor stops the emulated box after a loop that hangs or is killed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import pytest

from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.xarm import XArmDriver
from s2robot.envs.real.control.supervisor import UNCONFIRMED, Supervisor, WatchedArm
from s2robot.envs.real.emulator.side import free_ports
from tests.envs.real.patience import PATIENCE, wait_for
from tests.errors import fails

pytest.importorskip("xarm")

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
    """Return the emulator with an arm that the loop's driver has armed."""
    driver.arm()
    return emulator


@pytest.fixture
def watch(moving):
    """`watch(limit_s)` returns a supervisor of that arm."""
    made = []

    def start(limit_s):
        driver = partial(XArmDriver, "127.0.0.1", ports=moving.ports, gripper=False)
        made.append(Supervisor(driver, limit_s=limit_s))
        return made[-1]

    yield start
    for supervisor in made:
        supervisor.close()


def ready(emulator):
    return emulator.side("status")["ready"]


def beat_on(supervisor, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        supervisor.beat()
        time.sleep(0.01)


def test_hung_loop_is_stopped_even_if_the_supervisor_is_signalled(moving, watch):
    """The supervisor ignores the signals that all processes of a terminal receive."""
    supervisor = watch(2.0)
    assert ready(moving)  # nothing is watched before the first beat
    beat_on(supervisor, 0.2)
    assert ready(moving)
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT", "SIGTSTP", "SIGTTIN", "SIGTTOU"):
        os.kill(supervisor.process.pid, signal.Signals[name])
    assert os.getsid(supervisor.process.pid) == supervisor.process.pid
    wait_for(lambda: not ready(moving), "a stop")
    supervisor.process.join(PATIENCE)
    fails(r"^supervisor: it stopped the arm \(no heartbeat for 2 s\)", beat_on, supervisor)


def test_beat_fails_when_the_supervisor_has_lost_the_arm(moving, watch):
    supervisor = watch(9.0)
    supervisor.beat()
    moving.side.fault("drop")
    fails(
        r"^supervisor: it stopped the arm \(the supervisor's connection to the arm broke\)",
        beat_on,
        supervisor,
    )


def test_beat_fails_on_a_hung_supervisor_but_not_after_pauses(watch, monkeypatch):
    monkeypatch.setattr("s2robot.envs.real.control.supervisor.ANSWER_S", -8.5)
    supervisor = watch(9.0)  # an answer may take 0.5 s
    for _ in range(2):  # the timeout counts from the first unanswered beat
        time.sleep(0.6)
        supervisor.beat()
        wait_for(supervisor._pipe.poll, "an answer")
    os.kill(supervisor.process.pid, signal.SIGSTOP)
    try:
        fails("^supervisor: no answer for 0.5 s; no motion without it", beat_on, supervisor)
    finally:
        supervisor.process.kill()


def test_close_stops_the_arm_only_without_a_confirmed_stop(moving, watch):
    supervisor = watch(9.0)
    supervisor.beat()
    supervisor.close()
    supervisor.close()
    assert ready(moving)
    watch(9.0).close(confirmed=False)
    assert not ready(moving)


def test_killing_a_resting_loop_leaves_no_arm_enabled(moving):
    command = [sys.executable, "-c", VICTIM, moving.ports.to_json()]
    with subprocess.Popen(command, process_group=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            lines = iter(process.stdout.readline, b"")
            wait_for(lambda: next(lines).strip().isdigit(), "the victim")
            time.sleep(0.7)  # longer than the limit
            assert ready(moving)
        finally:
            process.kill()
        wait_for(lambda: not ready(moving), "a stop")


def test_unacknowledged_stop_is_reported_once(driver, moving, watch, capsys):
    supervisor = watch(60.0)
    arm = WatchedArm(driver, lambda: supervisor)
    moving.side.fault("drop")
    wait_for(lambda: not driver.status().connected, "the loss")
    assert not arm.stop("operator") and not arm.confirmed and ready(moving)
    assert not arm.stop("once more")
    assert capsys.readouterr().err.splitlines() == [UNCONFIRMED]


def test_error_code_is_no_acknowledgement_of_a_stop():
    assert not WatchedArm(SimpleNamespace(stop=lambda why: 9), lambda: None).stop("operator")


ALONE = """
import os, signal, sys, threading, time
from functools import partial
from types import SimpleNamespace
from s2robot.envs.real.control.supervisor import EndsLoop, Supervisor
gone = partial(SimpleNamespace, connected=False)
deaf = partial(SimpleNamespace, connect=float, stop=len, status=gone, close=int)
if __name__ == "__main__":
    if sys.argv[1] == "starts":
        signal.signal(signal.SIGINT, lambda *_: None)
        press = lambda: [time.sleep(0.02) or os.killpg(0, signal.SIGINT) for _ in range(200)]
        threading.Thread(target=press, daemon=True).start()
    with Supervisor(deaf if sys.argv[1] == "dies" else EndsLoop, limit_s=0.3) as s:
        s.beat()
        if sys.argv[1] == "dies":
            signal.raise_signal(signal.SIGKILL)
        if sys.argv[1] == "hangs":
            time.sleep(60)
        elif sys.argv[1] == "asks":
            s.rest()
            s.stop()
            time.sleep(60)
        s.rest(), time.sleep(0.7)
"""


@pytest.mark.parametrize(
    "loop, code", [("hangs", -9), ("asks", -9), ("dies", -9), ("rests", 0), ("starts", 0)]
)
def test_supervisor_kills_the_loop_of_a_single_client_arm(loop, code):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, loop], capture_output=True, text=True, timeout=PATIENCE + 30, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == code and (UNCONFIRMED in done.stderr if code else not done.stderr)


def test_missing_arm_is_one_error_line():
    with pytest.raises(EnvError, match="got xarm 127.0.0.1:.*no control box"):
        Supervisor(partial(XArmDriver, "127.0.0.1", ports=free_ports(), gripper=False))


def test_supervisor_process_loads_only_what_the_arm_needs():
    """The supervisor must watch at once, and importing torch alone takes seconds."""
    code = "import sys, s2robot.envs.real.arms.xarm, s2robot.envs.real.control.supervisor as s; " \
        "print(*sorted({'torch', 'zarr', 'cv2', 'hydra', 'mujoco'} & set(sys.modules)))"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr

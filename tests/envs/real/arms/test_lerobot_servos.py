"""LeRobot's own SO-101 on emulated servos, in LeRobot's environment: S2ROBOT_LEROBOT_PYTHON=<its python>, with feetech-servo-sdk."""

import json
import os
import pty
import signal
import time
from contextlib import suppress
from multiprocessing import get_context

import pytest

from s2robot.envs.real.arms.lerobot import LOST
from s2robot.envs.real.emulator import servos
from tests.envs.real.patience import wait_for

PYTHON = os.environ.get("S2ROBOT_LEROBOT_PYTHON")
pytestmark = [pytest.mark.realtime, pytest.mark.skipif(not PYTHON, reason="no LeRobot")]
MAKES = """
import json, sys, time
from functools import partial
from s2robot.core.settings import yaml_defaults
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.lerobot import LeRobotArm
from s2robot.envs.real.control.supervisor import Supervisor
about = ArmDescription(**{**yaml_defaults("robot/lerobot"), **json.loads(sys.argv[1])})
make = partial(LeRobotArm, about, about.limits())
"""
MOVES = """
with make() as arm:
    arm.connect(60.0)
    with Supervisor(partial(make, gripper=False), 2.0) as supervisor:
        arm.arm()
        q = arm.read().q
        while not arm.status().error:
            supervisor.beat()
            q[0] = min(q[0] + 0.003, 1.5)
            arm.command(q, None)
            try:
                arm.read()
            except EnvError:
                pass
            time.sleep(0.01)
        begin = time.monotonic()
        done = arm.stop("fault")
        print(f"error {arm.status().error} acknowledged {done} after {1000 * (time.monotonic() - begin):.0f} ms", flush=True)
"""
FOLLOWS = """
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.watchdog import WatchdogLimits
names = 'state_hold', 'state_fault', 'policy_hold', 'policy_fault', 'hold_fault', 'report_fault'
with make() as arm:
    arm.connect(60.0)
    arm.arm()
    safety = SafetyFilter(arm.limits, ArmPoints(), SafetyConfig(state_age_max=3.0))
    config = LoopConfig(live=True, absolute=True, gripper="continuous", policy_hz=2.0)
    act = lambda seen: seen["proprio"] + [0.07, 0, 0, 0, 0, 0]
    loop = ControlLoop(arm, {}, act, safety, config, WatchdogLimits(**dict.fromkeys(names, 30.0)))
    print(*loop.run(200).reasons, "after some ms", flush=True)
"""


def serve(pipe, calibration):
    """Run servos in a process, as LeRobot busy-waits. The pipe carries statements; `=value` returns a value."""
    with servos.ServoBus() as bus:
        bus.calibrate(calibration)
        pipe.send(bus.port)
        names = vars(servos) | {"bus": bus}
        while True:
            code = pipe.recv()
            pipe.send(eval(code[1:], names) if code[0] == "=" else exec(code, names))


@pytest.fixture
def bus(tmp_path):
    pipe, remote = get_context("spawn").Pipe()
    arguments = remote, tmp_path / "emulated.json"
    process = get_context("spawn").Process(target=serve, args=arguments, daemon=True)
    process.start()

    def ask(code):
        pipe.send(code)
        return pipe.recv()

    ask.port = pipe.recv()
    yield ask
    process.kill()
    process.join()


@pytest.fixture
def moving(bus, tmp_path):
    """Start the program in its own terminal and wait for motion; return its process ID and the terminal."""
    started = []

    def start(stop, program=MOVES):
        options = {"calibration_dir": str(tmp_path), "num_read_retries": 3}
        about = {"type": "so101_follower", "port": bus.port, "id": "emulated", "units": "degrees"}
        about |= {"stop": stop, "options": options}
        pid, terminal = pty.fork()
        if not pid:
            command = [PYTHON, "-c", MAKES + program, json.dumps(about)]
            os.execv(PYTHON, command)
        started.append(pid)
        wait_for(lambda: bus("=bus.servos[1].place") > servos.REST[0] + 100, "motion")
        assert bus("=bus.values(TORQUE)") == [1] * 6
        return pid, terminal

    yield start
    for pid in started:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("how", ["killed", "suspended"])
def test_torque_is_off_after_the_program_dies_or_hangs(bus, moving, how):
    pid, _ = moving("torque_off")
    os.kill(pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    wait_for(lambda: bus("=bus.values(TORQUE)") == [0] * 6, "a stop")


def held(bus):
    return all(abs(bus(f"=bus.servos[{i}][GOAL] - bus.servos[{i}][POSITION]")) < 20 for i in (1, 2, 4, 5))


def test_closed_terminal_stops_the_arm_in_place(bus, moving):
    _, terminal = moving("hold")
    before = bus("=len(bus.servos[5].written)")
    os.close(terminal)
    time.sleep(3.0)
    wait_for(lambda: held(bus) and bus("=len(bus.servos[5].written)") > before, "a stop")
    count = bus("=bus.packets")
    time.sleep(0.5)
    assert bus("=bus.packets") == count and bus("=bus.values(TORQUE)") == [1] * 6


@pytest.mark.parametrize(
    ("fault", "program", "line"),
    [
        ("silent", MOVES, f"error {LOST} acknowledged False"),
        ("jammed", FOLLOWS, "safety stop: joint 1 lags 0.07 rad behind its command and does not move"),
    ],
)
def test_lost_or_jammed_servo_is_a_fault_that_stops_the_others(bus, moving, fault, program, line):
    """The policy's target stays just ahead of the arm, so the joint's lag never grows."""
    _, terminal = moving("hold", program)
    bus(f"bus.servos[{3 if fault == 'silent' else 1}].{fault} = True")
    output = b""
    with suppress(OSError):  # the end of the program
        while b"ms" not in output:
            output += os.read(terminal, 4096)
    assert line.encode() in output, output
    assert held(bus)

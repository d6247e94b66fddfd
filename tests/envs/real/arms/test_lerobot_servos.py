"""LeRobot's own SO-101 on emulated servos, in LeRobot's environment: S2ROBOT_LEROBOT_PYTHON=<its python>, with feetech-servo-sdk."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from s2robot.envs.real.emulator import servos
from tests.envs.real.patience import PATIENCE, wait_for

PYTHON = os.environ.get("S2ROBOT_LEROBOT_PYTHON")
pytestmark = [pytest.mark.realtime, pytest.mark.skipif(not PYTHON, reason="no LeRobot")]
ROOT = str(Path(__file__).resolve().parents[4])
STARTED = {"cwd": ROOT, "env": os.environ | {"PYTHONPATH": ROOT}, "stdout": subprocess.PIPE, "text": True}
FOLLOWS = """
import json, sys
from s2robot.core.settings import yaml_defaults
from s2robot.envs.real.arms.description import ArmDescription
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.lerobot import LeRobotArm
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from s2robot.envs.real.control.watchdog import WatchdogLimits
names = 'state_hold', 'state_fault', 'policy_hold', 'policy_fault', 'hold_fault', 'report_fault'
about = ArmDescription(**{**yaml_defaults("robot/lerobot"), **json.loads(sys.argv[1])})
with LeRobotArm(about, about.limits()) as arm:
    arm.connect(60.0)
    arm.arm()
    safety = SafetyFilter(arm.limits, ArmPoints(), SafetyConfig(state_age_max=3.0))
    config = LoopConfig(live=True, absolute=True, gripper="continuous", policy_hz=2.0)
    act = lambda seen: seen["proprio"] + [0.07, 0, 0, 0, 0, 0]
    loop = ControlLoop(arm, {}, act, safety, config, WatchdogLimits(**dict.fromkeys(names, 30.0)))
    print(*loop.run(200).reasons)
"""


@pytest.mark.parametrize("fault", ["sigkill_off", "suspended", "terminal", "silent", "hot"])
def test_faults_stop_the_arm_as_designed(fault):
    words = [PYTHON, "benchmarks/faults.py", "--arm", "so101", "--faults", fault, "--repeat", "1"]
    done = subprocess.run(words, **STARTED, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout


def test_jammed_joint_stops_the_arm_although_its_lag_never_grows(tmp_path):
    """The policy's target stays just ahead of the arm."""
    about = {"type": "so101_follower", "id": "emulated", "units": "degrees", "stop": "hold"}
    with servos.ServoBus() as bus:
        bus.calibrate(tmp_path / "emulated.json")
        about |= {"port": bus.port, "options": {"calibration_dir": str(tmp_path), "num_read_retries": 3}}
        process = subprocess.Popen([PYTHON, "-c", FOLLOWS, json.dumps(about)], **STARTED)
        try:
            wait_for(lambda: bus.servos[1].place > servos.REST[0] + 100, "motion")
            bus.servos[1].jammed = True
            output = process.communicate(timeout=PATIENCE)[0]
        finally:
            process.kill()
        assert "joint 1 lags 0.07 rad behind its command and does not move" in output
        others = [bus.servos[i] for i in (1, 2, 4, 5)]
        assert all(abs(servo[servos.GOAL] - servo[servos.POSITION]) < 20 for servo in others)

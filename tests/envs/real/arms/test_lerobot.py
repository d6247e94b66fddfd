"""The driver of LeRobot robots, against a fake with LeRobot's documented interface; LeRobot itself is not required."""

import os
import subprocess
import termios
import time
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from s2robot.envs.real.arms import lerobot
from s2robot.envs.real.arms.driver import OK, REFUSED
from s2robot.envs.real.arms.geometry import ArmPoints
from s2robot.envs.real.arms.lerobot import GONE, LOST, STOPS, LeRobotArm, check_port
from s2robot.envs.real.cameras.camera import CameraReader
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyConfig, SafetyFilter
from tests.envs.real.home import described
from tests.envs.real.patience import CALM
from tests.errors import fails, refuses

JOINTS = described("lerobot").joint_names
KEYS = [f"{name}.pos" for name in (*JOINTS, "gripper")]
FRAME = np.zeros((4, 6, 3), np.uint8)


class Robot:
    """LeRobot's `Robot`: stays at its last target. Its dicts have a different order from controller."""

    is_connected, is_calibrated, silent = False, True, False

    def __init__(self, **values):
        self.seen = dict.fromkeys(reversed(KEYS), 0.0) | {"gripper.pos": 50.0, "front": FRAME} | values
        self.observation_features = {k: v.shape if np.ndim(v) else float for k, v in self.seen.items()}
        self.action_features = {key: float for key in KEYS}
        self.sent = []

    def connect(self, calibrate=True):
        assert not calibrate  # calibration would prompt on the terminal
        self.is_connected = True

    def get_observation(self):
        if self.silent:
            raise ConnectionError("There is no\nstatus packet!")
        return dict(self.seen)

    def send_action(self, action):
        self.seen |= {key: action[key] for key in self.get_observation() if key in action}
        self.sent.append(action)

    def disconnect(self):
        self.is_connected = False


def about(**changes):
    return described("lerobot", **{"type": "fake", "units": "degrees", "stop": "hold", **changes})


@pytest.fixture
def made(monkeypatch):
    """Make a connected driver of a `Robot`; keyword arguments are keys of `robot`."""

    def make(robot, **changes):
        monkeypatch.setattr(lerobot, "make_robot", lambda description: robot)
        arm = LeRobotArm(about(**changes), about(**changes).limits())
        arm.connect(5.0)
        return arm

    return make


@pytest.mark.parametrize(("units", "scale"), [("degrees", 180 / np.pi), ("radians", 1.0)])
def test_joints_are_read_and_commanded_by_name_in_the_declared_units(made, units, scale):
    arm = made(robot := Robot(**{"elbow_flex.pos": 0.5 * scale, "gripper.pos": 25.0}), units=units)
    state = arm.read()
    np.testing.assert_allclose([*state.q, state.gripper], [0, 0, 0.5, 0, 0, 0.25])
    assert arm.command(state.q, 0.25).code == REFUSED and not robot.sent  # not armed
    arm.arm()
    q = state.q + [0.01, 0, -0.02, 0, 0.03]
    assert arm.command(q, 0.5).code == arm.command(q, None).code == OK
    assert robot.sent[0] == robot.sent[1] and [*robot.sent[0]] == KEYS
    np.testing.assert_allclose([*robot.sent[0].values()], [*q * scale, 50])
    for wrong in (q + 1, q * np.nan, q[:4]):
        assert arm.command(wrong, None).code == REFUSED
    assert len(robot.sent) == 2


def test_stop_is_acknowledged_only_by_a_robot_at_rest(made):
    arm = made(robot := Robot(**{"elbow_flex.pos": 30.0}))
    arm.arm()
    assert arm.stop("test") and robot.sent[-1]["elbow_flex.pos"] == 30 and robot.is_connected
    assert arm.command(arm.read().q, None).code == REFUSED
    steps = iter(range(100))
    robot.get_observation = lambda: robot.seen | {"wrist_roll.pos": 2.0 * next(steps)}  # keeps moving
    assert not arm.stop("test")
    assert "FALLS" in STOPS["torque_off"] and "FALLS" not in arm.stop_effect


def test_silent_robot_is_lost_after_two_failed_reads(made):
    arm = made(robot := Robot())
    arm.arm()
    q, robot.silent = arm.read().q, True
    for error in (0, LOST):
        fails("There is no status packet!", arm.read)
        assert arm.status().error == error
    assert arm.command(q, None).code == GONE and not arm.stop("test")
    robot.silent = False
    arm.arm()  # the operator has restored the connection
    assert arm.status().error == 0


def test_positions_beyond_a_turn_are_late_answers(made):
    arm = made(robot := Robot())
    robot.seen["elbow_flex.pos"] = 2900.0
    fails("within a turn", arm.read)
    robot.seen["elbow_flex.pos"] = 29.0
    assert arm.read().error == 0


def test_episode_of_absolute_targets_with_the_robot_camera(made):
    arm = made(robot := Robot())
    rng, camera = np.random.default_rng(0), CameraReader("front", arm.camera("front"))
    robot.get_observation = lambda: robot.seen | {"front": rng.integers(0, 256, FRAME.shape, np.uint8)}
    camera.start(60.0)
    arm.arm()
    safety = SafetyFilter(arm.limits, ArmPoints(), SafetyConfig(state_age_max=3.0))
    config = LoopConfig(live=True, image_size=4, absolute=True, max_delta=0.05, gripper="continuous")
    target = np.array([0.08, 0, 0, 0, -1.0, 0.75])  # the last joint needs more than three actions
    result = ControlLoop(arm, {"front": camera}, lambda o: target, safety, config, CALM).run(3)
    camera.close()
    assert result.cause == "steps" and arm.views == {"front": (4, 6)}
    # a busy machine catches up on lost time, and brakes from there
    np.testing.assert_allclose(arm.read().q, [0.08, 0, 0, 0, -0.15], atol=0.13)
    assert robot.seen["gripper.pos"] == 75


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"joints": (*JOINTS[:2], "elbow", *JOINTS[3:])}, "^robot.joints .*: expected elbow_flex.pos, .* got .* elbow,"),
        ({"gripper": None}, "^robot.joints .*: expected .*gripper.pos"), ({"gripper": "binary"}, "^robot.gripper:"),
        ({"units": None}, "^robot.units: expected degrees"), ({"stop": None}, "^robot.stop: expected hold"),
        ({"stop": "torque_off"}, "^robot.stop: expected hold for a robot without a serial bus"),
        ({"units": "normalised"}, "^robot.units: expected degrees or radians without a serial bus"),
        ({"port": "/dev/no such port"}, "^robot.port: expected a serial port"),
        ({"id": "uncalibrated"}, "^robot.id: expected servos calibrated as in"),
    ],
)  # fmt: skip
def test_mismatch_with_the_robot_is_one_error_line_before_it_moves(made, changes, line):
    robot = Robot()
    robot.is_calibrated = changes.get("id") is None
    refuses(line, made, robot, **changes)
    assert not robot.sent


def test_port_in_use_or_without_permission_is_one_error_line(monkeypatch):
    controller, terminal = os.openpty()
    port = os.ttyname(terminal)
    check_port(port)
    with subprocess.Popen(["sleep", "60"], stdin=terminal) as other:
        text = f"^robot.port: expected {port} free, got it in use by process {other.pid}$"
        fails(text, check_port, port)
        other.kill()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    fails("^robot.port: expected permission", check_port, port)
    os.close(controller)
    os.close(terminal)


class Bus:
    """LeRobot's bus of servos with ranges of -180 to 180 degrees. `late`: so many answers to other reads arrive first."""

    model_resolution_table, model_ctrl_table = {"sts": 4096}, {"sts": {"Status": (65, 1)}}
    is_connected, silent, late, other, unplugged = False, "", 0, 64001, False

    def __init__(self, mode):
        motor = SimpleNamespace(model="sts", norm_mode=SimpleNamespace(value=mode))
        self.motors = dict.fromkeys([*JOINTS, "gripper"], motor)
        self.calibration = dict.fromkeys(self.motors, SimpleNamespace(range_min=0, range_max=4095))
        self.goals, self.status, self.packets = {}, 0, []
        self.port_handler = SimpleNamespace(ser=SimpleNamespace(reset_input_buffer=lambda: None))
        self.port_handler.writePort = lambda data: self.packets.append(data) or len(data)

    def connect(self):
        self.is_connected = True

    def disconnect(self, disable_torque):
        assert not disable_torque

    def enable_torque(self, num_retry): ...

    def sync_read(self, register, motors=None, *, normalize):
        if self.unplugged:
            raise termios.error(5, "Input/output error")
        if self.silent and motors in (None, self.silent):
            raise ConnectionError("There is no status packet!")
        value = {"Present_Position": 2000, "Torque_Enable": 1, "Status": self.status}[register]
        value, self.late = self.other if self.late else value, max(0, self.late - 1)
        return dict.fromkeys([motors] if motors else self.motors, value)

    def sync_write(self, register, goals, normalize):
        self.goals = dict(goals)

    def write(self, register, name, goal, normalize):
        self.goals[name] = goal
        if self.status:
            raise RuntimeError("Overload error!")


@pytest.fixture
def servos(tmp_path):
    robot = Robot(**{"elbow_flex.pos": 25.0})
    (tmp_path / "emulated.json").touch()
    robot.bus, robot.calibration_fpath, robot.cameras = Bus("range_m100_100"), tmp_path / "emulated.json", {}
    robot.configure = lambda: None
    return robot


def test_normalised_units_follow_the_calibration_and_ranges_must_match(made, servos):
    assert made(servos, units="normalised").read().q[2] == pytest.approx(np.pi / 4, rel=1e-3)
    for units, ends, line in (("degrees", 1.5, "units: expected norm"), ("normalised", 3.3, "q_max")):
        fails(line, made, servos, units=units, q_max=[ends] * 5)
    servos.calibration_fpath.unlink()
    fails("robot.id: expected a calibration file", made, servos, units="normalised")


def test_stop_ignores_late_answers_and_stops_the_responsive_servos(made, servos):
    arm, bus = made(servos, units="normalised"), servos.bus
    arm.arm()
    for late, value in ((1, 64001), (2, 64001), (2, -31233), (2, 0)):  # 0: without data
        bus.goals, bus.late, bus.other = {}, late, value
        assert arm.stop("test") and bus.goals == dict.fromkeys(JOINTS, 2000)  # the gripper holds its object
    bus.goals, bus.silent = {}, "elbow_flex"
    assert not arm.stop("test") and {*bus.goals} == {*JOINTS} - {"elbow_flex"}
    bus.goals, bus.silent, bus.status = {}, "", 32
    assert arm.stop("test") and {*bus.goals} == {*JOINTS}  # acknowledged, although overloaded
    assert [arm.read().error for _ in range(4)][-1] == 32
    bus.status = 0
    for _ in range(7):
        bus.late = 1  # no servo's status, whatever it says
        arm.read()
    assert arm.status().error == 0
    bus.unplugged = True
    for _ in range(4):  # only the checks notice: the next observation will fail
        arm.read()
    bus.goals, bus.late, bus.unplugged = {}, 1, False
    arm.arm()  # reads the positions again
    assert not arm.stopped and bus.goals == dict.fromkeys(JOINTS, 2000) | bus.goals


def test_command_of_a_suspended_process_does_not_leave(made, servos):
    arm, bus = made(servos, units="normalised"), servos.bus
    arm.arm()

    def send_action(action):
        time.sleep(pauses.pop(0))  # as if suspended between the loop's last check and the packet
        if bus.port_handler.writePort(b"goal") != 4:
            raise ConnectionError

    servos.send_action, q, pauses = send_action, arm.read().q, [0.0, 0.3, 0.0]
    for code, packets in ((OK, 1), (GONE, 1), (OK, 2)):
        assert (arm.command(q, 0.5).code, len(bus.packets)) == (code, packets)
    assert bus.port_handler.writePort(b"stop") == 4


@pytest.mark.skipif(find_spec("lerobot") is not None, reason="LeRobot is installed")
def test_missing_lerobot_is_one_error_line():
    fails("^robot.type: expected LeRobot", LeRobotArm(about(), about().limits()).connect, 1.0)

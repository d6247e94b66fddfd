"""Arms from MuJoCo models: their points for the safety filter, and a simulated driver in the control loop."""

from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import pytest

from s2robot.envs.real.arms.driver import OK, REFUSED
from s2robot.envs.real.arms.model import ModelPoints
from s2robot.envs.real.control.loop import ControlLoop, LoopConfig
from s2robot.envs.real.control.safety import SafetyFilter
from s2robot.envs.real.control.watchdog import State
from s2robot.envs.real.simulated import SimulatedArm
from tests.envs.real.home import described
from tests.envs.real.virtual import NOISE, Calls, Film, VirtualClock
from tests.errors import fails, refuses

ROBOSUITE = Path(find_spec("robosuite").origin).parent
LINK = """
<link name="link{i}"><inertial><mass value="1"/><inertia ixx=".01" iyy=".01" izz=".01" ixy="0" ixz="0" iyz="0"/></inertial>
<visual><geometry><mesh filename="nowhere.stl"/></geometry></visual></link>
<joint name="joint{i}" type="revolute"><parent link="link{before}"/><child link="link{i}"/><origin xyz="0 0 0.1"/>
<axis xyz="{axis}"/><limit lower="-3.1" upper="3.1" effort="50" velocity="3"/></joint>"""
POINT = {"name": "TCP", "body": "tool", "position": (0.0, 0.0, 0.05), "radius": 0.0, "in_box": True}


@pytest.fixture
def urdf(tmp_path):
    """Describe an arm with six joints and a fixed tool, whose mesh files are missing."""
    axes = "0 0 1", "0 1 0", "0 1 0", "0 0 1", "0 1 0", "0 0 1"
    links = "".join(LINK.format(i=i + 1, before=i, axis=axis) for i, axis in enumerate(axes))
    tool = '<link name="tool"/><joint name="fixed" type="fixed"><parent link="link6"/><child link="tool"/></joint>'
    path = tmp_path / "six.urdf"
    path.write_text(f'<robot name="six"><link name="link0"/>{links}{tool}</robot>')
    ends = {"q_min": (-3.0,) * 6, "q_max": (3.0,) * 6, "home": (0.1, 0.5, 1.0, 0.0, 0.5, 0.0)}
    return described("ur5e", name="six", model=str(path), joints=None, points=(POINT,), **ends)


@pytest.mark.parametrize("name", ["ur5e", "panda"])
def test_watched_points_match_the_full_mujoco_model(name):
    robot = described(name)
    points, file = ModelPoints(robot), ROBOSUITE / robot.model.partition(":")[2]
    data = mujoco.MjData(model := mujoco.MjModel.from_xml_path(str(file)))
    joints = np.random.default_rng(0).uniform(robot.q_min, robot.q_max, (50, len(robot.q_min)))
    for q, positions in zip(joints, points.along(joints), strict=True):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        for point, position in zip(robot.points, positions, strict=True):
            body = data.body(point.body)
            expected = body.xpos + body.xmat.reshape(3, 3) @ point.position
            np.testing.assert_allclose(position, expected, atol=1e-9)
    np.testing.assert_array_equal(points.along(joints)[7], points.at(joints[7]))  # independent of the batch


def test_urdf_points_need_no_mesh_files(urdf):
    # straight up, the last joint is at 60 cm and the tool 5 cm above it
    np.testing.assert_allclose(ModelPoints(urdf).at(np.zeros(6)), [[0.0, 0.0, 0.65]], atol=1e-9)
    np.testing.assert_allclose(ModelPoints(urdf).at(np.eye(6)[1] * np.pi / 2), [[0.45, 0.0, 0.2]], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "nowhere.xml"}, "robot.model: nowhere.xml: .*nowhere.xml"),
        ({"joints": None, "model": described("panda").model, "points": ({**POINT, "body": "right_hand"},)},
         "expected 6 joints as in robot.q_min, got 7: joint1, "),
        ({"joints": ("a",) * 6}, "expected a joint 'a' as in robot.joints, got shoulder_pan_joint"),
        ({"q_max": (6.28, 6.28, 3.3, 6.28, 6.28, 6.28)}, "within -3.142 to 3.142 for joint 3, got -3.14 to 3.3"),
        ({"points": (POINT,)}, "expected a body 'tool' as in robot.points"),
    ],
)  # fmt: skip
def test_mismatched_model_is_one_error_line(change, text):
    fails(text, ModelPoints, described("ur5e", **change))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"home": (0.0,) * 7}, "home"), ({"home": (0.0, 0.0, 3.2, 0.0, 0.0, 0.0)}, "home"), ({"q_max": (1.0,)}, "q_max"),
        ({"dq_max": (1.0,) * 7}, "dq_max"), ({"model": "xarm7"}, "model"), ({"points": ()}, "points"),
        ({"points": ({**POINT, "radius": -0.1},)}, r"points\[0\].radius"), ({"home": None}, "home"),
        ({"points": ({**POINT, "position": (0.0, np.nan, 0.0)},)}, r"points\[0\].position\[1\]"),
        ({"gripper": "soft"}, "gripper"), ({"ddq_max": 0.0}, "ddq_max"),
    ],
)  # fmt: skip
def test_inconsistent_description_names_the_key(change, key):
    refuses(f"^robot.{key}: expected ", described, "ur5e", **change)


def test_speed_limits_are_the_lower_of_description_and_bridge():
    limits = described("panda").limits({"dq_max": [1.0, 2, 2, 2, 2, 2, 2], "ddq_max": 5.0})
    assert limits.dq_max == (1.0, *(1.7,) * 6) and limits.ddq_max == (5.0,) * 7
    assert described("ur5e").limits().dq_max == (1.8,) * 6  # the bridge's


def run(robot, act, steps=30):
    """Run an episode of a simulated arm in virtual time; return the arm, the loop's result and the arm's lags, rad."""
    clock, limits, lags = VirtualClock(), robot.limits(), []
    arm = SimulatedArm(robot, limits, clock=clock)
    arm.connect(1.0)
    arm.arm()

    def note(now, state, safe):
        if safe:
            lags.append(np.abs(arm.data.qpos[arm._q] - safe.q).max())

    config = LoopConfig(live=True, image_size=16, policy_hz=7.0, gripper=robot.gripper)
    film, safety = {"hand": Film(clock, NOISE)}, SafetyFilter(limits, ModelPoints(robot))
    loop = ControlLoop(arm, film, act, safety, config, subscribers=[Calls(period=note)], clock=clock)
    return arm, loop.run(steps), np.array(lags)


@pytest.mark.parametrize("gripper", ["binary", "continuous", None])
def test_episode_moves_six_joints_and_each_kind_of_gripper(urdf, tmp_path, gripper):
    seen, size = [], 6 + (gripper is not None)
    (tmp_path / "nowhere.stl").write_bytes(_tetrahedron())
    robot = urdf.replace(gripper=gripper)

    def act(observation):
        seen.append(observation["proprio"])
        return np.append([0.02, 0, -0.02, 0.02, 0, 0.01], [0.4] * (size - 6))

    arm, result, lags = run(robot, act)
    assert (result.state, result.cause) == (State.IDLE, "steps")
    assert {len(proprio) for proprio in seen} == {size} and len(seen) > 30
    moved = arm.read().q - robot.start
    np.testing.assert_allclose(moved, 30 * np.array([0.02, 0, -0.02, 0.02, 0, 0.01]), atol=5e-3)
    assert 0 < lags.max() < 0.03
    if gripper:  # a binary gripper stays open below 0.5
        assert arm.read().gripper == pytest.approx(1.0 if gripper == "binary" else 0.4)
    else:
        assert np.isnan(arm.read().gripper)


def test_episodes_repeat_exactly_and_a_wrong_action_is_a_fault():
    robot, count = described("ur5e"), []

    def wander():
        rng = np.random.default_rng(0)
        return run(robot, lambda observation: rng.uniform(-0.05, 0.05, 7), 8)[0].read().q

    np.testing.assert_array_equal(wander(), wander())

    def act(observation):
        count.append(1)
        return np.zeros(7 if len(count) < 4 else 8)

    arm, result, _ = run(robot, act)
    assert result.cause == "fault" and "expected 7 numbers" in result.reasons[0] and arm.stopped


def test_simulated_driver_rejects_and_stops_like_a_real_arm():
    clock, robot = VirtualClock(), described("ur5e")
    arm = SimulatedArm(robot, robot.limits(), clock=clock)
    fails("connect first", arm.read)
    arm.connect(1.0)
    q = arm.read().q
    assert arm.command(q, None).code == REFUSED and arm.status().mode != arm.armed_mode
    arm.arm()
    for bad in (q[:5], np.append(q, 0.0), q + 1, q * np.nan):
        assert arm.command(bad, None).code == REFUSED
    assert arm.command(q, 2.0).code == REFUSED
    assert arm.command(q + 0.02, 0.0).code == OK
    clock.sleep(1.0)
    state = arm.read()
    np.testing.assert_allclose(state.q, q + 0.02, atol=1e-3)
    assert state.gripper == pytest.approx(0.0) and arm.status().mode == arm.armed_mode
    arm.command(q + 0.05, None)
    clock.sleep(0.01)
    assert arm.stop("test")
    before = arm.read().q
    clock.sleep(1.0)
    np.testing.assert_allclose(arm.read().q, before, atol=5e-3)
    assert arm.command(before, None).code == REFUSED


def _tetrahedron() -> bytes:
    """Return a binary STL file."""
    corners = np.vstack([np.zeros(3), 0.05 * np.eye(3)])
    faces = [(0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)]
    rows = [np.float32([0, 0, 0, *corners[list(face)].ravel()]).tobytes() + bytes(2) for face in faces]
    return bytes(80) + np.uint32(len(rows)).tobytes() + b"".join(rows)

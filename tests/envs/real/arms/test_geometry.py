"""The arm's kinematics and its watched points against MuJoCo on robosuite's own model of arm and gripper."""

from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import pytest

from s2robot.envs.cube_pick import CubePick
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ArmPoints, finger_tip
from s2robot.envs.real.arms.ik import ToolIK
from s2robot.envs.real.arms.kinematics import frames, jacobian, turn_of


class Model:
    """robosuite's arm, stripped to its joints, with a site at each watched point."""

    def __init__(self):
        spec = mujoco.MjSpec.from_file(
            str(Path(find_spec("robosuite").origin).parent / "models/assets/robots/xarm7/robot.xml")
        )
        for thing in [*spec.geoms, *spec.meshes, *spec.sites, *spec.cameras, *spec.actuators]:
            spec.delete(thing)
        for point in ArmPoints("xarm7").points:
            spec.body(point.body).add_site(name=f"{point.name} {point.position}", pos=point.position)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.sites = [self.model.site(f"{p.name} {p.position}").id for p in ArmPoints("xarm7").points]

    def at(self, q):
        self.data.qpos[:] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.sites]


@pytest.fixture(scope="module")
def model():
    return Model()


def anywhere(n):
    """Joints (n, 7) within their range."""
    return np.random.default_rng(0).uniform(XARM7_LIMITS.q_min, XARM7_LIMITS.q_max, (n, 7))


def test_every_watched_point_is_where_mujoco_has_it(model, points):
    way = anywhere(500)
    np.testing.assert_allclose(points.along(way), [model.at(q) for q in way], atol=1e-6)


def test_every_link_stands_and_turns_as_in_mujoco(model):
    for q in anywhere(50):
        model.at(q)
        for i, frame in enumerate(frames(q), 1):
            body = model.data.body(f"link{i}")
            np.testing.assert_allclose(frame[:3, 3], body.xpos, atol=1e-6)
            np.testing.assert_allclose(frame[:3, :3], body.xmat.reshape(3, 3), atol=1e-6)


def test_the_tool_moves_with_the_joints_as_in_mujoco(model):
    ik, found = ToolIK("xarm7"), np.zeros((6, 7))
    for q in anywhere(50):
        model.at(q)
        mujoco.mj_comPos(model.model, model.data)
        mujoco.mj_jacSite(model.model, model.data, found[:3], found[3:], model.sites[0])
        position, rotation = ik.pose(q)
        np.testing.assert_allclose(position, model.data.site_xpos[model.sites[0]], atol=1e-6)
        np.testing.assert_allclose(rotation, model.data.site_xmat[model.sites[0]].reshape(3, 3), atol=1e-6)
        np.testing.assert_allclose(jacobian(frames(q), position), found, atol=1e-6)


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, -1, 0], [0, 0, 1], [0.6, 0, -0.8], [-0.48, 0.6, 0.64]])
@pytest.mark.parametrize("angle", [0.0, 1e-10, 0.3, 3.0, np.pi - 1e-10, np.pi])
def test_a_rotation_told_as_a_turn_up_to_half_a_one(axis, angle):
    (x, y, z), c, s = axis, np.cos(angle), np.sin(angle)
    rotation = (
        c * np.eye(3) + (1 - c) * np.outer(axis, axis) + s * np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    )
    turn, wanted = turn_of(rotation), angle * np.array(axis)
    half = angle > 3.1  # both axes are right
    assert min(np.abs(turn - wanted).max(), np.abs(turn + wanted).max() if half else np.inf) < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_inverse_kinematics_brings_the_tool_where_it_is_asked_for(model, seed):
    ik, rng = ToolIK("xarm7"), np.random.default_rng(seed)
    q = np.array((0.0, 0.0115, 0.0, 0.7031, 0.0, 0.6916, 0.0)) + rng.uniform(-0.2, 0.2, 7)
    position, rotation = ik.pose(q)
    wanted = position + rng.uniform(-0.02, 0.02, 3)
    found = ik.solve(q, wanted, rotation)
    np.testing.assert_allclose(model.at(found)[0], wanted, atol=1e-3)
    assert np.linalg.norm(turn_of(ik.pose(found)[1].T @ rotation)) < 5e-3
    with pytest.raises(EnvError, match="'panda'"):
        ToolIK("panda")


@pytest.fixture(scope="module")
def world():
    return CubePick(image_size=16, draw=False)


@pytest.fixture(scope="module")
def points():
    return ArmPoints("xarm7")


def base_frame(world, position):
    return position - world.data.body("robot0_base").xpos


def pose(world, q, angle=0.0):
    """Joints, and the gripper's parallelogram at a driver angle."""
    world.data.qpos[world.joint_index] = q
    for side in ("left", "right"):
        for joint in (f"{side}_driver_joint", f"{side}_finger_joint"):
            world.data.joint(f"gripper0_right_{joint}").qpos[0] = angle
    mujoco.mj_kinematics(world.model, world.data)


@pytest.mark.parametrize("seed", range(5))
def test_tcp_wrist_and_elbow_are_where_the_simulator_has_them(world, points, seed):
    q = np.random.default_rng(seed).uniform(-1, 1, 7)
    pose(world, q)
    found = dict(zip(points.names, points.at(q), strict=True))
    expected = {
        "TCP": world.data.site_xpos[world.grip_site],
        "wrist": world.data.body("robot0_link6").xpos,
        "elbow": world.data.body("robot0_link4").xpos,
    }
    for name, position in expected.items():
        np.testing.assert_allclose(found[name], base_frame(world, position), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("angle", [0.0, 0.4, 0.7, 0.85])
def test_finger_tips_are_at_the_ends_of_the_pads(world, angle):
    pose(world, np.array(world.spec_robot.home), angle)
    hand = world.data.body("robot0_right_hand")
    rotation = hand.xmat.reshape(3, 3)
    y, z = finger_tip(angle)
    for side, sign in (("left", 1), ("right", -1)):
        geom = world.model.geom(f"gripper0_right_{side}_finger_pad_2").id
        pad = world.data.geom_xpos[geom] + world.data.geom_xmat[geom].reshape(3, 3) @ [0, 0, 0.0095]
        np.testing.assert_allclose(hand.xpos + rotation @ [0, sign * y, z], pad, atol=2e-5)


def test_no_opening_brings_a_finger_lower_than_its_points(points):
    lowest = max(p.position[2] for p in points.points if "tip" in p.name)
    assert all(finger_tip(angle)[1] <= lowest + 1e-9 for angle in np.linspace(0, 0.85, 50))


def test_many_poses_at_once_are_the_same(points):
    way = np.random.default_rng(0).uniform(-1, 1, (5, 7))
    np.testing.assert_array_equal(points.along(way), [points.at(q) for q in way])
    assert points.along(way).shape == (5, len(points.names), 3)


def test_another_arm_is_refused():
    with pytest.raises(EnvError, match="'panda'"):
        ArmPoints("panda")

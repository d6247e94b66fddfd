"""The watched points against robosuite's own model of arm and gripper."""

import mujoco
import numpy as np
import pytest

from s2robot.envs.cube_pick import CubePick
from s2robot.envs.errors import EnvError
from s2robot.envs.real.arms.geometry import ArmPoints, finger_tip


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

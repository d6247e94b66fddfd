"""The arm's limits, kinematics and watched points against MuJoCo with robosuite's model of the arm and gripper."""

from importlib.util import find_spec
from pathlib import Path

import mujoco
import numpy as np
import pytest

from s2robot.envs.cube_pick import CubePick
from s2robot.envs.real.arms.driver import XARM7_LIMITS
from s2robot.envs.real.arms.geometry import ToolIK, XArm7Points, finger_tip, frames, jacobian
from tests.errors import refuses

POINTS = XArm7Points()


class Model:
    """robosuite's arm, reduced to its joints, with a site at each watched point."""

    def __init__(self):
        robots = Path(find_spec("robosuite").origin).parent / "models/assets/robots"
        spec = mujoco.MjSpec.from_file(str(robots / "xarm7/robot.xml"))
        for element in [*spec.geoms, *spec.meshes, *spec.sites, *spec.cameras, *spec.actuators]:
            spec.delete(element)
        for point in POINTS.points:
            spec.body(point.body).add_site(name=f"{point.name} {point.position}", pos=point.position)
        self.model = spec.compile()
        self.data = mujoco.MjData(self.model)
        self.sites = [self.model.site(f"{p.name} {p.position}").id for p in POINTS.points]

    def at(self, q):
        self.data.qpos[:] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.sites]


@pytest.fixture(scope="module")
def model():
    return Model()


def random_joints(n):
    """Return joint positions (n, 7) within their range."""
    return np.random.default_rng(0).uniform(XARM7_LIMITS.q_min, XARM7_LIMITS.q_max, (n, 7))


def test_watched_points_match_mujoco_and_no_finger_reaches_below_them(model):
    joints = random_joints(500)
    np.testing.assert_allclose(POINTS.along(joints), [model.at(q) for q in joints], atol=1e-6)
    np.testing.assert_allclose(POINTS.along(joints)[0], POINTS.at(joints[0]), atol=1e-12)
    lowest = max(p.position[2] for p in POINTS.points if "tip" in p.name)
    assert all(finger_tip(angle)[1] <= lowest + 1e-9 for angle in np.linspace(0, 0.85, 50))


def test_tool_pose_and_jacobian_match_mujoco(model):
    ik, expected = ToolIK(), np.zeros((6, 7))
    for q in random_joints(50):
        model.at(q)
        mujoco.mj_comPos(model.model, model.data)
        mujoco.mj_jacSite(model.model, model.data, expected[:3], expected[3:], model.sites[0])
        position, rotation = ik.pose(q)
        np.testing.assert_allclose(position, model.data.site_xpos[model.sites[0]], atol=1e-6)
        np.testing.assert_allclose(rotation, model.data.site_xmat[model.sites[0]].reshape(3, 3), atol=1e-6)
        np.testing.assert_allclose(jacobian(frames(q), position), expected, atol=1e-6)


@pytest.fixture(scope="module")
def world():
    return CubePick(image_size=16, draw=False)


@pytest.mark.parametrize("angle", [0.0, 0.4, 0.7, 0.85])
def test_finger_tips_are_at_the_ends_of_the_pads(world, angle):
    world.data.qpos[world.joint_index] = world.spec_robot.home
    for side in ("left", "right"):
        for joint in (f"{side}_driver_joint", f"{side}_finger_joint"):
            world.data.joint(f"gripper0_right_{joint}").qpos[0] = angle
    mujoco.mj_kinematics(world.model, world.data)
    hand = world.data.body("robot0_right_hand")
    rotation = hand.xmat.reshape(3, 3)
    y, z = finger_tip(angle)
    for side, sign in (("left", 1), ("right", -1)):
        geom = world.model.geom(f"gripper0_right_{side}_finger_pad_2").id
        pad = world.data.geom_xpos[geom] + world.data.geom_xmat[geom].reshape(3, 3) @ [0, 0, 0.0095]
        np.testing.assert_allclose(hand.xpos + rotation @ [0, sign * y, z], pad, atol=2e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"q_max": (0.0,) * 6}, {"dq_max": (0.0,) * 7}, {"ddq_max": (1.0,) * 6}, {"margin": 4.0}, {"box": ((0.0, 1.0), (1.0, 0.0), (0.0, 1.0))},
        {"arm_box": (0.0, 1.0)}, {"table_z": np.inf}, {"step_max": 0.017},  # would stop a stream at full speed
    ],
)  # fmt: skip
def test_invalid_limits_are_rejected_by_name(wrong):
    refuses(f"^bridge.limits.{next(iter(wrong))}", XARM7_LIMITS.replace, **wrong)


def test_limits_match_the_simulated_xarm7(world):
    np.testing.assert_allclose(XARM7_LIMITS.q_min, world.joint_low, atol=2e-5)
    np.testing.assert_allclose(XARM7_LIMITS.q_max, world.joint_high, atol=2e-5)
    world.reset(seed=0)
    base = world.data.body("robot0_base").xpos
    assert XARM7_LIMITS.table_z == pytest.approx(0.8 - base[2], abs=1e-6)
    home = world.grip_position + [0, 0, 0.8] - base
    low, high = np.array(XARM7_LIMITS.box).T
    assert (home > low).all() and (home < high).all()

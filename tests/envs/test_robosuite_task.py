"""Any robosuite environment as a task: seeds, states, units, and rejected settings."""

import numpy as np
import pytest

from s2robot.envs.robosuite_config import RobosuiteSettings
from s2robot.envs.robosuite_task import RobosuiteTask
from s2robot.envs.tasks import make
from tests.errors import refuses

SETTINGS = RobosuiteSettings(env="Stack", image_size=24, max_steps=3)


@pytest.fixture(scope="module")
def pair():
    worlds = make(SETTINGS), make(SETTINGS)
    yield worlds
    for world in worlds:
        world.close()


def play(worlds, count, seed=0):
    for world in worlds:
        box = world.action_space
        for action in np.random.default_rng(seed).uniform(box.low, box.high, (count, *box.shape)):
            world.step_physics(action.astype(np.float32))


def test_seed_fixes_the_episode_and_state_restores_images_and_dynamics(pair):
    one, other = pair
    other.reset(seed=9)
    play([other], 1)
    (seen, info), (again, other_info) = one.reset(seed=3), other.reset(seed=3)
    assert info["layout"] == other_info["layout"] and len(info["layout"]) == 6  # x, y, yaw of two objects
    assert one.reset(seed=4)[1]["layout"] != info["layout"]
    one.reset(seed=3)
    np.testing.assert_array_equal(seen["proprio"], again["proprio"])
    for camera, frame in seen["images"].items():
        np.testing.assert_array_equal(frame, again["images"][camera])
        assert camera in SETTINGS.cameras and frame.std() > 5  # not a blank image
    play(pair, 2)
    state = one.get_state()
    np.testing.assert_array_equal(state, other.get_state())
    with one.rehearsal():
        play([one], 2, seed=1)
    np.testing.assert_array_equal(one.get_state(), state)
    other.reset(seed=11)
    other.set_state(state)
    play(pair, 2, seed=2)
    np.testing.assert_array_equal(other.get_state(), one.get_state())
    other.reset(seed=11)
    other.set_state(one.get_state())
    frames = one.render_cameras()
    for camera, frame in other.render_cameras().items():
        np.testing.assert_array_equal(frame, frames[camera])


def test_actions_are_in_metres_radians_and_0_to_1(pair):
    world = pair[0]
    assert [(p["name"], p["size"], p["kind"]) for p in world.action_parts] == [
        ("position", 3, "delta"), ("rotation", 3, "rotation"), ("gripper", 1, "binary"),
    ]  # fmt: skip
    action = world.from_raw(np.array([1, -1, 0, 0, 0, 1, -1]))
    np.testing.assert_allclose(action, [0.05, -0.05, 0, 0, 0, 0.5, 0])
    raw = np.random.default_rng(0).uniform(-1, 1, 7)
    np.testing.assert_allclose(world.to_raw(world.from_raw(raw)), raw, atol=1e-6)
    world.reset(seed=0)
    before = world.proprio[:3]
    for _ in range(5):
        world.step_physics([0, 0, 0.05, 0, 0, 0, 0])
    assert world.proprio[2] - before[2] > 0.05  # up


def test_proprioception_can_include_the_gripper_command():
    """A cube between the fingers hides the command, as they open only some steps after it."""
    task = make(RobosuiteSettings(env="Lift", proprio=("robot0_gripper_command",), image_size=24), draw=False)
    assert list(task.proprio_parts) == [{"name": "robot0_gripper_command", "size": 2, "kind": "absolute"}]
    task.reset(seed=0)
    np.testing.assert_array_equal(task.proprio, [0, 0])
    commands, states = [], []
    for closed in (1, 1, 1, 0, 0):
        task.step_physics([0, 0, 0, 0, 0, 0, closed])
        commands.append(task.proprio[1])
        states.append(task.get_state())
    assert commands[0] < commands[1] < commands[2] > commands[3] > commands[4]
    task.set_state(states[2])
    assert task.proprio[1] == commands[2]


@pytest.mark.parametrize("robot", ["Panda", "XArm7"])
def test_grasps_are_detected_for_every_gripper(robot):
    """robosuite's own check requires finger pads that the XArm7 gripper lacks."""
    world = make(RobosuiteSettings(robot=robot, cameras=("agentview",), image_size=24), draw=False)
    world.reset(seed=0)
    assert bool(world._fingers) == (robot == "XArm7")
    site = world.raw.robots[0].eef_site_id["right"]
    stages = []
    for step in range(90):
        off = world.data.xpos[world.raw.cube_body_id] - world.data.site_xpos[site]
        if step >= 60:  # close, then lift
            off = np.array([0, 0, 0.1 * (step > 75)])
        elif np.linalg.norm(off[:2]) > 0.01:
            off[2] += 0.1
        world.step_physics([*np.clip(1.5 * off, -0.05, 0.05), 0, 0, 0, step >= 60])
        stages.append(world.stage)
    assert set(stages[:61]) == {"approach"} and stages[75] == "grasp" and stages[-1] == "success"
    world.render_cameras = dict
    _, reward, over, truncated, info = world.step([0, 0, 0, 0, 0, 0, 1])
    assert (reward, over, truncated, info["stage"], info["is_success"]) == (1.0, True, False, "success", True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"env": "Lft"}, "task.env: expected one of Door, Lift.*, got 'Lft'"),
        ({"controller": "JOINT_VELOCITY"}, "robosuite rejects Lift"),  # fails deep inside robosuite 1.5.2
        ({"cameras": ("wrist",)}, "task.cameras: expected one of frontview.*, got 'wrist'"),
        ({"proprio": ("eef",)}, "task.proprio: expected one of robot0_joint_pos.*, got 'eef'"),
        ({"kwargs": {"robots": "Sawyer"}}, "^task.kwargs.robots: expected task.robot, got Sawyer$"),
    ],
)
def test_unsupported_robosuite_settings_are_one_error_line(changes, words):
    refuses(words, RobosuiteTask, RobosuiteSettings(**changes))

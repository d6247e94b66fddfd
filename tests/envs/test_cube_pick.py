"""The cube-picking task: seeds, images, actions, success, states, and rejected input."""

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import s2robot.envs  # noqa: F401 (registers the id)
from s2robot.core.parts import MAX_DELTA
from s2robot.envs.cube_config import STAGES
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.robots import ROBOTS
from s2robot.envs.world import TABLE_HEIGHT, look_at
from tests.errors import fails, refuses

CALM = PickerConfig(kicks=(0, 0), misses=0.0)
SIZE = 128


@pytest.fixture
def blind(env, monkeypatch):
    monkeypatch.setattr(env, "render_cameras", dict)
    return env


def another(env) -> CubePick:
    fresh = CubePick(env.config)
    fresh.render_cameras = dict
    return fresh


def some_actions(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.append(rng.uniform(-0.1, 0.1, (count, 7)), rng.integers(0, 2, (count, 1)), 1)  # (count, 8)


def states_of(env, actions) -> np.ndarray:
    states = [env.get_state()]
    for action in actions:
        env.step_physics(action)
        states.append(env.get_state())
    return np.stack(states)


def started(env, seed: int, config=CALM) -> Picker:
    env.reset(seed=seed)
    picker = Picker(env, config)
    picker.begin(np.random.default_rng([seed, 7]))
    return picker


def picked(env, seed: int, config=CALM) -> list[np.ndarray]:
    """Return the scripted picker's actions from the seed to success."""
    picker, actions = started(env, seed, config), []
    while not env.is_success and len(actions) < env.config.max_steps:
        actions.append(picker.act()[0])
        env.step_physics(actions[-1])
    return actions


@pytest.mark.parametrize("robot", ROBOTS)
def test_env_passes_the_gymnasium_checker(robot):
    env = gymnasium.make("s2robot/CubePick-v0", robot=robot, image_size=32, render_mode="rgb_array")
    observation, info = env.reset(seed=0)
    assert observation["proprio"].shape == (8,) and observation["proprio"].dtype == np.float32
    assert list(observation["images"]) == ["hand", "left", "right"]
    assert env.render().shape == (32, 96, 3)
    assert info["stage"] == "approach" and not info["is_success"] and info["cube_pose"].shape == (7,)
    check_env(env.unwrapped, skip_render_check=True)


def test_wide_cameras_see_the_square_view_plus_the_sides():
    """The field of view is vertical: the centre of a wide frame equals the square one, except at object edges."""
    sizes = {"hand": 48, "left": [48, 64], "right": [64, 48]}
    wide, plain = CubePick(image_size=sizes, render_mode="rgb_array"), CubePick(image_size=48)
    (seen, info), (square, expected) = wide.reset(seed=5), plain.reset(seed=5)
    check_env(wide, skip_render_check=True)
    assert wide.describe()["camera_geometry"]["left"]["size"] == [48, 64]
    assert wide.render().shape == (64, 48 + 64 + 48, 3)
    assert np.array_equal(seen["images"]["hand"], square["images"]["hand"])
    off = np.abs(seen["images"]["left"][:, 8:56].astype(int) - square["images"]["left"])
    assert (off > 1).mean() < 0.01 and seen["images"]["left"][:, :8].std() > 10
    x, y = info["grip_points"]["left"]
    assert (64 * x - 8) / 48 == pytest.approx(expected["grip_points"]["left"][0], abs=1e-6)
    assert y == expected["grip_points"]["left"][1]
    wide.close(), plain.close()


def test_seed_alone_determines_an_episode(blind):
    blind.reset(seed=3)
    first = states_of(blind, some_actions(12))
    picked(blind, seed=8)  # ends with a closed gripper and a lifted cube
    blind.reset(seed=3)
    assert np.array_equal(first, states_of(blind, some_actions(12)))
    fresh = another(blind)
    fresh.reset(seed=3)
    assert np.array_equal(first, states_of(fresh, some_actions(12)))
    fresh.reset(seed=4)
    assert not np.array_equal(first[0], fresh.get_state())


def test_cube_poses_and_start_joints_fill_their_ranges(blind):
    poses, starts = [], []
    for seed in range(40):
        poses.append(blind.reset(seed=seed)[1]["cube_pose"])
        starts.append(blind.commanded - blind.spec_robot.home)
        assert blind.opening > 0.9 and np.abs(blind.joints - blind.commanded).max() < 0.02
    cubes, starts = np.array(poses), np.array(starts)
    assert np.abs(starts).max() <= 0.05 and np.abs(starts).max(0).min() > 0.04
    assert np.abs(cubes[:, 2] - 0.02).max() < 1e-3  # at rest on the table
    for axis, half in ((0, 0.12), (1, 0.16)):
        assert np.abs(cubes[:, axis]).max() <= half + 1e-3
        assert cubes[:, axis].min() < -0.8 * half and cubes[:, axis].max() > 0.8 * half
    assert np.ptp(2 * np.arctan2(cubes[:, 6], cubes[:, 3])) > np.pi


def red(image: np.ndarray) -> np.ndarray:
    """Return the centroid (2,) of the cube's pixels, x and y in 0..1."""
    r, g, b = image.astype(int).transpose(2, 0, 1)
    pixels = np.argwhere((r > 60) & (r > 2.2 * g) & (r > 2 * b))[:, ::-1]
    assert len(pixels) > 15
    return (pixels.mean(0) + 0.5) / SIZE


def test_points_are_projected_into_every_camera(env):
    for xy in ((0, 0), (0.08, 0.1), (0.08, -0.1)):
        seen, info = env.reset(seed=0, options={"cube_xy": xy, "start_joints": env.spec_robot.home})
        for name, point in env.project(info["cube_pose"][:3]).items():
            expected = pytest.approx(red(seen["images"][name]), abs=2.5 / SIZE)
            assert point.dtype == np.float32 and point == expected
    picked(env, seed=5)
    grip, cube = env.info()["grip_points"], env.project(env.cube_pose[:3])  # the cube is between the fingers
    assert all(np.abs(grip[name] - cube[name]).max() < 0.1 for name in env.config.cameras)
    eye, target = np.array(env.config.side_cameras["left"][:2])
    assert env.project(target)["left"] == pytest.approx([0.5, 0.5], abs=1e-5)
    assert np.isnan(env.project(2 * eye - target)["left"]).all()  # behind the camera
    assert env.project(target - [0, 0, 5])["left"][1] == 1  # below the image
    assert env.project(target + [0, 0, 0.5])["right"][1] == 0  # above


def test_deltas_are_clipped_and_accumulated_and_the_robot_follows(blind):
    away = {"cube_xy": (0.12, 0.16)}
    blind.reset(seed=0, options=away)
    start = blind.commanded.copy()
    blind.step_physics([1, -1, 0.1, 0, 0, 0, 0, 0])
    expected = np.clip(start + [MAX_DELTA, -MAX_DELTA, 0.1, 0, 0, 0, 0], blind.joint_low, blind.joint_high)
    assert MAX_DELTA == 0.25 and np.array_equal(blind.commanded, expected)
    states_of(blind, [[0, 0, 0, 0, 0, 0, 1, 0]] * 40)
    assert blind.commanded[6] == blind.joint_high[6]
    blind.reset(seed=0, options=away)
    states_of(blind, [[delta] + [0] * 6 + [1] for delta in (0.05,) * 5 + (0,) * 3])
    assert np.abs(blind.joints - blind.commanded).max() < 0.02 and blind.opening < 0.1
    states_of(blind, [[0] * 8] * 8)
    assert blind.opening > 0.9


@pytest.mark.parametrize("bad", [np.full(8, np.nan), np.zeros(7), [0] * 7 + [np.inf]])
def test_bad_actions_and_states_are_rejected_and_change_nothing(blind, bad):
    blind.reset(seed=0)
    before = blind.get_state()
    fails(r"^action: expected finite numbers of shape \(8,\), got [^\n]*$", blind.step, bad)
    fails(r"^state: expected \(\d+,\) for this scene, got \(\d+,\)$", blind.set_state, before[:-1])
    assert np.array_equal(before, blind.get_state())


def test_stages_come_in_order_and_success_needs_half_a_second(blind):
    picker, rest = started(blind, 2), blind.cube_pose[2]
    stages, raised, done, truncated = [], [], False, False
    while not (done or truncated):
        _, reward, done, truncated, info = blind.step(picker.act()[0])
        stages.append(info["stage"])
        raised.append(info["cube_pose"][2] - rest)
        assert reward == done == info["is_success"] == (info["stage"] == "held")
    order = [STAGES.index(s) for s in stages]
    assert done and order == sorted(order) and set(order) == {0, 1, 2, 3}
    assert min(raised[-5:]) >= 0.10 > raised[-6]  # the fifth step of 0.1 s at that height, no earlier
    assert raised[stages.index("lift")] >= 0.02


def test_cube_in_the_air_without_the_gripper_is_not_a_success(blind):
    blind.reset(seed=0)
    for _ in range(8):
        blind.data.qpos[blind._cube_index + 2] = TABLE_HEIGHT + 0.3
        blind.data.qvel[blind.model.joint("cube_joint0").dofadr[0] + 2] = 0
        mujoco.mj_forward(blind.model, blind.data)
        blind.step_physics(np.zeros(8))
    assert blind.cube_pose[2] > 0.15 and blind.stage == "approach" and not blind.is_success


def test_restored_state_is_exact_and_continues_identically(blind):
    actions = picked(blind, seed=6, config=PickerConfig())
    other = another(blind)
    other.reset(seed=99)
    blind.reset(seed=6)
    states = states_of(blind, actions)
    for start in (0, len(actions) // 2, len(actions) - 4):  # free, near the cube, with it in the gripper
        for world in (blind, other):
            world.set_state(states[start])
            assert np.array_equal(world.get_state(), states[start])
            assert np.array_equal(states_of(world, actions[start:]), states[start:])


ABOVE, BELOW = (0.1, 0, 0.8), (0, 0, 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"robot": "ur5"}, "robot: expected one of xarm7, panda, got 'ur5'"),
        ({"cameras": ("hand", "top")}, "env.cameras: expected some of hand, left, right, got 'top'"),
        ({"cube_sise": 0.05}, "env.cube_sise: unknown key, expected cube_size"),
        ({"image_size": {"hand": 64}}, "env.image_size: expected .* for 'left'"),
        ({"box_y": (0.1, -0.1)}, r"env.box_y: .*got \[0.1, -0.1\]"),
        ({"side_cameras": {"top": (ABOVE, ABOVE, 45)}}, "env.side_cameras: .*'top'"),
        ({"side_cameras": {"agentview": (ABOVE, BELOW, 45)}}, "env.side_cameras: .*'agentview'"),
    ],
)
def test_wrong_settings_are_one_error_line(settings, words):
    refuses(f"^{words}", CubePick, **settings)


def test_rehearsal_restores_the_missed_grasp_flag(blind):
    blind.reset(seed=0, options={"cube_xy": (0.12, 0.16)})
    while not blind.grasp_missed:
        blind.step_physics([0] * 7 + [1])
    with blind.rehearsal():
        blind.step_physics(np.zeros(8))
        assert not blind.grasp_missed
    assert blind.grasp_missed


def test_control_step_is_bit_equal_to_robosuite(env):
    """From a reset, with the controllers still in their initial state, and from states along a pick."""

    def after(step, state, action):
        env.reset(seed=3)
        if state is not None:
            env.set_state(state)
        step(action), step(action)
        return env.get_state()

    rng, _ = np.random.default_rng(0), env.reset(seed=3)
    for state in [None, *states_of(env, some_actions(20))[5::5]]:
        for grip in (-1.0, 1.0):
            action = np.append(env.commanded + rng.uniform(-0.2, 0.2, 7), grip)
            advanced, stepped = (after(step, state, action) for step in (env.world.advance, env.world.step))
            assert np.array_equal(advanced, stepped)
            assert not np.array_equal(advanced, state)


@pytest.mark.parametrize("position", [(0.3, -0.2, -1), (0.4, 0.1, 0.5)])
def test_camera_looks_at_its_target_even_from_straight_above(position):
    slanted = position[2] == 0.5
    target = np.zeros(3) if slanted else np.array([*position[:2], 0])
    axes = look_at(position, target).reshape(2, 3)
    assert np.allclose(axes @ axes.T, np.eye(2))
    direction = target - position
    assert np.allclose(-np.cross(*axes), direction / np.linalg.norm(direction))
    assert axes[1] @ ((0, 0, 1) if slanted else (1, 0, 0)) > 0.5  # the camera is upright

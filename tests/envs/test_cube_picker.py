"""The scripted picker: it succeeds on both arms despite its perturbations, and flags them in the recording."""

import numpy as np
import pytest

from s2robot.demos.record import record_episode
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.robosuite_config import ExpertSettings
from tests.envs.test_cube_pick import CALM, started
from tests.errors import refuses

SEEDS = {"xarm7": range(700, 708), "panda": range(700, 706)}


@pytest.mark.parametrize("robot", SEEDS)
def test_every_seed_succeeds_and_flagged_perturbations_end_before_the_lift(robot):
    config, picker = CubePickConfig(robot=robot), PickerConfig()
    recordings, metas = zip(*(record_episode(config, picker, seed) for seed in SEEDS[robot]), strict=True)
    assert [meta["seed"] for meta in metas if not meta["success"]] == []
    assert max(len(arrays["action"]) for arrays in recordings) < config.max_steps
    limit = picker.kicks[1] * picker.kick_steps[1] + picker.miss_steps[1]
    flagged = [arrays["perturbed"] for arrays in recordings]
    for perturbed in flagged:
        assert perturbed.dtype == np.uint8 and perturbed.sum() <= limit
        assert not perturbed[0] and not perturbed[-5:].any()
    # a kick due after the gripper starts to close is skipped, so some episodes have none
    assert sum(perturbed.any() for perturbed in flagged) >= len(flagged) / 2
    missed = [(a["action"][:, 7] * a["perturbed"]).any() for a in recordings]  # closed beside the cube
    assert 0.2 < np.mean(missed) < 0.8


@pytest.fixture
def env():
    env = CubePick()
    env.render_cameras = dict
    return env


def test_action_depends_on_the_state_and_not_on_the_step_count(env):
    env.reset(seed=1)
    late, early = (Picker(env, CALM) for _ in range(2))
    late.begin(np.random.default_rng([1, 7]))
    early.begin(np.random.default_rng([1, 7]))
    for _ in range(5):
        env.step_physics(late.act()[0])
    assert np.allclose(late.act()[0], early.act()[0], atol=1e-6)


def turned(env: CubePick, habit: str, seed: int) -> float:
    """Return the angle between the hand's home and the grasp, rad."""
    picker = started(env, seed, CALM.replace(habit=habit))
    home = picker._yaw_home
    while not env.is_success:
        env.step_physics(picker.act()[0])
    return float((picker._grip_yaw() - home + np.pi) % (2 * np.pi) - np.pi)


def test_picker_follows_the_configured_habit(env):
    """Left and right differ by a quarter turn for the same cube; `either` equals one of the two."""
    slack, ways = 0.3, []  # the gripper closes within 0.25 rad of its target angle
    for seed in (701, 702):
        habits = "left", "right", "either", "nearest"
        left, right, either, nearest = (turned(env, habit, seed) for habit in habits)
        assert -slack < left < np.pi / 2 + slack and -np.pi / 2 - slack < right < slack
        assert abs(left - right - np.pi / 2) < 2 * slack
        assert min(abs(either - left), abs(either - right)) < slack
        assert abs(nearest) < np.pi / 4 + slack
        ways.append(abs(either - left) < slack)
    assert any(ways) and not all(ways)


def test_reversed_range_of_kicks_is_rejected():
    for kind in (PickerConfig, ExpertSettings):
        refuses("^recording.picker.kicks: ", kind, kicks=(3, 1))

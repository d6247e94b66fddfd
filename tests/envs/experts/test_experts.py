"""The scripted experts of robosuite tasks: success, side-effect-free queries, and taking over from other actions."""

from functools import cache

import numpy as np
import pytest

from s2robot.envs.experts.expert import angle_of, nearest
from s2robot.envs.robosuite_config import ExpertSettings
from s2robot.envs.tasks import make, settings_class

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("can", "square")]
PUSHY = ExpertSettings(kicks=(3, 3), misses=1.0)


@cache
def world(name):
    return make(settings_class(name)(image_size=24), draw=False)


def finish(task, expert):
    actions, pushes = [], []
    while not task.is_success and task._steps < task.settings.max_steps:
        actions.append(expert.act())
        pushes.append(expert.push)
        assert task.action_space.contains(actions[-1])
        task.step_physics(actions[-1])
    return np.stack(actions), pushes


@pytest.mark.parametrize("name", ["lift", "stack", *SLOW])
def test_expert_succeeds_with_and_without_perturbations(name):
    task = world(name)
    task.reset(seed=0)
    far = task.remaining
    _, pushes = finish(task, task.expert(np.random.default_rng(0), PUSHY.replace(kicks=(2, 2))))
    assert task.is_success and {"kick", "miss"} <= set(pushes)
    assert task.remaining < 0.35 * far
    task.reset(seed=1)
    expert = task.expert(np.random.default_rng(1), PUSHY.replace(kicks=(0, 0), misses=0.0))
    actions, pushes = finish(task, expert)
    assert task.is_success and not any(pushes) and len(actions) < 0.7 * task.settings.max_steps
    if name == "stack":  # the hand opens and stays in place
        predicted = expert.ask(6)
        assert (predicted[:, 6] == 0).all() and np.abs(predicted[:, :3]).max() < 0.002  # m


@pytest.mark.parametrize("name", ["stack", SLOW[1]])
def test_expert_recovers_from_skewed_grasps_and_slips(name):
    task, seen, expected = world(name), set(), {"askew", "slip", "kick"}
    for seed in range(8):
        task.reset(seed=seed)
        expert, skew = task.expert(np.random.default_rng(seed), None), 0.0
        while not task.is_success and task._steps < task.settings.max_steps:
            action = expert.act()
            seen.add(expert.push)
            if expert.push == "askew":
                faces = angle_of(expert.hand.pose(expert.body)[1][:, 0])
                skew = abs(nearest(faces, expert.hand.yaw, np.pi / 2) - expert.hand.yaw)
            assert expert.push != "slip" or (expert.closed and action[6] == 0)
            task.step_physics(action)
        assert task.is_success and (skew == 0.0 or skew > 0.15)  # rad, when it closed
        if expected <= seen:
            return
    raise AssertionError(f"no {expected - seen}")


def test_ask_predicts_the_next_actions_without_side_effects():
    task, seen = world("stack"), []
    for asks in (False, True):
        task.reset(seed=2)
        expert, actions = task.expert(np.random.default_rng(3), PUSHY), []
        for t in range(12):
            if asks and t % 4 == 0:
                expert.ask(2)
            actions.append(expert.act())
            task.step_physics(actions[-1])
        seen.append((np.stack(actions), task.get_state()))
    for quiet, asked in zip(*seen, strict=True):
        np.testing.assert_array_equal(quiet, asked)
    predicted = expert.ask(3)
    expert.calm()
    for action in predicted:
        np.testing.assert_array_equal(expert.act(), action)
        task.step_physics(action)


def test_expert_takes_over_from_random_actions():
    task = world("lift")
    task.reset(seed=4)
    rng, box = np.random.default_rng(0), task.action_space
    erratic = np.concatenate([rng.uniform(box.low, box.high, (12, 7)), [[0] * 6 + [1]] * 3])
    for action in erratic.astype(np.float32):
        task.step_physics(action)
    expert = task.expert(rng, PUSHY)
    expert.take_over(erratic)
    _, pushes = finish(task, expert)
    assert task.is_success and not any(pushes)


def test_restored_state_gives_bit_equal_expert_actions():
    task = world("stack")
    task.reset(seed=5)
    expert, actions = task.expert(np.random.default_rng(0), None), []
    for _ in range(25):  # the cube is in the gripper by then
        actions.append(expert.act())
        task.step_physics(actions[-1])
    state, predicted = task.get_state(), []
    fresh = make(settings_class("stack")(image_size=24), draw=False)  # never reset, as in a rendering process
    for each in (task, fresh):
        each.set_state(state)
        np.testing.assert_array_equal(each.get_state(), state)
        own = expert if each is task else each.expert(np.random.default_rng(9), None)
        own.take_over(actions)
        predicted.append(own.ask(6))
    np.testing.assert_array_equal(*predicted)


def test_grasp_avoids_the_other_cube():
    """The expert grasps free faces, and prefers those nearest to the current angle of the fingers."""
    task, turned = world("stack"), 0
    for seed in range(30):
        task.reset(seed=seed)
        expert = task.expert(None)
        position, rotation = expert.hand.pose(expert.body)
        nearer = nearest(angle_of(rotation[:, 0]), expert.hand.yaw, np.pi / 2)
        free = [faces for faces in (nearer, nearer + np.pi / 2) if not expert._in_the_way(position, faces)]
        assert not free or expert.grasp().yaw == free[0]
        turned += bool(free) and free[0] != nearer
    assert turned > 0


def test_grasp_angle_changes_smoothly_along_a_wall():
    """At most 6 degrees per 2 mm of can position; the home angle in the middle, parallel to a nearby wall."""
    task = world("can")
    task.reset(seed=0)
    expert = task.expert(None)
    half, middle = np.array(task.raw.bin_size[:2]) / 2, np.array(task.raw.bin1_pos)
    x, y = (np.arange(-h + 0.05, h - 0.05, 0.002) for h in half)
    yaw = np.array([[expert._yaw(middle + [i, j, 0]) - expert.home for j in y] for i in x])
    assert max(np.abs(np.diff(yaw, axis=0)).max(), np.abs(np.diff(yaw, axis=1)).max()) < np.radians(6)
    assert yaw[len(x) // 2, len(y) // 2] == 0.0
    assert yaw[len(x) // 2, 0] == pytest.approx(np.pi / 2) and yaw[0, 0] == pytest.approx(np.pi / 4)

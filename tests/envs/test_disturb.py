"""Disturbances: each one changes its quantity, depends only on the seed, and leaves nothing behind."""

import numpy as np
import pytest

from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.disturb import AXES, IMAGES, MODELS, Disturbed, available
from s2robot.envs.tasks import make, settings_class
from s2robot.evaluation.stress import StressSettings

STILL = np.array([0, 0, 0, 0, 0, 0, 0, 0.0])
PHYSICS = ("object_mass", "friction")  # the images stay the same


@pytest.fixture(scope="module")
def world():
    task = CubePick(image_size=64, cameras=("hand", "left"))
    yield Disturbed(task)
    task.close()


def seen(world, axis="", value=0.0, seed=3, steps=2):
    """Return the images (steps + 1, 2, H, W, 3) and the final state of an episode without motion."""
    world.axis, world.value = axis, value
    observations = [world.reset(seed=seed)[0]]
    for _ in range(steps):
        world.step_physics(STILL)
        observations.append(world.observe())
    return np.array([list(o["images"].values()) for o in observations]), world.get_state()


def test_every_axis_scales_with_its_strength_and_leaves_nothing_behind(world):
    plain, state = seen(world)
    assert set(available(world.world)) == set(AXES)
    for axis in [*IMAGES, "white_balance", "dead_camera", *MODELS]:
        weak, strong = (StressSettings().axes[axis][i] for i in (0, -1))
        images, after = seen(world, axis, strong)
        if axis in PHYSICS:
            arrays = {"object_mass": "body_mass", "friction": "geom_friction"}
            before = {id(h): v for h, n, v in world._before if n == arrays[axis]}[id(world.model)]
            assert (getattr(world.model, arrays[axis]) != before).any()
        elif axis != "light_direction":  # invisible on a table of a single colour
            small = seen(world, axis, weak)[0].astype(float)
            assert np.abs(images - plain.astype(float)).mean() > np.abs(small - plain).mean(), axis
        again, _ = seen(world, axis, strong)
        assert (again == images).all(), axis
        assert axis in ("object_size", *PHYSICS) or (after == state).all(), axis
    images, after = seen(world)
    assert (images == plain).all() and (after == state).all()


def test_undisturbed_world_equals_the_task(world):
    images, state = seen(world)
    observation, _ = world.world.reset(seed=3)
    assert (images[0] == np.array(list(observation["images"].values()))).all()
    for _ in range(2):
        observation, *_ = world.world.step(STILL)
    assert (images[2] == np.array(list(observation["images"].values()))).all()
    assert (state == world.get_state()).all()


@pytest.mark.parametrize(("axis", "value"), [("noise", 10.0), ("delay", 1)])
def test_step_is_disturbed_like_physics_and_observation_separately(world, axis, value):
    images, state = seen(world, axis, value, steps=1)
    world.reset(seed=3)
    observation, *_ = world.step(STILL)
    assert (images[1] == np.array(list(observation["images"].values()))).all()
    assert (state == world.get_state()).all() and len(world._queue) == (axis == "delay")


def test_object_colour_replaces_the_texture(world):
    red = world.world
    cube = sorted(red._cube_geoms)[-1]
    seen(world, "object_colour", 1.0)
    flat = red.model.geom_rgba[cube].copy()
    assert red.model.geom_matid[cube] == -1 and flat[:3].max() == 1
    seen(world, "object_colour", 0.0)
    wood = red.model.geom_rgba[cube].copy()
    assert wood[0] > 1.5 * wood[1] > 0 and not np.allclose(wood, flat)  # the mean colour of its texture, red


def test_delayed_actions_run_in_order_after_a_standstill(world):
    moves = [np.array([0.01 * (i + 1), 0, 0, 0, 0, 0, 0, 0.0]) for i in range(5)]
    world.axis, world.value = "delay", 2
    world.reset(seed=3)
    start, turned = world.commanded[0], []
    for move in moves:
        world.step_physics(move)
        turned.append(round(world.commanded[0] - start, 6))
    assert turned == [0, 0, 0.01, 0.03, 0.06]


def test_dropped_frames_repeat_the_previous_frame(world):
    still, _ = seen(world)
    world.axis, world.value = "dropped_frames", 1.0
    first, turn = world.reset(seed=3)[0]["images"], 0.2 * np.eye(8)[0]
    world.step_physics(turn)
    assert all((world.observe()["images"][name] == image).all() for name, image in first.items())
    assert (np.array(list(first.values())) == still[0]).all()
    looks = lambda k: (world.step_physics(turn), world.observe()["images"] if k else None)[1]  # noqa: E731
    world.value = 0.5
    often, rarely = ([world.reset(seed=3), *map(looks, ks)][4::4] for ks in ([1] * 8, [0, 0, 0, 1] * 2))
    np.testing.assert_equal(rarely, often)  # a policy that acts for four steps sees the same frames
    images, _ = seen(world, "dead_camera", 1.0)
    assert sorted(images[:, i].max() > 0 for i in range(2)) == [False, True]


def test_other_tasks_have_image_axes_and_delay_and_what_their_model_allows():
    assert set(available(type("Other", (), {"settings": CubePickConfig()})())) == set(AXES) - set(MODELS)
    settings = {"id": "Pusher-v5", "cameras": ["render"], "success": "terminated"}
    allowed = {"light", "light_direction", "table_colour", "friction"}
    assert set(available(make(settings_class("gym")(**settings)))) & set(MODELS) == allowed

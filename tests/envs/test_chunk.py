"""Chunks of actions: the same physics as single steps, with fewer images and calls."""

import json

import numpy as np
import pytest

from s2robot.envs.chunk import ActionChunk
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from tests.envs.test_cube_pick import picked

CONFIG = CubePickConfig(cameras=("hand", "left"), image_size=24)


@pytest.fixture(scope="module")
def world():
    env = CubePick(CONFIG)
    yield env
    env.close()


def some_actions(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.append(rng.uniform(-0.05, 0.05, (count, 7)), np.zeros((count, 1)), 1).astype(np.float32)


@pytest.mark.parametrize(("k", "every_step"), [(1, False), (3, False), (3, True)])
def test_chunk_equals_single_steps_and_draws_only_requested_frames(world, monkeypatch, k, every_step):
    actions, drawn, draw = some_actions(k), [], world.render_cameras
    world.reset(seed=2)
    single = [world.step(a) for a in actions]
    state, chunk = world.get_state(), ActionChunk(world, k, every_step)
    count = k if every_step else 1
    monkeypatch.setattr(world, "render_cameras", lambda: drawn.append(1) or draw())
    first, _ = chunk.reset(seed=2)
    assert first["count"] == 1 and first["proprio"].shape == (count, 8)
    seen, reward, success, over, info = chunk.step(actions)
    assert len(drawn) == 1 + count and seen["count"] == count
    assert np.array_equal(world.get_state(), state)
    assert (reward, success, over, info["steps"]) == (0.0, False, False, k)
    assert json.loads(info["best"]) == {"closest_m": round(min(s[4]["distance"] for s in single), 5)}
    for i, (one, *_) in enumerate(single[-count:]):
        assert np.array_equal(seen["proprio"][i], one["proprio"])
        assert all(np.array_equal(seen["images"][name][i], frame) for name, frame in one["images"].items())


def test_nothing_is_simulated_after_success(world):
    actions = np.stack(picked(world, seed=4))
    state, last = world.get_state(), (len(actions) - 1) // 8
    chunk = ActionChunk(world, 8, every_step=True)
    chunk.reset(seed=4)
    padded = np.concatenate([actions, np.ones((-len(actions) % 8 + 8, 8), np.float32)]).reshape(-1, 8, 8)
    for part in padded[:last]:
        assert chunk.step(part)[2:4] == (False, False)
    for part in padded[last:]:  # the successful chunk and one more
        _, reward, success, over, info = chunk.step(part)
        assert (reward, success, over) == (1.0, True, False)
        assert info["steps"] == len(actions) and info["stage"] == "held" and info["is_success"]
        assert np.array_equal(world.get_state(), state)


def test_nothing_is_simulated_after_the_last_step(world, monkeypatch):
    monkeypatch.setattr(world, "settings", CONFIG.replace(max_steps=3))
    chunk = ActionChunk(world, 2)
    chunk.reset(seed=0)
    assert chunk.step(some_actions(2))[2:4] == (False, False)
    for _ in range(2):
        *_, success, over, info = chunk.step(some_actions(2))
        assert (success, over, info["steps"]) == (False, True, 3)

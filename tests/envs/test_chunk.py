"""Chunks of actions: the same physics as single steps, with fewer images and calls."""

import json

import numpy as np
import pytest

from s2robot.envs.chunk import ActionChunk
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from tests.envs.test_cube_pick import picked


@pytest.fixture(scope="module")
def world():
    env = CubePick(CubePickConfig(cameras=("hand", "left"), image_size=24))
    yield env
    env.close()


@pytest.mark.parametrize(("k", "every_step"), [(1, False), (3, False), (3, True)])
def test_chunk_equals_single_steps_and_draws_only_requested_frames(world, monkeypatch, k, every_step):
    moves, drawn, draw = np.random.default_rng(0).uniform(-0.05, 0.05, (k, 7)), [], world.render_cameras
    actions = np.append(moves, np.zeros((k, 1)), 1).astype(np.float32)
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

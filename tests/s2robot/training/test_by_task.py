"""A policy that is told its task: learnt from a dataset's words, acted on by name, and refused for what it never saw."""

import numpy as np
import pytest
import torch

from s2robot.core.errors import UserError
from s2robot.demos.store import EpisodeStore
from s2robot.policies import Actor, BatchActor, ChunkPolicy, load_checkpoint
from s2robot.training.batches import task_of_steps, tasks_of
from tests.s2robot.training.small import CAMERAS, DIM, TOKENS, about, fit, make_spec

TASKS = ("push it left", "push it right")
SEEN = np.zeros((1, len(CAMERAS), TOKENS, DIM), np.float32)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Episodes whose first joint turns to the side that their task names; nothing else tells which."""
    rng, path, features = np.random.default_rng(0), tmp_path_factory.mktemp("told") / "a.zarr", []
    with EpisodeStore.create(path, about("states") | {"tasks": list(TASKS)}) as store:
        for i in range(8):
            features.append(rng.normal(size=(12, len(CAMERAS), TOKENS, DIM)).astype(np.float16))
            action = rng.normal(0, 0.001, (12, 8)).astype(np.float32)
            action[:, 0] += 0.1 * (-1) ** (i + 1)
            action[:, 7] = np.arange(12) > 5
            proprio = rng.normal(size=(12, 8)).astype(np.float32)
            store.append({"action": action, "proprio": proprio}, {"seed": i, "success": True, "task": i % 2})
    return EpisodeStore.open(path), np.concatenate(features)


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_the_task_decides_where_nothing_else_does(told, tmp_path, kind):
    assert tasks_of(told[0]) == TASKS
    assert np.array_equal(task_of_steps(told[0], TASKS[::-1]), 1 - np.repeat(told[0].meta("task"), 12))
    spec = make_spec(kind, tasks=TASKS)
    policy, _ = load_checkpoint(fit(told, tmp_path, spec, steps=150, lr=1e-2, validation=0.0))
    turns = {}
    for task in TASKS:
        actor = BatchActor(policy, 1)
        actor.reset([0], task=task)
        turns[task] = actor.plan([0], SEEN, np.zeros((1, 8), np.float32))[0, 0, 0]
    assert (
        turns["push it left"] < 0 < turns["push it right"]
        and turns["push it right"] - turns["push it left"] > 0.1
    )


def test_an_observation_names_the_task_and_another_is_refused(told, tmp_path):
    policy, _ = load_checkpoint(
        fit(told, tmp_path, make_spec(tasks=TASKS), steps=60, lr=1e-2, validation=0.0)
    )
    actor = Actor(policy, lambda frames: torch.zeros(1, len(frames), TOKENS, DIM))
    seen = {"images": {name: np.zeros((8, 8, 3), np.uint8) for name in CAMERAS}, "proprio": np.zeros(8)}
    with pytest.raises(UserError, match="task: expected one of push it left, push it right, got None"):
        actor.act(seen)
    with pytest.raises(UserError, match="task: .* got 'push it rihgt', did you mean 'push it right'"):
        actor.act(seen | {"task": "push it rihgt"})
    actor.reset(0)
    left = actor.act(seen | {"task": TASKS[0]})
    actor.reset(0, TASKS[1])
    assert actor.act(seen)[0] > left[0]
    memory = actor.remember()
    again = actor.act(seen)
    actor.reset(0, TASKS[0])
    actor.restore(memory)
    assert np.array_equal(actor.act(seen), again)


def test_a_policy_of_one_task_or_none_needs_no_name_and_demos_without_words_are_refused(data):
    plain = BatchActor(ChunkPolicy(make_spec()), 1)
    plain.reset([0], task="whatever")
    one = BatchActor(ChunkPolicy(make_spec(tasks=TASKS[:1])), 1)
    one.reset([0])
    assert one._task.tolist() == [[1.0]] and plain._task.shape == (1, 0)
    with pytest.raises(UserError, match="policy.by_task: expected demos that store their tasks"):
        tasks_of(data[0])

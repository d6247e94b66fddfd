"""Task-conditioned policies: trained on a dataset's task texts, selected by name, unknown tasks rejected."""

import numpy as np
import pytest
import torch

from s2robot.core.errors import UserError
from s2robot.demos.mix import task_of_steps, tasks_of
from s2robot.demos.store import EpisodeStore
from s2robot.policies import Actor, BatchActor, ChunkPolicy, load_checkpoint
from s2robot.serving.session import Session
from s2robot.serving.wire import pack, unpack
from tests.errors import refuses
from tests.s2robot.training.small import CAMERAS, DIM, TOKENS, about, fit, make_spec

TASKS = ("push it left", "push it right")
SEEN = np.zeros((1, len(CAMERAS), TOKENS, DIM), np.float32)


@pytest.fixture(scope="module")
def task_data(tmp_path_factory):
    """Episodes whose first joint turns to the side that the task names; nothing else indicates the side."""
    rng, path, features = np.random.default_rng(0), tmp_path_factory.mktemp("tasks") / "a.zarr", []
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
def test_task_alone_decides_the_action(task_data, tmp_path, kind):
    store = task_data[0]
    assert tasks_of(store) == TASKS
    assert np.array_equal(task_of_steps(store, TASKS[::-1]), 1 - np.repeat(store.meta("task"), 12))
    spec = make_spec(kind, tasks=TASKS)
    policy, _ = load_checkpoint(fit(task_data, tmp_path, spec, steps=150, lr=1e-2, validation=0.0))
    turns = {}
    for task in TASKS:
        actor = BatchActor(policy, 1)
        actor.reset([0], task=task)
        turns[task] = actor.plan([0], SEEN, np.zeros((1, 8), np.float32))[0, 0, 0]
    left, right = turns.values()
    assert left < 0 < right and right - left > 0.1


def test_observation_selects_the_task_and_unknown_tasks_are_rejected(task_data, tmp_path):
    spec = make_spec(tasks=TASKS)
    policy, _ = load_checkpoint(fit(task_data, tmp_path, spec, steps=60, lr=1e-2, validation=0.0))
    actor = Actor(policy, lambda frames: torch.zeros(1, len(frames), TOKENS, DIM))
    obs = {"images": {name: np.zeros((8, 8, 3), np.uint8) for name in CAMERAS}, "proprio": np.zeros(8)}
    for changes, words in (
        ({"task": TASKS[1], "proprio": np.zeros(2)}, "proprio: expected 8 numbers"),  # selects no task
        ({}, "task: expected one of 'push it left', 'push it right', got None"),
        ({"task": "push it rihgt"}, "task: .* got 'push it rihgt', did you mean 'push it right'"),
    ):
        refuses(words, actor.act, obs | changes)
    actor.reset(0)
    memory = actor.remember()
    left = actor.act(obs | {"task": TASKS[0]})
    actor.restore(memory)
    refuses("task: expected one of", actor.act, obs)  # the restored episode has no task
    actor.reset(0, TASKS[1])
    assert actor.act(obs)[0] > left[0]
    memory = actor.remember()
    again = actor.act(obs)
    actor.reset(0, TASKS[0])
    actor.restore(memory)
    assert np.array_equal(actor.act(obs), again)


VECTORS = torch.tensor([[3.0, 0, 1, 0], [3, 0, 0, 1]])


def test_similar_task_vectors_produce_the_demonstrated_action(task_data, tmp_path):
    """Includes openpi's `prompt`; a known text keeps its vector from training."""
    spec = make_spec(tasks=TASKS, task_dim=4)
    trained = fit(task_data, tmp_path / "run", spec, steps=150, lr=1e-2, validation=0.0, vectors=VECTORS)
    policy, _ = load_checkpoint(trained)
    torch.testing.assert_close(policy.tasks.table, torch.tensor([[0, 0, 1, -1], [0, 0, -1, 1]]) / 2**0.5)
    np.savez(tmp_path / "near.npz", **{TASKS[1]: VECTORS[1].numpy(), "shove it left": [3.0, 0, 0.9, 0.2]})
    policy.add_tasks(tmp_path / "near.npz")
    session = Session(Actor(policy, lambda frames: torch.zeros(1, len(frames), TOKENS, DIM)), {})
    seen = {f"observation/{name}": np.zeros((8, 8, 3), np.uint8) for name in CAMERAS}
    seen |= {"observation/state": np.zeros(8, np.float32), "reset": True}
    for text in (*TASKS, "shove it left"):
        turn = unpack(session.answer(pack(seen | {"prompt": text})))["actions"][0, 0]
        assert turn * (1 if "right" in text else -1) > 0, text
    text = session.answer(pack(seen | {"prompt": "lift it"}))
    assert "'push it right', 'shove it left'" in text and "got 'lift it'" in text and "\n" not in text
    for vectors, message in (
        ({TASKS[0]: [3.0, 0, 0, 1]}, "'push it left': expected the vector used in training"),
        ({"lift it": [1.0, 2]}, r"expected vectors \(4,\) as in training, got \(2,\)"),
    ):
        np.savez(tmp_path / "other.npz", **vectors)
        refuses(message, policy.add_tasks, tmp_path / "other.npz")
    again = {"steps": 1, "validation": 0.0, "from": str(trained)}
    fit(task_data, tmp_path / "same", spec, **again, vectors=VECTORS)
    with pytest.raises(UserError, match="policy.task_vectors: expected those of train.from"):
        fit(task_data, tmp_path / "other", spec, **again, vectors=VECTORS.flip(0))


def test_one_task_needs_no_name_and_demos_without_tasks_are_rejected(data, task_data, tmp_path):
    plain = BatchActor(ChunkPolicy(make_spec()), 1)
    plain.reset([0], task="whatever")
    one = BatchActor(ChunkPolicy(make_spec(tasks=TASKS[:1])), 1)
    one.reset([0])
    assert one._task.tolist() == [[1.0]] and plain._task.shape == (1, 0)
    with EpisodeStore.create(tmp_path / "two.zarr", task_data[0].attrs) as two:
        two.append(task_data[0].episode(0), {"seed": 0, "success": True, "task": -1})
    refuses("two.zarr: meta/task: expected below 2, got -1 to -1", tasks_of, EpisodeStore.open(two.path))
    refuses("policy.by_task: expected demos that store their tasks", tasks_of, data[0])

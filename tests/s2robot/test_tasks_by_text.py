"""Policies of several tasks, selected by the world: from a dataset's texts and their vectors to a rate per task."""

import json
import re

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.records import wilson
from s2robot.policies import load_checkpoint
from s2robot.policies.task_vectors import read_vectors
from tests.demos.formats.made import converted
from tests.errors import refuses
from tests.s2robot.test_bound import COLUMNS, EVALUATION, TYPED, Slider, buffer, words  # noqa: F401  # fixtures
from tests.s2robot.test_pipeline import refused

TEXTS = ["go up", "go down"]
VECTORS = {"go up": [0.0, 1.0, 5.0], "go down": [4.0, 1.0, 5.0]}
UNKNOWN = "evaluate.instruction: expected one of 'go up', 'go down', got 'rise'"


class Sides(Slider):
    """A slider that returns one of two tasks at each reset."""

    def reset(self, *, seed=None, options=None):
        observed, _ = super().reset(seed=seed)
        return observed, {"task": TEXTS[int(self.at[0] > 0.5)]}


gymnasium.register("Sides-v0", Sides, max_episode_steps=3)


@pytest.fixture
def demos(buffer, words, tmp_path):  # noqa: F811
    """The overrides of a training on demos of two tasks."""
    source = converted(buffer, Choice(proprio=COLUMNS, rate_hz=20))
    with EpisodeStore.create(tmp_path / "two.zarr", source.attrs | {"arrays": None, "tasks": TEXTS}) as store:
        for i in range(len(source)):
            store.append(source.episode(i), {"task": i % 2})
    return [f"demos.path={store.path}", *words[3:], TYPED[0], "task.id=Sides-v0", *TYPED[2:]]


def test_text_absent_from_the_demos_is_evaluated_by_its_vector(here, demos, tmp_path):
    save_file({text: torch.tensor(v).half() for text, v in VECTORS.items()}, tmp_path / "a.safetensors")
    four = [*EVALUATION[1:], "evaluate.episodes=4"]
    result = here("run", *demos, "policy.task_vectors=a.safetensors", "hydra.run.dir=run", *four)
    policy, _ = load_checkpoint(tmp_path / "run/checkpoint")
    assert policy.tasks.table.tolist() == [[-1, 0, 0], [1, 0, 0]]  # centred on their mean, 1 away
    records = [json.loads(line) for line in (tmp_path / "run/episodes.jsonl").read_text().splitlines()]
    for text, rate in json.loads((tmp_path / "run/summary.json").read_text())["by_task"].items():
        done = [record["success"] for record in records if record["task"] == text]
        share, (low, high) = np.mean(done), wilson(sum(done), len(done))
        assert list(rate.values()) == [share, low, high, len(done), sum(done)]
        assert f"{text}  {100 * share:.1f} %" in result.stdout
    recorded = ["evaluate=recorded", "checkpoint=run", "features.workers=1"]  # each episode with its own task
    here("evaluate", *recorded)

    evaluated = ["checkpoint=run", "evaluate.instruction=[go up,rise]", *four, "hydra.run.dir=more"]
    assert UNKNOWN in refused(here, "evaluate", *evaluated)
    np.savez(tmp_path / "more.npz", **VECTORS | {"rise": [1, 1, 5]})
    here("evaluate", *evaluated, "evaluate.task_vectors=more.npz")
    rates = json.loads((tmp_path / "more/summary.json").read_text())["by_task"]
    assert {text: rate["episodes"] for text, rate in rates.items()} == {"go up": 2, "rise": 2}
    repeat = ["reproduce", "run=more", "checkpoint=run/checkpoint", "workers=1", "margin=0.9"]
    assert "checkpoint: evaluate.task_vectors: expected" in refused(here, *repeat)
    here(*repeat, "task_vectors=more.npz", "hydra.run.dir=again")
    here("evaluate", *recorded, "evaluate.task_vectors=more.npz")
    np.savez(tmp_path / "shifted.npz", **{text: np.add(v, 1) for text, v in VECTORS.items()})
    line = refused(here, "train", *demos, "policy.task_vectors=shifted.npz", "train.from=run")
    assert "policy.task_vectors: expected those of train.from=" in line
    stress = ["stress", "checkpoint=run", "only=[delay]", "episodes=2", "workers=1", "videos=0"]
    here(*stress, "instruction=go up")


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ({"go up": [0, 1]}, "expected a vector for 'go down', got go up"),
        ({"go up": [[0, 1]], "go down": [0, 1]}, "'go up': expected (2,), got (1, 2)"),
        ({"go up": [0, 1], "go down": [0, np.nan]}, "'go down': expected finite numbers, got nan"),
        ({}, "expected a vector for 'go up', 'go down', got none"),
        (None, "expected vectors by text, .npz or .safetensors"),
    ],
)
def test_mismatched_vectors_are_rejected(tmp_path, vectors, text):
    file = tmp_path / "a.npz"
    file.write_bytes(b"PK") if vectors is None else np.savez(file, **vectors)
    refuses(re.escape(f"a.npz: {text}"), read_vectors, file, TEXTS)


def test_texts_and_vectors_are_validated_before_encoding(here, demos, tmp_path):
    by_index = [*demos, "policy.by_task=true", *EVALUATION, "hydra.run.dir=run"]
    assert UNKNOWN in refused(here, "run", *by_index, "evaluate.instruction=rise")
    line = refused(here, "run", *demos, *EVALUATION, "evaluate.instruction=go up")
    assert "evaluate.instruction: expected null (policy without tasks), got 'go up'" in line
    np.savez(tmp_path / "a.npz", rise=np.ones(3))
    assert "'go up', 'go down'" in refused(here, "train", *demos, "policy.task_vectors=a.npz")
    assert not list((tmp_path / "cache").rglob("features.bin"))
    here("run", *by_index, "evaluate.instruction=go up")
    line = refused(here, "evaluate", "checkpoint=run", *EVALUATION, "evaluate.task_vectors=a.npz")
    assert "task_vectors: expected a policy with policy.task_vectors, got one of go up, go down" in line

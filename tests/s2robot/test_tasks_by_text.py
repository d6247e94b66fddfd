"""Policies of several tasks in a world that says which is meant: from a dataset's texts and their vectors to a rate per task."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from s2robot.demos.formats.source import Choice
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.records import summarise, wilson
from s2robot.policies import load_checkpoint
from tests.demos.formats.made import converted
from tests.s2robot.test_bound import COLUMNS, EVALUATION, TYPED, Slider, buffer, words  # noqa: F401  # fixtures
from tests.s2robot.test_pipeline import refused

TEXTS = ("go up", "go down")
VECTORS = {"go up": [0.0, 1.0, 5.0], "go down": [4.0, 1.0, 5.0]}


class Sides(Slider):
    """A slider that says at each start which of two tasks is meant."""

    def reset(self, *, seed=None, options=None):
        observed, _ = super().reset(seed=seed)
        return observed, {"task": TEXTS[int(self.at[0] > 0.5)]}


gymnasium.register("Sides-v0", Sides, max_episode_steps=3)


@pytest.fixture
def demos(buffer, words, tmp_path):  # noqa: F811
    """The words of a command that trains on demos of two tasks."""
    source = converted(buffer, Choice(proprio=COLUMNS, rate_hz=20))
    with EpisodeStore.create(
        tmp_path / "two.zarr", source.attrs | {"arrays": None, "tasks": list(TEXTS)}
    ) as store:
        for i in range(len(source)):
            store.append(source.episode(i), {"task": i % 2})
    return [f"demos.path={store.path}", *words[3:], TYPED[0], "task.id=Sides-v0", *TYPED[2:]]


def written(path, vectors):
    np.savez(path, **{text: np.array(vector, np.float32) for text, vector in vectors.items()})
    return path


def test_a_text_that_the_demos_did_not_hold_is_evaluated_by_its_vector(here, demos, tmp_path):
    save_file({text: torch.tensor(v).half() for text, v in VECTORS.items()}, tmp_path / "a.safetensors")
    four = [*EVALUATION[1:], "evaluate.episodes=4"]
    given = ["policy.task_vectors=a.safetensors", "hydra.run.dir=run"]
    result = here("run", *demos, *given, *four)
    assert result.returncode == 0, result.stderr
    policy, _ = load_checkpoint(tmp_path / "run/checkpoint")
    assert (policy.spec.tasks, policy.spec.task_dim, policy.spec.task_vectors) == (TEXTS, 3, None)
    assert policy.tasks.table.tolist() == [[-1, 0, 0], [1, 0, 0]]  # about their middle, 1 away
    records = [json.loads(line) for line in (tmp_path / "run/episodes.jsonl").read_text().splitlines()]
    rates = json.loads((tmp_path / "run/summary.json").read_text())["by_task"]
    assert {text: sum(r["task"] == text for r in records) for text in TEXTS} == {
        t: r["episodes"] for t, r in rates.items()
    }
    assert "go up  " in result.stdout

    evaluated = ["checkpoint=run", "evaluate.instruction=[go up,rise]", *four, "hydra.run.dir=more"]
    assert "evaluate.instruction: expected one of go up, go down, got 'rise'" in refused(
        here("evaluate", *evaluated), "evaluate"
    )
    assert (
        here("evaluate", "evaluate=recorded", "checkpoint=run", "features.workers=1").returncode == 0
    )  # each by its own task
    written(tmp_path / "more.npz", VECTORS | {"rise": [1, 1, 5]})
    result = here("evaluate", *evaluated, "evaluate.task_vectors=more.npz")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "more/summary.json").read_text())
    assert {text: rate["episodes"] for text, rate in summary["by_task"].items()} == {"go up": 2, "rise": 2}
    assert summary["policy"]["tasks"] == [*TEXTS, "rise"]


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ({"go up": [0, 1]}, "expected a vector for 'go down', got go up"),
        ({"go up": [0, 1], "go down": [0, 1, 2]}, "'go down': expected (2,), got (3,)"),
        ({"go up": [[0, 1]], "go down": [0, 1]}, "'go up': expected (2,), got (1, 2)"),
        ({"go up": [0, 1], "go down": [0, np.nan]}, "'go down': expected finite numbers, got nan"),
        ({}, "expected a vector for 'go up', 'go down', got none"),
        (None, "expected vectors by text, .npz or .safetensors"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_before_encoding(here, demos, tmp_path, vectors, text):
    written(tmp_path / "a.npz", vectors) if vectors is not None else (tmp_path / "a.npz").write_bytes(
        b"PK none"
    )
    line = refused(here("train", *demos, "policy.task_vectors=a.npz"), "train")
    assert f"a.npz: {text}" in line
    assert not list((tmp_path / "cache").rglob("features.bin"))


def test_an_instruction_is_checked_before_encoding_and_places_take_no_vectors(here, demos, tmp_path):
    by_place = [*demos, "policy.by_task=true", *EVALUATION, "hydra.run.dir=run"]
    line = refused(here("run", *by_place, "evaluate.instruction=rise"), "run")
    assert "evaluate.instruction: expected one of go up, go down, got 'rise'" in line
    assert not list((tmp_path / "cache").rglob("features.bin"))
    assert here("run", *by_place, "evaluate.instruction=go up").returncode == 0
    written(tmp_path / "a.npz", VECTORS)
    line = refused(here("evaluate", "checkpoint=run", *EVALUATION, "evaluate.task_vectors=a.npz"), "evaluate")
    assert "task_vectors: expected a policy with policy.task_vectors, got one of go up, go down" in line


def test_the_rates_of_tasks():
    done = [("a", 1), ("b", 0), ("a", 0), ("a", 1)]
    records = [
        {"success": bool(good), "stage": "start", "time_to_success_s": None, "task": task}
        for task, good in done
    ]
    found = summarise(records, ("start",))
    low, high = wilson(2, 3)
    assert found["by_task"]["a"] == {
        "success": 2 / 3,
        "low": low,
        "high": high,
        "episodes": 3,
        "successes": 2,
    }
    assert found["by_task"]["b"]["successes"] == 0 and found["successes"] == 2
    assert "by_task" not in summarise([{**record, "task": None} for record in records], ("start",))

"""Two processes (gloo): one writes, both see noise of their own, losses are those of both, an end is one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from s2robot.backbones.vit import load_encoder
from s2robot.policies import load_checkpoint
from tests.kills import ROOT


def run(folder, *args: str) -> subprocess.CompletedProcess[str]:
    # without these, or a session that Lightning started before would be gone on with
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")
    }
    env = clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.s2robot.training.two_processes", str(folder), *args]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def seen(folder) -> list[dict]:
    return [json.loads((folder / f"process{n}.json").read_text()) for n in range(2)]


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in result.stderr and "gloo/" not in result.stderr, result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_train(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = seen(tmp_path)
    assert first["first"] and not second["first"]
    steps = len(first["losses"]) // 3
    assert len(second["losses"]) == 3 * steps and not set(first["seeds"]) & set(second["seeds"])
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())
    means = np.mean([first["losses"], second["losses"]], axis=0).reshape(3, steps).mean(1)
    assert [row["train_loss"] for row in rows] == pytest.approx(means.tolist(), rel=1e-6)
    assert first["losses"] != second["losses"]
    assert len(list((tmp_path / "run").glob("events.*"))) == 1  # one process writes
    assert load_checkpoint(tmp_path / "run" / "checkpoint")[1]["training"]["step"] == 15
    again = run(tmp_path)  # finished: both read the state, none trains
    assert again.returncode == 0 and [each["losses"] for each in seen(tmp_path)] == [[], []]


def test_pretrain(tmp_path):
    result = run(tmp_path, "pretrain")
    assert result.returncode == 0, result.stderr
    first, second = seen(tmp_path)
    assert len(first["losses"]) == len(second["losses"]) == 8 and not set(first["seeds"]) & set(
        second["seeds"]
    )
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    recipe = load_encoder(tmp_path / "run" / "encoder.safetensors")[1]
    assert recipe["images_seen"] == 8 * 8 * 2
    mean = None
    for loss in np.mean([first["losses"], second["losses"]], axis=0):
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
    assert recipe["loss"] == pytest.approx(mean, rel=1e-6)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["identity"]["processes"] == 2


# pretrain runs on train's loop and its ways out: once of the two is enough, but for `make slow`
@pytest.mark.parametrize("job", ["train", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_a_killed_process_is_one_line(tmp_path, job):
    result = run(tmp_path, job, "killed")
    assert result.returncode == 2
    (line,) = errors(result)
    assert line == (
        f"error: {job}: process 1 of 2 lost another, which was killed or says in a line of its own why it ended; "
        "the same command goes on from the last state"
    )


def test_a_process_that_ends_says_why(tmp_path):
    result = run(tmp_path, "train", "first")
    assert result.returncode == 2
    why, lost = errors(result)
    assert why == "error: no space left" and lost.startswith("error: train: process 2 of 2 lost another")

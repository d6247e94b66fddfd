"""Several processes (gloo): one writes, noise is each one's own, their loss is that of one process, an end is one line."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from s2robot.backbones.vit import load_encoder
from s2robot.core.errors import UserError
from s2robot.policies import load_checkpoint, load_tuned
from s2robot.training.processes import check_shares
from tests import forks
from tests.kills import ROOT
from tests.s2robot.training.two_processes import prepare, whole_run

UNEVEN = "pretrain.batch_size: expected a multiple of 3 "


def run(
    folder, job: str = "train", prefix: tuple[str, ...] = (), start=forks.run, **given
) -> subprocess.CompletedProcess[str]:
    # without these, or a session that Lightning started before would be gone on with
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")
    }
    env = clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", forks.ALL: "1"}
    words = ["-m", "tests.s2robot.training.two_processes", str(folder), job, json.dumps(given)]
    command = [*(prefix or (sys.executable,)), *words]
    return start(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)


def seen(folder) -> list[dict]:
    return [json.loads((folder / f"process{n}.json").read_text()) for n in range(2)]


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in result.stderr and "gloo/" not in result.stderr, result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_train(tmp_path):
    result = run(tmp_path, start=subprocess.run)  # once as a user's processes start
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


def test_pretrain(tmp_path):
    result = run(tmp_path, "pretrain")
    assert result.returncode == 0, result.stderr
    first, second = seen(tmp_path)
    assert len(first["losses"]) == len(second["losses"]) == 8 and first["losses"] != second["losses"]
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    recipe = load_encoder(tmp_path / "run" / "encoder.safetensors")[1]
    assert recipe["images_seen"] == 8 * 8
    mean = None
    for loss in np.mean([first["losses"], second["losses"]], axis=0):
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
    assert recipe["loss"] == pytest.approx(mean, rel=1e-6)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["identity"]["processes"] == 2
    whole_run(tmp_path, tmp_path / "alone", "pretrain", 1)
    alone = load_encoder(tmp_path / "alone" / "encoder.safetensors")[1]
    assert recipe["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # a running mean over all steps


def like_one(folder, processes: int, prefix: tuple[str, ...] = (), **how) -> None:
    """So many processes have the losses and gradients of one on the same batches, step by step to 1e-5."""
    prepare(folder)
    result = run(folder, "train", prefix, devices=processes, whole=how)
    assert result.returncode == 0, result.stderr
    whole_run(folder, folder / "alone", "train", 1, **how)
    rows, wanted = (json.loads((folder / f / "metrics.json").read_text()) for f in ("run", "alone"))
    for key in ("train_loss", "train_joint_error_rad", "grad_norm"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in wanted], rel=1e-5), key
    assert len(rows) == 15


def test_two_processes_have_the_loss_of_one(tmp_path):
    like_one(tmp_path, 2)


@pytest.mark.slow
def test_two_processes_tune_an_encoder_as_one_does(tmp_path):
    like_one(tmp_path, 2, kind="tuned")
    each = [load_tuned(tmp_path / f / "checkpoint") for f in ("run", "alone")]
    assert all(torch.allclose(value, each[1][name], atol=1e-4) for name, value in each[0].items()) and each[0]


@pytest.mark.slow
def test_torchrun_starts_four_processes(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4")
    like_one(tmp_path, 4, torchrun)


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    three = SimpleNamespace(world_size=3)
    check_shares(three, "pretrain.batch_size", 9, 9)
    with pytest.raises(UserError, match=f"^{UNEVEN}"):
        check_shares(three, "pretrain.batch_size", 8, 8)


# pretrain runs on train's loop and its ways out: once of the two is enough, but for `make slow`
@pytest.mark.parametrize("job", ["train", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_a_killed_process_is_one_line(tmp_path, job):
    result = run(tmp_path, job, fails="killed")
    assert result.returncode == 2
    (line,) = errors(result)
    assert line == (
        f"error: {job}: process 1 of 2 lost another, which was killed or says in a line of its own why it ended; "
        "the same command resumes from the last state"
    )


def test_a_process_that_ends_says_why(tmp_path):
    result = run(tmp_path, fails="first")
    assert result.returncode == 2
    why, lost = errors(result)
    assert why == "error: no space left" and lost.startswith("error: train: process 2 of 2 lost another")

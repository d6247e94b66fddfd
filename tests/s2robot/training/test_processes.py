"""Several processes (gloo): one writes, each draws its own noise, losses match one process, failures are one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from s2robot.backbones.vit import load_encoder
from s2robot.policies import load_checkpoint, load_tuned
from s2robot.pretraining.pretrain import pretrain
from tests import forks
from tests.errors import refuses
from tests.kills import ROOT
from tests.s2robot.pretraining.small import make_settings
from tests.s2robot.training import two_processes

# set by an earlier Lightning session
NAMES = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")
MODULE = ("-m", "tests.s2robot.training.two_processes")


def run(folder, job: str = "train", prefix: tuple[str, ...] = (), start=forks.run, devices=2, **how):
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | {forks.ALL: "1"}
    words = [str(folder), job, json.dumps(how | {"devices": devices})]
    command = [*(prefix or (sys.executable,)), *MODULE, *words]
    result = start(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == (2 if "fails" in how else 0), result.stderr
    return result


def logs_of(folder) -> list[dict]:
    return [json.loads((folder / f"process{n}.json").read_text()) for n in range(2)]


def errors(result: subprocess.CompletedProcess[str]) -> list[str]:
    assert "Traceback" not in result.stderr and "gloo/" not in result.stderr, result.stderr
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


# once with regular process starts, which takes ten seconds
@pytest.mark.parametrize("start", [forks.run, pytest.param(subprocess.run, marks=pytest.mark.slow)])
def test_train(tmp_path, start):
    run(tmp_path, start=start)
    first, second = logs_of(tmp_path)
    assert first["first"] and not second["first"] and len(first["losses"]) == len(second["losses"]) == 15
    assert not set(first["seeds"]) & set(second["seeds"]) and first["losses"] != second["losses"]
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())
    means = np.mean([first["losses"], second["losses"]], axis=0).reshape(3, 5).mean(1)
    assert [row["train_loss"] for row in rows] == pytest.approx(means.tolist(), rel=1e-6)
    assert len(list((tmp_path / "run").glob("events.*"))) == 1  # one process writes
    assert load_checkpoint(tmp_path / "run" / "checkpoint")[1]["training"]["step"] == 15


def test_pretrain(tmp_path):
    run(tmp_path, "pretrain")
    first, second = logs_of(tmp_path)
    assert len(first["losses"]) == len(second["losses"]) == 8 and first["losses"] != second["losses"]
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    recipe = load_encoder(tmp_path / "run" / "encoder.safetensors")[1]
    assert recipe["images_seen"] == 8 * 8
    mean = None
    for loss in np.mean([first["losses"], second["losses"]], axis=0):
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
    assert recipe["loss"] == pytest.approx(mean, rel=1e-6)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["identity"]["processes"] == 2
    two_processes.run(tmp_path, tmp_path / "alone", "pretrain", 1)
    alone = load_encoder(tmp_path / "alone" / "encoder.safetensors")[1]
    assert recipe["loss"] == pytest.approx(alone["loss"], rel=1e-5)  # a running mean over all steps


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4")


@pytest.mark.parametrize(
    ("processes", "prefix", "tuned"),
    [
        (2, (), False),
        pytest.param(2, (), True, marks=pytest.mark.slow),
        pytest.param(4, TORCHRUN, False, marks=pytest.mark.slow),
    ],
)
def test_several_processes_match_the_losses_and_gradients_of_one(tmp_path, processes, prefix, tuned):
    two_processes.prepare(tmp_path)
    run(tmp_path, "train", prefix, devices=processes, exact=True, tuned=tuned)
    two_processes.run(tmp_path, tmp_path / "alone", "train", 1, exact=True, tuned=tuned)
    rows, expected = (json.loads((tmp_path / f / "metrics.json").read_text()) for f in ("run", "alone"))
    for key in ("train_loss", "train_joint_error_rad", "grad_norm"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in expected], rel=1e-5), key
    assert len(rows) == 15
    if tuned:
        each = [load_tuned(tmp_path / f / "checkpoint") for f in ("run", "alone")]
        assert each[0] and all(torch.allclose(v, each[1][name], atol=1e-4) for name, v in each[0].items())


def test_indivisible_batch_size_is_rejected(tmp_path, monkeypatch):
    from lightning_fabric import Fabric

    monkeypatch.setattr(Fabric, "world_size", 3)
    refuses("^pretrain.batch_size: expected a multiple of 3 ", pretrain, make_settings(tmp_path))


# pretrain shares train's loop and its error handling, so it runs in `make slow` only
@pytest.mark.parametrize(
    ("job", "fails"),
    [("train", "killed"), ("train", "first"), pytest.param("pretrain", "killed", marks=pytest.mark.slow)],
)
def test_failing_process_reports_why_and_the_other_reports_losing_it(tmp_path, job, fails):
    *reasons, lost = errors(run(tmp_path, job, fails=fails))
    assert reasons == ["error: no space left"] * (fails == "first")
    assert lost.startswith(f"error: {job}: process {1 + (fails == 'first')} of 2 lost another")

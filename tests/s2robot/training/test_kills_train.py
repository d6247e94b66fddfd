"""A training that is killed at any of its writes ends, when it is started again, as one that was not."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from s2robot.demos.store import EpisodeStore
from s2robot.training.train import train
from tests.kills import kill_at_every_write
from tests.s2robot.training.small import CONTRACT, TIMES, make_data, make_settings, make_spec

STEPS = 10


def training(folder: Path) -> None:
    data = folder.parent / "data.zarr"  # made by the whole run, beside what is killed
    if not data.exists():
        np.save(folder.parent / "features.npy", make_data(data)[1])
    store, features = EpisodeStore.open(data), np.load(folder.parent / "features.npy")
    settings = make_settings(steps=STEPS)
    train(settings, make_spec(proprio_noise=0.1), store, features, CONTRACT, folder / "run")


def what_is_left(folder: Path) -> dict:
    run = folder / "run"
    rows = json.loads((run / "metrics.json").read_text())
    tensors = {
        name: {k: v.tolist() for k, v in load_file(run / name / "policy.safetensors").items()}
        for name in ("checkpoint", "checkpoint_best")
    }
    records = [json.loads((run / name / "policy.json").read_text()) for name in tensors]
    files = {p.name for p in run.iterdir() if not p.name.startswith("events")}
    return tensors | {
        "records": records,
        "files": files,
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
    }


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_write_changes_nothing(tmp_path, every):
    killed = kill_at_every_write(training, tmp_path, every)
    whole = what_is_left(tmp_path / "whole")
    assert whole["files"] == {".lock", "checkpoint", "checkpoint_best", "metrics.json", "training_state.pt"}
    assert whole["rows"][-1]["step"] == STEPS
    for write, folder in killed.items():
        assert what_is_left(folder) == whole, write
    writes = (tmp_path / "writes.json").read_text()
    assert "rename run/training_state.pt" in writes
    assert "rename run/checkpoint" in writes

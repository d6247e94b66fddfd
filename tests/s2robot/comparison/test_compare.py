"""A whole comparison on a tiny scale: killed in the middle and started again, its numbers are those of one that ran on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s2robot.evaluation.records import read_records

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow
SETTINGS = [
    "policy.network.hidden=[16]", "policy.network.image_dim=8", "policy.network.state_dim=8",
    "policy.pooling.keypoints=4", "policy.pooling.values=2", "train.steps=2", "train.batch_size=32",
    "evaluate.episodes=4", "evaluate.workers=2", "env.max_steps=8", "experiment.seeds=[0,1]", "jobs=2", "threads=1",
    "arms=[one,two]", "experiment.axis_episodes=2", "experiment.axes.lighting.values=[0.5,1.0]", "axes=[lighting]",
]  # fmt: skip


@pytest.fixture(scope="module")
def start(recorded, tiny_encoder, tmp_path_factory):
    """Start `s2robot compare` in a folder of its own; the feature cache is one for all."""
    cache = tmp_path_factory.mktemp("cache")
    arms = [
        f"+experiment.arms.{name}='encoder=mvp-tiny s2={s2} encoder.checkpoint={tiny_encoder}'"
        for name, s2 in (("one", "single"), ("two", "s2"))
    ]

    def begin(out: Path, *words: str) -> subprocess.Popen:
        env = os.environ | {"PYTHONPATH": str(ROOT), "S2ROBOT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "s2robot", "compare", *SETTINGS, *arms, f"demos.path={recorded}"]
        return subprocess.Popen(
            [*command, f"hydra.run.dir={out}", *words], cwd=cache, env=env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return begin


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def numbers(out: Path) -> dict:
    """All figures but the time that an action takes."""
    result = json.loads((out / "compare.json").read_text())
    for arm in result["arms"]:
        del arm["ms_per_action"]
    return {key: result[key] for key in ("arms", "pairs", "power", "axes", "positions")}


@pytest.fixture(scope="module")
def through(start, tmp_path_factory):
    out = tmp_path_factory.mktemp("through") / "out"
    return out, finish(start(out))


def test_a_comparison_writes_all_its_figures(through):
    out, said = through
    result, summary = (json.loads((out / name).read_text()) for name in ("compare.json", "summary.json"))
    assert [arm["name"] for arm in summary["arms"]] == ["one", "two"]
    assert [s["episodes"] for arm in summary["arms"] for s in arm["seeds"]] == [4] * 4
    assert all(arm["ms_per_action"] > 0 for arm in summary["arms"])
    costs = [arm["gflops_per_frame"] for arm in summary["arms"]]
    assert 0 < costs[0] < costs[1]
    assert [(p["a"], p["b"]) for p in summary["pairs"]] == [("two", "one")]
    assert "warning: 4 positions are too few" in said and "against one, p" in said
    for arm in result["arms"]:
        for seed in arm["seeds"]:
            folder = out / seed["run"]
            assert (folder / "checkpoint/policy.json").is_file() and (folder / "summary.json").is_file()
            assert [r["seed"] for r in read_records(folder / "episodes.jsonl")] == [
                10000,
                10001,
                10002,
                10003,
            ]
    (axis,) = result["axes"]
    assert axis["values"] == [0.5, 1.0] and axis["default"] == 1.0
    assert [point["episodes"] for point in axis["arms"]["two"]] == [4, 4]  # two seeds, two positions
    assert (out / "axes/lighting/0.5/two/seed-1/summary.json").is_file()
    with (out / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4 + 2 * 2 * 2
    assert len(result["commands"]) == 2 + 4 + 4 + 4
    assert str(ROOT) not in json.dumps(result["commands"])


def test_killed_in_the_middle_it_goes_on_to_the_same_numbers(start, through, tmp_path):
    """Twice: while policies train, and while they are evaluated. Its jobs end with it."""
    out = tmp_path / "out"
    for mark in ("arms/one/seed-0/training_state.pt", "arms/*/seed-*/actions/*.npy"):
        process = start(out)
        until = time.monotonic() + 400
        while not list(out.glob(mark)):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(out))
    assert numbers(out) == numbers(through[0])
    for one in sorted((through[0] / "arms").glob("*/*/episodes.jsonl")):
        assert read_records(out / one.relative_to(through[0])) == read_records(one)
    again = finish(start(out))  # nothing is left to do
    assert "train:" not in again and "evaluate" not in again.replace("evaluate.episodes", "")
    assert numbers(out) == numbers(through[0])

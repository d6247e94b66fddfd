"""Complete comparisons: killed at any write and restarted, they give the figures of an uninterrupted one."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from s2robot.comparison import compare as comparing
from s2robot.comparison import jobs
from s2robot.comparison import statistics as figures
from s2robot.comparison.plan import Plan, make_plan
from s2robot.comparison.report import write_compare_report
from s2robot.comparison.settings import Compare
from s2robot.core.errors import UserError
from s2robot.core.run_folder import locked
from s2robot.core.settings import read_some
from s2robot.demos.store import EpisodeStore
from s2robot.evaluation.records import read_records
from tests.configs import composed
from tests.inline import do_inline
from tests.kills import ROOT, kill_at_every_write
from tests.s2robot.pictures import TRAINING

STUB = Path(__file__).with_name("stub_stage.py")
OUT = Path("out")  # relative, so that all runs have the same commands
WORDS = ["arms=[one,two]", "evaluate.episodes=4", "experiment.videos=0", "jobs=2", "threads=1", "axes=[lighting]",
         "experiment.axes.lighting.values=[0.5,1.0]", "experiment.stopping.enabled=true", "experiment.stopping.batch=3",
         "+experiment.arms.one='encoder=mvp-tiny s2=single'", "+experiment.arms.two='encoder=mvp-tiny s2=single policy=rpt'"]  # fmt: skip
SETTINGS = [
    *TRAINING, "evaluate.episodes=4", "evaluate.workers=2", "env.max_steps=8", "experiment.seeds=[0,1]", "jobs=2", "threads=1",
    "arms=[one,two]", "experiment.axis_episodes=2", "experiment.axes.lighting.values=[0.5,1.0]", "axes=[lighting]",
]  # fmt: skip


def planned(words: list[str], typed: list[str]) -> tuple[Compare, Plan]:
    settings = read_some(Compare, composed("compare", *words), "")
    return settings, make_plan(settings, typed)


# computed before the forks
PLANNED = planned([f"run_dir={OUT}", *WORDS], WORDS[1:2]) if os.environ.get("PLANNED") else None


def start_stub(command: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-I", "-S", str(STUB), *command[3:]], **options)


def compare_stubs(settings: Compare, plan: Plan, patch: pytest.MonkeyPatch) -> dict:
    """Run a complete comparison with stubs for its stages."""
    own = SimpleNamespace(Popen=start_stub, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    patch.setattr(jobs, "subprocess", own)
    patch.setattr(comparing, "ms_per_action", lambda plan: {arm.name: 1.0 for arm in plan.arms})
    patch.setattr(comparing, "command", lambda: "s2robot compare")
    with locked(plan.out):
        return comparing._run(settings, plan)


def job(folder: Path) -> None:
    os.chdir(folder)
    figures.power_figures = lambda *_: ({}, [])  # slow arithmetic without writes
    compare_stubs(*PLANNED, pytest.MonkeyPatch())


def results_of(folder: Path) -> dict[str, object]:
    names = ("episodes.csv", "summary.json", "compare.json")
    stages = sorted(path.relative_to(folder) for path in folder.rglob("*.log"))
    done = [path for path in stages if (folder / path).with_suffix(".done").exists()]
    return {**{name: (folder / OUT / name).read_text() for name in names}, "stages": stages, "done": done}


@pytest.mark.slow
def test_kill_at_a_write_of_compare_changes_no_figure(tmp_path):
    killed = kill_at_every_write(job, tmp_path, every=2, PLANNED="1")
    reference = results_of(tmp_path / "whole")
    assert len(reference["stages"]) == 1 + 2 + 4 + 2 and reference["done"] == reference["stages"]
    assert len(killed) > 40
    for write, folder in killed.items():
        assert results_of(folder) == reference, write


def test_single_arm_has_a_page_without_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = planned([f"run_dir={OUT}", *WORDS, "arms=[one]"], WORDS[1:2])
    found = compare_stubs(*plan, monkeypatch)
    assert [arm["name"] for arm in found["arms"]] == ["one"]
    assert not found["pairs"] and found["stopping"] is None
    assert "Arm against arm" not in write_compare_report(OUT).read_text()
    words = [f"run_dir={OUT}", *WORDS, "arms=[one]", "experiment.stopping.enabled=false"]
    with pytest.raises(UserError, match="enabled: expected True as when the run began, got False"):
        compare_stubs(*planned(words, WORDS[1:2]), monkeypatch)
    inputs = OUT / "arms/one/inputs.json"  # as of other settings in the user's own files
    inputs.write_text(re.sub('"steps": [0-9]+', '"steps": 3', inputs.read_text()))
    with pytest.raises(UserError, match="train.steps: expected 3 as when the run began, got"):
        compare_stubs(*plan, monkeypatch)


def test_positions_solved_by_one_arm_are_filmed_for_both(recorded, save_untrained, tmp_path, monkeypatch):
    """Two seeds: a success repeats the position's demo, a failure stands still. Also measure the arms' cost."""
    do_inline(monkeypatch)
    solved = {"base-s2": {0: (500,), 1: (500, 501)}, "base": {0: (), 1: (501, 502)}}
    store = EpisodeStore.open(recorded)
    positions = {int(seed): store.episode(i)["action"] for i, seed in enumerate(store.meta("seed"))}
    typed = ["evaluate.video_size=32", "env.cameras=[hand]", f"demos.path={recorded}"]
    words = [f"run_dir={tmp_path}", "arms=[base-s2,base]", "experiment.seeds=[0,1]", "jobs=1", *typed]
    _, plan = planned(words, typed)
    runs: dict = {}
    for arm in plan.arms:
        for seed in plan.seeds:
            folder = plan.folder(plan.main, arm, seed) / "actions"
            save_untrained(folder.with_name("checkpoint"), tasks=("push", "pull"))
            folder.mkdir(parents=True)
            records = runs.setdefault(arm.name, {})[seed] = []
            for episode, (position, actions) in enumerate(positions.items()):
                success = position in solved[arm.name][seed]
                executed = actions if success else np.zeros_like(actions[:4])
                np.save(folder / f"episode_{episode:04d}.npy", executed)
                stage = "held" if success else "approach"
                records.append({"episode": episode, "seed": position, "success": success, "stage": stage})
    assert min(comparing.ms_per_action(plan).values()) > 0
    pair = {"a": "base-s2", "b": "base", "only_a": [500], "only_b": [502]}
    videos = comparing.film_disagreements(plan, runs, pair, 3)
    shown = [(video["position"], video["arm"], video["seed"]) for video in videos]
    assert shown == [(500, "base-s2", 0), (500, "base", 0), (502, "base-s2", 0), (502, "base", 1)]
    files = [plan.out / video["path"] for video in videos]
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    assert comparing.film_disagreements(plan, runs, pair, 3) == videos
    unchanged = [file.stat().st_mtime_ns == before for file, before in zip(files, times, strict=True)]
    assert unchanged == [True, False, True, True]


@pytest.mark.slow
def test_killed_comparison_resumes_to_the_end(recorded, tiny_encoder, tmp_path):
    """Kill it twice: while policies train, and while they are evaluated. Its jobs stop with it."""
    encoder = f"encoder=mvp-tiny encoder.checkpoint={tiny_encoder}"
    arms = [f"+experiment.arms.{name}='s2={s2} {encoder}'" for name, s2 in (("one", "single"), ("two", "s2"))]
    out, env = tmp_path / "out", os.environ | {"S2ROBOT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "s2robot", "compare", *SETTINGS, *arms, f"demos.path={recorded}"]
    start = partial(
        subprocess.Popen, [*command, f"hydra.run.dir={out}"], cwd=tmp_path, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

    def finish() -> str:
        process = start()
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output
        return output

    for mark in ("arms/one/seed-0/training_state.pt", "arms/*/seed-*/actions/*.npy"):
        process, until = start(), time.monotonic() + 400
        while not list(out.glob(mark)):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    output = finish()
    assert "warning: evaluate.episodes" in output and "against one, p" in output
    result, summary = (json.loads((out / name).read_text()) for name in ("compare.json", "summary.json"))
    assert [arm["name"] for arm in summary["arms"]] == ["one", "two"]
    assert [s["episodes"] for arm in summary["arms"] for s in arm["seeds"]] == [4] * 4
    assert all(arm["ms_per_action"] > 0 for arm in summary["arms"])
    assert [(p["a"], p["b"]) for p in summary["pairs"]] == [("two", "one")]
    for arm in result["arms"]:
        for seed in arm["seeds"]:
            folder = out / seed["run"]
            assert (folder / "checkpoint/policy.json").is_file() and (folder / "summary.json").is_file()
            assert [r["seed"] for r in read_records(folder / "episodes.jsonl")] == [*range(10000, 10004)]
    (axis,) = result["axes"]
    assert axis["values"] == [0.5, 1.0] and axis["default"] == 1.0
    assert [point["episodes"] for point in axis["arms"]["two"]] == [4, 4]  # two seeds, two positions
    assert (out / "axes/lighting/0.5/two/seed-1/summary.json").is_file()
    with (out / "episodes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 4 + 2 * 2 * 2
    assert len(result["commands"]) == 2 + 4 + 4 + 4 and str(ROOT) not in json.dumps(result["commands"])
    again = finish()  # everything is done
    assert "train:" not in again and "evaluate" not in again.replace("evaluate.episodes", "")
    assert json.loads((out / "compare.json").read_text()) == result

"""A comparison killed at each of its own writes goes on to the same figures; its stages are stubs, all else is real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from s2robot.comparison import compare as comparing
from s2robot.comparison import jobs
from s2robot.comparison import statistics as figures
from s2robot.comparison.plan import Plan, make_plan
from s2robot.comparison.settings import Compare, read_compare
from s2robot.core.files import configs_dir
from s2robot.core.run_folder import locked
from tests.kills import kill_at_every_write

STUB = Path(__file__).with_name("stub_stage.py")
OUT = Path("out")  # relative, so that the commands of all runs are the same
WORDS = ["arms=[one,two]", "evaluate.episodes=4", "experiment.videos=0", "jobs=2", "threads=1", "axes=[lighting]",
         "experiment.axes.lighting.values=[0.5,1.0]", "experiment.stopping.enabled=true", "experiment.stopping.batch=3",
         "+experiment.arms.one='encoder=mvp-tiny s2=single'", "+experiment.arms.two='encoder=mvp-tiny s2=single policy=rpt'"]  # fmt: skip


def planned() -> tuple[Compare, Plan, tuple]:
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        settings = read_compare(compose("compare", [f"run_dir={OUT}", *WORDS]))
    plan = make_plan(settings, WORDS[1:2])
    return settings, plan, figures.power_figures(settings.experiment.power, len(plan.seeds), plan.episodes)


PLANNED = planned() if os.environ.get("PLANNED") else None  # once, before the forks


def start(command: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-I", "-S", str(STUB), *command[3:]], **options)


class Stubbed:
    """`subprocess` of the jobs, but for what it starts."""

    Popen, PIPE, STDOUT = staticmethod(start), subprocess.PIPE, subprocess.STDOUT


def job(folder: Path) -> None:
    os.chdir(folder)
    assert PLANNED is not None
    settings, plan, power = PLANNED
    figures.power_figures = lambda *_: power  # seconds of arithmetic, which writes nothing
    jobs.subprocess = Stubbed  # type: ignore[assignment]
    comparing._cost = lambda plan: {arm.name: 1.0 for arm in plan.arms}  # type: ignore[assignment]
    comparing.command = lambda: "s2robot compare"
    with locked(plan.out):
        comparing._run(settings, plan)


def left(folder: Path) -> dict[str, object]:
    found = {
        name: (folder / OUT / name).read_text() for name in ("episodes.csv", "summary.json", "compare.json")
    }
    stamps = sorted((folder / OUT).rglob("*.json"))
    done = [json.loads(s.read_text()) for s in stamps if s.with_suffix(".log").exists()]
    return {**found, "stages": [(s["command"], s["done"]) for s in done]}


@pytest.mark.slow
def test_a_kill_at_any_write_of_compare_changes_no_figure(tmp_path):
    killed = kill_at_every_write(job, tmp_path, PLANNED="1")
    whole = left(tmp_path / "whole")
    assert len(whole["stages"]) == 1 + 2 + 4 + 2 and all(done for _, done in whole["stages"])
    assert len(killed) > 40
    for write, folder in killed.items():
        assert left(folder) == whole, write

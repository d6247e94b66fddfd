"""Run folders: one process at a time, whatever the clock says, and none left where nothing was done."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from s2robot.core import run_folder as room
from s2robot.core.errors import UserError
from s2robot.core.run_folder import is_first, locked, run_folder

ROOT = Path(__file__).resolve().parents[3]
ABOUT = {".hydra/config.yaml": "a: 1", "about.txt": "b"}
HOLD = """
import sys
from pathlib import Path
from s2robot.core.run_folder import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "run"` until it is killed or gets a line."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_and_its_holder_named(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(room, "_WAIT_S", 0.1)
    with (
        pytest.raises(UserError, match="run: expected no other process"),
        run_folder(tmp_path / "run", ABOUT),
    ):
        pass
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]  # nothing of its holder is touched


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    with locked(tmp_path / "run"), locked(tmp_path / "run"):  # a second claim of one's own holds too
        assert room.held()["S2ROBOT_HELD_FOLDERS"].split(os.pathsep).count(str(tmp_path / "run")) == 1


def fail(folder: Path, wrong: type[BaseException] = ValueError, writes: str = "") -> None:
    with pytest.raises(wrong), run_folder(folder, ABOUT):
        assert (folder / ".hydra/config.yaml").read_text() == "a: 1"
        if writes:
            (folder / writes).write_text("[]")
        raise wrong


def test_a_failed_run_that_wrote_nothing_leaves_no_folder(tmp_path):
    run = tmp_path / "run"
    for wrong in (ValueError, KeyboardInterrupt):
        fail(run, wrong)
        assert not run.exists()
    for runs, left in (("runs", []), ("mine", ["verb"])):  # a folder of the user's stays
        fail(tmp_path / runs / "verb" / "date")
        assert [path.name for path in (tmp_path / runs).iterdir()] == left
    fail(run, writes="metrics.json")
    assert (run / "metrics.json").exists() and (run / ".hydra").exists()


def test_a_failed_run_keeps_the_folder_and_the_files_that_were_there_before(tmp_path, monkeypatch):
    run, mine = tmp_path / "run", tmp_path / "runs/train/mine"
    run.mkdir()
    (run / "mine.txt").write_text("mine")
    fail(run)
    assert (run / "mine.txt").exists()
    mine.mkdir(parents=True)
    monkeypatch.chdir(mine)
    for folder in (mine, Path(".")):
        fail(folder)
        assert not list(mine.iterdir())
    assert Path.cwd() == mine


def test_other_processes_of_a_run_work_in_the_folder_of_the_first(tmp_path, holder, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with run_folder(tmp_path / "run", ABOUT):
        pass
    assert not (tmp_path / "run" / ".hydra").exists()


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),  # Lightning Fabric's second machine
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun's first on any Slurm node
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),  # torchrun's second machine
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),  # srun's second machine
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by Fabric within a Slurm job
    ],
)
def test_the_first_process_is_the_same_whoever_started_them(monkeypatch, variables, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first

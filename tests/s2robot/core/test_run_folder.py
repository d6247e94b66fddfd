"""Files are written atomically; a run folder admits one process at a time, and is removed if a run wrote nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2robot.core import run_folder as module
from s2robot.core.errors import UserError
from s2robot.core.files import replacing, write_json, write_text
from s2robot.core.run_folder import is_first, locked, run_folder

FILES = {".hydra/config.yaml": "a: 1", "about.txt": "b"}
HOLD = """
import sys
from pathlib import Path
from s2robot.core.run_folder import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""


def test_full_disk_error_names_the_file_and_keeps_the_old_one(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": 1})
    (tmp_path / "a" / ".b.part.json").symlink_to("/dev/full")  # its write fails as on a full disk
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "a" / "b.json", "new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a" / "b.json")
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_text() == '{\n "x": 1\n}'


def test_concurrent_writers_of_a_file_use_separate_temporary_files(tmp_path):
    path = tmp_path / "a.npz"
    with replacing(path, shared=True) as own, replacing(path) as other:
        own.write_text("own"), other.write_text("other")
    assert path.read_text() == "own" and own.suffix == ".npz"
    with pytest.raises(OSError, match="^half a file$"), replacing(path) as part:
        part.write_text("half")
        raise OSError("half a file")
    assert [f.name for f in tmp_path.iterdir()] == ["a.npz"] and path.read_text() == "own"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / "run"` until it is killed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def test_folder_is_locked_until_its_holder_is_killed(tmp_path, holder, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(UserError, match="run: expected no other process"):
        patch.setattr(module, "_WAIT_S", 0.1)
        with run_folder(run, FILES):
            pass
    assert [p.name for p in run.iterdir()] == [".lock"]  # the holder's files are untouched
    with monkeypatch.context() as patch:  # the other ranks of a run share the first one's folder
        patch.setenv("LOCAL_RANK", "1")
        with run_folder(run, FILES):
            pass
    assert not (run / ".hydra").exists()
    holder.kill()
    with locked(run), locked(run):  # the owner can lock it again
        assert module.held()["S2ROBOT_HELD_FOLDERS"].split(os.pathsep).count(str(run)) == 1


def fail(folder: Path, error: type[BaseException] = ValueError, writes: str = "") -> None:
    with pytest.raises(error), run_folder(folder, FILES):
        assert (folder / ".hydra/config.yaml").read_text() == "a: 1"
        if writes:
            (folder / writes).write_text("[]")
        raise error


def test_failed_run_without_output_leaves_no_folder(tmp_path):
    run = tmp_path / "run"
    for error in (ValueError, KeyboardInterrupt):
        fail(run, error)
        assert not run.exists()
    for runs, left in (("runs", []), ("mine", ["verb"])):  # the user's own folder remains
        fail(tmp_path / runs / "verb" / "date")
        assert [path.name for path in (tmp_path / runs).iterdir()] == left
    fail(run, writes="metrics.json")
    assert (run / "metrics.json").exists() and (run / ".hydra").exists()


def test_failed_run_keeps_existing_folders_and_files(tmp_path, monkeypatch):
    run, mine = tmp_path / "run", tmp_path / "runs/train/mine"
    for folder in (run, mine):
        folder.mkdir(parents=True)
    (run / "mine.txt").write_text("mine")
    fail(run)
    assert (run / "mine.txt").exists()
    with run_folder(run, FILES):
        (run / "metrics.json").write_text("[]")
    with pytest.raises(UserError), run_folder(run, {".hydra/config.yaml": "a: 2"}):
        raise UserError("refused")
    assert (run / ".hydra/config.yaml").read_text() == "a: 1"  # still that of the finished run
    monkeypatch.chdir(mine)
    for folder in (mine, Path(".")):
        fail(folder)
        assert not list(mine.iterdir())
    assert Path.cwd() == mine


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
def test_first_process_is_found_under_every_launcher(monkeypatch, variables, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first() is first

"""Test helpers: copies of a process, and kills at every write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.kills import kill_at_every_write

SCRIPT = """
import os, sys, atexit
atexit.register(print, "at exit")
print(sys.argv[1:], os.getcwd(), os.environ.get("WHO"), sys.path[0], sys.stdin.read())
print("aside", file=sys.stderr)
"""


def test_copy_gets_its_arguments_folder_environment_and_streams(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    env = os.environ | {"WHO": "me", "PYTHONPATH": str(tmp_path)}
    kwargs = {"cwd": tmp_path, "env": env, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    for options in (["-c", SCRIPT], ["-u", "-c", SCRIPT], ["-m", "script"], [str(tmp_path / "script.py")]):
        command = [sys.executable, *options, "a", "b c"]
        started, copy = (start(command, **kwargs) for start in (subprocess.run, forks.run))
        assert copy.stdout == started.stdout and "at exit" in copy.stdout
        assert copy.stderr == started.stderr == "aside\n"


def safe(folder: Path) -> None:
    contents = {file.name: file.read_text() for file in sorted((folder / "out").glob("*"))}
    with (folder.parent / "found").open("a") as stream:
        print(json.dumps(contents), file=stream)
    (folder / "out").mkdir(exist_ok=True)
    for name in ("a", "b"):
        part = folder / "out" / f"{name}.part"
        part.write_text(json.dumps(name))
        os.replace(part, folder / "out" / name)


def hasty(folder: Path) -> None:
    """Treat every existing file as complete."""
    if not (folder / "a").exists():
        (folder / "a").write_text(json.dumps("a"))
    json.loads((folder / "a").read_text())


def test_every_write_is_listed_and_killed_once(tmp_path):
    killed = kill_at_every_write(safe, tmp_path)
    names = ["mkdir out", "open out/a.part", "rename out/a", "open out/b.part", "rename out/b"]
    assert list(killed) == [f"{n} {name}" for n, name in enumerate(names)]
    for folder in killed.values():
        assert [(folder / "out" / name).read_text() for name in "ab"] == ['"a"', '"b"']
    assert not list(tmp_path.glob("*/out/*.part"))
    a, half = {"a": '"a"'}, '{"half a li'
    # the files at the start of each run: the import run, the uninterrupted one, and the resumed ones
    assert [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()] == [
        {}, {}, {}, {"a.part": half}, {"a.part": '"a"'}, a | {"b.part": half}, a | {"b.part": '"b"'},
    ]  # fmt: skip


def test_unsafe_job_is_detected(tmp_path):
    with pytest.raises(AssertionError, match=r"killed at 0 open a(.|\n)*JSONDecodeError"):
        kill_at_every_write(hasty, tmp_path)

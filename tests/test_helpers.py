"""Helpers of the tests: copies of a process, and kills at every write."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forks
from tests.kills import kill_at_every_write

SAYS = """
import os, sys, atexit
atexit.register(print, "at exit")
print(sys.argv[1:], os.getcwd(), os.environ.get("WHO"), sys.path[0], sys.stdin.read())
print("aside", file=sys.stderr)
"""
ENDS = {
    "": 0,
    "sys.exit(5)": 5,
    "sys.exit('in words')": 1,
    "raise ValueError('a fault')": 1,
    "os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
    "signal.raise_signal(signal.SIGINT)": -signal.SIGINT,
}


def test_words_folder_environment_and_streams(tmp_path):
    (tmp_path / "says.py").write_text(SAYS)
    env = os.environ | {"WHO": "me", "PYTHONPATH": str(tmp_path)}
    how = {"cwd": tmp_path, "env": env, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    for words in (["-c", SAYS], ["-u", "-c", SAYS], ["-m", "says"], [str(tmp_path / "says.py")]):
        command = [sys.executable, *words, "a", "b c"]
        started, copy = (start(command, **how) for start in (subprocess.run, forks.run))
        assert copy.stdout == started.stdout and "at exit" in copy.stdout
        assert copy.stderr == started.stderr == "aside\n"


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_process(end):
    done = forks.run([sys.executable, "-c", f"import os, signal, sys\n{end}"], capture_output=True, text=True)
    assert done.returncode == ENDS[end] and (end[:5] != "raise" or "ValueError: a fault" in done.stderr)


def safe(folder: Path) -> None:
    found = {file.name: file.read_text() for file in sorted((folder / "out").glob("*"))}
    with (folder.parent / "found").open("a") as stream:
        print(json.dumps(found), file=stream)
    (folder / "out").mkdir(exist_ok=True)
    for name in ("a", "b"):
        part = folder / "out" / f"{name}.part"
        part.write_text(json.dumps(name))
        os.replace(part, folder / "out" / name)


def hasty(folder: Path) -> None:
    """What is there is taken for done."""
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
    # what each run found: the one for its imports, the whole one, and those that went on
    assert [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()] == [
        {}, {}, {}, {"a.part": half}, {"a.part": '"a"'}, a | {"b.part": half}, a | {"b.part": '"b"'},
    ]  # fmt: skip


def test_a_job_that_is_not_safe_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match=r"killed at 0 open a(.|\n)*JSONDecodeError"):
        kill_at_every_write(hasty, tmp_path)

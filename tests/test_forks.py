"""A copy is to its words, folder, environment, streams and end what a process is that was started."""

import os
import signal
import subprocess
import sys

import pytest

from tests import forks

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
    for words in (["-c", SAYS], ["-m", "says"], [str(tmp_path / "says.py")]):
        command = [sys.executable, *words, "a", "b c"]
        started, copy = (start(command, **how) for start in (subprocess.run, forks.run))
        assert copy.stdout == started.stdout and "at exit" in copy.stdout
        assert copy.stderr == started.stderr == "aside\n"


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_process(end):
    done = forks.run([sys.executable, "-c", f"import os, signal, sys\n{end}"], capture_output=True, text=True)
    assert done.returncode == ENDS[end] and (end[:5] != "raise" or "ValueError: a fault" in done.stderr)

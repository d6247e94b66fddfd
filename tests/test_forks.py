"""A copy is to its words, folder, environment, streams, signals and end what a process is that was started."""

import os
import pty
import signal
import socket
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


def both(words, **how):
    """What a started process and a copy give."""
    how |= {"capture_output": True, "text": True, "timeout": 120}
    return [start([sys.executable, *words], **how) for start in (subprocess.run, forks.run)]


def test_words_folder_environment_and_streams(tmp_path):
    (tmp_path / "says.py").write_text(SAYS)
    (tmp_path / "input").write_text("typed")
    env = os.environ | {"WHO": "me", "PYTHONPATH": str(tmp_path)}
    for words in (["-c", SAYS], ["-m", "says"], [str(tmp_path / "says.py")]):
        with (tmp_path / "input").open() as typed:
            how = {"cwd": tmp_path, "env": env, "stdin": typed}
            started, copy = both([*words, "a", "b c"], **how)  # the copy finds the input at its end
        assert copy.stdout == started.stdout.replace("typed", "") and "at exit" in copy.stdout
        assert copy.stderr == started.stderr == "aside\n"


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_process(end):
    started, copy = both(["-c", f"import os, signal, sys\n{end}"])
    assert started.returncode == copy.returncode == ENDS[end]
    assert copy.stderr.splitlines()[-1:] == started.stderr.splitlines()[-1:]


def test_it_is_stopped_killed_and_looked_after():
    with forks.Popen([sys.executable, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout.readline() == b"1\n" and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.kill()
        assert process.wait(60) == process.poll() == -signal.SIGKILL


def test_a_default_of_the_vendors_for_sockets_is_none_of_ours():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        assert forks.run([sys.executable, "-c", "import time; time.sleep(0.3)"]).returncode == 0
    finally:
        socket.setdefaulttimeout(before)


def test_ctrl_c_on_a_terminal():
    ours, theirs = pty.openpty()
    # one that waits in a read would not see a signal that comes just before it
    script = "import time; print('up', flush=True)\nwhile True: time.sleep(0.05)"
    words = [sys.executable, "-c", script]
    with forks.Popen(words, stdin=theirs, stdout=-1, stderr=-1, start_new_session=True) as process:
        assert process.stdout.readline() == b"up\n"
        os.write(ours, b"\x03")
        assert process.wait(60) == -signal.SIGINT
    os.close(ours)
    os.close(theirs)


def test_what_a_copy_starts_are_copies_if_it_is_told_so():
    asks = "import sys, subprocess; print('torch' in sys.modules, flush=True)\n"
    script = f"{asks}subprocess.run([sys.executable, '-c', {asks!r}])"
    for more, said in (({}, ["True", "False"]), ({forks.ALL: "1"}, ["True", "True"])):
        done = forks.run(
            [sys.executable, "-c", script], env=os.environ | more, capture_output=True, text=True
        )
        assert done.stdout.split() == said, done.stderr


def test_the_fork_server_of_a_copy_is_one_and_ends_with_it():
    script = (
        "import multiprocessing as mp, os\n"
        "with mp.get_context('forkserver').Pool(1) as pool: print(*pool.map(abs, [-3]), flush=True)\n"
        "from multiprocessing.forkserver import _forkserver as server\n"
        "print(open(f'/proc/{server._forkserver_pid}/stat').read().split()[3] == str(os.getpid()))"
    )
    done = forks.run([sys.executable, "-c", script], env=os.environ | {forks.ALL: "1"}, capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.stdout.split() == ["3", "True"] and not done.returncode, done.stderr

"""Workers: one thread each, tasks in order or as completed, per-worker state, and retries after a death."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2robot.core.errors import UserError
from s2robot.core.workers import SLOW_IMPORTS, Died, Pool, worker_pool


class Made:
    """The state of a worker, which logs its tasks."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def square(self, x: int, dies: int = 0) -> tuple[int, int]:
        """Square a number; the process dies at the first `dies` attempts."""
        with self.log.open("a") as file:
            print("started", x, file=file)
        if self.log.read_text().count(f"started {x}\n") <= dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return x * x, os.getpid()

    def fail(self) -> None:
        raise ValueError("two")


def fails(x: int) -> int:
    if x == 2:
        raise ValueError("two")
    return x


class Odd(Exception):
    """An exception that cannot be unpickled: it takes two arguments and stores one."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} is not {b}")


def is_odd() -> None:
    raise Odd(1, 2)


def process_state() -> tuple[list[str | None], set[str], str]:
    threads = [os.environ.get(name) for name in ("LP_NUM_THREADS", "OMP_NUM_THREADS")]
    return threads, set(sys.modules), Path("/proc/self/maps").read_text()


def test_workers_use_one_thread_unless_the_user_set_a_number(monkeypatch):
    for name in ("LP_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with worker_pool(1) as pool:
        threads, modules, maps = pool.submit(process_state).result()
    assert dict(os.environ) == before and threads == ["1", "1"]
    assert set(SLOW_IMPORTS) <= modules and "mujoco" not in modules and "libEGL" not in maps
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with worker_pool(1) as pool:  # the current environment, not that of the fork server
        assert pool.submit(process_state).result()[0] == ["1", "3"]


def test_task_of_a_dead_worker_is_retried_by_another(tmp_path):
    log = tmp_path / "log"
    with worker_pool(2, partial(Made, log)) as pool:
        results = list(pool.in_order(Made.square, [(1,), (2, 1), (3,), (4,), (5, 2)]))
        assert [square for square, _ in results] == [1, 4, 9, 16, 25]
        assert os.getpid() not in {pid for _, pid in results}
        with pytest.raises(UserError, match="^Made.square: 3 workers died .*-9.*$"):
            pool.submit(Made.square, 7, 99).result()
        assert pool.submit(Made.square, 8).result()[0] == 64
    lines = log.read_text().split("\n")
    assert [lines.count(f"started {x}") for x in (1, 2, 3, 4, 5, 7)] == [1, 2, 1, 1, 3, 3]


INTERRUPTED = """
import sys, time
from s2robot.core import workers
workers.SLOW_IMPORTS = ()
print(flush=True)
try:
    with workers.worker_pool(2) as pool:
        tasks = [pool.submit(time.sleep, 60) for _ in range(2)]
        tasks[0].result()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("after_s", [0.1, 1.5])  # during startup, and while workers are busy
def test_ctrl_c_interrupts_only_the_parent(after_s):
    words = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(words, stdout=-1, stderr=-1, process_group=0) as process:
        assert process.stdout.readline() == b"\n"
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        # the pipes stay open until the last process ends
        assert (*process.communicate(timeout=120), process.returncode) == (b"", b"", 130)


def unpicklable(x: int) -> Any:
    return (lambda: x) if x else exec("raise SystemExit(lambda: x)")


def test_unpicklable_task_or_result_is_an_error_of_the_task():
    with worker_pool(1) as pool:
        for function, args, kind, words in (
            (lambda: 1, (), Exception, "pickle"),
            (unpicklable, (1,), Exception, "pickle"),
            (unpicklable, (0,), UserError, "SystemExit"),
            (fails, (2,), ValueError, "two"),
            (is_odd, (), UserError, "Odd: 1 is not 2"),
        ):
            with pytest.raises(kind, match=words) as caught:
                pool.submit(function, *args).result()
        assert "in is_odd" in caught.value.__notes__[0]
        assert pool.submit(fails, 3).result() == 3


class Thread:
    """A worker without a process. It starts at attempt ``tries`` and raises ``error`` before."""

    def __init__(self, tries: int = 1, error: Exception | None = None) -> None:
        self.tries, self.error, self.killed = tries, error, threading.Event()

    def start(self):
        self.tries -= 1
        if self.tries > 0:
            raise self.error

    def call(self, function, args):
        return function(*args)

    def kill(self):
        self.killed.set()

    stop = kill


def test_task_errors_are_raised_and_waiting_tasks_are_cancelled():
    with Pool([Thread()]) as pool:
        results = pool.in_order(fails, [(1,), (2,), (3,)])
        assert next(results) == 1
        with pytest.raises(ValueError, match="two"):
            next(results)
        assert sorted(pool.as_done(fails, [(3,), (1,)])) == [((1,), 1), ((3,), 3)]
    worker = Thread()
    with pytest.raises(KeyboardInterrupt), Pool([worker]) as pool:
        pool.submit(worker.killed.wait)
        waiting = pool.submit(fails, 1)
        raise KeyboardInterrupt
    assert waiting.cancelled()


class Never(Thread):
    """A worker that waits for a node that never appears."""

    def start(self):
        self.killed.wait()
        raise Died("killed")


def test_worker_that_dies_at_startup_is_restarted():
    with Pool([Thread(3, Died("gone"))]) as pool:
        assert pool.submit(fails, 1).result(5) == 1
    with Pool([Thread(9, Died("gone"))]) as pool:
        for x in (1, 3):  # new tasks fail like waiting ones
            with pytest.raises(Died, match="gone"):
                pool.submit(fails, x).result(5)
    with Pool([Thread(2, UserError("no simulator"))]) as pool, pytest.raises(UserError, match="simulator"):
        pool.submit(fails, 1).result(5)
    with Pool([Never(), Thread()]) as pool:  # the other one runs all tasks, and leaving the pool stops both
        tasks = [pool.submit(fails, x) for x in (1, 3)]
        assert [task.result(5) for task in tasks] == [1, 3]

"""Workers: one thread each, tasks in order or as they end, a state of their own, and what a death costs."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2robot.core.errors import UserError
from s2robot.core.processes import SLOW_IMPORTS, one_thread_each
from s2robot.core.workers import TRIES, Pool, running_on, worker_pool
from tests.inline import InlineWorker

NAMES = ("LP_NUM_THREADS", "OMP_NUM_THREADS")


def threads() -> list[str | None]:
    return [os.environ.get(name) for name in NAMES]


def inside() -> tuple[set[str], str]:
    return set(sys.modules), Path("/proc/self/maps").read_text()


class Made:
    """A worker's state: where it was made, and how many tasks it had."""

    def __init__(self, log: Path) -> None:
        self.log, self.tasks = log, 0
        self._note("made")

    def _note(self, word: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{word}\n")

    def square(self, x: int, dies: int = 0) -> tuple[int, int]:
        """``dies``: this process, the first so many times that the task is tried."""
        self._note(f"begun {x}")
        if self.log.read_text().count(f"begun {x}\n") <= dies:
            os.kill(os.getpid(), signal.SIGKILL)
        self.tasks += 1
        return x * x, os.getpid()


def fails(x: int) -> int:
    if x == 2:
        raise ValueError("two")
    return x


class Odd(Exception):
    """Takes two arguments, and tells one: it does not come back from a pickle."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} is not {b}")


def is_odd() -> None:
    raise Odd(1, 2)


def raises(made: Made, x: int) -> None:
    raise ValueError("two")


def test_workers_compute_with_one_thread_and_the_parent_as_before(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with worker_pool(1) as pool:
        assert pool.submit(threads).result() == ["1", "1"]
    assert dict(os.environ) == before


def test_a_worker_is_a_copy_that_has_imported_and_holds_no_context_and_has_the_environment_of_now(
    monkeypatch,
):
    with worker_pool(1) as pool:  # what later ones are copies of is there from now on
        pool.submit(threads).result()
    monkeypatch.setenv("LP_NUM_THREADS", "2")
    with worker_pool(2) as pool:
        assert pool.submit(threads).result()[0] == "2"
        modules, maps = pool.submit(inside).result()
    assert set(SLOW_IMPORTS) <= modules and "mujoco" not in modules
    assert "libEGL" not in maps


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    with one_thread_each():
        assert threads() == ["1", "3"]
    assert threads() == [None, "3"]


def test_a_dead_worker_costs_its_task_and_another_takes_it(tmp_path):
    log = tmp_path / "log"
    with worker_pool(2, partial(Made, log)) as pool:
        found = list(pool.in_order(Made.square, [(1,), (2, 1), (3,), (4,), (5, 2)]))
        assert [square for square, _ in found] == [1, 4, 9, 16, 25]
        assert os.getpid() not in {pid for _, pid in found}
        assert pool.lost == 3
    begun = log.read_text().split("\n")
    assert [begun.count(f"begun {x}") for x in (1, 2, 3, 4, 5)] == [1, 2, 1, 1, 3]
    assert 4 <= begun.count("made") <= 5  # one or two, and one for each that died


def test_a_task_that_kills_every_worker_is_given_up(tmp_path):
    with worker_pool(1, partial(Made, tmp_path / "log")) as pool:
        with pytest.raises(UserError, match="Made.square: 3 workers died of it one after another") as caught:
            pool.submit(Made.square, 7, 99).result()
        assert "\n" not in str(caught.value) and pool.lost == TRIES
        assert pool.submit(Made.square, 8).result()[0] == 64  # the others go on


INTERRUPTED = """
import sys, time
from s2robot.core.workers import worker_pool
print(flush=True)
try:
    with worker_pool(2) as pool:
        tasks = [pool.submit(time.sleep, 60) for _ in range(2)]
        tasks[0].result()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("after_s", [0.3, 2])  # while workers start, and have something to do
def test_ctrl_c_is_heard_by_the_parent_alone(after_s):
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        process_group=0, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == b"\n"
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        # the pipes are open until the last process has ended
        assert (*process.communicate(timeout=120), process.returncode) == (b"", b"", 130)


def nothing_to_send(x: int) -> Any:
    return (lambda: x) if x else exec("raise SystemExit(lambda: x)")


def test_what_cannot_be_sent_is_an_error_of_its_task():
    with worker_pool(1) as pool:
        with pytest.raises(Exception, match="pickle"):
            pool.submit(lambda: 1).result()
        with pytest.raises(Exception, match="pickle"):
            pool.submit(nothing_to_send, 1).result()
        with pytest.raises(UserError, match="SystemExit"):
            pool.submit(nothing_to_send, 0).result()
        with pytest.raises(ValueError, match="two") as caught:
            pool.submit(fails, 2).result()
        assert "in fails" in caught.value.__notes__[0]
        with pytest.raises(UserError, match="Odd: 1 is not 2") as caught:
            pool.submit(is_odd).result()
        assert "in is_odd" in caught.value.__notes__[0]
        assert pool.submit(fails, 3).result() == 3 and pool.lost == 0


def test_errors_come_home_and_what_waits_is_dropped():
    with Pool([InlineWorker(None)]) as pool:
        results = pool.in_order(fails, [(1,), (2,), (3,)])
        assert next(results) == 1
        with pytest.raises(ValueError, match="two"):
            next(results)
        assert sorted(pool.as_done(fails, [(3,), (1,)])) == [((1,), 1), ((3,), 3)]
    with pytest.raises(KeyboardInterrupt), Pool([]) as pool:  # nobody takes it
        waiting = pool.submit(fails, 1)
        raise KeyboardInterrupt
    assert waiting.cancelled()


class Late(InlineWorker):
    """Starts at the try that it is told, and says before what is in its way."""

    died = (ConnectionError,)

    def __init__(self, tries: int, error: Exception) -> None:
        super().__init__(None)
        self.tries, self.error = tries, error

    def start(self):
        self.tries -= 1
        return self._done(lambda: None) if self.tries < 1 else self._done(self._fail)

    def _fail(self):
        raise self.error


def test_a_worker_that_dies_while_it_starts_is_started_again():
    with Pool([Late(3, ConnectionError("gone"))]) as pool:
        assert pool.submit(fails, 1).result(5) == 1
    with Pool([Late(9, ConnectionError("gone"))]) as pool:
        for x in (1, 3):  # not only those that waited
            with pytest.raises(ConnectionError, match="gone"):
                pool.submit(fails, x).result(5)
    with (
        Pool([Late(2, UserError("no simulator there"))]) as pool,
        pytest.raises(UserError, match="simulator"),
    ):
        pool.submit(fails, 1).result(5)


def test_another_engine_is_used_where_it_was_chosen():
    made = []

    class Counting:
        def workers(self, count, make, encodes, anywhere):
            made.append((count, encodes, anywhere))
            return [InlineWorker(make)] * count

    with running_on(Counting()):
        with worker_pool(3, encodes=True) as pool:
            assert pool.submit(fails, 5).result() == 5
        assert made == [(3, True, False)]
    with worker_pool(1) as pool:
        assert len(made) == 1

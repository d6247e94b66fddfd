"""A worker that is a local process, forked from a server that has done the slow imports.

Tasks and results travel as plain pickles: torch's pickler would use shared memory, which is 64 MB in a container.
"""

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from threading import Thread
from typing import Any

from s2robot.core.errors import UserError

ONE_THREAD = {
    "LP_NUM_THREADS": "1",  # Mesa's software rasteriser
    "OMP_NUM_THREADS": "1",
}
SLOW_IMPORTS = ("torch", "timm", "zarr", "scipy.stats")  # those that are installed


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Limit processes started inside to one thread each, unless the user has set a number.

    Two single-threaded processes on two cores beat two processes of two threads each. Libraries read these variables
    when they are loaded, so they must be set when a process starts.
    """
    added = [name for name in ONE_THREAD if name not in os.environ]
    os.environ.update({name: ONE_THREAD[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def prepare() -> None:
    """Start the fork server, which imports what workers need in the background.

    It holds neither threads nor an OpenGL context; a fork of this process might, which would not be safe. Each worker
    imports the simulator itself, because that import opens an EGL display. Workers ignore Ctrl-C: this process stops them.
    """
    forkserver.set_forkserver_preload(list(SLOW_IMPORTS))
    resource_tracker.ensure_running()  # the fork server would start it, and it unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited by what starts now
    try:
        with one_thread_each():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Process:
    """One process at a time, with its tasks in a queue; it ends with this process.

    A thread starts it: Ctrl-C, which is raised in the main thread, must not leave an executor half started.
    """

    died: tuple[type[BaseException], ...] = (BrokenProcessPool,)

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self._given = pickle.dumps(make)
        self._pool: ProcessPoolExecutor | None = None
        self._starter: Thread | None = None

    def start(self) -> Future:
        prepare()
        given = self._given, ONE_THREAD | os.environ
        self._pool = ProcessPoolExecutor(1, get_context("forkserver"), _begin_process, given)
        started: Future = Future()
        self._starter = Thread(target=self._submit, args=(started, os.getpid), daemon=True)
        self._starter.start()
        return started

    def call(self, function: Callable, *given: Any) -> Future:
        done: Future = Future()
        try:
            task = pickle.dumps((function, given))
        except Exception as error:
            done.set_exception(error)
        else:
            self._submit(done, _answer, task)
        return done

    def stop(self, kill: bool) -> None:
        if self._pool is None or self._starter is None:
            return
        self._starter.join()
        if kill:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, done: Future, function: Callable, *given: Any) -> None:
        """Resolve ``done`` with the answer of the process."""

        def pass_on(answered: Future) -> None:
            try:
                answer = answered.result()
                result, error = pickle.loads(answer) if isinstance(answer, bytes) else (answer, None)
            except BaseException as problem:
                result, error = None, problem
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        try:
            assert self._pool is not None
            self._pool.submit(function, *given).add_done_callback(pass_on)
        except (BrokenProcessPool, RuntimeError) as error:  # it has died, or was stopped
            done.set_exception(error)


# ---------------------------------------------------------------- in a worker

_make: Callable[[], Any] | None = None  # makes the worker's state
_state: list[Any] = []  # the state, once it is made


def begin(make: Callable[[], Any] | None) -> None:
    """Set up this worker before its first task."""
    global _make
    _make = make
    _state.clear()


def call(function: Callable, given: tuple) -> Any:
    """Run a task in a worker. An error while its state is made is an error of the task."""
    if _make is not None and not _state:
        _state.append(_make())
    return function(*_state, *given)


def _begin_process(make: bytes, environment: dict[str, str]) -> None:
    """Take the environment of now rather than the fork server's, and end with the parent, even if it is killed."""
    os.environ.clear()
    os.environ.update(environment)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
    begin(pickle.loads(make))


def _answer(task: bytes) -> bytes:
    """Return the pickled result and None, or None and the error with its traceback as a note."""
    try:
        function, given = pickle.loads(task)
        return pickle.dumps((call(function, given), None))
    except BaseException as error:
        error.add_note(f"in a worker: {traceback.format_exc()}")
        try:
            answer = pickle.dumps((None, error))
            pickle.loads(answer)  # an error with several arguments may not unpickle
            return answer
        except Exception:
            plain = UserError(f"{type(error).__name__}: {error}")
            plain.add_note(error.__notes__[-1])
            return pickle.dumps((None, plain))

"""A worker that is a local process, forked from a server that has done the slow imports.

Tasks and results go through a pipe as plain pickles: torch's pickler would use shared memory, which is 64 MB in a container.
"""

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing import Pipe, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

from s2robot.core.errors import UserError

_EXIT_S = 5.0  # within which a process ends once its pipe is closed
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


class Died(UserError):
    """The process of a worker has ended."""


class Process:
    """A process that ends with this one; a thread of this one sends it its tasks.

    An executor of `concurrent.futures` would not do: if Ctrl-C comes while it starts a process, it may hang at exit.
    """

    died: tuple[type[BaseException], ...] = (Died,)

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self._make = make
        self._run: _Run | None = None

    def start(self) -> Future:
        prepare()
        self._run = _Run(self._make)
        return self._run.started

    def call(self, function: Callable, *given: Any) -> Future:
        assert self._run is not None
        done: Future = Future()
        self._run.tasks.put((done, function, given))
        return done

    def stop(self, kill: bool) -> None:
        if self._run is not None:
            self._run.stop(kill)


class _Run:
    """One process, from its start to its end."""

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self.started, self.tasks = Future[None](), SimpleQueue[tuple[Future, Callable, tuple] | None]()
        self._here, self._there = Pipe()
        given = self._there, pickle.dumps(make), ONE_THREAD | os.environ
        self._process = get_context("forkserver").Process(target=_serve, args=given, daemon=True)
        self._killed = False
        self._thread = Thread(target=self._live, daemon=True)
        self._thread.start()

    def stop(self, kill: bool) -> None:
        self.tasks.put(None)
        if kill:
            self._killed = True
            self._kill()
        else:
            self._thread.join()

    def _kill(self) -> None:
        if self._process.pid is not None:
            self._process.kill()

    def _live(self) -> None:
        try:
            self._process.start()
            self._there.close()
            if self._killed:
                self._kill()
            self._here.recv_bytes()
        except Exception as error:
            self.started.set_exception(self._why(error))
            return
        self.started.set_result(None)
        while (task := self.tasks.get()) is not None:
            self._do(*task)
            del task  # it may hold large arrays
        self._here.close()
        self._process.join()

    def _do(self, done: Future, function: Callable, given: tuple) -> None:
        try:
            self._here.send_bytes(pickle.dumps((function, given)))
            result, error = pickle.loads(self._here.recv_bytes())
        except Exception as problem:
            return done.set_exception(self._why(problem))
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def _why(self, error: Exception) -> Exception:
        """Return the error, or for a broken pipe how the process has ended."""
        if not isinstance(error, EOFError | OSError):
            return error
        if self._process.pid is None:
            return Died(f"its process did not start ({error!r})")
        self._process.join(_EXIT_S)
        return Died(f"its process ended with {self._process.exitcode}")


# ---------------------------------------------------------------- in a worker

_make: Callable[[], Any] | None = None  # makes the worker's state
_state: list[Any] = []  # the state, once it is made


def call(function: Callable, given: tuple) -> Any:
    """Run a task in a worker. An error while its state is made is an error of the task."""
    if _make is not None and not _state:
        _state.append(_make())
    return function(*_state, *given)


def _serve(pipe: Connection, make: bytes, environment: dict[str, str]) -> None:
    """A worker's life: tasks come through the pipe, results go back. A killed parent ends it in the middle of one."""
    os.environ.clear()  # as the process that was copied found it
    os.environ.update(environment)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
    begin(pickle.loads(make))
    with suppress(EOFError, OSError):  # no more tasks, or nobody who gives them
        pipe.send_bytes(b"")
        while True:
            pipe.send_bytes(_answer(pipe.recv_bytes()))


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


def begin(make: Callable[[], Any] | None) -> None:
    """Set up this worker before its first task."""
    global _make
    _make = make
    _state.clear()

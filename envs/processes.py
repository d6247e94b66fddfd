"""A worker that is a process of this machine: a copy of one that has imported what takes seconds.

A pipe carries its tasks there and the results back, as bytes of plain pickle: torch's own would put tensors into shared
memory, of which a container has 64 MB.
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

from s2robot.envs.errors import EnvError

_ENDS_S = 5.0  # within which a process whose pipe is closed has ended
ONE_THREAD = {
    "LP_NUM_THREADS": "1",  # Mesa's software rasteriser
    "OMP_NUM_THREADS": "1",
}
SLOW_IMPORTS = ("torch", "timm", "zarr", "scipy.stats")  # what is not installed is left out


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started in here compute with one thread each, unless the user has set how many.

    Two processes on two cores beat two processes of two threads each. Libraries read these variables when they are
    loaded, so they have to be there when a process starts; this one keeps its own.
    """
    added = [name for name in ONE_THREAD if name not in os.environ]
    os.environ.update({name: ONE_THREAD[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def prepare() -> None:
    """Begin to import what the processes to come need, beside whatever this one does.

    They are copies of a process that has imported what takes seconds, and holds neither threads nor an OpenGL context: a
    fork of this one, which may hold both, would not be safe. What opens an EGL display while it is imported, as the
    simulator does, each copy imports itself. Ctrl-C is for this process, which ends them: none of them hears it.
    """
    forkserver.set_forkserver_preload(list(SLOW_IMPORTS))
    resource_tracker.ensure_running()  # the fork server would start it, and it lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # what starts now takes that over
    try:
        with one_thread_each():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Died(EnvError):
    """A worker's process is no more."""


class Process:
    """A process of one thread, which ends with this one; a thread of this one hands it its tasks.

    Not a pool of one from `concurrent.futures`: where Ctrl-C comes while it starts a process, it may wait for that at
    exit for ever, or leave it without the locks that it was to find.
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
    """A process from its start to its end."""

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
            del task  # what it holds may be large
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
        """Of a pipe that is no more: how the process has ended."""
        if not isinstance(error, EOFError | OSError):
            return error
        if self._process.pid is None:
            return Died(f"its process did not start ({error!r})")
        self._process.join(_ENDS_S)
        return Died(f"its process ended with {self._process.exitcode}")


# ---------------------------------------------------------------- in a worker

_make: Callable[[], Any] | None = None  # in a worker: of its state
_state: list[Any] = []  # in a worker: the state, once it is made


def call(function: Callable, given: tuple) -> Any:
    """A task, in a worker. Its state is made here: an error of that is an error of the task."""
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
    """The result and None, or None and the error, which then says where it was."""
    try:
        function, given = pickle.loads(task)
        return pickle.dumps((call(function, given), None))
    except BaseException as error:
        error.add_note(f"in a worker: {traceback.format_exc()}")
        try:
            answer = pickle.dumps((None, error))
            pickle.loads(answer)  # an error that takes several arguments may not come back
            return answer
        except Exception:
            told = EnvError(f"{type(error).__name__}: {error}")
            told.add_note(error.__notes__[-1])
            return pickle.dumps((None, told))


def begin(make: Callable[[], Any] | None) -> None:
    """What a worker knows before its first task."""
    global _make
    _make = make
    _state.clear()

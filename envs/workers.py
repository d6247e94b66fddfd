"""Workers side by side, and the engine that they run on: processes of this machine, or what was chosen at the door.

    with worker_pool(4) as pool:                              # a task is a call of a function
        for arrays in pool.in_order(record_episode, [(settings, seed) for seed in seeds]): ...

    with worker_pool(4, partial(Places, config)) as pool:     # each worker makes itself a state, once
        for (seed,), record in pool.as_done(Places.run, [(seed,) for seed in seeds]): ...   # state.run(seed)

A worker that dies costs the task that it was at: another one gets it, from the start. What gave a result stays.
"""

import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import Pipe, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import RLock, Thread
from typing import Any, Protocol

from s2robot.envs.errors import EnvError

_ENDS_S = 5.0  # within which a process whose pipe is closed has ended
TRIES = 3  # of a task whose worker dies: the third death is its own doing, or the machine's
ONE_THREAD = {
    "LP_NUM_THREADS": "1",  # Mesa's software rasteriser
    "OMP_NUM_THREADS": "1",
}
SLOW_IMPORTS = ("torch", "timm", "zarr", "scipy.stats")  # what is not installed is left out


class Worker(Protocol):
    """One worker of an engine; it does one task at a time."""

    died: tuple[type[BaseException], ...]  # what a future raises when the worker is no more

    def start(self) -> Future:
        """Begin, or begin anew after a death; done when the worker can take a task."""

    def call(self, function: Callable, *given: Any) -> Future:
        """`function(*given)`, or `function(state, *given)`, over there."""

    def stop(self, kill: bool) -> None:
        """End it; ``kill``: in the middle of its task."""


class Engine(Protocol):
    """Where workers run."""

    far: bool  # on other machines too: what they draw they encode themselves, for features are fewer bytes than frames

    def workers(
        self, count: int, make: Callable[[], Any] | None, encodes: bool, anywhere: bool
    ) -> Sequence[Worker]:
        """So many that are not started yet, or as the engine knows better; the rest as :func:`worker_pool` has it."""

    def words(self) -> tuple[str, ...]:
        """What to type for a command that this process starts, for it to run on the same engine."""


@dataclass
class _Task:
    function: Callable
    given: tuple
    future: Future = field(default_factory=Future)
    deaths: int = 0


class Pool:
    """Workers that take tasks in turn; a context, at whose end tasks that were not begun are dropped.

    Workers start when there is work for them. ``lost`` counts the tasks that had to be given to another one.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.lost = 0
        self._workers, self._idle = workers, list(workers)  # idle: not started
        self._free: list[Worker] = []
        self._queue: deque[_Task] = deque()
        self._lock, self._closed = RLock(), False
        self._starts = 0  # that failed
        self._broken: BaseException | None = None  # why no worker can do what is asked

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._lock:
            self._closed = True
            while self._queue:
                self._queue.popleft().future.cancel()
        for worker in self._workers:
            worker.stop(kill=kind is not None)

    def submit(self, function: Callable, *given: Any) -> Future:
        """A task; its future has the result or the error. Raises EnvError where it cost too many workers."""
        task = _Task(function, given)
        with self._lock:
            if self._broken is not None:
                task.future.set_exception(self._broken)
            else:
                self._queue.append(task)
                self._go_on()
        return task.future

    def in_order(self, function: Callable, tasks: Iterable[tuple], ahead: int = 2) -> Iterator[Any]:
        """The results in the tasks' order; at most ``ahead`` more than there are workers wait to be taken."""
        left, waiting = iter(tasks), deque[Future]()
        while True:
            room = len(self._workers) + ahead - len(waiting)
            waiting.extend(self.submit(function, *task) for task in islice(left, room))
            if not waiting:
                return
            yield waiting.popleft().result()

    def as_done(
        self, function: Callable, tasks: Iterable[tuple], ahead: int = 0
    ) -> Iterator[tuple[tuple, Any]]:
        """Each task and its result, as they come; ``ahead``: tasks that wait for a worker, so that none waits for one."""
        left, running = iter(tasks), dict[Future, tuple]()
        while True:
            for task in islice(left, len(self._workers) + ahead - len(running)):
                running[self.submit(function, *task)] = task
            if not running:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done
            for future in [future for future in running if future in done]:
                yield running.pop(future), future.result()

    def _go_on(self) -> None:
        """Give tasks to whoever is free, and start who is needed for the rest."""
        while self._queue and self._free:
            task, worker = self._queue.popleft(), self._free.pop(0)
            if task.deaths or task.future.set_running_or_notify_cancel():
                worker.call(task.function, *task.given).add_done_callback(partial(self._ended, worker, task))
            else:
                self._free.insert(0, worker)
        starting = len(self._queue)
        while self._idle and starting > 0:
            worker, starting = self._idle.pop(0), starting - 1
            worker.start().add_done_callback(partial(self._started, worker))

    def _started(self, worker: Worker, started: Future) -> None:
        error = started.exception()
        with self._lock:
            if self._closed:
                return
            if error is None:
                self._free.append(worker)
                return self._go_on()
            self._starts += 1
            if isinstance(error, worker.died) and self._starts < TRIES * len(self._workers):
                self._idle.append(worker)
                return self._go_on()
            self._broken = error
            while self._queue:
                self._queue.popleft().future.set_exception(error)

    def _ended(self, worker: Worker, task: _Task, attempt: Future) -> None:
        error = None if attempt.cancelled() else attempt.exception()
        with self._lock:
            if self._closed:
                return
            if not isinstance(error, worker.died):
                self._free.append(worker)
            else:
                self.lost, task.deaths = self.lost + 1, task.deaths + 1
                self._idle.append(worker)
                if task.deaths < TRIES:
                    self._queue.appendleft(task)
                    return self._go_on()
                name = getattr(task.function, "__qualname__", "a task")
                error = EnvError(f"{name}: {task.deaths} workers died of it one after another ({error})")
            self._go_on()  # before whoever waits gives more
        if error is None:
            task.future.set_result(attempt.result())
        else:
            task.future.set_exception(error)


def worker_pool(
    workers: int, make: Callable[[], Any] | None = None, encodes: bool = False, anywhere: bool = False
) -> Pool:
    """A pool on the engine in use.

    Args:
        workers: how many.
        make: called in each worker before its first task; what it returns is the first argument of the functions.
            Sent once to each, with all that it holds.
        encodes: whether tasks can use an accelerator.
        anywhere: whether another machine will do: tasks that neither read nor write this one's files.
    """
    return Pool(_engine.workers(max(1, workers), make, encodes, anywhere))


def engine_in_use() -> Engine:
    """Where pools that are made now run."""
    return _engine


@contextmanager
def running_on(engine: Engine) -> Iterator[None]:
    """Pools that are made in here run on another engine."""
    global _engine
    before, _engine = _engine, engine
    try:
        yield
    finally:
        _engine = before


# ---------------------------------------------------------------- processes of this machine


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
        # as bytes: torch would put tensors into shared memory, of which a container has 64 MB
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


class Local:
    """Processes of this machine, the default. ``count``: of every pool, whatever it asks for."""

    far = False

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def workers(
        self, count: int, make: Callable[[], Any] | None, encodes: bool, anywhere: bool
    ) -> Sequence[Worker]:
        return [Process(make) for _ in range(self.count or count)]

    def words(self) -> tuple[str, ...]:
        return () if self.count is None else (f"engine.workers={self.count}",)


_engine: Engine = Local()
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
            return pickle.dumps((None, error))
        except Exception:
            return pickle.dumps((None, EnvError(f"{type(error).__name__}: {error}")))


def begin(make: Callable[[], Any] | None) -> None:
    """What a worker knows before its first task."""
    global _make
    _make = make
    _state.clear()

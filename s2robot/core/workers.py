"""Pools of workers, on the engine in use: processes of this machine, or Ray.

    with worker_pool(4) as pool:                              # a task is a call of a function
        for arrays in pool.in_order(record_episode, [(settings, seed) for seed in seeds]): ...

    with worker_pool(4, partial(Places, config)) as pool:     # each worker makes its state once
        for (seed,), record in pool.as_done(Places.run, [(seed,) for seed in seeds]): ...   # state.run(seed)

If a worker dies, it is restarted and the task is run again; finished results are kept.
"""

import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import connection, forkserver, get_context, parent_process, resource_tracker
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from typing import Any, ClassVar, Protocol

from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, from_yaml

TRIES = 3  # of a task whose worker dies: the third death is due to the task or the machine
# Two single-threaded processes on two cores beat two of two threads each. LP: Mesa's software rasteriser.
ONE_THREAD = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
SLOW_IMPORTS = ("torch", "timm", "zarr", "scipy.stats")  # those that are installed


class Died(UserError):
    """A worker is dead: its process, or its node."""


class Worker(Protocol):
    """One worker of an engine. `start` blocks until it can take a task, `call` until it has the result of `function(*given)`
    or `function(state, *given)`; both raise Died, also when `kill` is called meanwhile. `stop` follows its last task."""

    def start(self) -> None: ...
    def call(self, function: Callable, given: tuple) -> Any: ...
    def kill(self) -> None: ...
    def stop(self) -> None: ...


class _Task:
    def __init__(self, function: Callable, given: tuple) -> None:
        self.function, self.given, self.future, self.deaths = function, given, Future[Any](), 0


class Pool:
    """Workers, a thread each, that share a queue of tasks; leaving the context drops tasks that have not begun."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.lost = 0  # tasks that had to be restarted
        self._workers, self._threads = workers, list[Thread]()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()  # None wakes a thread when the pool closes
        self._lock, self._closed, self._failed_starts = RLock(), False, 0
        self._starting: set[Worker] = set()
        self._broken: Exception | None = None  # why no worker can start

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._lock:
            self._closed = True
            for task in self._waiting():
                task.future.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            while thread.is_alive():
                # one that starts may wait for a node that never comes
                for worker in self._workers if kind is not None else list(self._starting):
                    worker.kill()
                thread.join(0.1)

    def submit(self, function: Callable, *given: Any) -> Future:
        """Queue a task. Its future has the result or the error; UserError if it killed too many workers."""
        task = _Task(function, given)
        with self._lock:
            if self._broken is not None:
                task.future.set_exception(self._broken)
                return task.future
            self._tasks.put(task)
            if (count := len(self._threads)) < len(self._workers):
                thread = Thread(target=self._serve, args=(self._workers[count],), daemon=True)
                thread.start()
                self._threads.append(thread)
        return task.future

    def in_order(self, function: Callable, tasks: Iterable[tuple], ahead: int = 2) -> Iterator[Any]:
        """Yield results in the order of the tasks; at most ``ahead`` results beyond the workers' own wait."""
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
        """Yield each task and its result as it ends; ``ahead`` tasks are queued so that no worker waits."""
        left, running = iter(tasks), dict[Future, tuple]()
        while True:
            for task in islice(left, len(self._workers) + ahead - len(running)):
                running[self.submit(function, *task)] = task
            if not running:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done
            for future in [future for future in running if future in done]:
                yield running.pop(future), future.result()

    def _waiting(self) -> Iterator[_Task]:
        with suppress(Empty):
            while task := self._tasks.get_nowait():
                yield task

    def _serve(self, worker: Worker) -> None:
        try:
            while self._start(worker):
                while (task := self._tasks.get()) and self._run(worker, task):
                    pass
        finally:
            worker.stop()

    def _start(self, worker: Worker) -> bool:
        while True:
            with self._lock:
                if self._closed or self._broken is not None:
                    return False
                self._starting.add(worker)
            try:
                worker.start()
                return True
            except Exception as error:
                with self._lock:
                    self._failed_starts += 1
                    again = isinstance(error, Died) and self._failed_starts < TRIES * len(self._workers)
                    if not again and not self._closed:
                        self._broken = error
                        for task in self._waiting():
                            task.future.set_exception(error)
            finally:
                self._starting.discard(worker)

    def _run(self, worker: Worker, task: _Task) -> bool:
        """Run a task; return whether the worker is alive. A task whose worker died goes back to the queue."""
        if not task.deaths and not task.future.set_running_or_notify_cancel():
            return True
        try:
            result = worker.call(task.function, task.given)
        except Died as error:
            with self._lock:
                self.lost, task.deaths = self.lost + 1, task.deaths + 1
                if task.deaths == TRIES:
                    name = getattr(task.function, "__qualname__", "a task")
                    words = f"{name}: {TRIES} workers died of it one after another ({error})"
                    task.future.set_exception(UserError(words))
                elif self._closed or self._broken is not None:
                    task.future.set_exception(self._broken or error)
                else:
                    self._tasks.put(task)
            return False
        except BaseException as error:
            task.future.set_exception(error)
        else:
            task.future.set_result(result)
        return True


class Local(Settings, at="engine", file="engine/local"):
    """Processes of this machine, the default; configs/engine/local.yaml documents each value. `Ray` is the other engine."""

    name: str = from_yaml()
    workers: int | None = from_yaml(ge=1)
    is_remote: ClassVar[bool] = False  # on other machines too: workers encode what they draw

    def pool(self, count: int, make: Callable[[], Any] | None, encodes: bool, anywhere: bool) -> Pool:
        """Return a pool of ``count`` workers, or of the engine's own number; arguments as in :func:`worker_pool`."""
        return Pool([Process(make) for _ in range(self.workers or count)])

    def overrides(self) -> tuple[str, ...]:
        """Return the overrides that make a command run on the same engine."""
        return () if self.workers is None else (f"engine.workers={self.workers}",)


_engine: Any = None  # Local or Ray


def worker_pool(
    workers: int, make: Callable[[], Any] | None = None, encodes: bool = False, anywhere: bool = False
) -> Pool:
    """Return a pool on the engine in use.

    ``make``, called in each worker before its first task, gives the first argument of the functions; ``encodes``: tasks can
    use an accelerator; ``anywhere``: they use no files of this machine.
    """
    return engine_in_use().pool(max(1, workers), make, encodes, anywhere)


def engine_in_use() -> Any:
    return _engine or Local()


@contextmanager
def running_on(engine: Any) -> Iterator[None]:
    global _engine
    before, _engine = _engine, engine
    try:
        yield
    finally:
        _engine = before


def prepare() -> None:
    """Start the fork server, which imports what workers need in the background. It has neither threads nor an OpenGL context;
    so each worker imports the simulator itself. Workers ignore Ctrl-C: this process stops them."""
    forkserver.set_forkserver_preload(list(SLOW_IMPORTS))
    resource_tracker.ensure_running()  # the fork server would start it, and it unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited by what starts now
    added = ONE_THREAD.keys() - os.environ.keys()
    os.environ.update({name: ONE_THREAD[name] for name in added})  # read when a library is loaded
    try:
        forkserver.ensure_running()
    finally:
        for name in added:
            os.environ.pop(name, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Process:
    """A worker that is a local process, forked from a server that has done the slow imports."""

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self._given = pickle.dumps(make)
        self._process: Any = None
        self._connection: connection.Connection | None = None

    def start(self) -> None:
        prepare()
        self.stop()
        context = get_context("forkserver")
        self._connection, end = context.Pipe()
        process = context.Process(target=_work, args=(end, self._given, ONE_THREAD | os.environ), daemon=True)
        process.start()
        self._process = process
        end.close()

    def call(self, function: Callable, given: tuple) -> Any:
        task = pickle.dumps((function, given))
        assert self._connection is not None
        try:
            self._connection.send_bytes(task)
            if self._connection not in connection.wait([self._connection, self._process.sentinel]):
                raise EOFError
            answer = self._connection.recv_bytes()
        except (EOFError, OSError):
            self._process.join()
            raise Died(f"exit code {self._process.exitcode}") from None
        result, error = pickle.loads(answer)
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join()


class State:
    """What a worker makes before its first task. An error while it is made is an error of the task."""

    def __init__(self, make: bytes) -> None:
        self._make: Callable[[], Any] | None = pickle.loads(make)
        self._made: list[Any] = []

    def call(self, function: Callable, given: tuple) -> Any:
        if self._make is not None and not self._made:
            self._made.append(self._make())
        return function(*self._made, *given)


def _work(end: connection.Connection, make: bytes, environment: dict[str, str]) -> None:
    """Run tasks in this process, in the environment of now; end with the parent, even if that is killed."""
    os.environ.clear()
    os.environ.update(environment)
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()
    state = State(make)
    with suppress(EOFError):
        while True:
            end.send_bytes(_answer(state, end.recv_bytes()))


def _answer(state: State, task: bytes) -> bytes:
    """Return the pickled result and None, or None and the error with its traceback as a note."""
    try:
        return pickle.dumps((state.call(*pickle.loads(task)), None))
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

"""Worker pools on the current engine: local processes, or Ray.

    with worker_pool(4) as pool:                              # a task is a function call
        for arrays in pool.in_order(record_episode, [(settings, seed) for seed in seeds]): ...

    with worker_pool(4, partial(World, config)) as pool:      # each worker creates its state once
        for (seed,), record in pool.as_done(World.run, [(seed,) for seed in seeds]): ...    # state.run(seed)

If a worker dies, it is restarted and its task is run again; finished results are kept.
"""

import os
import pickle
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from multiprocessing import connection, forkserver, get_context, parent_process, resource_tracker
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from typing import Any, ClassVar, Literal, Protocol

from s2robot.core.errors import UserError
from s2robot.core.settings import Settings, from_yaml

TRIES = 3  # attempts at a task whose worker dies; the third death is due to the task or the machine
# On two cores, two single-threaded processes are faster than two with two threads each. LP: Mesa's rasteriser.
ONE_THREAD = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
SLOW_IMPORTS = ("torch", "timm", "zarr", "scipy.stats")  # if installed


class Died(UserError):
    """A worker has died: its process, or its node."""


class Worker(Protocol):
    """One worker of an engine. `start` blocks until the worker is ready, `call` until it returns the result of
    `function(*args)` or `function(state, *args)`. Both raise Died, also if `kill` is called. `stop` follows the last task."""

    def start(self) -> None: ...
    def call(self, function: Callable, args: tuple) -> Any: ...
    def kill(self) -> None: ...
    def stop(self) -> None: ...


class _Task:
    def __init__(self, function: Callable, args: tuple) -> None:
        self.function, self.args, self.future, self.deaths = function, args, Future[Any](), 0


class Pool(AbstractContextManager["Pool"]):
    """Workers that share a task queue, each served by a thread. Leaving the context drops tasks that have not started."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers, self._threads = workers, list[Thread]()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()  # None wakes a thread when the pool closes
        self._lock, self._closed, self._failed_starts = RLock(), False, 0
        self._starting: set[Worker] = set()
        self._broken: Exception | None = None  # why no worker can start

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._lock:
            self._closed = True
            for task in self._waiting():
                task.future.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            while thread.is_alive():
                # a starting worker may wait for a node that never joins
                for worker in self._workers if kind is not None else list(self._starting):
                    worker.kill()
                thread.join(0.1)

    def submit(self, function: Callable, *args: Any) -> Future:
        """Queue a task and return the future of its result or error; UserError if it killed too many workers."""
        task = _Task(function, args)
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

    def in_order(self, function: Callable, tasks: Iterable[tuple]) -> Iterator[Any]:
        """Yield results in the order of the tasks; at most two tasks are queued beyond one per worker."""
        remaining, waiting = iter(tasks), deque[Future]()
        while True:
            free = len(self._workers) + 2 - len(waiting)
            waiting.extend(self.submit(function, *task) for task in islice(remaining, free))
            if not waiting:
                return
            yield waiting.popleft().result()

    def as_done(self, function: Callable, tasks: Iterable[tuple], ahead: int = 0) -> Iterator[tuple]:
        """Yield each task and its result as it ends; ``ahead`` extra tasks are queued so that no worker waits."""
        remaining, running = iter(tasks), dict[Future, tuple]()
        while True:
            for task in islice(remaining, len(self._workers) + ahead - len(running)):
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
                    retry = isinstance(error, Died) and self._failed_starts < TRIES * len(self._workers)
                    if not retry and not self._closed:
                        self._broken = error
                        for task in self._waiting():
                            task.future.set_exception(error)
            finally:
                self._starting.discard(worker)

    def _run(self, worker: Worker, task: _Task) -> bool:
        """Run a task and return whether the worker is alive. If the worker died, the task is queued again."""
        if not task.deaths and not task.future.set_running_or_notify_cancel():
            return True
        try:
            result = worker.call(task.function, task.args)
        except Died as error:
            with self._lock:
                task.deaths += 1
                if task.deaths == TRIES:
                    name = getattr(task.function, "__qualname__", "a task")
                    text = f"{name}: {TRIES} workers died while running it ({error})"
                    task.future.set_exception(UserError(text))
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
    """The default engine: local processes. configs/engine/local.yaml documents each value. `Ray` is the other engine."""

    name: Literal["local"] = from_yaml()
    workers: int | None = from_yaml(ge=1)
    is_remote: ClassVar[bool] = False  # True: workers may be elsewhere, and encode what they render

    def pool(self, count: int, make: Callable[[], Any] | None, encodes: bool, anywhere: bool) -> Pool:
        """Return a pool of ``count`` workers, or of `engine.workers` if set; arguments as in :func:`worker_pool`."""
        return Pool([Process(make) for _ in range(self.workers or count)])

    def overrides(self) -> tuple[str, ...]:
        """Return the overrides that run a command on the same engine."""
        return () if self.workers is None else (f"engine.workers={self.workers}",)


_engine: Any = None  # Local or Ray


def worker_pool(
    workers: int, make: Callable[[], Any] | None = None, encodes: bool = False, anywhere: bool = False
) -> Pool:
    """Return a pool on the current engine.

    ``make``: called in each worker before its first task; returns the first argument of all functions. ``encodes``: tasks
    can use an accelerator. ``anywhere``: tasks use no local files.
    """
    return engine_in_use().pool(max(1, workers), make, encodes, anywhere)


def engine_in_use() -> Any:
    return _engine or Local()


@contextmanager
def running_on(engine: Any) -> Iterator[None]:
    global _engine
    previous, _engine = _engine, engine
    try:
        yield
    finally:
        _engine = previous


def prepare() -> None:
    """Start the fork server, which imports slow modules in the background. It has no threads and no OpenGL context, so each
    worker imports the simulator itself. Workers ignore Ctrl-C; this process stops them."""
    forkserver.set_forkserver_preload(list(SLOW_IMPORTS))
    resource_tracker.ensure_running()  # otherwise the fork server starts it, which unblocks Ctrl-C
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited by the fork server
    added = ONE_THREAD.keys() - os.environ.keys()
    os.environ.update({name: ONE_THREAD[name] for name in added})  # libraries read these when loaded
    try:
        forkserver.ensure_running()
    finally:
        for name in added:
            os.environ.pop(name, None)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Process:
    """A worker in a local process, forked from a server that has already imported slow modules."""

    def __init__(self, make: Callable[[], Any] | None) -> None:
        self._make = pickle.dumps(make)
        self._process: Any = None
        self._connection: connection.Connection | None = None

    def start(self) -> None:
        prepare()
        self.stop()
        context = get_context("forkserver")
        self._connection, end = context.Pipe()
        process = context.Process(target=_work, args=(end, self._make, ONE_THREAD | os.environ), daemon=True)
        process.start()
        self._process = process
        end.close()

    def call(self, function: Callable, args: tuple) -> Any:
        task = pickle.dumps((function, args))
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
    """The state of a worker, created before its first task. An error while creating it is an error of the task."""

    def __init__(self, make: bytes) -> None:
        self._make: Callable[[], Any] | None = pickle.loads(make)
        self._state: list[Any] = []  # empty or one item

    def call(self, function: Callable, args: tuple) -> Any:
        if self._make is not None and not self._state:
            self._state.append(self._make())
        return function(*self._state, *args)


def _work(end: connection.Connection, make: bytes, environment: dict[str, str]) -> None:
    """Run tasks in this process with the parent's current environment; exit when the parent ends, even if it is killed."""
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

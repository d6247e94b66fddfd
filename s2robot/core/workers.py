"""Pools of workers, on the engine in use: processes of this machine, or Ray.

    with worker_pool(4) as pool:                              # a task is a call of a function
        for arrays in pool.in_order(record_episode, [(settings, seed) for seed in seeds]): ...

    with worker_pool(4, partial(Places, config)) as pool:     # each worker makes its state once
        for (seed,), record in pool.as_done(Places.run, [(seed,) for seed in seeds]): ...   # state.run(seed)

If a worker dies, another worker restarts its task; finished results are kept.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import RLock
from typing import Any, Protocol

from s2robot.core.errors import UserError
from s2robot.core.processes import Process
from s2robot.core.settings import Settings, from_yaml

TRIES = 3  # of a task whose worker dies: the third death is due to the task or the machine


class Worker(Protocol):
    """One worker of an engine; it runs one task at a time."""

    died: tuple[type[BaseException], ...]  # errors of a future that mean that the worker is dead

    def start(self) -> Future:
        """Start, or restart after a death; done when the worker can take a task."""

    def call(self, function: Callable, *given: Any) -> Future:
        """Run `function(*given)`, or `function(state, *given)`, in the worker."""

    def stop(self, kill: bool) -> None:
        """Stop after the current task, or at once if ``kill``."""


class Engine(Protocol):
    """Where workers run."""

    is_remote: (
        bool  # on other machines too: workers encode what they draw, as features are smaller than frames
    )

    def workers(
        self, count: int, make: Callable[[], Any] | None, encodes: bool, anywhere: bool
    ) -> Sequence[Worker]:
        """``count`` workers, or the engine's own number, not started yet; arguments as in :func:`worker_pool`."""

    def overrides(self) -> tuple[str, ...]:
        """Overrides that make a command run on the same engine."""


@dataclass
class _Task:
    function: Callable
    given: tuple
    future: Future = field(default_factory=Future)
    deaths: int = 0


class Pool:
    """Workers that share a queue of tasks; leaving the context drops tasks that have not begun.

    Workers start when there are tasks for them. ``lost`` counts tasks that had to be restarted.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.lost = 0
        self._workers, self._not_started = workers, list(workers)
        self._free: list[Worker] = []
        self._queue: deque[_Task] = deque()
        self._lock, self._closed = RLock(), False
        self._failed_starts = 0
        self._broken: BaseException | None = None  # why no worker can start

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
        """Queue a task. Its future has the result or the error; UserError if it killed too many workers."""
        task = _Task(function, given)
        with self._lock:
            if self._broken is not None:
                task.future.set_exception(self._broken)
            else:
                self._queue.append(task)
                self._dispatch()
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

    def _dispatch(self) -> None:
        """Give tasks to free workers, and start workers for the rest."""
        while self._queue and self._free:
            task, worker = self._queue.popleft(), self._free.pop(0)
            if task.deaths or task.future.set_running_or_notify_cancel():
                worker.call(task.function, *task.given).add_done_callback(partial(self._ended, worker, task))
            else:
                self._free.insert(0, worker)
        starting = len(self._queue)
        while self._not_started and starting > 0:
            worker, starting = self._not_started.pop(0), starting - 1
            worker.start().add_done_callback(partial(self._started, worker))

    def _started(self, worker: Worker, started: Future) -> None:
        error = started.exception()
        with self._lock:
            if self._closed:
                return
            if error is None:
                self._free.append(worker)
                return self._dispatch()
            self._failed_starts += 1
            if isinstance(error, worker.died) and self._failed_starts < TRIES * len(self._workers):
                self._not_started.append(worker)
                return self._dispatch()
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
                self._not_started.append(worker)
                if task.deaths < TRIES:
                    self._queue.appendleft(task)
                    return self._dispatch()
                name = getattr(task.function, "__qualname__", "a task")
                error = UserError(f"{name}: {task.deaths} workers died of it one after another ({error})")
            self._dispatch()  # before the future's callbacks submit more
        if error is None:
            task.future.set_result(attempt.result())
        else:
            task.future.set_exception(error)


def worker_pool(
    workers: int, make: Callable[[], Any] | None = None, encodes: bool = False, anywhere: bool = False
) -> Pool:
    """Return a pool on the engine in use.

    Args:
        workers: how many.
        make: called in each worker before its first task; the result is the first argument of the functions.
            Sent to each worker once, with everything that it holds.
        encodes: whether tasks can use an accelerator.
        anywhere: whether tasks may run on another machine: they use no files of this one.
    """
    return Pool(_engine.workers(max(1, workers), make, encodes, anywhere))


def engine_in_use() -> Engine:
    """Return the engine of pools that are made now."""
    return _engine


@contextmanager
def running_on(engine: Engine) -> Iterator[None]:
    """Run pools that are made inside on another engine."""
    global _engine
    before, _engine = _engine, engine
    try:
        yield
    finally:
        _engine = before


class LocalSettings(Settings, at="engine", file="engine/local"):
    """configs/engine/local.yaml documents each value."""

    name: str = from_yaml()
    workers: int | None = from_yaml(ge=1)


class Local:
    """Processes of this machine, the default. ``count`` replaces the number that a pool asks for."""

    is_remote = False

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def workers(
        self, count: int, make: Callable[[], Any] | None, encodes: bool, anywhere: bool
    ) -> Sequence[Worker]:
        return [Process(make) for _ in range(self.count or count)]

    def overrides(self) -> tuple[str, ...]:
        return () if self.count is None else (f"engine.workers={self.count}",)


_engine: Engine = Local()

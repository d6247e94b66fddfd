"""Workers side by side, and the engine that they run on: processes of this machine, or what was chosen at the door.

    with worker_pool(4) as pool:                              # a task is a call of a function
        for arrays in pool.in_order(record_episode, [(settings, seed) for seed in seeds]): ...

    with worker_pool(4, partial(Places, config)) as pool:     # each worker makes itself a state, once
        for (seed,), record in pool.as_done(Places.run, [(seed,) for seed in seeds]): ...   # state.run(seed)

A worker that dies costs the task that it was at: another one gets it, from the start. What gave a result stays.
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

from s2robot.envs.errors import EnvError
from s2robot.envs.processes import Process

TRIES = 3  # of a task whose worker dies: the third death is its own doing, or the machine's


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

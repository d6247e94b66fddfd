"""Processes that simulate and draw, one world each."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from threading import Thread

_ONE_THREAD = {
    "LP_NUM_THREADS": "1",  # Mesa's software rasteriser
    "OMP_NUM_THREADS": "1",
}


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started in here compute with one thread each, unless the user has set how many.

    Two processes on two cores beat two processes of two threads each. Libraries read these variables when they are
    loaded, so they have to be there when a process starts; this one keeps its own.
    """
    added = [name for name in _ONE_THREAD if name not in os.environ]
    os.environ.update({name: _ONE_THREAD[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


class _Worker(SpawnProcess):
    def start(self) -> None:
        with one_thread_each():
            super().start()


class _Fresh(SpawnContext):
    """Forking a process that holds an OpenGL context or threads is not safe; a pool starts workers when it needs them."""

    Process = _Worker  # type: ignore[assignment]


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes of one thread each, which end with this one."""
    return ProcessPoolExecutor(max(1, workers), mp_context=_Fresh(), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers: without this they would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()

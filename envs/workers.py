"""Processes that simulate and draw, one world each."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread


def limit_threads() -> None:
    """One thread a worker: two processes on two cores beat two processes of two threads each."""
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software rasteriser
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of fresh processes (forking a process that holds an OpenGL context or threads is not safe)."""
    limit_threads()
    return ProcessPoolExecutor(max(1, workers), mp_context=get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers: without this they would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()

"""Worker processes: one thread each, and the parent's environment is left alone."""

import os

from s2robot.envs.workers import one_thread_each, worker_pool

NAMES = ("LP_NUM_THREADS", "OMP_NUM_THREADS")


def threads() -> list[str | None]:
    return [os.environ.get(name) for name in NAMES]


def test_workers_compute_with_one_thread_and_the_parent_as_before(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with worker_pool(1) as pool:
        assert pool.submit(threads).result() == ["1", "1"]
    assert dict(os.environ) == before


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("LP_NUM_THREADS", raising=False)
    with one_thread_each():
        assert threads() == ["1", "3"]
    assert threads() == [None, "3"]

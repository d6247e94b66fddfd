"""Ray as the engine: worker deaths, version mismatches, a full object store and wrong addresses.

The module shares one Ray instance with two CPUs.
"""

import os
import signal
import socket
import sys
from contextlib import closing
from functools import partial

import numpy as np
import pytest
from omegaconf import OmegaConf

from s2robot import cli
from s2robot.cli import engine_of
from s2robot.core import ray as on_ray
from s2robot.core.errors import UserError
from s2robot.core.provenance import versions
from s2robot.core.ray import Ray
from s2robot.core.workers import Process, engine_in_use, running_on, worker_pool
from tests.errors import refuses
from tests.s2robot.core.test_workers import Made

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def started():
    """Its object store cannot spill to disk, so that a test can fill it."""
    with pytest.MonkeyPatch.context() as patch, closing(Ray(cpus=2, store_mb=200)) as engine:
        patch.setenv("RAY_automatic_object_spilling_enabled", "0")
        patch.setenv("RAY_local_fs_capacity_threshold", "0.01")
        yield engine


@pytest.fixture
def ray_engine(started):
    with running_on(started):
        yield


def test_task_of_a_dead_worker_is_retried_and_sigterm_handling_is_kept(ray_engine, tmp_path):
    log = tmp_path / "log"
    with worker_pool(9, partial(Made, log), anywhere=True) as pool:
        results = list(pool.in_order(Made.square, [(1,), (2, 1), (3,)]))
        assert [square for square, _ in results] == [1, 4, 9]
        assert os.getpid() not in {pid for _, pid in results}
        with pytest.raises(ValueError, match="^two$"):  # the original exception
            pool.submit(Made.fail).result()
    assert log.read_text().count("started 2\n") == 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_impossible_engines_are_one_error_line(ray_engine, monkeypatch):
    with pytest.raises(UserError, match="^engine.gpus_per_encoder: .* 0 GPUs$"):
        Ray(gpus_per_encoder=8).pool(1, None, encodes=True, anywhere=True)
    assert all(isinstance(w, Process) for w in worker_pool(2)._workers)
    monkeypatch.setattr(on_ray, "versions", lambda: {"python": "3.9.1", "s2robot": "0.0.7"})
    python, own = sys.version.split()[0], versions()["s2robot"]
    words = f"expected python 3.9.1, got {python}; s2robot 0.0.7, got {own}$"
    with worker_pool(1, anywhere=True) as pool, pytest.raises(UserError, match=words):
        pool.submit(abs, 1).result()


def test_full_store_is_one_error_line(ray_engine):
    size = 250_000_000
    large_result, large_input = (np.zeros, size, np.uint8), (np.size, np.zeros(size, np.uint8))
    with worker_pool(1, anywhere=True) as pool:
        for task in (large_result, large_input):
            refuses("^engine.store_mb: ", pool.submit(*task).result)


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "nonsense", "http://localhost:80"])
def test_wrong_address_is_one_error_line_at_once(address):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]  # no server listens
    refuses("^engine.address: expected ", on_ray._check_answers, address.format(port))


def test_config_selects_the_engine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("s2robot.core.errors.find_spec", lambda name: None if name == "ray" else name)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["encode", "engine=ray"]) == 2
    line = "s2robot encode: error: ray is not installed: pip install 's2robot[ray]'"
    assert capsys.readouterr().err.strip() == line
    local = {"engine": {"name": "local", "workers": 3}}
    with engine_of(OmegaConf.create(local)):
        assert len(worker_pool(1)._workers) == 3 and engine_in_use().overrides() == ("engine.workers=3",)
    local["engine"]["workers"] = 0
    with pytest.raises(UserError, match="engine.workers: "), engine_of(OmegaConf.create(local)):
        pass

"""Ray as the engine: what comes out is what processes of this machine give, byte for byte; one line where it cannot be.

One Ray of two CPUs is started here for the module.
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
from tests.s2robot.core.test_workers import Made

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def started():
    """Whose store does not spill to a disk, which would have to be full for it to be full."""
    with pytest.MonkeyPatch.context() as patch, closing(Ray(cpus=2, store_mb=200)) as engine:
        patch.setenv("RAY_automatic_object_spilling_enabled", "0")
        patch.setenv("RAY_local_fs_capacity_threshold", "0.01")
        yield engine


@pytest.fixture
def on_ray_too(started):
    with running_on(started):
        yield


def test_a_dead_worker_costs_its_task_and_termination_is_still_handled(on_ray_too, tmp_path):
    log = tmp_path / "log"
    with worker_pool(9, partial(Made, log), anywhere=True) as pool:
        found = list(pool.in_order(Made.square, [(1,), (2, 1), (3,)]))
        assert [square for square, _ in found] == [1, 4, 9] and pool.lost == 1
        assert os.getpid() not in {pid for _, pid in found}
        with pytest.raises(ValueError, match="^two$"):  # as it was raised
            pool.submit(Made.fail).result()
    assert log.read_text().count("begun 2\n") == 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_cannot_be_is_one_line(on_ray_too, monkeypatch):
    with pytest.raises(UserError, match="^engine.gpus_per_encoder: .* 0 GPUs$"):
        Ray(gpus_per_encoder=8).pool(1, None, encodes=True, anywhere=True)
    assert all(isinstance(w, Process) for w in worker_pool(2)._workers)
    monkeypatch.setattr(on_ray, "versions", lambda: {"python": "3.9.1", "s2robot": "0.0.7"})
    here, ours = sys.version.split()[0], versions()["s2robot"]
    words = f"expected python 3.9.1, got {here}; s2robot 0.0.7, got {ours}$"
    with worker_pool(1, anywhere=True) as pool, pytest.raises(UserError, match=words):
        pool.submit(abs, 1).result()


def test_a_full_store_is_one_line(on_ray_too):
    size = 250_000_000
    coming, going = (np.zeros, size, np.uint8), (np.size, np.zeros(size, np.uint8))
    with worker_pool(1, anywhere=True) as pool:
        for task in (coming, going):
            with pytest.raises(UserError, match="^engine.store_mb: "):
                pool.submit(*task).result()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "nonsense", "http://localhost:80"])
def test_a_wrong_address_is_one_line_at_once(address):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]  # nobody listens
    with pytest.raises(UserError, match="^engine.address: expected "):
        on_ray._check_answers(address.format(port))


def test_an_engine_is_chosen_by_the_config(tmp_path, monkeypatch, capsys):
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

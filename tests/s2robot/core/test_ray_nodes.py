"""Two nodes of Ray's on this machine, one of which is killed in the middle: the bytes of a run on processes."""

from contextlib import closing
from functools import partial

import pytest

from s2robot.core.ray import ASKED, Ray, RaySettings
from s2robot.core.workers import running_on
from s2robot.demos.record import record
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_picker import PickerConfig
from s2robot.evaluation.rollouts import LearnedPlanner, run_episodes
from tests.s2robot.core.test_ray import ABOUT, CAMERAS, WORLD, bytes_of

cluster_utils = pytest.importorskip("ray.cluster_utils")
NODE = {"num_cpus": 1, "object_store_memory": 150_000_000}


@pytest.mark.slow
def test_a_node_that_dies_costs_its_episode(tiny_encoder, untrained, tmp_path, monkeypatch):
    for name, value in ASKED.items():
        monkeypatch.setenv(name, value)
    encoder = build_encoder({"name": "mvp-tiny", "checkpoint": str(tiny_encoder)})
    planner = partial(LearnedPlanner, untrained(encoder), encoder, CAMERAS, threads=1)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    killed = []

    def kills(node, done: int, *_) -> None:
        if done == 2 and node not in killed:
            killed.append(node)
            cluster.remove_node(node, allow_graceful=False)

    try:
        with closing(Ray(RaySettings(address=cluster.address))) as engine, running_on(engine):
            other = partial(kills, cluster.add_node(**NODE))
            record(tmp_path / "ray.zarr", CubePickConfig(), PickerConfig(), 5, 500, progress=other).close()
            other = partial(kills, cluster.add_node(**NODE))
            journal = tmp_path / "ray/episodes.jsonl"
            far = run_episodes(WORLD, planner(), 8, 9000, 2, journal, other, ABOUT)
    finally:
        cluster.shutdown()
    assert len(killed) == 2
    record(tmp_path / "here.zarr", CubePickConfig(), PickerConfig(), 5, 500).close()
    here = run_episodes(WORLD, planner(), 8, 9000, 2, tmp_path / "here/episodes.jsonl", settings=ABOUT)
    assert bytes_of(tmp_path / "ray.zarr", "*") == bytes_of(tmp_path / "here.zarr", "*")
    assert far.records == here.records
    assert bytes_of(tmp_path / "ray", "*.npy") == bytes_of(tmp_path / "here", "*.npy")

"""Two Ray nodes on this machine, one killed during the run: results are byte-identical to those of local processes."""

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from s2robot.core.ray import ENVIRONMENT, Ray
from s2robot.core.workers import running_on
from s2robot.demos.record import record
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_picker import PickerConfig
from s2robot.evaluation.rollouts import LearnedPlanner, run_episodes
from s2robot.features import FeaturesSettings, encode_demos
from tests.policies.small import untrained

cluster_utils = pytest.importorskip("ray.cluster_utils")
CAMERAS = ("hand", "left")
WORLD = CubePickConfig(cameras=CAMERAS, image_size=64, max_steps=6)
ABOUT = {"of": "a test"}
NODE = {"num_cpus": 1, "object_store_memory": 150_000_000}


def bytes_of(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob(pattern)) if file.is_file()}  # fmt: skip


@pytest.mark.slow
def test_episode_of_a_dead_node_is_repeated(tiny_encoder, tmp_path, monkeypatch):
    """Demos, features and an evaluation, which another engine can resume."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    encoder = build_encoder({"name": "mvp-tiny", "checkpoint": str(tiny_encoder)})
    planner = partial(LearnedPlanner, untrained(encoder), encoder, CAMERAS, threads=1)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    killed = []

    def kills(node, done: int, *_) -> None:
        if done == 2 and node not in killed:
            killed.append(node)
            cluster.remove_node(node, allow_graceful=False)

    def work(name: str, make_callback=lambda: lambda *_: None) -> tuple:
        folder = tmp_path / name
        record(folder / "d.zarr", CubePickConfig(), PickerConfig(), 5, 500, progress=make_callback()).close()
        store = record(folder / "one.zarr", CubePickConfig(), PickerConfig(), 1, 500)
        settings = FeaturesSettings(cache=str(folder / "f"), threads=1)
        features, _ = encode_demos(store, encoder, CAMERAS[:1], settings)
        done = run_episodes(WORLD, planner(), 8, 9000, 2, folder / "episodes.jsonl", make_callback(), ABOUT)
        return features, done.records, bytes_of(folder / "d.zarr", "*"), bytes_of(folder, "*.npy")

    try:
        with closing(Ray(address=cluster.address)) as engine, running_on(engine):
            remote = work("ray", lambda: partial(kills, cluster.add_node(**NODE)))
    finally:
        cluster.shutdown()
    assert len(killed) == 2
    local = work("local")
    assert np.array_equal(remote[0], local[0]) and remote[1:] == local[1:]
    more = run_episodes(WORLD, planner(), 9, 9000, 2, tmp_path / "ray/episodes.jsonl", settings=ABOUT)
    assert more.records[:8] == local[1] and len(more.records) == 9

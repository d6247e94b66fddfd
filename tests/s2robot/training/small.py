"""A training run of one second: eight episodes whose actions depend on the features, small networks."""

from pathlib import Path

import numpy as np

from s2robot.demos.store import EpisodeStore
from s2robot.policies import PolicySpec
from s2robot.training.settings import TrainSettings
from s2robot.training.train import train
from tests.demos.test_store import ATTRIBUTES
from tests.policies.small import small_spec

CAMERAS, TOKENS, DIM = ("hand", "left"), 4, 6
CFG = {
    "steps": 20, "batch_size": 16, "lr": 3e-3, "warmup": 0.1, "ema": 0.9, "validation": 0.25, "checkpoint_every": 5,
    "log_every": 5, "precision": "32-true", "accelerator": "cpu", "threads": 1,
}  # fmt: skip
TIMES = ("seconds", "steps_per_s", "memory_mb")  # metrics that differ between equal runs
ROBOT = {key: ATTRIBUTES[key] for key in ("robot", "joint_names", "cameras", "action_frame", "rate_hz")}
CONTRACT = ROBOT | {
    "encoder": {"name": "random", "fingerprint": "e"},
    "dataset": {"name": "random", "fingerprint": "d", "episodes": 8, "seeds": []},
}
NETWORKS = {
    "mlp": {"image_dim": 8, "state_dim": 8, "hidden": [32], "dropout": 0.1},
    "transformer": {"width": 16, "blocks": 1, "heads": 2, "dropout": 0.1},
}


def make_spec(kind: str = "mlp", **changes) -> PolicySpec:
    values = {
        "cameras": list(CAMERAS), "dim": DIM, "tokens": TOKENS, "kind": kind, "chunk": 4,
        "context": 3 if kind == "transformer" else 1, "network": NETWORKS[kind],
        "pooling": {"kind": "spatial_softmax", "keypoints": 4, "values": 2},
    }  # fmt: skip
    return small_spec(**values | changes)


def make_settings(**changes) -> TrainSettings:
    return TrainSettings(**(CFG | changes))


class Killed(Exception):
    pass


def fit(data, out: Path, spec=None, contract=CONTRACT, progress=lambda *row: None, kill_at=0, **changes):
    """Train on `data` of make_data and return the checkpoint folder; raise Killed after logging step `kill_at`."""

    def report(done, total, row):
        progress(done, total, row)
        if done == kill_at:
            raise Killed

    extra = {name: changes.pop(name, None) for name in ("rollout", "vectors")}
    settings, spec = make_settings(**changes), spec or make_spec()
    return train(settings, spec, *data, contract, out, progress=report, **extra)


def about(kind: str) -> dict:
    """Return attributes of demos that match CONTRACT; kind: states or images."""
    return ROBOT | {"camera_geometry": {}, "env_version": "none", "env_config": {}, "seed": 0, "kind": kind}


def make_data(path: Path, times: int = 1) -> tuple[EpisodeStore, np.ndarray]:
    """Create eight episodes of 10 to 17 steps, `times` as long, whose actions depend on the features."""
    rng = np.random.default_rng(0)
    features = []
    with EpisodeStore.create(path, about("states")) as store:
        for i in range(8):
            length = times * (10 + i)
            values = rng.normal(size=(length, len(CAMERAS), TOKENS, DIM)).astype(np.float16)
            action = np.tanh(values[:, 0].mean(1, dtype=np.float32) @ rng.normal(size=(DIM, 8)) / 4) * 0.1
            action[:, 7] = np.arange(length) > length / 2
            proprio = np.append(np.cumsum(action[:, :7], 0), action[:, 7:], 1)
            perturbed = np.zeros(length, np.uint8)
            perturbed[3] = i % 2
            arrays = {"action": action.astype("f4"), "proprio": proprio.astype("f4"), "perturbed": perturbed}
            store.append(arrays, {"seed": i, "success": True})
            features.append(values)
    return EpisodeStore.open(path), np.concatenate(features)

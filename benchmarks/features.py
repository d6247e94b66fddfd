"""Compare a training epoch from cached features with one that encodes every frame again.

    python benchmarks/features.py
    OMP_NUM_THREADS=1 python benchmarks/features.py --episodes 8 policy=transformer

Encoding is timed on the first few demonstrations, and its median cost per step is scaled to the dataset.
Training is measured: `s2robot.training.train.train` runs on all demonstrations, and the median epoch after the first
counts. Its features are those of the few episodes, repeated. Further arguments are overrides of `s2robot train`.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from s2robot.core.files import configs_dir
from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.pipeline import Task, read_task, train_policy


def measure_frames(
    task: Task, store: EpisodeStore, encoder: S2Encoder, episodes: int
) -> tuple[float, np.ndarray]:
    """Return the median seconds per step of encoding, and the features, float16 (T, C, N, D)."""
    encoder.encode(np.zeros((4, encoder.image_size, encoder.image_size, 3), np.uint8))
    encode, features = [], []
    for episode in range(min(episodes, len(store))):
        drawn = episode_frames(store.path, episode, task.cameras, encoder.image_size)
        for step in np.stack(drawn, 1):  # (C, S, S, 3)
            start = time.perf_counter()
            features.append(encoder.encode(step).cpu().numpy().astype(np.float16))  # (C, N, D)
            encode.append(time.perf_counter() - start)
    return statistics.median(encode), np.stack(features)


def measure_epoch(task: Task, store: EpisodeStore, encoder: S2Encoder, features: np.ndarray) -> float:
    """Return the median seconds of a training epoch on all demonstrations, without the first epoch."""
    repeats = -(-store.num_steps // len(features))
    features = np.concatenate([features] * repeats)[: store.num_steps]
    with tempfile.TemporaryDirectory() as out:
        train_policy(task, store, encoder, features, Path(out))
        rows = json.loads((Path(out) / "metrics.json").read_text())
    return statistics.median(row["seconds"] for row in rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=4, help="episodes to encode (default 4)")
    parser.add_argument("--epochs", type=int, default=4, help="training epochs, at least 2 (default 4)")
    parser.add_argument("overrides", nargs="*", help="overrides of `s2robot train`")
    args = parser.parse_args()
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("train", args.overrides)
    task = read_task(cfg)
    store, encoder = task.open_demos(), build_encoder(task.encoder)
    epoch = max(1, store.num_steps // task.train.batch_size)
    steps = {"log_every": epoch, "steps": args.epochs * epoch, "checkpoint_every": 10**9}
    task = replace(task, train=task.train.replace(**steps, epochs=None))
    encode, features = measure_frames(task, store, encoder, args.episodes)
    trained = measure_epoch(task, store, encoder, features)

    again, threads = trained + store.num_steps * encode, torch.get_num_threads()
    print(f"\n{encoder.name}, sizes {list(encoder.sizes)}, {encoder.dtype}, {threads} threads")
    print(f"{store.num_steps} steps, {len(task.cameras)} cameras; policy {cfg.policy.kind}")
    print(f"encoding a step: {encode * 1e3:.1f} ms; an epoch from cached features: {trained:.2f} s")
    print(f"with every frame encoded again (scaled): {again:.2f} s, {again / trained:.0f} x")


if __name__ == "__main__":
    main()

"""An epoch of policy training from cached features, against encoding every frame again in every epoch.

    python benchmarks/features.py
    python benchmarks/features.py --episodes 8 --threads 1
    python benchmarks/features.py --encoder other.safetensors policy=transformer

What is measured and what is scaled:

* Rendering and encoding are timed on the first few demo episodes, a step of all cameras at a time, and
  their median cost a step is multiplied by the steps of the whole dataset. Rendering is one process;
  `s2robot encode` renders in `features.workers` processes beside the encoder.
* Training is not scaled: `s2robot.training.train.train` runs on all demos with the default policy, validation
  included, and the median epoch after the first counts. Its features are those of the few episodes repeated
  to the full size, in memory: the time does not depend on their values.

Training epochs that encode again would pay both. The ratio is (training + encoding) / training. Arguments
after the options are Hydra overrides of `s2robot train`. Nothing else should run meanwhile.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from s2robot.common.paths import configs_dir
from s2robot.common.settings import encoder_settings, open_demos, plain, read
from s2robot.demos.replay import episode_frames
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.encoders.encoder import S2Encoder
from s2robot.policies import PolicySpec
from s2robot.training.settings import TrainSettings
from s2robot.training.train import train


def measure_frames(
    store: EpisodeStore, encoder: S2Encoder, cameras: tuple[str, ...], episodes: int
) -> tuple[float, float, np.ndarray]:
    """Median seconds a step of rendering and of encoding, and the features, float16 (T, C, N, D)."""
    episode_frames(store.path, 0, cameras, encoder.image_size)  # builds the world
    encoder.encode(np.zeros((4, encoder.image_size, encoder.image_size, 3), np.uint8))
    render, encode, features = [], [], []
    for episode in range(min(episodes, len(store))):
        start = time.perf_counter()
        frames = episode_frames(store.path, episode, cameras, encoder.image_size)  # (T, C, S, S, 3)
        render.append((time.perf_counter() - start) / len(frames))
        for step in frames:
            start = time.perf_counter()
            features.append(encoder.encode(step).cpu().numpy().astype(np.float16))  # (C, N, D)
            encode.append(time.perf_counter() - start)
    return statistics.median(render), statistics.median(encode), np.stack(features)


def measure_epoch(cfg: DictConfig, store: EpisodeStore, encoder: S2Encoder, features: np.ndarray) -> float:
    """Median seconds of a training epoch on all demos, the first epoch left out."""
    repeats = -(-store.num_steps // len(features))
    features = np.concatenate([features] * repeats)[: store.num_steps]
    cameras = list(cfg.env.cameras)
    spec = PolicySpec.from_dict(
        {**plain(cfg.policy), "cameras": cameras, "dim": encoder.dim, "tokens": encoder.num_tokens}
    )
    contract: dict[str, Any] = {
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
        "cameras": cameras,
        "dataset": {"fingerprint": store.fingerprint},
        **{key: store.attrs[key] for key in ("robot", "joint_names", "action_frame", "rate_hz")},
    }
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        train(
            read(TrainSettings, cfg.train, "train"),
            spec,
            store,
            features,
            contract,
            Path(out),
            progress=lambda step, steps, row: seconds.append(row["seconds"]),
        )
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", help="weights file of mvp-tiny's kind (default: the one that ships)")
    parser.add_argument("--episodes", type=int, default=4, help="demos to render and encode (default 4)")
    parser.add_argument("--epochs", type=int, default=4, help="training epochs, at least 2 (default 4)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for `s2robot train`")
    args = parser.parse_args()
    if args.epochs < 2 or args.episodes < 1:
        parser.error("--epochs must be at least 2 and --episodes at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    overrides = list(args.overrides)
    if args.encoder:
        overrides.append(f"encoder.checkpoint='{Path(args.encoder).resolve()}'")
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        cfg = compose("train", overrides)
    store, encoder = open_demos(cfg), build_encoder(encoder_settings(cfg))
    an_epoch = max(1, store.num_steps // cfg.train.batch_size)
    cfg.train.log_every, cfg.train.steps = an_epoch, args.epochs * an_epoch
    cfg.train.checkpoint_every = cfg.train.steps + 1
    cameras = tuple(cfg.env.cameras)

    render, encode, features = measure_frames(store, encoder, cameras, args.episodes)
    epoch = measure_epoch(cfg, store, encoder, features)

    steps = store.num_steps
    threads = torch.get_num_threads()
    print(f"\n{encoder.name}, sizes {list(encoder.sizes)}, {encoder.dtype}, {threads} threads")
    print(f"{len(store)} demos, {steps} steps, {len(cameras)} cameras; policy {cfg.policy.kind}")
    print(f"a step of all cameras: rendering {render * 1e3:.1f} ms, encoding {encode * 1e3:.1f} ms")
    print(f"(medians over {len(features)} of {steps} steps; the times below are these times {steps})\n")
    print(f"{'an epoch with':<46}{'seconds':>9}{'ratio':>9}")
    for name, seconds in (
        ("features from the cache (measured)", epoch),
        ("every frame encoded again (scaled)", epoch + steps * encode),
        ("every frame rendered and encoded (scaled)", epoch + steps * (render + encode)),
    ):
        print(f"{name:<46}{seconds:>9.2f}{seconds / epoch:>7.0f} x")


if __name__ == "__main__":
    main()

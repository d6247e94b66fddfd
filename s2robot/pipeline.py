"""The steps that join demos, encoder, policy and evaluator; `s2robot run` is all of them in a row.

s2robot run                       # shipped demos -> features -> policy -> 128 positions -> report.html
s2robot run record=true           # record the demos first
"""

import os
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.extras import require_simulator
from s2robot.common.files import write_json
from s2robot.common.paths import cache_dir
from s2robot.common.progress import bar
from s2robot.common.provenance import versions
from s2robot.common.settings import encoder_settings, env_config, only_simulated, open_demos, plain, read
from s2robot.demos.replay import render_episodes
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.cube_config import as_tuples
from s2robot.evaluation.records import headline
from s2robot.evaluation.report import write_report
from s2robot.loading import device_of
from s2robot.policies import PolicySpec
from s2robot.training.settings import TrainSettings
from s2robot.training.train import train


def record_demos(cfg: DictConfig, recording: DictConfig, out: Path) -> EpisodeStore:
    """Record scripted demos into ``out``."""
    if recording.kind != "scripted":
        raise UserError(
            f"recording: found '{recording.kind}', expected scripted; `s2robot record` has the others"
        )
    require_simulator()
    from s2robot.demos.picker import PickerConfig
    from s2robot.demos.record import record

    picker = PickerConfig(**as_tuples(plain(recording.picker)))
    with bar("recording demos") as update:
        store = record(
            out,
            env_config(cfg),
            picker,
            recording.episodes,
            recording.seed,
            recording.workers,
            lambda done, failed: update(done, recording.episodes, f"{failed} failed attempts"),
        )
    store.close()
    return EpisodeStore.open(out)


def encode_demos(cfg: DictConfig, store: EpisodeStore, encoder: S2Encoder) -> tuple[Any, FeatureCache]:
    """The features of a dataset, (steps, cameras, tokens, dim), from the cache or newly encoded."""
    f, cameras = cfg.features, tuple(cfg.env.cameras)
    store.check(cameras=cameras)
    cores = os.cpu_count() or 1
    workers = f.workers or max(1, cores // 2)
    threads = torch.get_num_threads()
    cache = FeatureCache(
        f.cache or cache_dir("features"),
        store.fingerprint,
        encoder.fingerprint,
        cameras,
        store.lengths.tolist(),
        encoder.num_tokens,
        encoder.dim,
        f.dtype,
        {"dataset": str(store.path), "encoder": encoder.name, "sizes": list(encoder.sizes)},
    )
    encoder.to(device_of(f.device))
    if not cache.missing():
        return cache.features, cache
    if store.attrs["kind"] == "states":
        require_simulator()
    torch.set_num_threads(f.threads or max(1, cores - workers))
    with bar("encoding frames") as update:
        features = cache.build(
            lambda missing: render_episodes(store, missing, cameras, encoder.image_size, workers),
            encoder.encode,
            lambda done, total: update(done, total, f"steps of {len(cameras)} cameras"),
        )
    torch.set_num_threads(threads)
    return features, cache


def train_policy(cfg: DictConfig, store: EpisodeStore, encoder: S2Encoder, features: Any, out: Path) -> Path:
    """Train the config's policy; returns the checkpoint folder."""
    cameras = list(cfg.env.cameras)
    spec = PolicySpec.from_dict(
        {**plain(cfg.policy), "cameras": cameras, "dim": encoder.dim, "tokens": encoder.num_tokens}
    )
    seeds: list[int] = store.meta("seed").tolist() if "seed" in store.meta_keys else []
    contract = {
        "encoder": {
            "name": encoder.name,
            "fingerprint": encoder.fingerprint,
            "sizes": list(encoder.sizes),
            "settings": encoder_settings(cfg),
            "features_dtype": cfg.features.dtype,
            "parameters": encoder.num_parameters,
            "gflops_per_frame": round(encoder.gflops_per_image, 3),
        },
        "cameras": cameras,
        "camera_geometry": store.attrs["camera_geometry"],
        "robot": store.robot,
        "joint_names": store.attrs["joint_names"],
        "action_frame": store.attrs["action_frame"],
        "rate_hz": store.attrs["rate_hz"],
        "env_config": store.attrs["env_config"],
        "dataset": {
            "name": store.path.name,
            "fingerprint": store.fingerprint,
            "episodes": len(store) if cfg.demos.episodes is None else min(len(store), cfg.demos.episodes),
            "seeds": sorted(set(seeds)),
        },
        "versions": versions(),
    }
    with bar("training the policy") as update:
        return train(
            read(TrainSettings, cfg.train, "train"),
            spec,
            store,
            features,
            contract,
            out,
            cfg.demos.episodes,
            lambda epoch, epochs, row: update(epoch, epochs, losses(row)),
        )


def losses(row: dict[str, float]) -> str:
    """A training's losses of an epoch, for the progress; no episode may be held out."""
    held_out = f"  held-out {row['val_loss']:.4f}" if "val_loss" in row else ""
    return f"loss {row['train_loss']:.4f}{held_out}"


def run(cfg: DictConfig) -> None:
    """`s2robot run`: every step, with the time that each took."""
    from s2robot.evaluation.evaluate import evaluate_policy  # the simulator with it

    only_simulated(cfg)
    read(TrainSettings, cfg.train, "train")  # a wrong value is told before anything is recorded
    out = Path(cfg.run_dir)
    stages: list[dict[str, Any]] = []

    def timed(name: str, start: float) -> None:
        stages.append({"stage": name, "seconds": round(time.monotonic() - start, 1)})
        write_json(out / "stages.json", stages)

    encoder = build_encoder(encoder_settings(cfg))
    start = time.monotonic()
    if cfg.record:
        cfg.demos.path = str(out / "demos.zarr")
        record_demos(cfg, cfg.recording, out / "demos.zarr")
        timed("record", start)
    store = open_demos(cfg)
    start = time.monotonic()
    features, cache = encode_demos(cfg, store, encoder)
    timed("encode", start)
    start = time.monotonic()
    checkpoint = train_policy(cfg, store, encoder, features, out)
    timed("train", start)
    start = time.monotonic()
    summary = evaluate_policy(cfg, checkpoint, out)
    timed("evaluate", start)
    finish(summary, out)


def finish(summary: dict[str, Any], out: Path) -> None:
    """Write the report and say the result."""
    report = write_report(out)
    print(f"\n{headline(summary)}\nreport: {report.resolve()}")

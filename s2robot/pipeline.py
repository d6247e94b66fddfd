"""The steps that join demos, encoder, policy and evaluator; `s2robot run` is all of them in a row.

s2robot run                       # shipped demos -> features -> policy -> 128 positions -> report.html
s2robot run record=true           # record the demos first
"""

import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from demos.picker import PickerConfig
from demos.record import record
from demos.replay import render_episodes
from demos.store import EpisodeStore
from envs.cube_pick import ACTION_FRAME, CubePickConfig, as_tuples
from policies import BatchActor, PolicySpec, check_contract
from s2robot.deployed import device_of, load_policy
from s2robot.encoders import S2Encoder, build_encoder
from s2robot.errors import UserError
from s2robot.evaluate import LearnedPlanner, NearestDemo, Planner, film_some, run_episodes, write_records
from s2robot.features import FeatureCache
from s2robot.files import write_json
from s2robot.paths import cache_dir, shipped_demos
from s2robot.progress import bar
from s2robot.report import write_report
from s2robot.selective import SelectiveEncoder, select
from s2robot.stats import headline, summarise
from s2robot.train import train

_VERSIONS = ("s2robot", "torch", "timm", "mujoco", "robosuite", "gymnasium", "numpy", "zarr")


def plain(cfg: Any) -> Any:
    """A config node as dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)


def env_config(cfg: DictConfig, **changes: Any) -> CubePickConfig:
    """The simulated world of a config; ``changes`` win."""
    return CubePickConfig(**as_tuples({"robot": cfg.robot.name, **plain(cfg.env), **changes}))


def open_demos(cfg: DictConfig) -> EpisodeStore:
    """The dataset of a config, checked against its robot and our action frame."""
    store = EpisodeStore.open(cfg.demos.path or shipped_demos(cfg.demos.name))
    store.check(robot=cfg.robot.name, action_frame=ACTION_FRAME, rate_hz=cfg.env.rate_hz)
    return store


def record_demos(cfg: DictConfig, recording: DictConfig, out: Path) -> EpisodeStore:
    """Record scripted demos into ``out``."""
    if recording.kind != "scripted":
        raise UserError(
            f"recording: found '{recording.kind}', expected scripted; `s2robot record` has the others"
        )
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
    torch.set_num_threads(f.threads or max(1, cores - workers))
    with bar("encoding frames") as update:
        features = cache.build(
            lambda missing: render_episodes(store, missing, cameras, encoder.image_size, workers),
            encoder.encode,
            lambda done, total: update(done, total, f"steps of {len(cameras)} cameras"),
        )
    torch.set_num_threads(threads)
    return features, cache


def encoder_settings(cfg: DictConfig) -> dict[str, Any]:
    """What build_encoder needs to make the same encoder again; part of a checkpoint."""
    settings = {**plain(cfg.encoder), "scales": list(cfg.s2.scales), "resolution": cfg.s2.resolution}
    if settings["checkpoint"]:  # a checkpoint is used from other folders too
        settings["checkpoint"] = str(Path(settings["checkpoint"]).resolve())
    return settings


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
            plain(cfg.train),
            spec,
            store,
            features,
            contract,
            out,
            cfg.demos.episodes,
            lambda epoch, epochs, row: update(
                epoch, epochs, f"loss {row['train_loss']:.4f}  held-out {row['val_loss']:.4f}"
            ),
        )


def world_of(cfg: DictConfig) -> str:
    """Where a config evaluates, `simulation` or `arm`.

    Raises:
        UserError: the name does not go with the settings that are there.
    """
    found, expected = cfg.evaluate.world, "arm" if "live" in cfg else "simulation"
    if found != expected:
        raise UserError(
            f"evaluate.world: found '{found}', expected {expected}: choose evaluate=default for the simulation, "
            "evaluate=arm for the arm"
        )
    return expected


def only_simulated(cfg: DictConfig) -> None:
    """UserError if a verb that evaluates in simulation is told to do so on an arm."""
    if world_of(cfg) != "simulation":
        raise UserError(
            "evaluate: found arm, expected default: `s2robot evaluate evaluate=arm` is on the arm"
        )


def evaluate_policy(cfg: DictConfig, checkpoint: Path, out: Path) -> dict[str, Any]:
    """Evaluate a checkpoint; writes episodes.jsonl, videos/ and summary.json, and returns the summary."""
    start = time.monotonic()
    e = cfg.evaluate
    if e.threads:
        torch.set_num_threads(e.threads)
    # `evaluate` may run on another machine than the training, where the encoder's weights lie elsewhere
    weights = cfg.encoder.checkpoint if "checkpoint" in cfg else None
    policy, encoder, contract = load_policy(checkpoint, device_of(e.device), weights)
    config = env_config(cfg, cameras=list(contract["cameras"]), image_size=encoder.image_size)
    check_contract(
        contract,
        cameras=list(cfg.env.cameras),
        robot=config.robot,
        action_frame=ACTION_FRAME,
        rate_hz=config.rate_hz,
    )
    changes = world_changes(contract["env_config"], config)
    if changes:
        print(f"note: this world is not the demos': {'; '.join(changes)}")
    refuse_positions_of_demos(contract, e, checkpoint)
    seeing = select(encoder, plain(e.selective))  # the encoder itself if no budget is set
    planner: Planner
    if e.control == "nearest_demo":
        planner = NearestDemo(open_demos(cfg))
    elif e.control in (None, "blind"):
        policy.pooling.blind = policy.pooling.blind or e.control == "blind"
        actor = BatchActor(policy, e.workers)
        planner = LearnedPlanner(actor, seeing, contract["cameras"], contract["encoder"]["features_dtype"])
    else:
        raise UserError(f"evaluate.control: found '{e.control}', expected null, blind or nearest_demo")
    out.mkdir(parents=True, exist_ok=True)
    journal = out / "episodes.jsonl"
    with bar("evaluating") as update:
        rollouts = run_episodes(
            config,
            planner,
            e.episodes,
            e.seed,
            e.workers,
            journal,
            lambda done, good: update(done, e.episodes, f"{good} successes"),
            _episode_settings(cfg, config, checkpoint, contract) if e.resume else None,
        )
    if e.videos:
        with bar("filming") as update:
            film_some(config, rollouts, e.videos, e.video_size, out, e.workers, update)
    write_records(rollouts.records, journal)
    summary = {
        **summarise(rollouts.records),
        "policy": {**policy.spec.to_dict(), "parameters": sum(p.numel() for p in policy.parameters())},
        **facts(config, contract, changes, e.seed),
        **({"selective": seeing.report()} if isinstance(seeing, SelectiveEncoder) else {}),
        "control": e.control,
        "timing": {
            k: round(v, 2)
            for k, v in {
                **rollouts.seconds,
                **getattr(planner, "timing", {}),
                "wall_s": time.monotonic() - start,
            }.items()
        },
    }
    write_json(out / "summary.json", summary)
    return summary


def facts(
    config: CubePickConfig, contract: Mapping[str, Any], changes: list[str], seed: int
) -> dict[str, Any]:
    """What the summary of an evaluation says of policy, world and program, simulated or on an arm."""
    return {
        "encoder": contract["encoder"],
        "robot": config.robot,
        "cameras": list(config.cameras),
        "cube_box": [list(config.box_x), list(config.box_y)],
        "world_changes": changes,
        "success_rule": f"cube {config.success_height * 100:g} cm up for {config.success_hold:g} s",
        "seed": seed,
        "dataset": {k: v for k, v in contract.get("dataset", {}).items() if k != "seeds"},
        "versions": versions(),
        "command": command(),
    }


def refuse_positions_of_demos(contract: dict[str, Any], e: DictConfig, policy: str | Path) -> None:
    """UserError if a position of the evaluation `e` is one that the policy's demos were recorded at."""
    overlap = set((contract.get("dataset") or {}).get("seeds", [])) & set(range(e.seed, e.seed + e.episodes))
    if overlap:
        raise UserError(
            f"evaluate.seed: positions {e.seed} to {e.seed + e.episodes - 1} hold {len(overlap)} that the demos "
            f"of {policy} were recorded at (first {min(overlap)}); choose another evaluate.seed"
        )


def policy_sha256(checkpoint: Path) -> str:
    """Of the weights and the normalisation of a checkpoint."""
    return hashlib.sha256((checkpoint / "policy.safetensors").read_bytes()).hexdigest()


def _episode_settings(
    cfg: DictConfig, config: CubePickConfig, checkpoint: Path, contract: dict[str, Any]
) -> dict[str, Any]:
    """All that decides an episode of an evaluation besides its number."""
    selective = plain(cfg.evaluate.selective)
    budget = selective["tiles"] is not None or selective["milliseconds"] is not None
    return {
        "policy": policy_sha256(checkpoint),
        "encoder": contract["encoder"]["fingerprint"],
        "features_dtype": contract["encoder"]["features_dtype"],
        "evaluate.seed": cfg.evaluate.seed,
        "evaluate.control": cfg.evaluate.control,
        "evaluate.selective": selective if budget else None,
        "env": asdict(config),
        **({"demos": open_demos(cfg).fingerprint} if cfg.evaluate.control == "nearest_demo" else {}),
    }


def world_changes(trained: dict[str, Any], config: CubePickConfig) -> list[str]:
    """In what the evaluated world differs from the one that the demos were recorded in, a text each."""
    ours = json.loads(json.dumps(asdict(config)))
    defaults = json.loads(json.dumps(asdict(CubePickConfig())))
    trained = defaults | trained  # an older dataset lacks newer settings
    ignored = ("cameras", "image_size")  # checked by name, and drawn as the encoder needs them
    return [f"{k} {trained[k]} -> {v}" for k, v in ours.items() if k not in ignored and trained[k] != v]


def run(cfg: DictConfig) -> None:
    """`s2robot run`: every step, with the time that each took."""
    only_simulated(cfg)
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


def versions() -> dict[str, str]:
    """Of the packages that a result depends on, and of Python."""
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def command() -> str:
    """What the user typed, or would have typed instead of `python -m s2robot`."""
    name = Path(sys.argv[0]).name
    return shlex.join(["s2robot" if name == "__main__.py" else name, *sys.argv[1:]])

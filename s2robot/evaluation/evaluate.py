"""A checkpoint's success over seeded positions in simulation: records, videos and a summary in one folder."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.common.progress import bar
from s2robot.common.provenance import policy_sha256
from s2robot.common.settings import env_config, open_demos, plain
from s2robot.encoders.selective import SelectiveEncoder, select
from s2robot.envs.cube_config import ACTION_FRAME, CubePickConfig
from s2robot.evaluation.records import summarise
from s2robot.evaluation.rollouts import (
    LearnedPlanner,
    NearestDemo,
    Planner,
    film_some,
    run_episodes,
    write_records,
)
from s2robot.evaluation.summary import facts, refuse_positions_of_demos, world_changes
from s2robot.loading import device_of, load_policy
from s2robot.policies import BatchActor, check_contract


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

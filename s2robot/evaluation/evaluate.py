"""A checkpoint's success over seeded positions in simulation: records, videos and a summary in one folder.

summary = evaluate_checkpoint(Path("runs/run/<date>/checkpoint"), Path("out"), EvaluateSettings(episodes=16))
summary["success"], summary["low"], summary["high"]
"""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig

from s2robot.config import open_demos, task_settings
from s2robot.core.errors import UserError
from s2robot.core.files import write_json
from s2robot.core.parts import default_parts, plain
from s2robot.core.progress import bar
from s2robot.core.provenance import policy_sha256
from s2robot.core.settings import Settings, from_yaml, read
from s2robot.demos.lineage import TRAINING, USES, Lineage
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.frames import ImageSize
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import DEFAULT, make, settings_of
from s2robot.evaluation.film import film_some
from s2robot.evaluation.journal import write_records
from s2robot.evaluation.planners import LearnedPlanner, NearestDemo, Planner
from s2robot.evaluation.records import summarise
from s2robot.evaluation.rollouts import Rollouts, run_episodes
from s2robot.evaluation.summary import camera_changes, facts, world_changes, world_seen_by
from s2robot.loading import image_size_of, load_networks
from s2robot.policies import ChunkPolicy, check_contract


class EvaluateSettings(Settings, at="evaluate", file="evaluate/default"):
    """How a policy is evaluated in simulation; configs/evaluate/default.yaml documents each value."""

    world: Literal["simulation"] = from_yaml()
    episodes: int = from_yaml(ge=1)
    seed: int = from_yaml(ge=0)
    workers: int | None = from_yaml(ge=1)
    videos: int = from_yaml(ge=0)
    video_size: int = from_yaml(ge=16)
    resume: bool = from_yaml()
    control: Literal["blind", "nearest_demo"] | None = from_yaml()
    device: str = from_yaml()
    threads: int = from_yaml(ge=1)

    @property
    def processes(self) -> int:
        return self.workers or os.cpu_count() or 1  # one a core

    @property
    def positions(self) -> range:
        return range(self.seed, self.seed + self.episodes)  # the episodes' seeds


def evaluate_policy(
    cfg: DictConfig, checkpoint: Path, out: Path, demos: EpisodeStore | None = None
) -> dict[str, Any]:
    """Do :func:`evaluate_checkpoint` with the settings of a config, and its demos if none are given."""
    settings = read(EvaluateSettings, cfg.evaluate, "evaluate")
    weights = cfg.encoder.checkpoint if "checkpoint" in cfg else None
    if settings.control == "nearest_demo" and demos is None:
        demos = open_demos(cfg)
    return evaluate_checkpoint(checkpoint, out, settings, task_settings(cfg), weights, demos)


def evaluate_checkpoint(
    checkpoint: Path,
    out: Path,
    settings: EvaluateSettings | None = None,
    world: TaskSettings | None = None,
    weights: str | Path | None = None,
    demos: EpisodeStore | None = None,
    selects: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint; writes episodes.jsonl, videos/ and summary.json into `out`, and returns the summary.

    Args:
        checkpoint: the folder that `s2robot train` wrote.
        out: run directory; an unfinished evaluation there is resumed.
        settings: the defaults if not given.
        world: its cameras at least the policy's; the world of the policy's demos if not given.
        weights: the encoder's weights file, if it lies elsewhere than at training time.
        demos: for control `nearest_demo`.
        selects: the result chooses among checkpoints, at positions that a report may not use.

    Raises:
        PolicyError, UserError: a checkpoint that is damaged or of another robot, rate, encoder or cameras; positions
            that the policy or an ancestor was trained on or selected by; episodes of other settings in `out`.
    """
    start, e = time.monotonic(), settings or EvaluateSettings()
    # on the CPU: only workers may have the device
    policy, encoder, contract = load_networks(checkpoint, torch.device("cpu"), weights)
    config, changes = world_for(world, contract, image_size_of(contract, encoder))
    if changes:
        print(f"note: this world is not the demos': {'; '.join(changes)}")
    lineage = Lineage.of(contract, name=checkpoint)
    lineage.refuse(e.positions, checkpoint, "evaluate.seed", TRAINING if selects else tuple(USES))
    if lineage.note and not selects:
        print(f"note: {lineage.note}")
    planner = _planner(e, policy, encoder, contract, demos, config)
    spec = policy.spec.to_dict()  # execute, ensemble and steps of a head do not change the weights
    identity = {
        "policy": policy_sha256(checkpoint),
        "policy.spec": spec,
        "encoder": contract["encoder"]["fingerprint"],
        "features_dtype": contract["encoder"]["features_dtype"],
        "evaluate.seed": e.seed,
        "evaluate.control": e.control,
        "env": config.model_dump(),
        **({"demos": demos.fingerprint} if demos is not None else {}),
    }
    rollouts = _roll_out(e, config, planner, identity, out)
    seconds = {name: value for name, value in rollouts.spent.items() if name.endswith("_s")}
    seconds["wall_s"] = time.monotonic() - start
    summary = {
        **summarise(rollouts.records, config.stages),
        "policy": {**spec, "parameters": sum(p.numel() for p in policy.parameters())},
        **facts(config, contract, changes, e.seed),
        "control": e.control,
        "timing": {name: round(value, 2) for name, value in seconds.items()},
    }
    write_json(out / "summary.json", summary)
    return summary


def world_for(
    world: TaskSettings | None, contract: Mapping[str, Any], image_size: ImageSize
) -> tuple[TaskSettings, list[str]]:
    """Return the world to evaluate in, with the policy's cameras, and how it differs from that of the demos."""
    theirs = contract["env_config"].get("task", DEFAULT)
    demos = settings_of(contract["env_config"], "the policy's env_config")
    given: Any = world or demos
    for found, expected in ((given.task, theirs), (given.version, demos.version)):
        if found != expected:
            raise UserError(f"task: found {found}, expected {expected}: the policy's demos are of that task")
    config = world_seen_by(given, contract, image_size, "robot", "action_frame", "rate_hz")
    ours = make(config, draw=False).describe()
    parts = ("action_parts", "proprio_parts")  # a world that names none has its arm's
    usual = {key: plain(default_parts(key, len(ours["joint_names"]))) for key in parts}
    check_contract(contract, **{key: ours.get(key) or usual[key] for key in parts})
    changes = world_changes(contract["env_config"], config)
    return config, changes + camera_changes(contract.get("camera_geometry") or {}, ours["camera_geometry"])


def _planner(
    e: EvaluateSettings,
    policy: ChunkPolicy,
    encoder: S2Encoder,
    contract: Mapping[str, Any],
    demos: EpisodeStore | None,
    config: TaskSettings,
) -> Planner:
    if e.control == "nearest_demo":
        if demos is None:
            raise UserError("evaluate.control: expected demos for nearest_demo, got none")
        return NearestDemo(demos, type(config))
    pooling = policy.network.pooling
    pooling.blind = pooling.blind or e.control == "blind"
    dtype = contract["encoder"]["features_dtype"]
    return LearnedPlanner(policy, encoder, contract["cameras"], dtype, e.device, e.threads)


def _roll_out(
    e: EvaluateSettings, config: TaskSettings, planner: Planner, identity: Mapping[str, Any], out: Path
) -> Rollouts:
    """Run and film what is missing; episodes.jsonl is whole and in order afterwards."""
    journal = out / "episodes.jsonl"
    resumed = identity if e.resume else None
    with bar("evaluating") as update:
        tell = lambda done, good: update(done, e.episodes, f"{good} successes")  # noqa: E731
        found = run_episodes(config, planner, e.episodes, e.seed, e.processes, journal, tell, resumed)
    if e.videos:
        with bar("filming") as update:
            names = film_some(config, found, e.videos, e.video_size, out, e.processes, update)
        records = [{**r, "video": names.get(r["episode"])} for r in found.records]
        found = replace(found, records=records)
    write_records(found.records, journal)
    return found

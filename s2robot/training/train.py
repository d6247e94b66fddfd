"""Train a policy on cached features by behaviour cloning.

    s2robot train policy=mlp train.steps=4000       # -> <run directory>/checkpoint, metrics.json, TensorBoard

Lightning Fabric manages the devices: one CPU, one GPU, or many with DDP, as configured. A killed run resumes exactly
where it stopped: every step seeds its own batch, dropout and noise from (seed, step), so the state on disk contains
the weights, the optimiser and the step number.
"""

import math
import re
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from s2robot.core.errors import UserError, check_same
from s2robot.core.files import write_json
from s2robot.core.provenance import policy_sha256, short_hash
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore, Split
from s2robot.demos.windows import Windows, make_windows
from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import Joined
from s2robot.encoders.tuning import FullEncoder, Tail
from s2robot.policies import ChunkPolicy, PolicySpec, check_contract, load_checkpoint, load_tuned
from s2robot.policies.normalise import channel_moments, mixed_moments
from s2robot.training.batches import Batches
from s2robot.training.loop import Learner, warm_up_then_cosine
from s2robot.training.run import Loggers, Run, check_share, launch, mean_of_all, precision_of, product_of
from s2robot.training.settings import TrainSettings
from s2robot.training.tuned import TunedFeatures, TunedPolicy, groups_of, save

Row = dict[str, float]
_COLUMNS = {"joint_error": "train_joint_error_rad", "grad_norm": "grad_norm"}  # others: train_<name>
_RANK_SEED = 1_000_000_007  # far from any (seed, step), so that each process draws its own dropout and noise
# a state with another value of one of these belongs to another run
_DECIDING = ("steps", "batch_size", "lr", "weight_decay", "warmup", "grad_clip", "ema", "labels", "validation",
             "seed")  # fmt: skip


def train(
    settings: TrainSettings,
    spec: PolicySpec,
    store: EpisodeStore,
    features: np.ndarray | Joined,
    contract: Mapping[str, Any],
    out: Path,
    episodes: Split | None = None,
    progress: Callable[[int, int, Row], None] = lambda step, steps, row: None,
    rollout: Callable[[Path], float] | None = None,
    tail: Tail | FullEncoder | None = None,
    vectors: Tensor | None = None,
) -> Path:
    """Train and return the checkpoint folder ``out/checkpoint`` (the last weights; where episodes are held out, the
    best by their loss are in ``out/checkpoint_best``).

    Args:
        features: (steps, cameras, tokens, dim), then those of augmented copies; cameras in the spec's order.
        contract: a checkpoint's facts on encoder, robot and dataset (see s2robot.policies.checkpoint).
        episodes: the training and held-out episodes. Default: all, with the fraction `settings.validation` held out.
        progress: called every `log_every` steps with a row of metrics.
        rollout: evaluates a checkpoint folder and returns its success rate; scheduled by `settings.rollouts`.
        tail: the encoder's last blocks, or the whole encoder, trained too; `features` are its input.
        vectors: (tasks, D) vectors of the spec's tasks, if it has a `task_dim`.

    Raises:
        UserError: a step to execute has no target; `train.from` does not match; a state file of another run; another
            training in `out`; a non-finite loss; a full disk; or the loss of one of several processes.
    """
    assert rollout or not settings.rollouts.every
    fabric = launch(settings, "train")
    training, held_out = episodes or store.split(settings.validation or 0.0, settings.seed)
    settings, policy, windows = begin(settings, spec, store, training, contract, vectors, tail)
    token_dtype = policy.network.pooling.multiply_in(product_of(settings))
    token_dtype = None if tail else token_dtype  # the tail's tokens keep their format
    batches = Batches(
        store, features, windows, fabric.device, policy.network.body.causal, token_dtype, spec.tasks
    )
    if settings.from_:
        policy.fit_range(*_chunks(policy, store, windows))
    elif fabric.is_global_zero:  # a pass over all features; DDP copies the result to the others
        inputs = TunedFeatures(features, tail.to(fabric.device)) if isinstance(tail, Tail) else features
        frozen = None if isinstance(tail, FullEncoder) else inputs
        _fit(policy, store, training, windows, frozen, batches.copies)
    validation = None
    if len(held_out):
        unseen = make_windows(store, held_out, spec.context, spec.chunk, settings.labels)
        validation = batches.with_windows(unseen)
    sizes = {"demos": len(training), "held_out": len(held_out), "longest_target": _longest_target(windows)}
    contract = {**contract, "training": sizes}
    model = TunedPolicy(policy, tail) if tail else policy
    _Run(settings, policy, model, batches, validation, contract, out, fabric, progress, rollout).run()
    return out / "checkpoint"


def begin(
    settings: TrainSettings, spec: PolicySpec, store: EpisodeStore, training: np.ndarray, contract: Mapping[str, Any],
    vectors: Tensor | None = None, tail: Tail | FullEncoder | None = None, out: Path | None = None,
) -> tuple[TrainSettings, ChunkPolicy, Windows]:  # fmt: skip
    """Return the settings in steps, the policy before its first step, and its windows; UserError: the settings do not
    fit the demos, `train.from`, or the training that ``out`` holds."""
    torch.manual_seed(settings.seed)
    policy = ChunkPolicy(spec)
    if policy.tasks is not None and vectors is not None:
        policy.tasks.fit(vectors)
    windows = make_windows(store, training, spec.context, spec.chunk, settings.labels)
    known = _longest_target(windows)
    key, used = ("execute", spec.execute) if spec.ensemble is None else ("chunk", spec.chunk)
    if used > known:
        by_expert = settings.labels == "expert" and "expert" in store.keys
        hint = "; train.labels=recorded may have longer ones" if by_expert else ""
        most = f"{known} steps, the longest target in the demos"
        raise UserError(f"policy.{key}: expected <= {most}, got {used}{hint}")
    targets = spec.context if policy.network.body.causal else 1  # of a window
    check_share("train", max(1, settings.batch_size // targets), settings.devices * settings.num_nodes)
    if settings.from_:
        _begin_from(policy, settings.from_, contract, tail)
    if settings.epochs:
        steps = math.ceil(settings.epochs * len(windows) / settings.batch_size)
        settings = settings.replace(steps=steps, epochs=None)
    if out and settings.resume:
        _Run.load_state(out, identity_of(settings, policy, contract))
    return settings, policy, windows


def identity_of(settings: TrainSettings, policy: ChunkPolicy, contract: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides a training and is known before its features are."""
    vectors = [x.tolist() for x in policy.tasks.buffers()] if policy.tasks else None
    return {
        "encoder": contract["encoder"],  # first, since the policy's sizes depend on it
        "policy": policy.spec.to_dict(),
        # a dataset may be moved or imported again
        "dataset": {k: v for k, v in contract["dataset"].items() if k not in ("name", "mix")},
        **({"policy.task_vectors": short_hash(vectors)} if vectors else {}),
        **{f"train.{name}": getattr(settings, name) for name in _DECIDING},
        "train.from": policy_sha256(Path(settings.from_)) if settings.from_ else None,
    }


def _longest_target(windows: Windows) -> int:
    """Return the number of steps of a chunk for which a window has a target."""
    return int((~windows.action_pad).any(0).sum())


def _fit(
    policy: ChunkPolicy, store: EpisodeStore, training: np.ndarray, windows: Windows,
    features: np.ndarray | Joined | TunedFeatures | None, copies: int,
) -> None:  # fmt: skip
    """Fit the policy's normalisation to the training episodes, weighting each dataset of a mix by its share.

    Without features (the whole encoder is trained), channels are not normalised. ``copies``: see `Batches`.
    """
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(store.episode_slice, training)])
    weights, pooled = None, policy.spec.pooling.kind == "mean"
    moments_of = partial(channel_moments, features, tokens=policy.spec.counts, pooled=pooled)
    shifts = store.num_steps * np.arange(copies)[:, None]
    if isinstance(store, Mix):
        members_of_rows, window_weights = store.member_of(rows), store.weights_of(windows.steps)
        weights = (window_weights, store.weights_of(rows), window_weights)
    if features is None:
        channels = len(policy.spec.cameras), policy.spec.dim
        moments = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    elif isinstance(store, Mix):
        members = [rows[members_of_rows == i] for i in range(len(store.members))]
        moments = mixed_moments([moments_of(rows=(own + shifts).ravel()) for own in members], store.shares)
    else:
        moments = moments_of(rows=(rows + shifts).ravel())
    states, chunks, pad, before = _chunks(policy, store, windows)
    policy.fit_normaliser(states, store["action"][rows], chunks, pad, moments, weights, before)


def _chunks(
    policy: ChunkPolicy, store: EpisodeStore, windows: Windows
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """Return states (W, P), chunks (W, K, A), padding (W, K), and with `from_last` previous actions and their mask."""
    before = None
    if policy.spec.from_last:
        before = store["action"][windows.context[:, -2]], windows.pad[:, -2]
    return store["proprio"][windows.steps], windows.actions, windows.action_pad, before


# keys of a spec that no weight depends on: `train.from` may change them
_FREE = {
    f"policy.{key}" for key in (
        "execute", "ensemble", "binary_gripper", "joint_loss", "huber_delta", "gripper_weight", "proprio_noise",
        "head.kl_weight", "head.steps",
    )
}  # fmt: skip


def _begin_from(
    policy: ChunkPolicy, checkpoint: str, contract: Mapping[str, Any], tail: Tail | FullEncoder | None
) -> None:
    """Load a matching checkpoint's (averaged) weights and normalisation into the policy, and its encoder if the whole
    encoder is trained; UserError if it does not match."""
    other, other_contract = load_checkpoint(checkpoint)
    specs = {"policy": other.spec.to_dict()}, {"policy": policy.spec.to_dict()}
    check_same(f"train.from: {checkpoint}", *specs, free=_FREE)
    keys = {"encoder", "robot", "joint_names", "action_frame", "rate_hz"}
    if contract["encoder"].get("settings", {}).get("trained"):
        both = (other_contract["encoder"]["settings"], contract["encoder"]["settings"])
        stored, current = ({f"encoder.{key}": value for key, value in each.items()} for each in both)
        check_same(f"train.from: {checkpoint}", stored, current, free={"encoder.checkpoint", "encoder.rate"})
        keys.remove("encoder")
    check_contract(other_contract, f"train.from: {checkpoint}", **{key: contract[key] for key in keys})
    own, others = (each.tasks.buffers() if each.tasks else () for each in (policy, other))
    if not all(torch.allclose(a, b, atol=1e-3) for a, b in zip(own, others, strict=False)):
        raise UserError(f"policy.task_vectors: expected those of train.from={checkpoint}, got others")
    policy.load_state_dict(other.state_dict())
    if isinstance(tail, FullEncoder):
        tail.load(load_tuned(checkpoint))


class _Run(Run):
    """The steps of one training: batches, metrics, checkpoints (with the maps of a gaze as they are when it begins)."""

    verb, state_file = "train", "training_state.pt"
    settings: TrainSettings

    def __init__(
        self, settings: TrainSettings, policy: ChunkPolicy, model: ChunkPolicy | TunedPolicy, batches: Batches,
        validation: Batches | None, contract: Mapping[str, Any], out: Path, fabric: Fabric,
        progress: Callable[[int, int, Row], None], rollout: Callable[[Path], float] | None,
    ) -> None:  # fmt: skip
        self.batches, self.validation, self.contract = batches, validation, contract
        self.progress, self.rollout = progress, rollout
        precision, product, encoder = precision_of(settings), product_of(settings), contract["encoder"]
        self.maps = build_encoder(encoder["settings"]).maps if encoder.get("settings", {}).get("zoom") else {}
        groups = groups_of(model, settings.lr, settings.weight_decay, settings.tune.rate)
        # 16-mixed unscales gradients before clipping, which fused steps do themselves
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, fused=precision != "16-mixed")
        warmup = round(settings.warmup * settings.steps)
        learner = Learner(
            fabric, model, optimizer, lambda step: warm_up_then_cosine(step, settings.steps, warmup),
            settings.ema, settings.grad_clip, product if fabric.device.type == "cpu" else torch.float32,
        )  # fmt: skip
        identity = identity_of(settings, policy, contract) | {
            "features.augment": batches.copies - 1,
            "train.precision": f"{precision}, {product}",
            "processes": fabric.world_size,
        }
        super().__init__(fabric, learner, settings, batches.windows_of(settings.batch_size), out, identity)
        self.history: list[Row] = []
        self.best = math.inf
        self.totals: dict[str, Tensor] = {}
        self.began = time.monotonic()
        self.since = self.saved = 0  # the step of the last row, and of the state on disk

    @property
    def averaged(self) -> ChunkPolicy | TunedPolicy:
        """The model with its averaged weights, which are validated and saved."""
        assert self.learner.average is not None
        return self.learner.average.module  # type: ignore[return-value]  # typed as Tensor or Module

    def begin(self, state: dict[str, Any] | None) -> None:
        if state:
            self.history, self.best, self.saved = state["history"], state["best"], state["step"]
            self.since, self.totals = state["since"], state["totals"]
        self.learner.model.train()
        if not self.fabric.is_global_zero:
            return
        if state:
            self._save_checkpoint()  # the one on disk may be newer than the state, or damaged
        else:  # remove the output of an earlier training
            self.state_path.unlink(missing_ok=True)
            shutil.rmtree(self.out / "checkpoint_best", ignore_errors=True)
        self._keep_best()
        logged = int(self.history[-1]["step"]) if self.history else 0
        self.loggers = Loggers(self.settings.loggers, self.out, logged, self.identity)

    def batch(self, step: int) -> tuple[dict[str, Tensor]]:
        """Return the batch of a step, and seed its dropout and noise."""
        seed, rank = self.settings.seed, self.fabric.global_rank
        torch.manual_seed(seed * 100_003 + step + rank * _RANK_SEED)
        return (self.batches.step(step, self.settings.batch_size, seed, rank, self.fabric.world_size),)

    def after(self, loss: Tensor, rest: Any) -> None:
        (scalars,) = rest
        if self.learner.grad_norm is not None:
            scalars = {**scalars, "grad_norm": self.learner.grad_norm}
        for name, value in scalars.items():
            self.totals[name] = self.totals.get(name, 0) + value.double()
        step = self.learner.step
        if step % self.settings.log_every == 0 or step == self.steps or self.settings.rollouts.due(step):
            self._end_row(step)

    def _end_row(self, step: int) -> None:
        """Log the means of the steps since the last row, validate, roll out and save."""
        count = step - self.since
        row: Row = {"step": step, "passes": step * self.settings.batch_size / self.batches.count}
        for name, total in self.totals.items():
            row[_COLUMNS.get(name, f"train_{name}")] = mean_of_all(self.fabric, total / count).item()
        row |= {f"val_{name}": value for name, value in self._validate().items()}
        for value in (row["train_loss"], row.get("val_loss", 0.0)):
            self.check_loss(value, self.settings.lr)
        seconds = time.monotonic() - self.began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row |= {"lr": self.learner.lr, "seconds": seconds, "steps_per_s": count / seconds, "memory_mb": peak}
        self.history.append(row)
        self.totals, self.since = {}, step
        if self.fabric.is_global_zero:
            if self.rollout and self.settings.rollouts.due(step):
                self._save_checkpoint(f"checkpoint_{step}")
                row["success"] = self.rollout(self.out / f"checkpoint_{step}")
                row["tried"] = self.settings.rollouts.episodes
            self._write(step, row)
            self.progress(step, self.steps, row)
        self.began = time.monotonic()

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the averaged weights' mean scalars over all held-out targets, weighted by share in a mix."""
        data, totals = self.validation, dict[str, Tensor]()
        if data is None:
            return {}
        model = self.averaged.eval()
        torch.manual_seed(self.settings.seed)  # rows differ in their weights, not in the noise of a head
        for share, group in data.groups:
            counts = {"target_counts": data.target_counts(group)}
            for rows in group.split(self.settings.batch_size):
                _, scalars = model(data.take(rows) | counts)
                for name, value in scalars.items():
                    totals[name] = totals.get(name, 0) + share * value.double()
        return {name: value.item() for name, value in totals.items()}

    def _write(self, step: int, row: Row) -> None:
        """Write everything that belongs to this step, the state last."""
        assert self.loggers is not None
        self.loggers.write(row)
        if "val_loss" in row and row["val_loss"] < self.best:
            self.best = row["val_loss"]
            self._save_checkpoint("checkpoint_best")
        if step == self.steps or "success" in row or step - self.saved >= self.settings.checkpoint_every:
            self.save()
            if "success" in row:  # after the state, so that a checkpoint to resume from is never removed
                self._keep_best()

    def save(self) -> None:
        self.saved = self.learner.step
        self._save_checkpoint()
        write_json(self.out / "metrics.json", self.history)
        self.save_state(history=self.history, best=self.best, since=self.since, totals=self.totals)

    def _save_checkpoint(self, name: str = "checkpoint") -> None:
        row = self.history[-1] if self.history else {}
        main = ("train_loss", "val_loss")
        summary = {k: row[k] for k in row if k in main or (k.startswith("val_") and k.endswith("_error"))}
        training = {**self.contract["training"], **summary, "step": self.learner.step}
        save(self.out / name, self.averaged, {**self.contract, "training": training}, self.maps)

    def _keep_best(self) -> None:
        """List the `checkpoint_<step>` of highest success in checkpoints.json (later wins ties), remove the others."""
        if not self.settings.rollouts.every:
            return
        tried: Sequence[Row] = [row for row in self.history if "success" in row]
        best = sorted(tried, key=lambda row: (-row["success"], -row["step"]))[: self.settings.rollouts.keep]
        index = {f"checkpoint_{row['step']:.0f}": row for row in best}
        rows = [{"checkpoint": k, "step": row["step"], "success": row["success"]} for k, row in index.items()]
        write_json(self.out / "checkpoints.json", rows)
        for folder in self.out.glob("checkpoint_*"):
            if re.fullmatch(r"checkpoint_\d+", folder.name) and folder.name not in index:
                shutil.rmtree(folder)

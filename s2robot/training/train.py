"""Train a policy on cached features by behaviour cloning.

    s2robot train policy=mlp train.steps=4000       # -> <run folder>/checkpoint, metrics.json, TensorBoard

Lightning Fabric carries the devices: one CPU, one GPU, or many with DDP, by config. A killed run goes on exactly
where it was: every step seeds its own batch, dropout and noise from (seed, step), so the state on disk is weights,
optimiser and the number of the step.
"""

import math
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.core.provenance import policy_sha256
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore, Split
from s2robot.demos.windows import Windows, make_windows
from s2robot.encoders.joined import Joined
from s2robot.encoders.tuning import Tail
from s2robot.policies import (
    ChunkPolicy,
    PolicyError,
    PolicySpec,
    channel_moments,
    load_checkpoint,
    load_tuned,
    mixed_moments,
)
from s2robot.training.batches import Batches
from s2robot.training.kept import folder_of, keep_best
from s2robot.training.loggers import Loggers
from s2robot.training.loop import Learner, learn
from s2robot.training.processes import (
    alone,
    check_shares,
    launch,
    mean_of_all,
    precision_of,
    product_of,
    together,
)
from s2robot.training.schedule import warm_up_then_cosine
from s2robot.training.settings import TrainSettings
from s2robot.training.start import begin_from
from s2robot.training.state import load_state, save_state, told
from s2robot.training.stops import Stops
from s2robot.training.tuned import Through, TunedPolicy, groups_of, policy_of, save, tuned_of

Row = dict[str, float]
_COLUMNS = {"joint_error": "train_joint_error_rad", "grad_norm": "grad_norm"}  # others: train_<name>
_RANK_SEED = 1_000_000_007  # far from any (seed, step): each process has dropout and noise of its own
# another value of one of these is another run
_DECIDING = (
    "steps",
    "batch_size",
    "lr",
    "weight_decay",
    "warmup",
    "grad_clip",
    "ema",
    "validation",
    "seed",
)


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
    tail: Tail | None = None,
) -> Path:
    """Train and return the checkpoint folder ``out/checkpoint`` (the last weights; where episodes are held out, the
    best by their loss are in ``out/checkpoint_best``).

    Args:
        settings: configs/train/default.yaml.
        features: (steps, cameras, tokens, dim), cameras in the spec's order.
        contract: what a checkpoint says of encoder, robot and dataset (see s2robot.policies.checkpoint).
        episodes: numbers of those to train on and of those held out; without it all, and `settings.validation` of them.
        progress: called every `log_every` steps with a row of metrics.
        rollout: tries a checkpoint folder and gives its share of successes; called as `settings.rollouts` says.
        tail: of the encoder, trained too; `features` are what enters it.

    Raises:
        UserError: a checkpoint to begin from that is none, or of another policy; a state file of another run, another
            training in `out`, a loss that is not finite, a disk that is full, or a process of several that ended.
    """
    if settings.rollouts.every and rollout is None:
        raise UserError(
            f"train.rollouts.every: found {settings.rollouts.every}, expected 0: nothing was given that rolls out"
        )
    fabric = launch(settings, "train")
    training, held_out = episodes or store.split(settings.validation or 0.0, settings.seed)
    torch.manual_seed(settings.seed)
    policy = ChunkPolicy(spec)
    windows = make_windows(store, training, spec.context, spec.chunk)
    settings = settings.over(len(windows))
    if settings.from_:
        begin_from(policy, settings.from_, contract)
        policy.fit_range(*_chunks(policy, store, windows))
    elif fabric.is_global_zero:  # a pass over all features; DDP gives the others what the first has
        seen = Through(features, tail.to(fabric.device)) if tail else features
        _fit(policy, store, training, windows, seen)
    takes = policy.network.pooling.multiply_in(product_of(settings))
    takes = None if tail else takes  # what the tail gives
    causal = policy.network.body.causal
    batches = Batches(store, features, windows, fabric.device, causal, takes)
    unseen = make_windows(store, held_out, spec.context, spec.chunk) if len(held_out) else None
    with alone(fabric, out), together(fabric, "train"):
        contract = {**contract, "training": {"demos": len(training), "held_out": len(held_out)}}
        model = TunedPolicy(policy, tail) if tail else policy
        validation = None if unseen is None else batches.over(unseen)
        _Run(settings, model, batches, validation, contract, out, fabric, progress, rollout).run()
    return out / "checkpoint"


def _fit(
    policy: ChunkPolicy,
    store: EpisodeStore,
    training: np.ndarray,
    windows: Windows,
    features: np.ndarray | Joined | Through,
) -> None:
    """Set the policy's normalisation from the episodes that it is trained on; of a mix by each dataset's share."""
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(store.episode_slice, training)])
    weights, counts = None, policy.spec.counts
    if isinstance(store, Mix):
        which, of_windows = store.member_of(rows), store.weights_of(windows.steps)
        weights = (of_windows, store.weights_of(rows), of_windows)
        each = [
            channel_moments(features, rows=rows[which == i], tokens=counts) for i in range(len(store.members))
        ]
        moments = mixed_moments(each, store.shares)
    else:
        moments = channel_moments(features, rows=rows, tokens=counts)
    states, chunks, pad, before = _chunks(policy, store, windows)
    policy.fit_normaliser(states, store["action"][rows], chunks, pad, moments, weights, before)


def _chunks(
    policy: ChunkPolicy, store: EpisodeStore, windows: Windows
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """States (W, P), chunks (W, K, A), their pad (W, K), and with `from_last` the action before each and where none is."""
    before = None
    if policy.spec.from_last:
        before = store["action"][windows.context[:, -2]], windows.pad[:, -2]
    return store["proprio"][windows.steps], windows.actions, windows.action_pad, before


class _Run:
    """The steps of one training: batches, metrics, checkpoints and the state on disk."""

    def __init__(
        self,
        settings: TrainSettings,
        model: ChunkPolicy | TunedPolicy,
        batches: Batches,
        validation: Batches | None,
        contract: Mapping[str, Any],
        out: Path,
        fabric: Fabric,
        progress: Callable[[int, int, Row], None],
        rollout: Callable[[Path], float] | None,
    ) -> None:
        self.rollout = rollout
        self.settings, self.batches, self.validation = settings, batches, validation
        self.contract, self.out, self.fabric, self.progress = contract, out, fabric, progress
        self.steps, world = settings.steps, fabric.world_size
        whole = batches.windows_of(settings.batch_size)
        check_shares(fabric, "train.batch_size", settings.batch_size, whole)
        optimizer = torch.optim.AdamW(
            groups_of(model, settings.lr, settings.weight_decay, settings.tune.rate),
            lr=settings.lr,
            fused=precision_of(settings)
            != "16-mixed",  # gradients are clipped after their scale is taken off
        )
        rising = round(settings.warmup * self.steps)
        self.learner = Learner(
            fabric,
            model,
            optimizer,
            lambda step: warm_up_then_cosine(step, settings.steps, rising),
            settings.ema,
            settings.grad_clip,
            product_of(settings) if fabric.device.type == "cpu" else torch.float32,
        )
        self.identity = {
            "policy": policy_of(model).spec.to_dict(),
            "dataset": contract["dataset"],
            "encoder": contract["encoder"],
            **{f"train.{name}": getattr(settings, name) for name in _DECIDING},
            "train.from": policy_sha256(Path(settings.from_)) if settings.from_ else None,
            "train.precision": f"{precision_of(settings)}, {product_of(settings)}",
            "processes": world,
        }
        self.history: list[Row] = []
        self.best = math.inf
        self.totals: dict[str, Tensor] = {}
        self.began = time.monotonic()
        self.since = self.saved = 0  # the step that the next row counts from; that of the state on disk
        self.loggers: Loggers | None = None  # of the process that writes
        self.stops = Stops()

    def run(self) -> None:
        """All steps that are left. A process alone saves its state on Ctrl-C and SIGTERM before it ends."""
        self.go_on()
        with self.stops.listening() if self.fabric.world_size == 1 else nullcontext():
            learn(self.learner, self.steps, self.batch, self.after)
        self.close()

    @property
    def averaged(self) -> ChunkPolicy | TunedPolicy:
        """The model with its averaged weights: what is validated and saved."""
        assert self.learner.average is not None
        return self.learner.average.module  # type: ignore[return-value]  # torch says Tensor or Module

    def go_on(self) -> None:
        """Take up the state in the run folder, if there is one and it is wanted."""
        path, done = self.out / "training_state.pt", 0
        if self.settings.resume and path.exists():
            state = load_state(path, self.identity, self.fabric.device)
            self.learner.load_state_dict(state)
            self.history, self.best, done = state["history"], state["best"], state["step"]
            self.since, self.saved, self.totals = state.get("since", done), done, state.get("totals", {})
        self.learner.model.train()
        if self.fabric.is_global_zero:
            if not done:  # begun anew: nothing of an earlier training stays beside it
                path.unlink(missing_ok=True)
                shutil.rmtree(self.out / "checkpoint_best", ignore_errors=True)
            if done and not self._is_saved():  # somebody removed or damaged it
                self._save_checkpoint()
            with told(self.out):
                if self.settings.rollouts.every:
                    keep_best(self.out, self.history, self.settings.rollouts.keep)
                self.loggers = Loggers(self.settings.loggers, self.out, self.history, self.identity)

    def batch(self, step: int) -> tuple[dict[str, Tensor]]:
        """The batch of a step, which seeds its dropout and noise, too."""
        self.stops.inside = True
        seed, rank = self.settings.seed, self.fabric.global_rank
        torch.manual_seed(seed * 100_003 + step + rank * _RANK_SEED)
        return (self.batches.step(step, self.settings.batch_size, seed, rank, self.fabric.world_size),)

    def after(self, loss: Tensor, rest: Any) -> None:
        """Add up a step's scalars; every so many steps tell their means, validate and save."""
        (scalars,) = rest
        if self.learner.grad_norm is not None:
            scalars = {**scalars, "grad_norm": self.learner.grad_norm}
        for name, value in scalars.items():
            self.totals[name] = self.totals.get(name, 0) + value.double()
        step = self.learner.step
        due = self.settings.rollouts.due(step)
        self.stops.inside = False
        if step % self.settings.log_every == 0 or step == self.steps or due:
            self._end_row(step)
        if self.stops.asked:
            self._save(step)
            raise KeyboardInterrupt

    def _end_row(self, step: int) -> None:
        """A row of metrics over the steps since the last one."""
        count = step - self.since
        mean = {name: mean_of_all(self.fabric, total / count).item() for name, total in self.totals.items()}
        row: Row = {"step": step, "passes": step * self.settings.batch_size / self.batches.count}
        row |= {_COLUMNS.get(name, f"train_{name}"): value for name, value in mean.items()}
        row |= {f"val_{name}": value for name, value in self._validate().items()}
        for value in (row["train_loss"], row.get("val_loss", 0.0)):
            if not math.isfinite(value):  # nothing of these steps is saved
                raise UserError(
                    f"train: the loss is {value} at step {step}; lower train.lr ({self.settings.lr})"
                )
        seconds = time.monotonic() - self.began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row |= {"lr": self.learner.lr, "seconds": seconds, "steps_per_s": count / seconds, "memory_mb": peak}
        self.history.append(row)
        self.totals, self.since = {}, step
        if self.fabric.is_global_zero:
            if self.settings.rollouts.due(step):
                row["success"] = self._roll_out(folder_of(self.out, step))
                row["tried"] = self.settings.rollouts.episodes
            self._write(step, row)
            self.progress(step, self.steps, row)
        self.began = time.monotonic()

    def _roll_out(self, folder: Path) -> float:
        """The success of the averaged weights, saved as this checkpoint."""
        assert self.rollout is not None
        self._save_checkpoint(folder.name)
        return self.rollout(folder)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean scalars of the averaged weights over all held-out windows (of a mix by share), the same in every process."""
        data, totals = self.validation, dict[str, Tensor]()
        if data is None:
            return {}
        model = self.averaged.eval()
        for share, group in data.groups:
            for rows in group.split(self.settings.batch_size):
                _, scalars = model(data.take(rows))
                for name, value in scalars.items():
                    totals[name] = totals.get(name, 0) + share * value.double() * len(rows) / len(group)
        return {name: value.item() for name, value in totals.items()}

    def _write(self, step: int, row: Row) -> None:
        """Everything that stands for this step, the state last: a kill in between leaves it behind, not ahead."""
        with told(self.out):
            assert self.loggers is not None
            self.loggers.write(row)
        if "val_loss" in row and row["val_loss"] < self.best:
            self.best = row["val_loss"]
            self._save_checkpoint("checkpoint_best")
        if step == self.steps or "success" in row or step - self.saved >= self.settings.checkpoint_every:
            self._save(step)
            if "success" in row:  # after the state: what it may go back to is never removed
                with told(self.out):
                    keep_best(self.out, self.history, self.settings.rollouts.keep)

    def _save(self, step: int) -> None:
        """The checkpoint and all that the next steps need; `totals` are of the row under way."""
        self.saved = step
        self._save_checkpoint()
        with told(self.out / "metrics.json"):
            write_json(self.out / "metrics.json", self.history)
        own = {"history": self.history, "best": self.best, "since": self.since, "totals": self.totals}
        save_state(
            self.out / "training_state.pt", {"identity": self.identity, **self.learner.state_dict(), **own}
        )

    def _save_checkpoint(self, name: str = "checkpoint") -> None:
        row = self.history[-1] if self.history else {}
        kept = ("step", "train_loss", "val_loss")
        told = {k: row[k] for k in row if k in kept or (k.startswith("val_") and k.endswith("_error"))}
        training = {**self.contract["training"], **told}
        save(self.out / name, self.averaged, {**self.contract, "training": training})

    def _is_saved(self) -> bool:
        """Whether the checkpoint on disk holds the state's averaged weights."""
        try:
            policy, tuned = load_checkpoint(self.out / "checkpoint")[0], load_tuned(self.out / "checkpoint")
        except PolicyError:
            return False
        found = policy.state_dict() | tuned
        want = policy_of(self.averaged).state_dict() | tuned_of(self.averaged)
        return found.keys() == want.keys() and all(torch.equal(found[k], want[k].cpu()) for k in want)

    def close(self) -> None:
        if self.loggers is not None:
            with told(self.out):
                self.loggers.close()
        self.fabric.barrier()

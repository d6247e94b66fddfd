"""Train a policy on cached features by behaviour cloning.

    s2robot train policy=mlp train.epochs=40        # -> <run folder>/checkpoint, metrics.json, TensorBoard

Lightning Fabric carries the devices: one CPU, one GPU, or many with DDP, by config. A killed run goes on exactly
where it was: every epoch seeds its own shuffle and dropout from (seed, epoch), so the state on disk is weights,
optimiser and the number of the epoch.
"""

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import Windows, make_windows
from s2robot.policies import ChunkPolicy, PolicySpec, channel_moments, save_checkpoint


class Batches:
    """All training data of one process as tensors, and shuffled batches of windows from it."""

    def __init__(self, store: EpisodeStore, features: np.ndarray, windows: Windows, device: torch.device):
        self.device = device
        self.features = torch.from_numpy(np.array(features)).to(device)  # (M, C, N, D) float16
        self.proprio = torch.from_numpy(store["proprio"]).to(device)  # (M, 8)
        self.action = torch.from_numpy(store["action"]).to(device)  # (M, 8)
        self._set_windows(windows)

    def _set_windows(self, windows: Windows) -> None:
        self.windows = {
            name: torch.from_numpy(getattr(windows, name)).to(self.device)
            for name in ("context", "pad", "chunk", "action_pad")
        }
        self.count = len(windows)

    def over(self, windows: Windows) -> "Batches":
        """Batches of other windows from the same tensors."""
        other = copy.copy(self)
        other._set_windows(windows)
        return other

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """The batch of these windows, with the keys that ChunkPolicy.loss reads."""
        context, chunk = self.windows["context"][rows], self.windows["chunk"][rows]
        return {
            "features": self.features[context],  # (B, T, C, N, D)
            "proprio": self.proprio[context],  # (B, T, 8)
            "past_actions": _forget_last(self.action[context]),  # (B, T, 8)
            "pad": self.windows["pad"][rows],  # (B, T)
            "actions": self.action[chunk],  # (B, K, 8)
            "action_pad": self.windows["action_pad"][rows],  # (B, K)
        }

    def epoch(self, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        """This process's share of a shuffled epoch; every process makes as many steps."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        steps = max(1, self.count // (batch_size * world))
        for step in range(steps):
            start = (step * world + rank) * batch_size
            yield self.take(order[start : start + batch_size].to(self.device))


def _forget_last(actions: Tensor) -> Tensor:
    """The present step's action is what the policy has to find out."""
    actions = actions.clone()
    actions[:, -1] = 0
    return actions


def train(
    cfg: Mapping[str, Any],
    spec: PolicySpec,
    store: EpisodeStore,
    features: np.ndarray,
    contract: Mapping[str, Any],
    out: Path,
    episodes: int | None = None,
    progress: Callable[[int, int, dict], None] = lambda epoch, epochs, row: None,
) -> Path:
    """Train and return the checkpoint folder ``out/checkpoint`` (the last weights; the best by validation loss
    are in ``out/checkpoint_best``).

    Args:
        cfg: configs/train/default.yaml.
        features: (steps, cameras, tokens, dim), cameras in the spec's order.
        contract: what a checkpoint says of encoder, robot and dataset (see s2robot.policies.checkpoint).
        episodes: use only the first so many of the dataset.
        progress: called after every epoch with its row of metrics.

    Raises:
        UserError: a state file of another run, or a loss that is not finite.
    """
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])
    fabric = Fabric(
        accelerator=cfg["accelerator"],
        devices=cfg["devices"],
        num_nodes=cfg["num_nodes"],
        strategy=cfg["strategy"],
        precision=cfg["precision"],
    )
    fabric.launch()
    out.mkdir(parents=True, exist_ok=True)
    train_episodes, held_out = store.split(cfg["validation"], cfg["seed"], episodes)
    torch.manual_seed(cfg["seed"])
    policy = ChunkPolicy(spec)
    rows = np.concatenate([np.arange(s.start, s.stop) for s in map(store.episode_slice, train_episodes)])
    policy.fit_normaliser(
        store["proprio"][rows],
        store["action"][rows],
        np.cumsum(store.lengths[train_episodes]),
        channel_moments(features[rows]),
    )
    batches = Batches(
        store, features, make_windows(store, train_episodes, spec.context, spec.chunk), fabric.device
    )
    validation = batches.over(make_windows(store, held_out, spec.context, spec.chunk))

    decayed = [p for p in policy.parameters() if p.ndim > 1]
    plain = [p for p in policy.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": cfg["weight_decay"]},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=cfg["lr"])
    model, optimizer = fabric.setup(policy, optimizer)
    average = {k: v.detach().clone() for k, v in policy.state_dict().items()}

    batch_size = min(max(1, cfg["batch_size"] // fabric.world_size), batches.count)
    steps_an_epoch = max(1, batches.count // (batch_size * fabric.world_size))
    steps = steps_an_epoch * cfg["epochs"]
    state_path = out / "training_state.pt"
    identity = json.dumps(
        {"spec": spec.to_dict(), "dataset": contract["dataset"], "encoder": contract["encoder"]}
        | {k: cfg[k] for k in ("epochs", "batch_size", "lr", "weight_decay", "warmup", "ema", "seed")},
        sort_keys=True,
        default=str,
    )
    first, history, best = 0, [], math.inf
    if cfg["resume"] and state_path.exists():
        saved = torch.load(state_path, map_location=fabric.device, weights_only=True)
        if saved["identity"] != identity:
            raise UserError(
                f"{state_path}: found the state of another run; remove it or choose another folder"
            )
        policy.load_state_dict(saved["policy"])
        optimizer.load_state_dict(saved["optimizer"])
        average, history, best, first = saved["average"], saved["history"], saved["best"], saved["epoch"]

    writer = SummaryWriter(str(out), purge_step=first) if fabric.is_global_zero else None
    for epoch in range(first, cfg["epochs"]):
        start = time.monotonic()
        torch.manual_seed(cfg["seed"] * 100_003 + epoch)  # dropout and noise of this epoch
        model.train()
        totals: dict[str, float] = {}
        shuffled = batches.epoch(
            batch_size, cfg["seed"] * 100_003 + epoch, fabric.global_rank, fabric.world_size
        )
        for i, batch in enumerate(shuffled):
            step = epoch * steps_an_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = cfg["lr"] * _rate(step, steps, cfg["warmup"])
            loss, scalars = model(batch)
            fabric.backward(loss)
            if cfg["grad_clip"]:
                # one that is not finite shows in the losses below, which are told in one line
                fabric.clip_gradients(model, optimizer, max_norm=cfg["grad_clip"], error_if_nonfinite=False)
            optimizer.step()
            optimizer.zero_grad()
            decay = min(cfg["ema"], (1 + step) / (10 + step))
            with torch.no_grad():
                for name, value in policy.state_dict().items():
                    if value.is_floating_point():
                        average[name].lerp_(value, 1 - decay)
            for name, value in scalars.items():
                totals[name] = totals.get(name, 0.0) + value.item() / steps_an_epoch
        row = {
            "epoch": epoch + 1,
            "train_loss": totals["loss"],
            "train_joint_error_rad": totals["joint_error"],
        }
        row |= {f"val_{k}": v for k, v in _validate(policy, average, validation, cfg["batch_size"]).items()}
        for loss in (row["train_loss"], row["val_loss"]):
            if not math.isfinite(loss):  # nothing of this epoch is saved
                raise UserError(
                    f"train: the loss is {loss} in epoch {epoch + 1}; lower train.lr ({cfg['lr']})"
                )
        row["lr"] = optimizer.param_groups[0]["lr"]
        row["seconds"] = time.monotonic() - start
        history.append(row)
        if writer is not None:
            for name, value in row.items():
                writer.add_scalar(name, value, epoch + 1)
            last = epoch + 1 == cfg["epochs"]
            if row["val_loss"] < best:
                best = row["val_loss"]
                _save(out / "checkpoint_best", policy, average, contract, history)
            if last or (epoch + 1) % cfg["checkpoint_every"] == 0:
                state = {"identity": identity, "policy": policy.state_dict(), "average": average,
                         "optimizer": optimizer.state_dict(), "history": history, "best": best,
                         "epoch": epoch + 1}  # fmt: skip
                torch.save(state, state_path.with_suffix(".part"))
                os.replace(state_path.with_suffix(".part"), state_path)
                _save(out / "checkpoint", policy, average, contract, history)
                write_json(out / "metrics.json", history)
        progress(epoch + 1, cfg["epochs"], row)
    if writer is not None:
        writer.close()
    fabric.barrier()
    return out / "checkpoint"


def _rate(step: int, steps: int, warmup: float) -> float:
    """Share of the peak rate: linear warm-up, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@contextmanager
def _averaged(policy: ChunkPolicy, average: Mapping[str, Tensor]) -> Iterator[None]:
    """The policy with its averaged weights, for a while."""
    present = {k: v.clone() for k, v in policy.state_dict().items()}
    policy.load_state_dict(average)
    yield
    policy.load_state_dict(present)


@torch.no_grad()
def _validate(policy: ChunkPolicy, average: dict, data: Batches, batch_size: int) -> dict[str, float]:
    """Mean scalars of the averaged weights over the held-out windows."""
    totals: dict[str, float] = {}
    policy.eval()
    with _averaged(policy, average):
        for rows in torch.arange(data.count, device=data.device).split(batch_size):
            _, scalars = policy.loss(data.take(rows))
            for name, value in scalars.items():
                totals[name] = totals.get(name, 0.0) + value.item() * len(rows) / data.count
    return totals


def _save(folder: Path, policy: ChunkPolicy, average: dict, contract: Mapping, history: list) -> None:
    """A checkpoint of the averaged weights."""
    training = {k: history[-1][k] for k in ("epoch", "train_loss", "val_loss", "val_joint_error")}
    with _averaged(policy, average):
        save_checkpoint(folder, policy, {**contract, "training": training})

"""A policy and its encoder, or the encoder's last blocks (`train.tune`), trained as one model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from s2robot.encoders.build import build_encoder
from s2robot.encoders.cache import Joined
from s2robot.encoders.tuning import FullEncoder, Tail
from s2robot.policies import ChunkPolicy, save_checkpoint
from s2robot.training.loop import parameter_groups


class TunedPolicy(nn.Module):
    """A policy with its encoder's tail, for batches with features as `EarlyBlocks` or `Pixels` returns them."""

    def __init__(self, policy: ChunkPolicy, tail: Tail | FullEncoder) -> None:
        super().__init__()
        self.policy, self.tail = policy, tail

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.policy({**batch, "features": self.tail(batch["features"])})


class TunedFeatures:
    """Cached features (M, C, N', D), mapped by the initial tail; rows are computed on access."""

    def __init__(self, features: np.ndarray | Joined, tail: Tail) -> None:
        self.features, self.tail = features, tail

    @torch.no_grad()
    def __getitem__(self, rows: Any) -> np.ndarray:
        entering = torch.from_numpy(np.ascontiguousarray(self.features[rows]))
        return self.tail(entering.to(next(self.tail.parameters()).device)).cpu().numpy()


def groups_of(model: nn.Module, lr: float, weight_decay: float, rate: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups; the encoder's learning rate is `rate`, or the encoder's own factor, times `lr`."""
    if not isinstance(model, TunedPolicy):
        return parameter_groups(model, weight_decay)
    rate = model.tail.rate if isinstance(model.tail, FullEncoder) else rate
    tail = [group | {"lr": rate * lr} for group in parameter_groups(model.tail, weight_decay)]
    return parameter_groups(model.policy, weight_decay) + tail


def save(folder: Path, model: ChunkPolicy | TunedPolicy, contract: Mapping[str, Any], maps: Any) -> None:
    """Save the trained model as a checkpoint, with a tuned encoder (its fingerprint is updated) or the maps of a gaze."""
    policy, tuned, encoder = model, maps, contract["encoder"]
    if isinstance(model, TunedPolicy):
        policy, tuned = model.policy, model.tail.tuned()
        built = build_encoder(encoder["settings"], tuned)
        facts = {"fingerprint": built.fingerprint, "parameters": built.num_parameters}
        contract = {**contract, "encoder": {**encoder, **facts}}
    save_checkpoint(folder, policy, contract, tuned)

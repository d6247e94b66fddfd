"""Training data as tensors, and shuffled batches of windows from it."""

import copy
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import Windows


class Batches:
    """All training data of one process as tensors, and shuffled batches of windows from it."""

    def __init__(self, store: EpisodeStore, features: np.ndarray, windows: Windows, device: torch.device):
        self.device = device
        self.features = _shared(features).to(device)  # (M, C, N, D) float16
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

    def epoch(self, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Iterator[dict[str, Tensor]]:
        """This process's share of a shuffled epoch; every process makes as many steps."""
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        steps = max(1, self.count // (batch_size * world))
        for step in range(steps):
            start = (step * world + rank) * batch_size
            yield self.take(order[start : start + batch_size].to(self.device))


def _shared(features: np.ndarray) -> Tensor:
    """The array as a tensor over the same memory: processes of one machine share the pages of a mapped file."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes
        return torch.from_numpy(features)


def _forget_last(actions: Tensor) -> Tensor:
    """The present step's action is what the policy has to find out."""
    actions = actions.clone()
    actions[:, -1] = 0
    return actions

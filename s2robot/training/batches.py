"""Training data as tensors, and shuffled batches of windows from it."""

import copy
import warnings
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from s2robot.backbones.device import moved
from s2robot.demos.mix import Mix
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import Windows
from s2robot.encoders.joined import Joined

_MIXED = 1 << 40  # between the seeds of the groups of a mix and that of their common order
_AT_ONCE = 2  # frames that are rounded together: they stay in the processor's cache


class Batches:
    """All training data of one process, and batches of windows from it.

    Features stay where they are: a memory-mapped cache may be larger than the memory, and a batch reads the
    frames that it shows, each once. With `every`, a batch's windows ask every step of their context (what a
    causal body trains in one pass), so that few windows give many targets.

    With `product`, what a step gives of its frames is only what the pooling `takes`: the tokens in that number format,
    and their means, made of a few frames at a time. So a training holds its share of the features once.

    What a step draws does not depend on how many processes share it.
    """

    def __init__(
        self,
        store: EpisodeStore,
        features: np.ndarray | Joined,
        windows: Windows,
        device: torch.device,
        every: bool = False,
        product: torch.dtype | None = None,
    ):
        self.device, self.every = device, every
        self._mix = store if isinstance(store, Mix) else None
        self.product = product if device.type == "cpu" else None  # elsewhere that is the device's work
        self.features = _shared(features)  # (M, C, N, D) float16
        self.proprio = torch.from_numpy(store["proprio"])  # (M, 8)
        self.action = torch.from_numpy(store["action"])  # (M, 8)
        self._set_windows(windows)

    def _set_windows(self, windows: Windows) -> None:
        self.count = len(windows)
        self.groups = [
            (1.0, torch.arange(self.count))
        ]  # shares of what is seen, and the windows that have it
        if self._mix is not None:
            which = torch.from_numpy(self._mix.member_of(windows.steps))
            found = [(share, torch.nonzero(which == i)[:, 0]) for i, share in enumerate(self._mix.shares)]
            there = sum(share for share, group in found if len(group))  # of a dataset none may be held out
            self.groups = [(share / there, group) for share, group in found if len(group)]
        self._tables = {
            name: torch.from_numpy(np.ascontiguousarray(getattr(windows, name)))
            for name in ("context", "pad", "actions", "action_pad")
        }
        self._window_at = torch.full((len(self.features),), -1)  # (M,) the window that starts at a step
        self._window_at[self._tables["context"][:, -1]] = torch.arange(self.count)

    def over(self, windows: Windows) -> "Batches":
        """Batches of other windows from the same tensors."""
        other = copy.copy(self)
        other._set_windows(windows)
        return other

    def take(
        self, rows: Tensor, every: bool = False, product: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """The batch of these windows, with the keys that ChunkPolicy.loss reads.

        product: number format of the features, with their means beside them; None leaves them as they are stored.
        """
        context, pad = self._tables["context"][rows], self._tables["pad"][rows]
        shown, frames = torch.unique(context, return_inverse=True)  # (F,), (B, T)
        asked, action_pad = self._asked(rows, every)
        batch = {
            **(
                self._rounded(shown, product)
                if product
                else {"features": self.features.index_select(0, shown)}
            ),
            "frames": frames,  # (B, T)
            "proprio": self.proprio[context],  # (B, T, 8)
            "past_actions": _forget_last(self.action[context]),  # (B, T, 8)
            "pad": pad,  # (B, T)
            "actions": self._tables["actions"][asked],  # (B, K, 8), or (B, T, K, 8) of every step
            "action_pad": action_pad,  # (B, K), or (B, T, K)
        }
        return {name: moved(value, self.device) for name, value in batch.items()}

    def _asked(self, rows: Tensor, every: bool) -> tuple[Tensor, Tensor]:
        """The windows whose actions are asked (B,), or of every step (B, T), and which of those count nothing (..., K)."""
        if not every:
            return rows, self._tables["action_pad"][rows]
        asked = self._window_at[self._tables["context"][rows]]
        known = (asked >= 0) & ~self._tables["pad"][rows]
        return asked, self._tables["action_pad"][asked] | ~known[..., None]

    def step(self, step: int, size: int, seed: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """This process's share of a step's `size` targets: shuffled epochs, end to end; see `mixed`.

        Where several share it, `kept` (K,), or (T, K) of every step, says how many targets a process has in the mean
        at each place of a chunk, so that the mean of their losses is the loss of the whole.
        """
        size = self.windows_of(size)
        drawn = self._drawn(step, size, seed)
        mine = slice(rank * size // world, (rank + 1) * size // world)
        batch = self.take(drawn[mine], self.every, self.product)
        if world > 1:
            batch["kept"] = moved((~self._asked(drawn, self.every)[1]).sum(0) / world, self.device)
        return batch

    def windows_of(self, size: int) -> int:
        """Windows in a batch of so many targets."""
        return max(1, size // self._tables["context"].shape[1]) if self.every else size

    def _drawn(self, step: int, size: int, seed: int) -> Tensor:
        """Return the windows of a step.  # (size,)"""
        places = range(step * size, (step + 1) * size)
        return shuffled(self.count, seed, places) if self._mix is None else mixed(self.groups, seed, places)

    def _rounded(self, shown: Tensor, product: torch.dtype) -> dict[str, Tensor]:
        """Features (F, C, N, D) in another number format, contiguous per camera, and their means (F, C, D)."""
        c, n, d = self.features.shape[1:]
        features = torch.empty(c, len(shown), n, d, dtype=product).transpose(0, 1)  # (F, C, N, D)
        means, kept = torch.empty(len(shown), c, d), torch.empty(_AT_ONCE, c, n, d)
        for begin in range(0, len(shown), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            seen = self.features.index_select(0, shown[part])
            features[part] = frames = kept[: len(seen)].copy_(seen)
            torch.sum(frames, 2, out=means[part])
        return {"features": features, "means": means.div_(n)}


def shuffled(count: int, seed: int, places: Sequence[int]) -> Tensor:
    """What stands at these places of an endless row of shuffles of 0..count-1, one after the other."""
    first, last = places[0] // count, places[-1] // count
    orders = [_shuffle(count, seed * 100_003 + epoch) for epoch in range(first, last + 1)]
    return torch.cat(orders)[places[0] - first * count : places[-1] + 1 - first * count]


@lru_cache(maxsize=64)
def _shuffle(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def mixed(groups: Sequence[tuple[float, Tensor]], seed: int, places: Sequence[int]) -> Tensor:
    """What stands at these places of an endless row of windows, of which each group has its share in every epoch.

    An epoch is as long as all windows together, rounded so that no group is missing. Of its group a window is seen again
    when all others were; the order is shuffled.
    """
    total = sum(len(group) for _, group in groups)
    quotas = [max(1, round(share * total)) for share, _ in groups]
    epoch = sum(quotas)
    first, last = places[0] // epoch, places[-1] // epoch
    orders = []
    for e in range(first, last + 1):
        drawn = [
            group[shuffled(len(group), seed + i, range(e * quota, (e + 1) * quota))]
            for i, (quota, (_, group)) in enumerate(zip(quotas, groups, strict=True))
        ]
        orders.append(torch.cat(drawn)[_shuffle(epoch, seed * 100_003 + e + _MIXED)])
    return torch.cat(orders)[places[0] - first * epoch : places[-1] + 1 - first * epoch]


def _shared(features: np.ndarray | Joined) -> Tensor | Joined:
    """The array as a tensor over the same memory: processes of one machine share the pages of a mapped file."""
    if isinstance(features, Joined):
        return features
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes
        return torch.from_numpy(features)


def _forget_last(actions: Tensor) -> Tensor:
    """The present step's action is what the policy has to find out."""
    actions = actions.clone()
    actions[:, -1] = 0
    return actions

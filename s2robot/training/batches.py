"""Training data as tensors, and shuffled batches of windows from it."""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from s2robot.backbones.device import moved
from s2robot.demos.mix import Mix, task_of_steps
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import Windows
from s2robot.encoders.cache import Joined

# offsets between the seeds of a mix's groups, their common order and the copies; torch uses the low 32 bits of a seed
_MIXED, _COPIES = 1 << 31, 1 << 30
_AT_ONCE = 2  # frames rounded together, few enough to stay in the processor's cache


class Batches:
    """Batches of windows; each batch reads its frames once from a memory-mapped cache of any size.

    The windows drawn for a step do not depend on the number of processes that share it.

    Args:
        features: (M, C, N, D) of all M steps, then of each augmented copy of them; only a step draws from the copies.
        every: windows have targets at every step of their context, which a causal body trains in one pass.
        product: number format in which a step returns tokens, with their means (see `CameraPooling.multiply_in`); on the
            CPU only, because other devices convert them faster themselves.
        tasks: names of the policy's tasks, appended to the state as a one-hot vector.
    """

    def __init__(
        self,
        store: EpisodeStore,
        features: np.ndarray | Joined,
        windows: Windows,
        device: torch.device,
        every: bool = False,
        product: torch.dtype | None = None,
        tasks: Sequence[str] = (),
    ):
        self.device, self.every = device, every
        self._mix = store if isinstance(store, Mix) else None
        self.product = product if device.type == "cpu" else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it is only read
            # float16; processes of one machine share the pages of a mapped file
            self.features = features if isinstance(features, Joined) else torch.from_numpy(features)
        self.proprio = torch.from_numpy(store["proprio"])  # (M, P), or with tasks (M, P + tasks)
        if tasks:
            task = torch.from_numpy(task_of_steps(store, tasks))  # (M,)
            self.proprio = torch.cat([self.proprio, torch.nn.functional.one_hot(task, len(tasks)).float()], 1)
        self.action = torch.from_numpy(store["action"])  # (M, A)
        self.copies = len(self.features) // len(self.action)  # of the steps, the original included
        self._set_windows(windows)

    def _set_windows(self, windows: Windows) -> None:
        self.count = len(windows)
        self.groups = [(1.0, torch.arange(self.count))]  # (share of the targets, windows with this share)
        if self._mix is not None:
            which = torch.from_numpy(self._mix.member_of(windows.steps))
            groups = [(share, torch.nonzero(which == i)[:, 0]) for i, share in enumerate(self._mix.shares)]
            present = sum(share for share, group in groups if len(group))  # a dataset may hold out none
            self.groups = [(share / present, group) for share, group in groups if len(group)]
        self._tables = {
            name: torch.from_numpy(np.ascontiguousarray(getattr(windows, name)))
            for name in ("context", "pad", "actions", "action_pad")
        }
        self._window_at = torch.full((len(self.action),), -1)  # (M,) the window that starts at a step
        self._window_at[self._tables["context"][:, -1]] = torch.arange(self.count)

    def with_windows(self, windows: Windows) -> "Batches":
        """Return batches of other windows from the same tensors."""
        other = copy.copy(self)
        other._set_windows(windows)
        return other

    def take(
        self, rows: Tensor, every: bool = False, product: torch.dtype | None = None, copies: Tensor | int = 0
    ) -> dict[str, Tensor]:
        """Return the batch of these windows (B,), seen in these copies (B, 1), with the keys that ChunkPolicy.loss uses."""
        context = self._tables["context"][rows]
        steps, frames = torch.unique(context + copies * len(self.action), return_inverse=True)  # (F,), (B, T)
        starts, action_pad = self._targets(rows, every)
        past = self.action[context].clone()  # (B, T, A)
        past[:, -1] = 0  # the policy has to predict the current step's action
        features = {"features": self.features.index_select(0, steps)} if product is None else None
        batch = {
            **(features or self._rounded(steps, product)),
            "frames": frames,  # (B, T)
            "proprio": self.proprio[context],  # (B, T, P)
            "past_actions": past,
            "pad": self._tables["pad"][rows],  # (B, T)
            "actions": self._tables["actions"][starts],  # (B, K, A), or (B, T, K, A) at every step
            "action_pad": action_pad,  # (B, K), or (B, T, K)
        }
        return {name: moved(value, self.device) for name, value in batch.items()}

    def _targets(self, rows: Tensor, every: bool) -> tuple[Tensor, Tensor]:
        """Return the windows of the targets, (B,) or at every step (B, T), and the mask of their padded steps."""
        if not every:
            return rows, self._tables["action_pad"][rows]
        starts = self._window_at[self._tables["context"][rows]]
        known = (starts >= 0) & ~self._tables["pad"][rows]
        return starts, self._tables["action_pad"][starts] | ~known[..., None]

    def step(self, step: int, size: int, seed: int, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
        """Return this process's share of a step's `size` targets, from consecutive shuffled epochs; see `mixed`.

        With several processes, `target_counts` is the mean of theirs: the mean of their losses is that of the batch.
        """
        size = self.windows_of(size)
        at = range(step * size, (step + 1) * size)
        drawn = shuffled(self.count, seed, at) if self._mix is None else mixed(self.groups, seed, at)
        own = slice(rank * size // world, (rank + 1) * size // world)
        draw = torch.Generator().manual_seed(seed * 100_003 + step + _COPIES)
        copies = torch.randint(self.copies, (len(drawn), 1), generator=draw)
        batch = self.take(drawn[own], self.every, self.product, copies[own])
        if world > 1:
            batch["target_counts"] = self.target_counts(drawn, self.every) / world
        return batch

    def target_counts(self, rows: Tensor, every: bool = False) -> Tensor:
        """Return the number of targets of these windows by position in a chunk, (K,), or at every step (T, K)."""
        return moved((~self._targets(rows, every)[1]).sum(0), self.device)

    def windows_of(self, size: int) -> int:
        """Return the number of windows in a batch of `size` targets."""
        return max(1, size // self._tables["context"].shape[1]) if self.every else size

    def _rounded(self, steps: Tensor, product: torch.dtype | None) -> dict[str, Tensor]:
        """Return features (F, C, N, D) in another number format, contiguous per camera, and their means (F, C, D)."""
        c, n, d = self.features.shape[1:]
        features = torch.empty(c, len(steps), n, d, dtype=product).transpose(0, 1)  # (F, C, N, D)
        means, buffer = torch.empty(len(steps), c, d), torch.empty(_AT_ONCE, c, n, d)
        for begin in range(0, len(steps), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            half = self.features.index_select(0, steps[part])
            features[part] = frames = buffer[: len(half)].copy_(half)
            torch.sum(frames, 2, out=means[part])
        return {"features": features, "means": means.div_(n)}


def shuffled(count: int, seed: int, positions: Sequence[int]) -> Tensor:
    """Return these positions of an endless sequence of shuffles of 0..count-1."""
    return _positions(positions, count, lambda epoch: _shuffle(count, seed * 100_003 + epoch))


def _positions(positions: Sequence[int], size: int, order: Callable[[int], Tensor]) -> Tensor:
    """Return these positions of a sequence of epochs of `size` windows."""
    epochs = range(positions[0] // size, positions[-1] // size + 1)
    return torch.cat(
        [order(e)[max(0, positions[0] - e * size) : positions[-1] + 1 - e * size] for e in epochs]
    )


@lru_cache(maxsize=4)
def _shuffle(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def mixed(groups: Sequence[tuple[float, Tensor]], seed: int, positions: Sequence[int]) -> Tensor:
    """Return these positions of an endless sequence of windows in which each group has its share of every epoch.

    An epoch has as many windows as all groups together, rounded so that no group is missing. A window repeats only
    after all others of its group; the order is shuffled.
    """
    total = sum(len(group) for _, group in groups)
    drawn = tuple((max(1, round(share * total)), group) for share, group in groups)
    size = sum(quota for quota, _ in drawn)
    return _positions(positions, size, lambda epoch: _mixed_epoch(drawn, seed, epoch))


@lru_cache(maxsize=2)
def _mixed_epoch(groups: Sequence[tuple[int, Tensor]], seed: int, epoch: int) -> Tensor:
    """Return the windows of an epoch with this number of each group, shuffled."""
    numbered = enumerate(groups)
    drawn = [g[shuffled(len(g), seed + i, range(epoch * n, (epoch + 1) * n))] for i, (n, g) in numbered]
    windows = torch.cat(drawn)
    return windows[_shuffle(len(windows), seed * 100_003 + epoch + _MIXED)]

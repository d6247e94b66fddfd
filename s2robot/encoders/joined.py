"""Index the features of several datasets as one array, without copying the memory-mapped files.

features = Joined([cache_a.features, cache_b.features])
features.shape                      # (M_a + M_b, C, N, D)
features[[3, 500_000]]              # rows of any of them, copied when asked for
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Joined:
    """Arrays (M_i, ...) concatenated along the first axis; `index_select` as in a tensor."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = tuple(arrays)
        self._ends = np.cumsum([len(a) for a in self.arrays])

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.arrays[0].shape[1:])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Copy the rows of a slice, list or array of indices (n,).  # (n, ...)"""
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        out = np.empty((len(wanted), *self.shape[1:]), self.arrays[0].dtype)
        which = np.searchsorted(self._ends, wanted, "right")
        for i, array in enumerate(self.arrays):
            mine = which == i
            if mine.any():
                out[mine] = array[wanted[mine] - (self._ends[i] - len(array))]
        return out

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        assert dim == 0
        return torch.from_numpy(self[rows.numpy()])

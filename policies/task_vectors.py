"""Task vectors: embeddings of task texts from any text encoder, in a file that the user creates.

np.savez("tasks.npz", **{"close the drawer": encode("close the drawer"), ...})   # or safetensors; (D,) each
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from s2robot.core.errors import UserError, reported

_SAME = 1e-3  # tolerance in units of `TaskVectors`, where two tasks are about 1 apart


def read_vectors(path: str | Path, texts: Collection[str] = ()) -> dict[str, Tensor]:
    """Return text -> vector (D,), including those of ``texts`` (UserError: missing, different sizes, or not finite)."""
    with reported(f"{path}: expected vectors by text, .npz or .safetensors, got"):
        if Path(path).suffix == ".safetensors":
            vectors = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as file:
                vectors = {text: torch.from_numpy(np.asarray(file[text])) for text in file.files}
    if missing := [text for text in texts if text not in vectors] or ([] if vectors else ["some text"]):
        got = ", ".join(vectors) or "none"
        raise UserError(f"{path}: expected a vector for {str(missing)[1:-1]:.200}, got {got:.200}")
    size = next(iter(vectors.values())).numel()
    for text, vector in vectors.items():
        if vector.shape != (size,) or not size:
            raise UserError(f"{path}: '{text}': expected ({size or 1},), got {tuple(vector.shape)}")
        vectors[text] = vector = vector.float()
        if len(bad := vector[~vector.isfinite()]):
            raise UserError(f"{path}: '{text}': expected finite numbers, got {bad[0]}")
    return vectors


class TaskVectors(nn.Module):
    """A policy's task vectors as network input: centred, with a mean distance of 1 from the centre."""

    def __init__(self, tasks: int, size: int):
        super().__init__()
        self.register_buffer("table", torch.zeros(tasks, size))
        self.register_buffer("middle", torch.zeros(size))
        self.register_buffer("spread", torch.ones(()))
        self.table: Tensor
        self.middle: Tensor
        self.spread: Tensor

    def fit(self, vectors: Tensor) -> None:
        """Set the vectors (tasks, D) of the training tasks."""
        self.middle.copy_(vectors.mean(0))
        distance = (vectors - self.middle).norm(dim=1).mean()
        self.spread.copy_(distance if distance > 0 else torch.ones(()))
        self.table.copy_((vectors - self.middle) / self.spread)

    def forward(self, chosen: Tensor) -> Tensor:
        """One-hot (..., tasks) -> (..., D)."""
        return chosen @ self.table

    def extend(self, where: object, known: Collection[str], vectors: Mapping[str, Tensor]) -> list[str]:
        """Add the vectors of new texts, and return those texts; UserError: a known text has a different vector."""
        if (size := len(next(iter(vectors.values())))) != len(self.middle):
            raise UserError(f"{where}: expected vectors ({len(self.middle)},) as in training, got ({size},)")
        rows = {text: (vector.to(self.table) - self.middle) / self.spread for text, vector in vectors.items()}
        for text, row in zip(known, self.table, strict=True):
            if text in rows and (distance := float((rows.pop(text) - row).norm())) > _SAME:
                expected = "the vector used in training"
                raise UserError(f"{where}: '{text}': expected {expected}, got one {distance:.3g} away")
        self.table = torch.cat([self.table, *(row[None] for row in rows.values())])
        return list(rows)

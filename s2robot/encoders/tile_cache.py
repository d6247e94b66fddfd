"""Encode equal tiles once: rendered frames of a still camera repeat most of their tiles.

    model = TileCache(vit)
    model(tiles)         # as vit(tiles), (n, 3, h, w) -> (n, P + N, D)
    model(more)          # tiles that are among the last ones are not computed again

Tiles must be equal to the last bit. Tiles of a real camera never are; the search then costs a hundredth of the encoding.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class TileCache:
    """A model with the tokens of its last tiles, for one sequence of frames."""

    def __init__(self, model: Callable[[Tensor], Tensor], size: int = 64) -> None:
        """size: tiles to remember; the least recently used ones are dropped first."""
        self.model, self.size = model, size
        self._entries: dict[int, list[Tensor]] = {}  # sum of the bits -> tile and, once computed, its tokens

    def __call__(self, tiles: Tensor) -> Tensor:
        found, new = [], []
        bits = tiles.flatten(1).view(torch.uint8)
        aligned = bits.shape[1] % 8 == 0 and bits.data_ptr() % 8 == 0
        sums = (bits.view(torch.int64) if aligned else bits).sum(1).tolist()
        for tile, key in zip(tiles, sums, strict=True):
            entry = self._entries.pop(key, None)
            if entry is None or not torch.equal(entry[0], tile):
                entry = [tile]
                new.append(entry)
            self._entries[key] = entry  # most recent last
            found.append(entry)
        if new:
            try:
                computed = self.model(torch.stack([entry[0] for entry in new]))
            except BaseException:
                self._entries.clear()  # entries without tokens; a full GPU retries with fewer
                raise
            for entry, tokens in zip(new, computed, strict=True):
                entry.append(tokens)
        for key in list(self._entries)[: -self.size]:
            del self._entries[key]
        return torch.stack([tokens for _, tokens in found])

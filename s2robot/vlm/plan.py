"""Which sizes of a picture a vision tower with S2 looks at, and how many image tokens that gives.

    plan = Plan(tile=336, patch=14, scales=(1, 2, 3))             # CLIP-L of LLaVA-1.5
    plan.layout_of(1008, 1008).grid, plan.layout_of(1008, 1008).tiles         # (24, 24), 14: 576 tokens
    wide = Plan(tile=336, patch=14, scales=(1, 2, 3), layout="dynamic")
    wide.shape(600, 1500)                                         # (2, 5) tiles at the largest scale
    wide.layout_of(672, 1680).grid                                # (16, 40)

"square" is the paper's (arXiv 2403.13043): every scale is a square. "dynamic" is NVILA's Dynamic-S2 (arXiv 2412.04468,
section 2.1.1): the largest scale has as many rows and columns of tiles as fit the picture's shape, the smaller ones stay
squares, the smallest being the thumbnail of the whole picture. All maps are brought to one grid and joined on channels.
Splitting, merging and joining are `s2robot.s2`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from s2robot.common.errors import UserError
from s2robot.s2.layout import Layout, several
from s2robot.s2.pyramid import bicubic, resize
from s2robot.s2.tiling import plan_tiles

LAYOUTS = ("square", "dynamic")
RESIZES = ("native", "reference")


@dataclass(frozen=True)
class Plan:
    """The levels of S2 in a vision tower; UserError for numbers that do not fit together.

    Attributes:
        tile, patch: side of the pictures that the tower was made for, and of a patch, in pixels.
        scales: multiples of the tile, 1 first, smallest first.
        layout: "square" or "dynamic", see the head of this file.
        resize: how levels are made from the picture given: "native" (exact mean of areas, else antialiased) or
            "reference" (bicubic, not antialiased: the authors' way).
        pool: an image token stands for so many by so many tokens of the largest scale. None: the largest scale,
            which keeps the number of tokens of a square. 1: all of them, as in NVILA ahead of its compression.
        most: tiles of the largest scale with "dynamic"; at least as many as the square has are taken.
    """

    tile: int
    patch: int
    scales: tuple[int, ...] = (1, 2, 3)
    layout: str = "square"
    resize: str = "native"
    pool: int | None = None
    most: int = 12

    def __post_init__(self) -> None:
        for name, value, known in (("layout", self.layout, LAYOUTS), ("resize", self.resize, RESIZES)):
            if value not in known:
                raise UserError(f"{name}: found {value!r}, expected one of {', '.join(known)}")
        for name in ("tile", "patch", "most"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise UserError(
                    f"{name}: found {getattr(self, name)!r}, expected a whole number of at least 1"
                )
        if self.tile < self.patch:
            raise UserError(f"tile: found {self.tile} px, expected at least the patch of {self.patch} px")
        whole = all(type(scale) is int for scale in several(self.scales, "scales", "(1, 2, 3)"))
        if not whole or self.scales[:1] != (1,) or list(self.scales) != sorted(set(self.scales)):
            raise UserError(
                f"scales: found {self.scales}, expected whole numbers from 1 upwards, as (1, 2, 3)"
            )
        if type(self.step) is not int or self.step < 1:
            raise UserError(f"pool: found {self.pool!r}, expected a whole number of at least 1")
        if self.layout == "dynamic" and self.most < self.fewest:
            raise UserError(
                f"most: found {self.most} tiles, expected at least the {self.fewest} of the square"
            )
        self._check_divides()

    def _check_divides(self) -> None:
        """UserError where image tokens would be no whole number, or not what Llava's processor counts by pixels."""
        side = self.cells if self.layout == "dynamic" else self.largest * self.cells
        if side % self.step:
            raise UserError(
                f"{self.layout}: {side} tokens a side do not divide by pool {self.step}; choose scales or pool that do"
            )
        pixels = self.largest * self.tile
        if self.layout == "square" and pixels // (self.patch * self.step) != side // self.step:
            raise UserError(
                f"a picture of {pixels} px does not divide into {side // self.step} tokens a side: a tile of "
                f"{self.tile} px has a rest beside its patches of {self.patch} px; leave pool out"
            )

    @property
    def largest(self) -> int:
        """The largest scale."""
        return self.scales[-1]

    @property
    def fewest(self) -> int:
        """Tiles of the largest scale in a square."""
        return self.largest**2

    @property
    def step(self) -> int:
        """`pool`, or its default."""
        return self.largest if self.pool is None else self.pool

    @property
    def cells(self) -> int:
        """Tokens along a tile's side."""
        return self.tile // self.patch

    @property
    def unit(self) -> int:
        """Pixels of a tile's side that are in whole patches: what image sizes are told in."""
        return self.cells * self.patch

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles at the largest scale for a picture of that shape, whatever its size.

        NVILA's rule: the ratio of sides nearest to the picture's, between the square's number of tiles and `most`; of
        two alike the one with more tiles if the picture has more than half their pixels.
        """
        if self.layout == "square":
            return self.largest, self.largest
        if min(height, width) < 1:
            raise UserError(f"a picture of {height} x {width} px has no shape")
        best = (self.largest, self.largest)
        for rows, columns in shapes(self.fewest, self.most):
            off, so_far = abs(width / height - columns / rows), abs(width / height - best[1] / best[0])
            roomy = height * width > self.tile**2 * rows * columns / 2
            if off < so_far or (off == so_far and roomy):
                best = (rows, columns)
        return best

    def layout_of(self, height: int, width: int) -> Layout:
        """Levels of a picture that is whole tiles, and the grid of its tokens; UserError for one that is not."""
        if height % self.tile or width % self.tile or not height or not width:
            raise UserError(
                f"a picture of {height} x {width} px does not divide into tiles of {self.tile} px; "
                f"s2_processor gives {self.largest * self.tile} x {self.largest * self.tile}"
            )
        last = height, width
        if self.layout == "square":
            if height != width:
                raise UserError(
                    f"a picture of {height} x {width} px is not square; resize it, or say layout='dynamic'"
                )
            last = self.largest * self.tile, self.largest * self.tile
        sizes = [(scale * self.tile, scale * self.tile) for scale in self.scales[:-1]] + [last]
        rows, columns = (side // self.tile * self.cells // self.step for side in last)
        levels = tuple(plan_tiles(size, self.tile) for size in sizes)
        return Layout(levels, (self.cells, self.cells), (rows, columns))

    def levels(self, images: Tensor, layout: Layout) -> list[Tensor]:
        """The picture, normalised, (B, 3, H, W), at every level, in its own type."""
        sizes = [level.frame for level in layout.levels]
        if self.resize == "reference":
            return [bicubic(images, size) for size in sizes]
        return [resize(images.float(), size).to(images.dtype) for size in sizes]


def shapes(fewest: int, most: int) -> list[tuple[int, int]]:
    """Rows and columns of all grids of `fewest` to `most` tiles, those with fewer tiles first."""
    counts = range(fewest, most + 1)
    return [(rows, count // rows) for count in counts for rows in range(1, count + 1) if count % rows == 0]


def plan_of(config: Any) -> Plan:
    """The plan that a tower's config (`s2robot.vlm.tower.S2VisionConfig`) tells."""
    tower = config.tower
    return Plan(
        tile=one_number(tower.image_size, "image_size"),
        patch=one_number(tower.patch_size, "patch_size"),
        scales=tuple(config.scales),
        layout=config.layout,
        resize=config.resize,
        pool=config.pool,
        most=config.most,
    )


def one_number(value: int | Sequence[int], name: str) -> int:
    """A side in pixels; UserError for two that differ."""
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise UserError(f"the tower's {name} is {value}, expected a square")
    return sides.pop()

"""Depth and segments of each cell of a frame, as the simulator knows them.

truth = CellBank(bank, grid=8)           # a frame is 8 x 8 cells
truth.fill(seeds, workers=2)             # drawn once, one file an episode, beside the bank's frames
truth.targets(seeds).shape               # (frames, cameras, 64, 6)
"""

import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from s2robot.common.errors import UserError
from s2robot.common.files import replacing
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.renderer import OffscreenRenderer
from s2robot.envs.workers import worker_pool
from s2robot.probing.cell_maps import CLASSES
from s2robot.probing.moments import MomentBank, moments

_PIXELS = 16  # along a side of a cell, drawn to know what is in it
_RENDERERS: dict[str, tuple[CubePick, OffscreenRenderer]] = {}  # what a worker keeps between episodes


class CellBank:
    """What the simulator knows of each cell of a bank's frames; kept in files beside them.

    Args:
        bank: whose moments are looked at.
        grid: cells along a side of a frame.
    """

    def __init__(self, bank: MomentBank, grid: int) -> None:
        if grid < 1:
            raise UserError(f"readout.cells: found {grid}, expected 1 or more, or null")
        self.bank, self.grid = bank, grid

    def fill(
        self,
        seeds: Iterable[int],
        workers: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Draw the episodes that are not there yet."""
        missing = [seed for seed in seeds if self._read(seed) is None]
        if not missing:
            return
        self.bank.path.mkdir(parents=True, exist_ok=True)
        with worker_pool(min(workers, len(missing))) as pool:
            facts = self.bank.world, self.bank.frames, self.grid
            tasks = [(self._file(seed), seed, *facts) for seed in missing]
            for done, _ in enumerate(pool.in_order(_draw_to, tasks), 1):
                progress(done, len(missing))

    def targets(self, seeds: Sequence[int]) -> np.ndarray:
        """Depth (m) and the shares of CLASSES, float32 (seeds * frames, cameras, grid * grid, 6)."""
        found = []
        for seed in seeds:
            cells = self._read(seed)
            if cells is None:
                raise UserError(
                    f"{self._file(seed)}: no cells of seed {seed}, expected them: fill the bank first"
                )
            found.append(cells)
        return np.concatenate(found)

    def _file(self, seed: int) -> Path:
        return self.bank.path / f"{seed}.cells-{self.grid}.npz"

    def _read(self, seed: int) -> np.ndarray | None:
        try:
            return np.load(self._file(seed), allow_pickle=False)["cells"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None  # none yet, or damaged: draw it again


def draw_cells(world: CubePickConfig, seed: int, frames: int, grid: int) -> np.ndarray:
    """The truth of one episode's moments.  # float32 (frames, cameras, grid * grid, 6)"""
    return np.stack([cells_of(env, grid) for env, _ in moments(world, seed, frames)])


def cells_of(env: CubePick, grid: int) -> np.ndarray:
    """Mean depth (m) and shares of CLASSES in each cell of the world's pictures.  # (cameras, grid * grid, 6)"""
    kinds = kinds_of(env)  # (ngeom + 1,), the last for no geom
    found = []
    for camera in env.camera_ids.values():
        depth, geoms = _renderer(env, grid * _PIXELS).truth(env.data, camera)
        shares = np.eye(len(CLASSES))[kinds[geoms]]  # (S, S, 5)
        pixels = np.concatenate([depth[..., None], shares], -1)
        blocks = pixels.reshape(grid, _PIXELS, grid, _PIXELS, -1).mean((1, 3))
        found.append(blocks.reshape(grid * grid, -1))
    return np.stack(found).astype(np.float32)


def kinds_of(env: CubePick) -> np.ndarray:
    """The class of each geom, and of no geom at index -1.  # (ngeom + 1,)"""
    kinds = np.zeros(env.model.ngeom + 1, int)
    prefixes = {"table": "table", "robot": "arm", "fixed_mount": "arm", "gripper": "gripper"}
    for geom in range(env.model.ngeom):
        body = env.model.body(env.model.geom_bodyid[geom]).name
        for prefix, kind in prefixes.items():
            if body.startswith(prefix):
                kinds[geom] = CLASSES.index(kind)
        if geom in env._cube_geoms:
            kinds[geom] = CLASSES.index("cube")
    return kinds


def _renderer(env: CubePick, size: int) -> OffscreenRenderer:
    key = f"{size} {env.config!r}"
    if key not in _RENDERERS or _RENDERERS[key][0] is not env:
        _RENDERERS[key] = env, OffscreenRenderer(env.model, (size, size))
    return _RENDERERS[key][1]


def _draw_to(path: Path, seed: int, world: CubePickConfig, frames: int, grid: int) -> None:
    cells = draw_cells(world, seed, frames, grid)
    with replacing(path, shared=True) as part:
        np.savez_compressed(part, cells=cells)

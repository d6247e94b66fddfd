"""Frames with a known cube, to read encoders out on: random moments of scripted picks that nothing else uses.

bank = MomentBank(cache_dir("readout"), CubePickConfig(image_size=256), frames=6)
bank.fill(range(300_000, 300_100), workers=2)   # draws what is missing, one file an episode
bank.images(300_000).shape                      # uint8 (6, cameras, 256, 256, 3)
bank.labels([300_000, 300_001])["cube_pose"].shape  # (12, 7)
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.common.files import replacing
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.cube_picker import Picker, PickerConfig
from s2robot.envs.tasks import kept
from s2robot.envs.workers import worker_pool

# Below are the seeds of evaluations (10000, 20000) and demos (100000), above those of pre-training scenes.
FIRST_SEED, LAST_SEED = 200_000, 499_999_999
LABELS = ("cube_pose", "gripper", "proprio", "visible", "held", "distance", "step")
_VERSION = 1  # of what a file holds and of how its moments are drawn


class MomentBank:
    """Drawn moments of episodes, one file each, shared by every encoder and every later run.

    Args:
        root: folder of all banks; another world, number of frames or renderer is another folder in it.
        world: what is simulated; `image_size` is the side of the frames.
        frames: moments an episode, drawn uniformly without repetition from all its steps.
    """

    def __init__(self, root: str | Path, world: CubePickConfig, frames: int) -> None:
        self.world, self.frames = world, int(frames)
        facts = [_VERSION, repr(world), repr(PickerConfig()), self.frames, version("mujoco")]
        self.key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        self.path = Path(root) / self.key

    def fill(
        self,
        seeds: Iterable[int],
        workers: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Draw the episodes that are not there yet; returns how many that were.

        Raises UserError if an episode has fewer steps than moments are asked for.
        """
        missing = [seed for seed in seeds if self._read(seed) is None]
        if not missing:
            return 0
        self.path.mkdir(parents=True, exist_ok=True)
        with worker_pool(min(workers, len(missing))) as pool:
            tasks = [(self.path, self.world, seed, self.frames) for seed in missing]
            for done, _ in enumerate(pool.in_order(_draw_to, tasks), 1):
                progress(done, len(missing))
        return len(missing)

    def images(self, seed: int) -> np.ndarray:
        """The frames of one episode.  # uint8 (frames, cameras, S, S, 3)"""
        return self._get(seed)["images"]

    def labels(self, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        """What the simulator knows of the frames of these episodes, n = seeds * frames in all.

        cube_pose (n, 7) and gripper (n, 6) as `draw_episode` says, proprio (n, 8), visible (n, cameras),
        held (n,), distance (n,) in m, step (n,), and episode (n,), the place of the seed in `seeds`.
        """
        rows = [self._get(seed) for seed in seeds]
        labels = {name: np.concatenate([row[name] for row in rows]) for name in LABELS}
        return {**labels, "episode": np.repeat(np.arange(len(rows)), self.frames)}

    def _file(self, seed: int) -> Path:
        return self.path / f"{seed}.npz"

    def _read(self, seed: int) -> Mapping[str, np.ndarray] | None:
        """The arrays of a whole file of this bank (lazily read), None if there is none."""
        try:
            file = np.load(self._file(seed), allow_pickle=False)
            return file if set(file.files) == {"images", *LABELS} else None
        except (OSError, ValueError, zipfile.BadZipFile):
            return None  # none yet, or damaged: draw it again

    def _get(self, seed: int) -> Mapping[str, np.ndarray]:
        found = self._read(seed)
        if found is None:
            raise UserError(
                f"{self._file(seed)}: no frames of seed {seed}, expected them: fill the bank first"
            )
        return found


def draw_episode(world: CubePickConfig, seed: int, frames: int) -> dict[str, np.ndarray]:
    """One scripted pick, with its kicks and misses, drawn at random moments.

    Returns images, uint8 (frames, cameras, S, S, 3); cube_pose (frames, 7) as `CubePick.cube_pose`;
    gripper (frames, 6): grip centre x, y, z (m, table frame), sin and cos of four times its yaw, opening;
    proprio (frames, 8); visible (frames, cameras): how much of the cube's picture nothing hides, 0 to 1;
    held (frames,): both fingers touch it; distance (frames,): grip centre to cube centre, m; step (frames,).
    """
    rows = []
    for env, step in moments(world, seed, frames):
        shown = env.render_cameras()
        rows.append(
            {
                "images": np.stack(list(shown.values())),
                "cube_pose": env.cube_pose,
                "gripper": _gripper(env),
                "proprio": env.proprio,
                "visible": _visible(env, shown),
                "held": env._touching(),
                "distance": np.linalg.norm(env.grip_position - env.cube_pose[:3]),
                "step": step,
            }
        )
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


def moments(world: CubePickConfig, seed: int, frames: int) -> Iterator[tuple[CubePick, int]]:
    """A scripted pick, put to each of its drawn moments in turn: the world, and the step.

    Raises UserError if the episode has fewer steps than moments are asked for.
    """
    env: Any = kept(world, draw=False)
    picker = Picker(env)
    env.reset(seed=seed)
    picker.reset(seed)
    states = [env.get_state()]
    while len(states) <= world.max_steps and not env.is_success:
        env.step_physics(picker.act()[0])
        states.append(env.get_state())
    if frames > len(states):
        raise UserError(
            f"readout.frames: found {frames}, but the pick of seed {seed} has {len(states)} steps"
        )
    rng = np.random.default_rng([seed, 13])  # apart from the picker's own stream
    for step in np.sort(rng.choice(len(states), frames, replace=False)):
        env.set_state(states[step])
        yield env, int(step)


def _gripper(env: CubePick) -> np.ndarray:
    rotation = env.data.site_xmat[env.grip_site].reshape(3, 3)
    yaw = np.arctan2(rotation[1, 1], rotation[0, 1])
    return np.array([*env.grip_position, np.sin(4 * yaw), np.cos(4 * yaw), env.opening])


def _visible(env: CubePick, shown: Mapping[str, np.ndarray]) -> np.ndarray:
    """How much of the cube's picture nothing hides, 0 to 1; 0 too where it is outside the frame.  # (cameras,)

    The cube is drawn alone, which is cheap. Without shadows, reflections and smoothing a pixel of it has the
    same colour in the whole picture, unless something stands before it.
    """
    groups = env.model.geom_group.copy()
    cube = np.isin(np.arange(env.model.ngeom), list(env._cube_geoms))

    def drawn(hidden: np.ndarray) -> dict[str, np.ndarray]:
        env.model.geom_group[hidden] = 5  # a group that is never drawn
        frames = env.render_cameras()
        env.model.geom_group[:] = groups
        return frames

    alone, empty = drawn(~cube), drawn(np.ones_like(cube))
    shares = []
    for name, frame in shown.items():
        whole = (alone[name] != empty[name]).any(-1)  # (S, S)
        shares.append((whole & (frame == alone[name]).all(-1)).sum() / max(whole.sum(), 1))
    return np.array(shares)


def _draw_to(folder: Path, world: CubePickConfig, seed: int, frames: int) -> None:
    arrays = draw_episode(world, seed, frames)
    with replacing(folder / f"{seed}.npz", shared=True) as part:
        np.savez_compressed(part, **arrays)  # pictures of a table shrink to a fifth

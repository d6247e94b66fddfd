"""From recorded states to pictures, and from recorded actions to motion.

``render_episodes`` gives the frames that the cameras saw, drawn again from the states (the same machine and
renderer give the same bytes). ``replay_episode`` plays the actions back open loop: if a dataset's actions do not
lift the cube when they are executed as the environment executes a policy's, no policy trained on them can.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2robot.demos.errors import DatasetError
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, sizes_of
from s2robot.envs.robots import robot_spec
from s2robot.envs.task import as_tuples
from s2robot.envs.workers import worker_pool

if TYPE_CHECKING:  # the simulator is imported where frames are drawn: recorded images need none
    from s2robot.envs.cube_pick import CubePick

_OPEN: dict[tuple, tuple[EpisodeStore, "CubePick | None"]] = {}  # what a worker holds between episodes


def env_config_of(store: EpisodeStore, **changes) -> CubePickConfig:
    """The world that a simulated dataset was recorded in.

    Raises:
        DatasetError: the dataset does not describe a CubePick world.
    """
    stored: dict[str, Any] = {**store.attrs["env_config"], **changes}
    known = CubePickConfig.__dataclass_fields__
    if unknown := sorted(set(stored) - set(known)):
        raise DatasetError(f"{store.path}: env_config holds {unknown}, expected keys of CubePick")
    return CubePickConfig(**as_tuples(stored))


def camera_sizes(store: EpisodeStore, cameras: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(H, W) of each camera's frames: of recorded images, or of the world whose states were recorded."""
    if store.attrs["kind"] == "images":
        return {name: (int(h), int(w)) for name in cameras for h, w in [store.shape(f"images_{name}")[:2]]}
    return sizes_of(env_config_of(store).image_size, cameras)


def episode_frames(
    path: str | Path, episode: int, cameras: tuple[str, ...], image_size: ImageSize
) -> list[np.ndarray]:
    """The frames of one episode, uint8 (T, H, W, 3) a camera.

    Recorded images are read as they are; recorded states are drawn at ``image_size``.

    Raises:
        DatasetError: a camera that the dataset lacks.
    """
    key = (str(path), cameras, str(image_size))
    if key not in _OPEN or episode >= len(_OPEN[key][0]):  # it may have grown since
        store = EpisodeStore.open(path)
        store.check(cameras=cameras)
        states = store.attrs["kind"] == "states"
        _OPEN[key] = (
            store,
            _world(env_config_of(store, cameras=cameras, image_size=image_size)) if states else None,
        )
    store, env = _OPEN[key]
    rows = store.episode_slice(episode)
    if env is None:
        return [store.read(f"images_{c}", rows.start, rows.stop) for c in cameras]
    drawn: list[dict[str, np.ndarray]] = []
    for state in store.read("state", rows.start, rows.stop):
        env.set_state(state)
        drawn.append(env.render_cameras())
    return [np.stack([frames[c] for frames in drawn]) for c in cameras]


def drawn_by(store: EpisodeStore) -> dict[str, Any] | None:
    """All that decides the frames of a dataset beside what it holds: versions, renderer, OpenGL, the hand's camera.

    Recorded images are drawn by nothing: {}. None where nothing can be drawn, for want of the simulator or OpenGL.
    The side cameras stand in the dataset.
    """
    if store.attrs["kind"] != "states":
        return {}
    spec = asdict(robot_spec(store.robot))
    try:
        from s2robot.envs.renderer import LOOK, opengl

        facts: dict[str, Any] = {name: version(name) for name in ("mujoco", "robosuite")}
        facts |= {"look": LOOK, "opengl": opengl()}
    except (ImportError, RuntimeError, EnvError):  # of MuJoCo where there is no screen and no EGL
        return None
    return facts | {"robot": {name: spec[name] for name in spec if name.startswith(("camera_", "base_"))}}


def _world(config: CubePickConfig) -> "CubePick":
    from s2robot.envs.cube_pick import CubePick

    return CubePick(config)


def render_episodes(
    store: EpisodeStore,
    episodes: list[int],
    cameras: tuple[str, ...],
    image_size: ImageSize,
    workers: int = 2,
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(episode, one uint8 (T, H, W, 3) a camera) for each, drawn by worker processes, a few episodes ahead."""
    store.check(cameras=cameras)
    with worker_pool(workers) as pool:
        waiting: list = []
        todo = list(episodes)
        try:
            while todo or waiting:
                while todo and len(waiting) < workers + 2:  # frames are big: do not run far ahead
                    i = todo.pop(0)
                    waiting.append((i, pool.submit(episode_frames, store.path, i, cameras, image_size)))
                i, job = waiting.pop(0)
                yield i, job.result()
        finally:
            pool.shutdown(cancel_futures=True)


def replay_episode(store: EpisodeStore, env: "CubePick", episode: int) -> dict:
    """Execute a demo's actions from its first state.

    Returns ``{"success", "stage", "steps", "max_joint_error"}``; the last is the largest difference in rad
    between replayed and recorded joints (0 for a simulated demo on the machine that recorded it).
    """
    if "state" not in store.keys:
        raise DatasetError(
            f"{store.path}: found no key 'state', expected it: only simulated demos can be replayed"
        )
    arrays = store.episode(episode)
    env.reset(seed=int(store.meta("seed")[episode]))
    env.set_state(arrays["state"][0])
    error = 0.0
    for t, action in enumerate(arrays["action"]):
        error = max(error, float(np.abs(env.proprio[:7] - arrays["proprio"][t, :7]).max()))
        env.step_physics(action)
        if env.is_success:
            break
    return {"success": env.is_success, "stage": env.stage, "steps": t + 1, "max_joint_error": error}

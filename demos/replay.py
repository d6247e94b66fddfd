"""Draw recorded states, and replay recorded actions.

``render_episodes`` draws the cameras' frames from the states (byte by byte the same on the same machine and renderer).
``replay_episode`` executes the actions open loop: if they fail, no policy trained on them can succeed.
"""

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.timing import span
from s2robot.core.workers import worker_pool
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.store import EpisodeStore
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, sizes_of
from s2robot.envs.task import Task, TaskSettings
from s2robot.envs.tasks import make_cached, settings_of

_OPEN: dict[str, EpisodeStore] = {}  # what a worker holds between episodes


def world_of_demos(store: EpisodeStore, **changes: Any) -> TaskSettings:
    """The world that a simulated dataset was recorded in.

    Raises:
        DatasetError: the dataset does not describe a world of a task that is known here.
    """
    try:
        return settings_of(store.attrs["env_config"], f"{store.path}: env_config", **changes)
    except UserError as error:
        raise DatasetError(str(error)) from None


def camera_sizes(
    store: EpisodeStore, cameras: Iterable[str], world: TaskSettings | None = None
) -> dict[str, tuple[int, int]]:
    """(H, W) of each camera's frames: of recorded images, or of the world whose states were recorded."""
    if store.attrs["kind"] == "images":
        return {name: (int(h), int(w)) for name in cameras for h, w in [store.shape(f"images_{name}")[:2]]}
    return sizes_of((world or world_of_demos(store)).image_size, cameras)


def episode_frames(
    path: str | Path,
    episode: int,
    cameras: tuple[str, ...],
    image_size: ImageSize,
    world: TaskSettings | None = None,
) -> list[np.ndarray]:
    """The frames of one episode, uint8 (T, H, W, 3) a camera.

    Recorded images are read as they are; recorded states are drawn at ``image_size``, in the dataset's world; ``world`` is
    it where only the caller knows the task.

    Raises:
        DatasetError: a camera that the dataset lacks.
    """
    store = _OPEN.get(str(path))
    if store is None or episode >= len(store):  # it may have grown since
        store = _OPEN[str(path)] = EpisodeStore.open(path)
    store.check(cameras=cameras)
    return frames_of(*seen_of(store, episode, cameras, image_size, world), episode)


def seen_of(
    store: EpisodeStore,
    episode: int,
    cameras: tuple[str, ...],
    image_size: ImageSize,
    world: TaskSettings | None = None,
) -> tuple[list[np.ndarray], TaskSettings | None]:
    """All that :func:`frames_of` needs, wherever that is: the frames of an episode, or its states and their world."""
    rows = store.episode_slice(episode)
    if store.attrs["kind"] != "states":
        return [store.read(f"images_{c}", rows.start, rows.stop) for c in cameras], None
    own: Any = world_of_demos(store) if world is None else world
    return [store.read("state", rows.start, rows.stop)], own.replace(cameras=cameras, image_size=image_size)


def frames_of(seen: list[np.ndarray], world: TaskSettings | None, episode: int = 0) -> list[np.ndarray]:
    """The frames of an episode, uint8 (T, H, W, 3) a camera, from what :func:`seen_of` gave; ``episode`` names it in a trace."""
    if world is None:
        return seen
    env, drawn = make_cached(world), list[dict[str, np.ndarray]]()
    with span("draw", episode=episode):
        for state in seen[0]:
            env.set_state(state)
            drawn.append(env.render_cameras())
    return [np.stack([frames[c] for frames in drawn]) for c in world.cameras]


def drawn_by(store: EpisodeStore) -> dict[str, Any] | None:
    """All that decides the frames of a dataset beside what it holds: versions, renderer, OpenGL, what the task says.

    Recorded images are drawn by nothing: {}. None where nothing can be drawn, for want of the simulator or OpenGL.
    """
    if store.attrs["kind"] != "states":
        return {}
    try:
        from s2robot.envs.renderer import LOOK, opengl

        facts: dict[str, Any] = {name: version(name) for name in ("mujoco", "robosuite")}
        facts |= {"look": LOOK, "opengl": opengl()}
    except (ImportError, RuntimeError, EnvError):  # of MuJoCo where there is no screen and no EGL
        return None
    return facts | world_of_demos(store).appearance()


def render_episodes(
    store: EpisodeStore,
    episodes: list[int],
    cameras: tuple[str, ...],
    image_size: ImageSize,
    workers: int = 2,
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(episode, one uint8 (T, H, W, 3) a camera) for each, drawn by worker processes, a few episodes ahead."""
    store.check(cameras=cameras)
    world = world_of_demos(store) if store.attrs["kind"] == "states" else None
    with worker_pool(workers) as pool:
        tasks = [(store.path, i, cameras, image_size, world) for i in episodes]
        yield from zip(episodes, pool.in_order(episode_frames, tasks), strict=True)


def replay_episode(store: EpisodeStore, env: Task, episode: int) -> dict:
    """Execute a demo's actions from its first state.

    Returns ``{"success", "stage", "steps", "max_error"}``; the last is the largest difference
    between replayed and recorded proprioception (0 for a simulated demo on the machine that recorded it).
    """
    if "state" not in store.keys:
        raise mismatch(store.path, "no key 'state'", "it: only simulated demos can be replayed")
    arrays, error = store.episode(episode), 0.0
    env.reset(seed=int(store.meta("seed")[episode]))
    env.set_state(arrays["state"][0])
    for t, action in enumerate(arrays["action"]):
        error = max(error, float(np.abs(env.proprio - arrays["proprio"][t]).max()))
        env.step_physics(action)
        if env.is_success:
            break
    return {"success": env.is_success, "stage": env.stage, "steps": t + 1, "max_error": error}

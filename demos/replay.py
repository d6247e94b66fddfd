"""Render recorded states, replay recorded actions, and read the initial step of episodes."""

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.timing import span
from s2robot.core.workers import worker_pool
from s2robot.demos.store import EpisodeStore
from s2robot.envs.errors import EnvError
from s2robot.envs.frames import ImageSize, sizes_of
from s2robot.envs.task import Task, TaskSettings
from s2robot.envs.tasks import make_cached, settings_class_or_base, settings_of

World = TaskSettings | None  # None: the dataset's own
_OPEN: dict[Path, tuple[int, EpisodeStore]] = {}  # datasets that a worker keeps open between episodes


def world_of_demos(store: EpisodeStore, **changes: Any) -> TaskSettings:
    """Return the world that a simulated dataset was recorded in (UserError: its task is unknown)."""
    return settings_of(store.attrs["env_config"], f"{store.path}: env_config", **changes)


def task_of(store: EpisodeStore) -> type[TaskSettings]:
    """Return the settings class of a dataset's task, the base class if the task is unknown."""
    return settings_class_or_base(store.attrs["env_config"].get("task"))


def starts(store: EpisodeStore, count: int | None = None) -> list[dict[str, Any]]:
    """Return the first step, and any stored layout, of the first ``count`` episodes: input of ``layout_of``."""
    keys = [key for key in store.keys if not key.startswith("images_")]
    names = store.attrs.get("layout_names", [])
    layouts = store.meta("layout").tolist() if "layout" in store.meta_keys else [[]] * len(store)
    firsts = [store.episode_slice(i).start for i in range(len(store))[:count]]
    return [
        {"layout": dict(zip(names, layout, strict=True)), **{k: store.read(k, at, at + 1)[0] for k in keys}}
        for at, layout in zip(firsts, layouts[:count], strict=True)
    ]


def camera_sizes(
    store: EpisodeStore, cameras: Iterable[str], world: World = None
) -> dict[str, tuple[int, int]]:
    """Return (H, W) of each camera, for recorded images or as rendered from states."""
    if store.attrs["kind"] == "images":
        return {name: (int(h), int(w)) for name in cameras for h, w in [store.shape(f"images_{name}")[:2]]}
    return sizes_of((world or world_of_demos(store)).image_size, cameras)


def episode_frames(
    path: str | Path, episode: int, cameras: tuple[str, ...], image_size: ImageSize, world: World = None
) -> list[np.ndarray]:
    """Return the frames of one episode, uint8 (T, H, W, 3) per camera; DatasetError: a camera is missing.

    Recorded states are rendered at ``image_size`` in ``world``, by default that of the dataset.
    """
    store = open_cached(path, episode)
    store.check(cameras=cameras)
    return frames_of(*frame_inputs(store, episode, cameras, image_size, world), episode)


def open_cached(path: str | Path, episode: int) -> EpisodeStore:
    """Return the dataset of an episode; a worker keeps it open between episodes."""
    file = Path(path).resolve() / "zarr.json"
    modified = file.stat().st_mtime_ns if file.exists() else 0  # another dataset may have replaced it
    known, store = _OPEN.get(file, (0, None))
    if store is None or known != modified or episode >= len(store):  # it may have grown since
        store = EpisodeStore.open(path)
        _OPEN[file] = modified, store
    return store


def frame_inputs(
    store: EpisodeStore, episode: int, cameras: tuple[str, ...], image_size: ImageSize, world: World = None
) -> tuple[list[np.ndarray], TaskSettings | None]:
    """Return the arguments of :func:`frames_of`, which may run elsewhere: the frames, or the states and world."""
    rows = store.episode_slice(episode)
    if store.attrs["kind"] != "states":
        return [store.read(f"images_{c}", rows.start, rows.stop) for c in cameras], None
    drawn = (world or world_of_demos(store)).replace(cameras=cameras, image_size=image_size)
    return [store.read("state", rows.start, rows.stop)], drawn


def frames_of(seen: list[np.ndarray], world: TaskSettings | None, episode: int = 0) -> list[np.ndarray]:
    """Return an episode's frames from the output of :func:`frame_inputs`; ``episode``: its number in the trace."""
    if world is None:
        return seen
    env, drawn = make_cached(world), list[dict[str, np.ndarray]]()
    with span("draw", episode=episode):
        for state in seen[0]:
            env.set_state(state)
            drawn.append(env.render_cameras())
    return [np.stack([frames[c] for frames in drawn]) for c in world.cameras]


def drawn_by(store: EpisodeStore) -> dict[str, Any] | None:
    """Return the versions and settings that affect rendered frames; {} for recorded images, None without OpenGL."""
    if store.attrs["kind"] != "states":
        return {}
    try:
        from s2robot.envs.renderer import LOOK, opengl

        facts: dict[str, Any] = {name: version(name) for name in ("mujoco", "robosuite")}
        facts |= {"look": LOOK, "opengl": opengl()}
    except (ImportError, RuntimeError, EnvError):  # MuJoCo with neither a display nor EGL
        return None
    return facts | world_of_demos(store).appearance()


def render_episodes(
    store: EpisodeStore, episodes: list[int], cameras: tuple[str, ...], image_size: ImageSize, workers: int
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (episode, frames) in order; worker processes render a few episodes ahead."""
    store.check(cameras=cameras)
    world = world_of_demos(store) if store.attrs["kind"] == "states" else None
    with worker_pool(workers) as pool:
        tasks = [(store.path, i, cameras, image_size, world) for i in episodes]
        yield from zip(episodes, pool.in_order(episode_frames, tasks), strict=True)


def follow_episode(store: EpisodeStore, env: Task, episode: int) -> np.ndarray:
    """Execute an episode's actions from another start; return the proprio error in the second half.  # (steps, P)"""
    arrays, errors = store.episode(episode), []
    env.reset(seed=episode)
    for action, recorded in zip(arrays["action"], arrays["proprio"], strict=True):
        errors.append(np.abs(env.proprio - recorded))
        env.step_physics(action)
        if env.is_success:
            break
    return np.array(errors[len(errors) // 2 :])


def replay_episode(store: EpisodeStore, env: Task, episode: int) -> dict:
    """Execute an episode's actions from its first state; return ``{"success", "stage", "steps", "max_error"}``.

    `max_error`: largest difference from the recorded proprioception, 0 on the machine that recorded the episode.
    """
    arrays, rows, error = store.episode(episode), store.episode_slice(episode), 0.0
    env.reset(seed=int(store.meta("seed")[episode]))
    env.set_state(store.read("state", rows.start, rows.start + 1)[0])
    for t, action in enumerate(arrays["action"]):
        error = max(error, float(np.abs(env.proprio - arrays["proprio"][t]).max()))
        env.step_physics(action)
        if env.is_success:
            break
    return {"success": env.is_success, "stage": env.stage, "steps": t + 1, "max_error": error}

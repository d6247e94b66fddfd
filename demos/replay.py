"""Render recorded states, replay recorded actions, and find how episodes began."""

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
_OPEN: dict[Path, tuple[int, EpisodeStore]] = {}  # kept open by a worker between episodes


def world_of_demos(store: EpisodeStore, **changes: Any) -> TaskSettings:
    """Return the world that a simulated dataset was recorded in (UserError: none of a known task)."""
    return settings_of(store.attrs["env_config"], f"{store.path}: env_config", **changes)


def task_of(store: EpisodeStore) -> type[TaskSettings]:
    """Return the settings class of a dataset's task, the base class if the task is unknown."""
    return settings_class_or_base(store.attrs["env_config"].get("task"))


def starts(store: EpisodeStore, count: int | None = None) -> list[dict[str, Any]]:
    """Return the first step of each of the first ``count`` episodes, by default all, and its layout if stored, as ``task_of(store).layout_of`` reads them."""
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
    """Return (H, W) of each camera: of the recorded images, or as the world renders the states."""
    if store.attrs["kind"] == "images":
        return {name: (int(h), int(w)) for name in cameras for h, w in [store.shape(f"images_{name}")[:2]]}
    return sizes_of((world or world_of_demos(store)).image_size, cameras)


def episode_frames(
    path: str | Path, episode: int, cameras: tuple[str, ...], image_size: ImageSize, world: World = None
) -> list[np.ndarray]:
    """Return the frames of one episode, uint8 (T, H, W, 3) per camera; DatasetError: a camera that the dataset lacks.

    Recorded states are rendered at ``image_size`` in ``world``, by default the dataset's own.
    """
    store = opened(path, episode)
    store.check(cameras=cameras)
    return frames_of(*seen_of(store, episode, cameras, image_size, world), episode)


def opened(path: str | Path, episode: int) -> EpisodeStore:
    """Return the dataset of an episode, which a worker keeps open between episodes."""
    file = Path(path).resolve() / "zarr.json"
    made = file.stat().st_mtime_ns if file.exists() else 0  # another dataset may stand there by now
    known, store = _OPEN.get(file, (0, None))
    if store is None or known != made or episode >= len(store):  # it may have grown since
        store = EpisodeStore.open(path)
        _OPEN[file] = made, store
    return store


def seen_of(
    store: EpisodeStore, episode: int, cameras: tuple[str, ...], image_size: ImageSize, world: World = None
) -> tuple[list[np.ndarray], TaskSettings | None]:
    """Return the input of :func:`frames_of`, which may run elsewhere: an episode's frames, or its states and world."""
    rows = store.episode_slice(episode)
    if store.attrs["kind"] != "states":
        return [store.read(f"images_{c}", rows.start, rows.stop) for c in cameras], None
    own: Any = world_of_demos(store) if world is None else world
    return [store.read("state", rows.start, rows.stop)], own.replace(cameras=cameras, image_size=image_size)


def frames_of(seen: list[np.ndarray], world: TaskSettings | None, episode: int = 0) -> list[np.ndarray]:
    """Return an episode's frames from the output of :func:`seen_of`; ``episode`` is its number in a trace."""
    if world is None:
        return seen
    env, drawn = make_cached(world), list[dict[str, np.ndarray]]()
    with span("draw", episode=episode):
        for state in seen[0]:
            env.set_state(state)
            drawn.append(env.render_cameras())
    return [np.stack([frames[c] for frames in drawn]) for c in world.cameras]


def drawn_by(store: EpisodeStore) -> dict[str, Any] | None:
    """Return what decides the frames besides the contents, {} for recorded images; None without a simulator or OpenGL."""
    if store.attrs["kind"] != "states":
        return {}
    try:
        from s2robot.envs.renderer import LOOK, opengl

        facts: dict[str, Any] = {name: version(name) for name in ("mujoco", "robosuite")}
        facts |= {"look": LOOK, "opengl": opengl()}
    except (ImportError, RuntimeError, EnvError):  # MuJoCo without a screen and without EGL
        return None
    return facts | world_of_demos(store).appearance()


def render_episodes(
    store: EpisodeStore, episodes: list[int], cameras: tuple[str, ...], image_size: ImageSize, workers: int
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield (episode, its frames) in order, rendered by worker processes a few episodes ahead."""
    store.check(cameras=cameras)
    world = world_of_demos(store) if store.attrs["kind"] == "states" else None
    with worker_pool(workers) as pool:
        tasks = [(store.path, i, cameras, image_size, world) for i in episodes]
        yield from zip(episodes, pool.in_order(episode_frames, tasks), strict=True)


def follow_episode(store: EpisodeStore, env: Task, episode: int) -> np.ndarray:
    """Execute an episode's actions from another start; returns how far the proprioception is from the recorded one in the second half.
    # (steps, P)"""
    arrays, far = store.episode(episode), []
    env.reset(seed=episode)
    for action, recorded in zip(arrays["action"], arrays["proprio"], strict=True):
        far.append(np.abs(env.proprio - recorded))
        env.step_physics(action)
        if env.is_success:
            break
    return np.array(far[len(far) // 2 :])


def replay_episode(store: EpisodeStore, env: Task, episode: int) -> dict:
    """Execute an episode's actions from its first state; returns ``{"success", "stage", "steps", "max_error"}``.

    The last is the largest difference from recorded proprioception, 0 on the machine that recorded the episode.
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

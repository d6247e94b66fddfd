"""Episodes run again from seed and actions, to draw every step: videos of an evaluation, a comparison, a replayed demo."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.workers import worker_pool
from s2robot.envs.frames import at_height
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import make
from s2robot.evaluation.video import write_video

if TYPE_CHECKING:  # each process that films would load torch
    from s2robot.evaluation.rollouts import Rollouts


def rerun(
    world: TaskSettings, record: Mapping[str, Any], actions: np.ndarray
) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """Run an episode again from its seed and its actions (T, A): images by camera and stage, T + 1 of each."""
    env = make(world)
    observation, _ = env.reset(seed=record["seed"])
    frames, stages = [observation["images"]], [env.stage]
    for action in actions:
        observation, *_ = env.step(action)
        frames.append(observation["images"])
        stages.append(env.stage)
    env.close()
    return frames, stages


def film(world: TaskSettings, record: Mapping[str, Any], actions: np.ndarray, path: Path) -> Path:
    """Run an episode again and write it as a video at the image size of the world.

    Raises:
        UserError: the episode ends in another stage than its record says.
    """
    frames, stages = rerun(world, record, actions)
    if stages[-1] != record["stage"]:
        raise UserError(
            f"{path}: seed {record['seed']}: expected stage {record['stage']} at the end, as recorded, got "
            f"{stages[-1]}; the simulation is not repeatable here"
        )
    return write_video(path, frames, record, stages=stages, rate=world.rate_hz)


def film_some(
    world: TaskSettings,
    rollouts: "Rollouts",
    count: int,
    size: int,
    out: Path,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, str]:
    """Write videos of ``count`` episodes, failures first, into ``out/videos``: episode -> path relative to ``out``."""
    chosen = sorted(rollouts.records, key=lambda r: (r["success"], r["episode"]))[:count]
    config: Any = world.replace(image_size=at_height(world.image_size, world.cameras, size))
    names = {r["episode"]: f"videos/episode_{r['episode']:04d}.mp4" for r in chosen}
    tasks = [(config, r, rollouts.actions[r["episode"]], out / names[r["episode"]]) for r in chosen]
    with worker_pool(workers) as pool:
        for done, _ in enumerate(pool.in_order(film, tasks), 1):
            progress(done, len(chosen))
    return names

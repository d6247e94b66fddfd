"""Episodes run again from seed and actions, to draw every step: videos of an evaluation, of a replayed demo."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.core.workers import worker_pool
from s2robot.envs.frames import at_height
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import make
from s2robot.evaluation.video import write_video

if TYPE_CHECKING:  # each process that films would load torch
    from s2robot.evaluation.rollouts import Rollouts


def rerun(
    env_config: TaskSettings, record: Mapping[str, Any], actions: np.ndarray
) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """Run an episode again from its seed and its actions (T, A): pictures by camera and stage, T + 1 of each."""
    env = make(env_config)
    observation, _ = env.reset(seed=record["seed"])
    frames, stages = [observation["images"]], [env.stage]
    for action in actions:
        observation, *_ = env.step(action)
        frames.append(observation["images"])
        stages.append(env.stage)
    env.close()
    return frames, stages


def film(env_config: TaskSettings, record: Mapping[str, Any], actions: np.ndarray, path: Path) -> str:
    """Run an episode again, drawing every step; returns the stage it reached."""
    frames, stages = rerun(env_config, record, actions)
    write_video(path, frames, record, stages=stages, rate=env_config.rate_hz)
    return stages[-1]


def film_some(
    env_config: TaskSettings,
    rollouts: "Rollouts",
    count: int,
    size: int,
    out: Path,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, str]:
    """Videos of ``count`` episodes, failures first, into ``out/videos``: episode -> path relative to ``out``.

    Raises:
        UserError: an episode ends in another stage than its record says.
    """
    chosen = sorted(rollouts.records, key=lambda r: (r["success"], r["episode"]))[:count]
    (out / "videos").mkdir(parents=True, exist_ok=True)
    shapes = at_height(env_config.image_size, env_config.cameras, size)
    config: Any = env_config.replace(image_size=shapes)
    names = {r["episode"]: f"videos/episode_{r['episode']:04d}.mp4" for r in chosen}
    tasks = [(config, r, rollouts.actions[r["episode"]], out / names[r["episode"]]) for r in chosen]
    with worker_pool(workers) as pool:
        for done, (record, stage) in enumerate(zip(chosen, pool.in_order(film, tasks), strict=True), 1):
            if stage != record["stage"]:
                raise UserError(
                    f"{names[record['episode']]}: episode {record['episode']} ended in stage {stage} when run again, "
                    f"{record['stage']} before; the simulation is not repeatable here"
                )
            progress(done, len(chosen))
    return names

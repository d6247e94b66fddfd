"""Record scripted demos into an episode store.

Every step holds the observation *before* the action: ``state`` (all of MuJoCo's, so that frames can be drawn
again later, bit for bit), ``proprio``, ``cube_pose``; and the ``action`` that was executed. ``perturbed`` marks
the steps in which the picker was pushed off its way: they are kept so that an open-loop replay is exact, and
training never imitates them (demos/windows.py), only the recovery that follows.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from s2robot.demos.errors import DatasetError
from s2robot.demos.picker import Picker, PickerConfig
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.workers import worker_pool

_WORLDS: dict[tuple, tuple[CubePick, Picker]] = {}  # a worker's world, kept between its episodes


def record_episode(env_config: CubePickConfig, picker_config: PickerConfig, seed: int) -> tuple[dict, dict]:
    """One scripted episode: arrays over time and ``{"seed", "success"}``."""
    key = (repr(env_config), repr(picker_config))
    if key not in _WORLDS:
        env = CubePick(env_config, draw=False)
        _WORLDS[key] = env, Picker(env, picker_config)
    env, picker = _WORLDS[key]
    env.reset(seed=seed)
    picker.reset(seed)
    steps: dict[str, list] = {"state": [], "proprio": [], "cube_pose": [], "action": [], "perturbed": []}
    for _ in range(env.config.max_steps):
        action, perturbed = picker.act()
        for name, value in (
            ("state", env.get_state()),
            ("proprio", env.proprio),
            ("cube_pose", env.cube_pose),
            ("action", action),
            ("perturbed", np.uint8(perturbed)),
        ):
            steps[name].append(value)
        env.step_physics(action)
        if env.is_success:
            break
    return {k: np.stack(v) for k, v in steps.items()}, {"seed": seed, "success": env.is_success}


def record(
    path: str | Path,
    env_config: CubePickConfig,
    picker_config: PickerConfig,
    episodes: int,
    seed: int,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, failed: None,
) -> EpisodeStore:
    """Record ``episodes`` successful demos with seeds ``seed``, ``seed + 1``, ... into a new store.

    A failed attempt is left out and the next seed takes its place. The result depends on the seed, not on the
    number of workers. ``progress(done, failed)`` is called after each episode.

    Raises:
        DatasetError: the path exists, the disk is full (earlier episodes stay), or the picker fails too often.
    """
    if env_config.clutter:  # where it lay is no part of a state, so the frames could not be drawn again
        raise DatasetError(
            f"{path}: found env.clutter {env_config.clutter}, expected 0: demos hold states only"
        )
    env = CubePick(env_config)
    attributes = {**env.describe(), "seed": seed, "kind": "states", "picker": picker_config.__dict__}
    store = EpisodeStore.create(path, attributes)
    failed = 0
    with worker_pool(workers) as pool:
        jobs = [pool.submit(record_episode, env_config, picker_config, seed + i) for i in range(episodes)]
        submitted = episodes
        try:
            while jobs:
                arrays, meta = jobs.pop(0).result()
                if meta["success"]:
                    store.append(arrays, meta)
                else:
                    failed += 1
                    if failed > max(10, episodes // 2):
                        raise DatasetError(
                            f"{path}: the picker failed {failed} of {len(store) + failed} episodes; "
                            "check env.box_x, env.box_y and the robot"
                        )
                    jobs.append(pool.submit(record_episode, env_config, picker_config, seed + submitted))
                    submitted += 1
                progress(len(store), failed)
        finally:
            pool.shutdown(cancel_futures=True)
    return store

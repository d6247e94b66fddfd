"""Success of a policy over a fixed, seeded list of positions.

    s2robot evaluate checkpoint=runs/run/<date>/checkpoint evaluate.episodes=128

Worker processes simulate and draw, one world each; this process encodes and plans for all of them.
Episode i has the seed ``evaluate.seed + i``, which alone decides its layout, start and course: every policy
meets the same positions. Each record is on disk when its episode ends: after a kill the same command goes on, and
loses at most the episodes in progress, one for each of ``evaluate.workers``.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from s2robot.envs.chunk import in_chunks
from s2robot.envs.task import TaskSettings
from s2robot.envs.workers import one_thread_each
from s2robot.evaluation.journal import Journal
from s2robot.evaluation.planners import Planner


@dataclass(frozen=True)
class Rollouts:
    """The outcome of :func:`run_episodes`: records sorted by episode, actions to draw videos, seconds."""

    records: list[dict[str, Any]]
    actions: dict[int, np.ndarray]  # episode -> float32 (steps, A)
    seconds: dict[str, float]


def run_episodes(
    env_config: TaskSettings,
    planner: Planner,
    episodes: int,
    seed: int,
    workers: int,
    journal: Path,
    progress: Callable[[int, int], None] = lambda done, successes: None,
    settings: Mapping[str, Any] | None = None,
) -> Rollouts:
    """Try every position once; each ended episode is appended to ``journal`` (JSON lines) at once.

    ``settings``: all that decides an episode, as JSON types. With them, episodes that stand in the journal already
    are not run again; without, the journal is begun anew.

    Raises:
        UserError: the journal is of other settings.
    """
    kept = Journal(journal, settings)

    def tell() -> None:
        done = [record for episode, record in kept.records.items() if episode < episodes]
        progress(len(done), sum(record["success"] for record in done))

    seconds = 0.0
    if todo := [e for e in range(episodes) if e not in kept.records]:
        with Worlds(env_config, planner, seed, max(1, min(workers, len(todo)))) as worlds:
            for record, actions in worlds.run(todo):
                kept.append(record, actions)
                tell()
            seconds = worlds.seconds
    else:
        tell()
    records = [kept.records[e] for e in range(episodes)]
    return Rollouts(records, {e: kept.actions[e] for e in range(episodes)}, {"simulate_s": seconds})


class Worlds:
    """Worlds side by side, a process each; a place takes the next episode when its own has ended.

    Args:
        config: of every world.
        planner: who acts in them.
        seed: of episode 0; episode i has seed + i.
        count: of places.

    `seconds` is how long this process waited for the simulation.
    """

    def __init__(self, config: TaskSettings, planner: Planner, seed: int, count: int) -> None:
        self.config, self.planner, self.seed, self.count = config, planner, seed, count
        make = [partial(in_chunks, config, planner.execute, planner.every_step)] * count
        with one_thread_each():
            self._worlds = AsyncVectorEnv(make, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
        self.seconds = 0.0
        self._episodes: dict[int, int] = {}  # place -> the episode that runs there
        self._layouts: dict[int, dict[str, float]] = {}  # place -> where its episode began
        self._actions: dict[int, list[np.ndarray]] = {}  # place -> executed so far, (execute, A) each
        self._batch: dict[str, Any] = {}  # the newest observations of all places
        self._points: dict[str, np.ndarray] = {}  # camera -> where the gripper shows (places, 2)

    def __enter__(self) -> "Worlds":
        return self

    def __exit__(self, *error: object) -> None:
        self._worlds.close(terminate=True)

    def run(self, todo: Sequence[int]) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Each episode's record and its actions, float32 (steps, A), as it ends."""
        waiting = list(todo)
        free = list(range(self.count))
        while waiting or self._episodes:
            if begin := free[: len(waiting)]:
                self._begin(begin, waiting[: len(begin)])
                del waiting[: len(begin)]
            free = []
            ended, infos = self._step()
            for place in ended:
                episode, executed = self._episodes.pop(place), self._actions.pop(place)
                record = _record(episode, self.seed, infos, place, self.config.rate_hz)
                yield record | self.planner.about(place), np.concatenate(executed)[: record["steps"]]
                free.append(place)

    def _begin(self, places: list[int], episodes: list[int]) -> None:
        """New episodes at these places; the others wait."""
        self._episodes.update(zip(places, episodes, strict=True))
        seeds = [self.seed + self._episodes[i] if i in places else None for i in range(self.count)]
        mask = np.isin(np.arange(self.count), places)
        start = time.monotonic()
        self._batch, infos = self._worlds.reset(seed=seeds, options={"reset_mask": mask})
        self.seconds += time.monotonic() - start
        for camera in self._batch["images"] if "grip_points" in infos else ():
            points = infos["grip_points"][camera]
            self._points.setdefault(camera, points)[places] = points[places]
        for i in places:
            self._layouts[i], self._actions[i] = json.loads(infos["layout"][i]), []
        about = [{"layout": self._layouts[i], "seed": self.seed + self._episodes[i]} for i in places]
        self.planner.reset(places, about)

    def _step(self) -> tuple[list[int], dict[str, Any]]:
        """One plan at every place where an episode runs; the places where it ended, and what is known of them."""
        busy = list(self._episodes)
        space: Any = self._worlds.single_action_space
        actions = np.zeros((self.count, *space.shape), np.float32)  # (n, execute, A)
        actions[busy] = self.planner.plan(busy, [self._observation(i) for i in busy])
        start = time.monotonic()
        self._batch, _, success, over, infos = self._worlds.step(actions)
        self.seconds += time.monotonic() - start
        self._points = infos.get("grip_points", {})
        for i in busy:
            self._actions[i].append(actions[i])
        return [i for i in busy if success[i] or over[i]], infos

    def _observation(self, i: int) -> dict[str, Any]:
        """Of place ``i``, and where its newest frames show the gripper."""
        images = {name: frames[i] for name, frames in self._batch["images"].items()}
        points = {name: self._points[name][i] for name in images if name in self._points}
        count = int(self._batch["count"][i])
        return {"images": images, "proprio": self._batch["proprio"][i], "count": count, "points": points}


def _record(episode: int, seed: int, infos: dict, i: int, rate: float) -> dict:
    success, steps = bool(infos["is_success"][i]), int(infos["steps"][i])
    return {
        "episode": episode,
        "seed": seed + episode,
        **json.loads(infos["where"][i]),
        "success": success,
        "stage": str(infos["stage"][i]),
        "steps": steps,
        "time_to_success_s": steps / rate if success else None,
        **json.loads(infos["best"][i]),
        "video": None,
    }

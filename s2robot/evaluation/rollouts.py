"""Success of a policy over a fixed, seeded list of positions.

An episode is a task for a worker, which simulates, draws, encodes and plans in one process. Episode i has the seed
``evaluate.seed + i``, which alone decides its layout, start and course: every policy meets the same positions. Each record
is on disk when its episode ends: after a kill the same command resumes, and loses only the episodes in progress.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.core.timing import span
from s2robot.core.workers import worker_pool
from s2robot.envs.chunk import in_chunks
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.journal import Journal
from s2robot.evaluation.planners import Planner


@dataclass(frozen=True)
class Rollouts:
    """The outcome of :func:`run_episodes`."""

    records: list[dict[str, Any]]  # sorted by episode
    actions: dict[int, np.ndarray]  # episode -> float32 (steps, A)
    spent: dict[str, float]  # seconds of all workers together and counts, of the episodes that ran now


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

    ``settings``: all that decides an episode, as JSON types. With them, episodes in the journal are not run again
    (UserError if it has other settings); without, the journal is emptied.
    """
    kept = Journal(journal, settings)

    def tell() -> None:
        done = [record for episode, record in kept.records.items() if episode < episodes]
        progress(len(done), sum(record["success"] for record in done))

    spent = Counter({"simulate_s": 0.0})
    todo = [(e, seed + e) for e in range(episodes) if e not in kept.records]
    if not todo:
        tell()
    state = partial(World, env_config, planner)
    with worker_pool(min(workers, len(todo)), state, encodes=True, anywhere=True) as pool:
        for _, (record, actions, costs) in pool.as_done(World.run, todo):
            kept.append(record, actions)
            spent.update(costs)
            tell()
    records = [kept.records[e] for e in range(episodes)]
    return Rollouts(records, {e: kept.actions[e] for e in range(episodes)}, dict(spent))


class World:
    """A world and its planner, one episode after another: the state of a worker."""

    def __init__(self, config: TaskSettings, planner: Planner) -> None:
        self.planner, self.rate = planner, config.rate_hz
        self.env = in_chunks(config, planner.execute, planner.every_step)

    def run(self, episode: int, seed: int) -> tuple[dict[str, Any], np.ndarray, dict[str, float]]:
        """Return an episode's record, its actions, float32 (steps, A), and what it cost."""
        with span("episode", episode=episode, seed=seed):
            return self._run(episode, seed)

    def _run(self, episode: int, seed: int) -> tuple[dict[str, Any], np.ndarray, dict[str, float]]:
        before, start, planning = self.planner.spent(), time.monotonic(), 0.0
        observation, info = self.env.reset(seed=seed)
        self.planner.reset({"layout": json.loads(info["layout"]), "seed": seed})
        executed: list[np.ndarray] = []  # (execute, A) each
        over = False
        while not over:
            began = time.monotonic()
            with span("plan"):
                executed.append(self.planner.plan(observation))
            planning += time.monotonic() - began
            observation, _, success, late, info = self.env.step(executed[-1])
            over = success or late
        record = _record(episode, seed, info, self.rate) | self.planner.about()
        costs = {key: value - before[key] for key, value in self.planner.spent().items()}
        costs["simulate_s"] = time.monotonic() - start - planning
        return record, np.concatenate(executed)[: record["steps"]], costs


def _record(episode: int, seed: int, info: Mapping[str, Any], rate: float) -> dict[str, Any]:
    success, steps = bool(info["is_success"]), int(info["steps"])
    return {
        "episode": episode,
        "seed": seed,
        **json.loads(info["where"]),
        "success": success,
        "stage": str(info["stage"]),
        "steps": steps,
        "time_to_success_s": steps / rate if success else None,
        **json.loads(info["best"]),
        "video": None,
    }

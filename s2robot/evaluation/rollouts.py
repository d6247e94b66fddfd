"""Rollouts of a policy over a fixed, seeded list of positions, and the planners that act in them.

A worker simulates, renders, encodes and plans an episode in one process. The seed of episode i is ``evaluate.seed + i``. It
alone determines the layout, start and course, so every policy is evaluated on the same positions. Each record is written when
its episode ends: after a kill, the same command resumes and loses only the episodes in progress.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from s2robot.core.errors import UserError
from s2robot.core.parts import moves, parts_of
from s2robot.core.timing import span
from s2robot.core.workers import worker_pool
from s2robot.demos.replay import starts
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.cache import as_stored
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import make
from s2robot.evaluation.records import Journal
from s2robot.loading import device_of
from s2robot.policies import BatchActor, ChunkPolicy

_DIGITS = 6  # decimals of a settled state (m, rad) in a fingerprint; the last bits differ between machines


class LearnedPlanner:
    """Plans the next ``execute`` actions with a trained policy, one episode at a time.

    ``dtype``: precision to which features are rounded. ``device``: where the networks are moved at the first episode, in the
    process that runs it. ``threads``: torch threads; None keeps the current number. ``tasks``: instructions for a multi-task
    policy, used by the episodes in rotation; () uses the world's instruction.
    """

    def __init__(
        self, policy: ChunkPolicy, encoder: S2Encoder, cameras: Sequence[str], dtype: str = "float16",
        device: str = "cpu", threads: int | None = None, tasks: Sequence[str] = (),
    ):  # fmt: skip
        self.policy, self.encoder, self.cameras, self.dtype = policy, encoder, tuple(cameras), dtype
        self.device, self.threads, self.tasks = device, threads, tasks
        self._task: str | None = None
        self._actor: BatchActor | None = None
        self.every_step = policy.spec.context > 1  # a plan needs the observations of all steps since the last
        self.seconds = {"encode_s": 0.0, "policy_s": 0.0}
        self._last: np.ndarray | None = None

    @property
    def actor(self) -> BatchActor:
        if self._actor is None:
            if self.threads:
                torch.set_num_threads(self.threads)
            device = device_of(self.device)
            self.encoder.to(device)
            self._actor = BatchActor(self.policy.to(device), 1)
        return self._actor

    def reset(self, info: Mapping) -> None:
        """Begin an episode. ``info`` holds its ``seed``, ``layout``, ``number`` and ``task`` (or None)."""
        task = self.tasks[info["number"] % len(self.tasks)] if self.tasks else info.get("task")
        self._task = self.policy.spec.resolve_task(task) if self.policy.spec.tasks else None
        self.actor.reset([0], [info["seed"]], self._task)
        self._last = None

    def about(self) -> dict[str, Any]:
        """Return the planner's fields of an episode record."""
        mean = self.actor.mean_disagreement(0)
        disagreement = {} if mean is None else {"disagreement": round(mean, 6)}
        return disagreement | ({} if self._task is None else {"task": self._task})

    def plan(self, seen: Sequence[Mapping]) -> np.ndarray:
        """Return the next actions (execute, A), given the new observations, the last one last."""
        start = time.monotonic()
        # (T, H, W, 3) each
        frames = [np.stack([each["images"][camera] for each in seen]) for camera in self.cameras]
        tokens = as_stored(self.encoder.encode_cameras(frames), self.dtype)  # (T, C, N, D)
        encoded = time.monotonic()
        self.seconds["encode_s"] += encoded - start
        if self.every_step and self._last is not None:
            # add the steps since the last plan to the context, each after the action that led to it
            for j, action in enumerate(self._last):
                self.actor.record_actions([0], action[None])
                if j < len(seen) - 1:
                    self.actor.observe([0], tokens[j][None], seen[j]["proprio"][None])
        self._last = self.actor.plan([0], tokens[-1:], seen[-1]["proprio"][None])[0]
        self.seconds["policy_s"] += time.monotonic() - encoded
        return self._last


class NearestDemo:
    """A planner without vision: replays the demo with the nearest layout open loop."""

    every_step = False
    seconds: Mapping[str, float] = {}

    def __init__(self, store: EpisodeStore | None, settings: type[TaskSettings], execute: int = 4):
        layouts = [settings.layout_of(start) for start in starts(store)] if store else []
        if store is None or not all(layouts):
            raise UserError("evaluate.control: nearest_demo: expected demos with stored layouts, got none")
        self.execute, self.settings = execute, settings
        self.actions = [store.episode(i)["action"] for i in range(len(store))]
        self.starts = np.stack([settings.placing(layout) for layout in layouts])  # (episodes, n)
        self.moves = moves(parts_of(store.attrs, "action"))

    def reset(self, info: Mapping) -> None:
        distance = np.linalg.norm(self.starts - self.settings.placing(info["layout"]), axis=1)
        self._queue = self.actions[int(distance.argmin())]
        self._last = self._queue[-1]

    def plan(self, seen: Sequence[Mapping]) -> np.ndarray:
        out = np.zeros((self.execute, len(self.moves)), np.float32)
        now, self._queue = self._queue[: self.execute], self._queue[self.execute :]
        out[: len(now)] = now
        out[len(now) :] = np.where(self.moves, 0, self._last)  # the demo is over: hold still
        return out

    def about(self) -> dict[str, float]:
        return {}


Planner = LearnedPlanner | NearestDemo


class Rollouts(NamedTuple):
    records: list[dict[str, Any]]  # sorted by episode
    actions: dict[int, np.ndarray]  # episode -> float32 (steps, A)
    spent: dict[str, float]  # seconds, summed over all workers, excluding resumed episodes


def run_episodes(
    env_config: TaskSettings, planner: Planner, episodes: int, seed: int, workers: int, journal: Path,
    progress: Callable[[int, int], None] = lambda done, successes: None,
    settings: Mapping[str, Any] | None = None, resume: bool = True,
) -> Rollouts:  # fmt: skip
    """Try every position once; each episode is appended to the :class:`Journal` at ``journal`` as soon as it ends."""
    stored, spent = Journal(journal, settings, resume), Counter({"simulate_s": 0.0})
    todo = [(e, seed + e) for e in range(episodes) if e not in stored.records]

    def report() -> None:
        done = [record["success"] for episode, record in stored.records.items() if episode < episodes]
        progress(len(done), sum(done))

    if not todo:
        report()
    state = partial(World, env_config, planner)
    with worker_pool(min(workers, len(todo)), state, encodes=True, anywhere=True) as pool:
        for _, (record, actions, costs) in pool.as_done(World.run, todo):
            stored.append(record, actions)
            spent.update(costs)
            report()
    records = [stored.records[e] for e in range(episodes)]
    return Rollouts(records, {e: stored.actions[e] for e in range(episodes)}, dict(spent))


class World:
    """The state of a worker: a world and its planner, which run one episode at a time. ``task``: may be a disturbed one."""

    def __init__(self, config: TaskSettings, planner: Planner, task: Any = None) -> None:
        self.planner, self.task = planner, make(config) if task is None else task

    def run(self, episode: int, seed: int) -> tuple[dict[str, Any], np.ndarray, dict[str, float]]:
        """Return an episode's record, its actions (float32 (steps, A)), and the seconds spent in each part."""
        task, planner = self.task, self.planner
        before, start, planning = dict(planner.seconds), time.monotonic(), 0.0
        executed: list[np.ndarray] = []  # (A,) each
        with span("episode", episode=episode, seed=seed):
            observation, info = task.reset(seed=seed)
            prints, layout, best = fingerprints(task, observation), info["layout"], info["progress"]
            planner.reset({"layout": layout, "task": task.instruction, "seed": seed, "number": episode})
            seen, over = [observation], False
            while not over:
                plan_start = time.monotonic()
                with span("plan"):
                    plan = planner.plan(seen)
                planning += time.monotonic() - plan_start
                seen = []
                for i, action in enumerate(plan, 1):
                    task.step_physics(action)
                    executed.append(action)
                    best = float(np.fmax(best, task.progress))  # NaN if it is not measured
                    over = task.is_success or len(executed) >= task.settings.max_steps
                    if over:
                        break
                    if planner.every_step or i == len(plan):  # rendering takes most of a rollout's time
                        seen.append(task.observe())
        where, progress = task.record_fields(layout, best)
        success, steps = bool(task.is_success), len(executed)
        record = {
            **{"episode": episode, "seed": seed, **where},
            **{"success": success, "stage": str(task.stage), "steps": steps},
            "time_to_success_s": steps / task.settings.rate_hz if success else None,
            **{**progress, "video": None, "start": prints, **planner.about()},
        }
        costs = {key: value - before[key] for key, value in planner.seconds.items()}
        costs["simulate_s"] = time.monotonic() - start - planning
        return record, np.stack(executed), costs


def fingerprints(world: Any, observation: Mapping[str, Any]) -> dict[str, str]:
    """Return hashes that identify the start of an episode on any machine: of the settled state, rounded to a micrometre, and of
    the first frames, bit for bit."""
    state = np.round(np.asarray(world.settled, np.float64), _DIGITS) + 0.0  # no -0
    frames = b"".join(np.ascontiguousarray(image).tobytes() for image in observation["images"].values())
    parts = {"state": state.tobytes(), "frames": frames}
    return {name: hashlib.sha256(data).hexdigest()[:12] for name, data in parts.items()}

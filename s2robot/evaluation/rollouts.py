"""Success of a policy over a fixed, seeded list of positions, and the planners that act there.

A worker simulates, draws, encodes and plans an episode in one process. The seed of episode i is ``evaluate.seed + i``, which
alone decides its layout, start and course: every policy meets the same positions. Each record is on disk when its episode
ends: after a kill the same command resumes, and loses only the episodes in progress.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
from s2robot.envs.chunk import ActionChunk, in_chunks
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.records import Journal
from s2robot.loading import device_of
from s2robot.policies import BatchActor, ChunkPolicy

_DIGITS = 6  # of a settled state's numbers (m, rad) in a fingerprint: the last bits differ between machines


class LearnedPlanner:
    """Plans the next ``execute`` actions by a trained policy, one episode after another.

    ``dtype``: to which features are rounded. ``device``: where the networks go at the first episode, in the process that
    runs it. ``threads``: torch's; None leaves them. ``tasks``: what a policy of several tasks is to do, an episode after the
    other; () = what the world says.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        encoder: S2Encoder,
        cameras: Sequence[str],
        dtype: str = "float16",
        device: str = "cpu",
        threads: int | None = None,
        tasks: Sequence[str] = (),
    ):
        self.policy, self.encoder, self.cameras, self.dtype = policy, encoder, tuple(cameras), dtype
        self.device, self.threads, self.tasks = device, threads, tasks
        self._task: str | None = None
        self._actor: BatchActor | None = None
        self.execute, self.every_step = policy.spec.planned, policy.spec.context > 1
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
        """Begin an episode with a ``seed``, a ``layout``, its ``number``, and its ``task`` or None."""
        task = self.tasks[info["number"] % len(self.tasks)] if self.tasks else info.get("task")
        self._task = self.policy.spec.resolve_task(task) if self.policy.spec.tasks else None
        self.actor.reset([0], [info["seed"]], self._task)
        self._last = None

    def about(self) -> dict[str, Any]:
        """Return what a record stores of how the episode was planned."""
        found = self.actor.mean_disagreement(0)
        doubt = {} if found is None else {"disagreement": round(found, 6)}
        return doubt | ({} if self._task is None else {"task": self._task})

    def plan(self, observation: Mapping) -> np.ndarray:
        """Return actions (execute, A) after the new observations."""
        start, count = time.monotonic(), observation["count"]
        frames = [observation["images"][camera][:count] for camera in self.cameras]  # (count, H, W, 3) each
        tokens = as_stored(self.encoder.encode_cameras(frames), self.dtype)  # (count, C, N, D)
        encoded = time.monotonic()
        self.seconds["encode_s"] += encoded - start
        if self.every_step and self._last is not None:
            # the steps between two plans enter the context, each after the action that led to it
            for j, action in enumerate(self._last[:count]):
                self.actor.record_actions([0], action[None])
                if j < count - 1:
                    self.actor.observe([0], tokens[j][None], observation["proprio"][j][None])
        self._last = self.actor.plan([0], tokens[-1:], observation["proprio"][count - 1][None])[0]
        self.seconds["policy_s"] += time.monotonic() - encoded
        return self._last


class NearestDemo:
    """A planner without vision: knows the layout and replays the nearest demo open loop."""

    every_step = False
    seconds: Mapping[str, float] = {}

    def __init__(self, store: EpisodeStore | None, settings: type[TaskSettings], execute: int = 4):
        layouts = [settings.layout_of(start) for start in starts(store)] if store else []
        if store is None or not all(layouts):
            expected = "demos that hold their layouts"
            raise UserError(f"evaluate.control: nearest_demo: expected {expected}, got none")
        self.execute, self.settings = execute, settings
        self.actions = [store.episode(i)["action"] for i in range(len(store))]
        self.starts = np.stack([settings.placing(layout) for layout in layouts])  # (episodes, n)
        self.moves = moves(parts_of(store.attrs, "action"))

    def reset(self, info: Mapping) -> None:
        distance = np.linalg.norm(self.starts - self.settings.placing(info["layout"]), axis=1)
        self._queue = self.actions[int(distance.argmin())]
        self._last = self._queue[-1]

    def plan(self, observation: Mapping) -> np.ndarray:
        out = np.zeros((self.execute, len(self.moves)), np.float32)
        now, self._queue = self._queue[: self.execute], self._queue[self.execute :]
        out[: len(now)] = now
        out[len(now) :] = np.where(self.moves, 0, self._last)  # the demo is over: hold still
        return out

    def about(self) -> dict[str, float]:
        return {}


Planner = LearnedPlanner | NearestDemo


@dataclass(frozen=True)
class Rollouts:
    records: list[dict[str, Any]]  # sorted by episode
    actions: dict[int, np.ndarray]  # episode -> float32 (steps, A)
    spent: dict[str, float]  # seconds of all workers together, of the episodes that ran now


def run_episodes(
    env_config: TaskSettings,
    planner: Planner,
    episodes: int,
    seed: int,
    workers: int,
    journal: Path,
    progress: Callable[[int, int], None] = lambda done, successes: None,
    settings: Mapping[str, Any] | None = None,
    resume: bool = True,
) -> Rollouts:
    """Try every position once; each ended episode is appended to the :class:`Journal` at ``journal`` at once."""
    known = Journal(journal, settings, resume)
    spent = Counter({"simulate_s": 0.0})
    todo = [(e, seed + e) for e in range(episodes) if e not in known.records]

    def report() -> None:
        done = [record["success"] for episode, record in known.records.items() if episode < episodes]
        progress(len(done), sum(done))

    if not todo:
        report()
    state = partial(World, env_config, planner)
    with worker_pool(min(workers, len(todo)), state, encodes=True, anywhere=True) as pool:
        for _, (record, actions, costs) in pool.as_done(World.run, todo):
            known.append(record, actions)
            spent.update(costs)
            report()
    records = [known.records[e] for e in range(episodes)]
    return Rollouts(records, {e: known.actions[e] for e in range(episodes)}, dict(spent))


class World:
    """A world and its planner, one episode after another: the state of a worker."""

    def __init__(self, config: TaskSettings, planner: Planner, task: Any = None) -> None:
        self.planner, self.rate = planner, config.rate_hz
        steps = planner.execute, planner.every_step
        self.env = in_chunks(config, *steps) if task is None else ActionChunk(task, *steps)

    def run(self, episode: int, seed: int) -> tuple[dict[str, Any], np.ndarray, dict[str, float]]:
        """Return an episode's record, its actions, float32 (steps, A), and the seconds it took."""
        before, start, planning = dict(self.planner.seconds), time.monotonic(), 0.0
        executed: list[np.ndarray] = []  # (execute, A) each
        with span("episode", episode=episode, seed=seed):
            observation, info = self.env.reset(seed=seed)
            start_of = fingerprints(self.env.world, observation)
            about = {"layout": json.loads(info["layout"]), "task": self.env.world.instruction}
            self.planner.reset({**about, "seed": seed, "number": episode})
            over = False
            while not over:
                began = time.monotonic()
                with span("plan"):
                    executed.append(self.planner.plan(observation))
                planning += time.monotonic() - began
                observation, _, success, late, info = self.env.step(executed[-1])
                over = success or late
        record = _record(episode, seed, info, self.rate) | {"start": start_of} | self.planner.about()
        costs = {key: value - before[key] for key, value in self.planner.seconds.items()}
        costs["simulate_s"] = time.monotonic() - start - planning
        return record, np.concatenate(executed)[: record["steps"]], costs


def fingerprints(world: Any, observation: Mapping[str, Any]) -> dict[str, str]:
    """Return what another machine has to show for the same episode: hashes of the settled state, to a micrometre, and of the
    first frames, to the bit."""
    state = np.round(np.asarray(world.settled, np.float64), _DIGITS) + 0.0  # no -0
    frames = b"".join(np.ascontiguousarray(image).tobytes() for image in observation["images"].values())
    return {"state": _short_hash(state.tobytes()), "frames": _short_hash(frames)}


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _record(episode: int, seed: int, info: Mapping[str, Any], rate: float) -> dict[str, Any]:
    success, steps = bool(info["is_success"]), int(info["steps"])
    return {
        **{"episode": episode, "seed": seed, **json.loads(info["where"])},
        **{"success": success, "stage": str(info["stage"]), "steps": steps},
        "time_to_success_s": steps / rate if success else None,
        **json.loads(info["best"]),
        "video": None,
    }

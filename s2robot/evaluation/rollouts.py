"""Success of a policy over a fixed, seeded list of cube positions.

    s2robot evaluate checkpoint=runs/run/<date>/checkpoint evaluate.episodes=128

Worker processes simulate and draw, one world each; this process encodes and plans for all of them.
Episode i has the seed ``evaluate.seed + i``, which alone decides its cube, start joints and course: every policy
meets the same positions. Each record is on disk when its episode ends: after a kill the same command goes on, and
loses at most the episodes in progress, one for each of ``evaluate.workers``.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from s2robot.common.errors import UserError
from s2robot.common.files import write_text
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.cache import as_stored
from s2robot.encoders.encoder import S2Encoder
from s2robot.encoders.selective import SelectiveEncoder
from s2robot.envs.chunk import ActionChunk
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.workers import one_thread_each, worker_pool
from s2robot.evaluation.journal import Journal
from s2robot.evaluation.video import write_video
from s2robot.policies import BatchActor


class Planner(Protocol):
    """What an evaluation asks of a policy: the next ``execute`` actions of the episodes that need them."""

    execute: int
    every_step: bool

    def reset(self, indices: Sequence[int], infos: Sequence[Mapping]) -> None:
        """New episodes begin at these places."""

    def plan(self, indices: Sequence[int], observations: Sequence[Mapping]) -> np.ndarray:
        """Actions (n, execute, 8) after the new observations of each place."""


class LearnedPlanner:
    """A trained policy and its encoder.

    Args:
        actor: the policy's memory of the episodes that run side by side.
        encoder: the encoder it was trained with, or a selective one around it.
        cameras: in the policy's order.
    """

    def __init__(
        self,
        actor: BatchActor,
        encoder: S2Encoder | SelectiveEncoder,
        cameras: Sequence[str],
        dtype: str = "float16",
    ):
        self.actor, self.encoder, self.cameras, self.dtype = actor, encoder, tuple(cameras), dtype
        self.execute, self.every_step = actor.execute, actor.every_step
        self.timing = {"encode_s": 0.0, "policy_s": 0.0}
        self._last: dict[int, np.ndarray] = {}

    def reset(self, indices, infos) -> None:
        self.actor.reset(indices)
        if isinstance(self.encoder, SelectiveEncoder):
            self.encoder.reset([(i, camera) for i in indices for camera in self.cameras])
        for i in indices:
            self._last.pop(i, None)

    def plan(self, indices, observations) -> np.ndarray:
        # One episode at a time: a sum's rounding may depend on the size of a batch, and an episode must not depend
        # on which others run beside it, or a resumed evaluation would differ from an uninterrupted one.
        return np.stack([self._plan_one(i, o) for i, o in zip(indices, observations, strict=True)])

    def _plan_one(self, i: int, observation: Mapping) -> np.ndarray:
        start = time.monotonic()
        count = observation["count"]
        frames = np.stack([observation["images"][c][:count] for c in self.cameras], 1)  # (count, C, S, S, 3)
        tokens = as_stored(self._encode(frames.reshape(-1, *frames.shape[2:]), i, observation), self.dtype)
        tokens = tokens.reshape(count, len(self.cameras), *tokens.shape[1:])  # (count, C, N, D)
        self.timing["encode_s"] += time.monotonic() - start
        start = time.monotonic()
        if self.every_step:
            self._catch_up(i, observation, tokens)
        action = self.actor.plan([i], tokens[-1:], observation["proprio"][count - 1][None])[0]
        self._last[i] = action
        self.timing["policy_s"] += time.monotonic() - start
        return action

    def _encode(self, images: np.ndarray, i: int, observation: Mapping) -> torch.Tensor:
        """Tokens (count * C, N, D) of the new frames of place i; a stream is one of its cameras."""
        if not isinstance(self.encoder, SelectiveEncoder):
            return self.encoder.encode(images)
        count = observation["count"]
        streams = [(i, camera) for _ in range(count) for camera in self.cameras]
        points = None
        if self.encoder.settings.choose == "gripper":
            # known of the newest frame only: the frames between two plans are taken to be close to it
            points = np.stack(
                [observation["points"][camera] for _ in range(count) for camera in self.cameras]
            )
        return self.encoder.encode(images, streams, points)

    def _catch_up(self, i: int, observation: Mapping, tokens: torch.Tensor) -> None:
        """Put the steps between two plans into the context, each after the action that led to it."""
        if i not in self._last:  # right after a reset there is one observation and no action
            return
        count = observation["count"]
        for j, action in enumerate(self._last[i][:count]):
            self.actor.record_actions([i], action[None])
            if j < count - 1:
                self.actor.observe([i], tokens[j][None], observation["proprio"][j][None])


class NearestDemo:
    """The control that needs no eyes: knows the cube's true pose and replays the nearest demo open loop."""

    every_step = False

    def __init__(self, store: EpisodeStore, execute: int = 4):
        if "cube_pose" not in store.keys:
            raise UserError(
                f"{store.path}: found no key 'cube_pose', which evaluate.control=nearest_demo needs"
            )
        self.execute = execute
        self.actions = [store.episode(i)["action"] for i in range(len(store))]
        self.starts = np.stack([_placing(store.episode(i)["cube_pose"][0]) for i in range(len(store))])
        self._queue: dict[int, np.ndarray] = {}

    def reset(self, indices, infos) -> None:
        for i, info in zip(indices, infos, strict=True):
            distance = np.linalg.norm(self.starts - _placing(info["cube_pose"]), axis=1)
            self._queue[i] = self.actions[int(distance.argmin())]

    def plan(self, indices, observations) -> np.ndarray:
        out = np.zeros((len(indices), self.execute, 8), np.float32)
        for row, i in enumerate(indices):
            now, self._queue[i] = self._queue[i][: self.execute], self._queue[i][self.execute :]
            out[row, : len(now)] = now
            out[row, len(now) :, 7] = 1.0  # the demo is over: hold still, closed
        return out


def _placing(pose: np.ndarray) -> np.ndarray:
    """Where a cube lies, in metres: x, y, and its yaw as a point on a circle of 5 cm (four turns alike).  # (4,)"""
    w, z = pose[3], pose[6]
    yaw = 4 * 2 * np.arctan2(z, w)
    return np.array([pose[0], pose[1], 0.05 * np.cos(yaw), 0.05 * np.sin(yaw)])


@dataclass
class Rollouts:
    """The outcome of :func:`run_episodes`: records sorted by episode, actions to draw videos, seconds."""

    records: list[dict]
    actions: dict[int, np.ndarray]
    seconds: dict[str, float]


def _make(config: CubePickConfig, execute: int, every_step: bool) -> Callable[[], gymnasium.Env]:
    return lambda: ActionChunk(CubePick(config), execute, every_step)


def run_episodes(
    env_config: CubePickConfig,
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
    done = {e: r for e, r in kept.records.items() if e < episodes}
    todo = [e for e in range(episodes) if e not in done]
    simulate = 0.0
    if todo:
        simulate = _run(env_config, planner, todo, seed, workers, kept, done, progress)
    else:
        progress(episodes, sum(r["success"] for r in done.values()))
    records = [done[e] for e in range(episodes)]
    actions = {e: kept.actions[e] for e in range(episodes)}
    return Rollouts(records, actions, {"simulate_s": simulate})


def _run(
    env_config: CubePickConfig,
    planner: Planner,
    todo: list[int],
    seed: int,
    workers: int,
    journal: Journal,
    done: dict[int, dict],
    progress: Callable[[int, int], None],
) -> float:
    """Run the episodes of ``todo``; adds their records to ``done`` and returns the seconds spent simulating."""
    workers = max(1, min(workers, len(todo)))
    make = [_make(env_config, planner.execute, planner.every_step)] * workers
    simulate = 0.0
    executed: dict[int, list[np.ndarray]] = {}
    with one_thread_each():
        worlds = AsyncVectorEnv(make, context="spawn", autoreset_mode=AutoresetMode.DISABLED)
    try:
        running = dict(enumerate(todo[:workers]))  # place -> its episode
        waiting = todo[workers:]
        cubes: dict[int, np.ndarray] = {}
        batch, infos = worlds.reset(seed=[seed + e for e in running.values()])
        points = infos["grip_points"]  # {camera: (workers, 2)}
        new = list(range(workers))
        while running:
            for i in new:
                cubes[running[i]] = infos["cube_pose"][i].copy()
                executed[running[i]] = []
            planner.reset(new, [{"cube_pose": cubes[running[i]]} for i in new])
            busy = list(running)
            plans = planner.plan(busy, [_pick(batch, points, i) for i in busy])
            actions = np.zeros((workers, planner.execute, 8), np.float32)
            actions[busy] = plans
            start = time.monotonic()
            batch, _, success, over, infos = worlds.step(actions)
            simulate += time.monotonic() - start
            points = infos["grip_points"]
            new = []
            for i in busy:
                episode = running[i]
                executed[episode].append(actions[i])
                if not (success[i] or over[i]):
                    continue
                record = _record(episode, seed, cubes[episode], infos, i, env_config.rate_hz)
                journal.append(record, np.concatenate(executed.pop(episode))[: record["steps"]])
                done[episode] = record
                progress(len(done), sum(r["success"] for r in done.values()))
                del running[i]
                if waiting:
                    running[i] = waiting.pop(0)
                    new.append(i)
            if new:
                mask = np.isin(np.arange(workers), new)
                seeds = [seed + running[i] if i in new else None for i in range(workers)]
                start = time.monotonic()
                batch, infos = worlds.reset(seed=seeds, options={"reset_mask": mask})
                simulate += time.monotonic() - start
                for camera in batch["images"]:
                    points[camera][new] = infos["grip_points"][camera][new]
    finally:
        worlds.close(terminate=True)
    return simulate


def _pick(batch: dict, points: dict, i: int) -> dict:
    """The observation of place ``i``, and where its newest frames show the gripper."""
    images = {name: frames[i] for name, frames in batch["images"].items()}
    seen = {name: points[name][i] for name in images}
    return {"images": images, "proprio": batch["proprio"][i], "count": int(batch["count"][i]), "points": seen}


def _record(episode: int, seed: int, cube: np.ndarray, infos: dict, i: int, rate: float) -> dict:
    success, steps = bool(infos["is_success"][i]), int(infos["steps"][i])
    return {
        "episode": episode,
        "seed": seed + episode,
        "cube_xy": [round(float(v), 5) for v in cube[:2]],
        "cube_yaw": round(float(2 * np.arctan2(cube[6], cube[3])), 5),
        "success": success,
        "stage": str(infos["stage"][i]),
        "steps": steps,
        "time_to_success_s": steps / rate if success else None,
        "closest_m": round(float(infos["closest"][i]), 5),
        "video": None,
    }


def rerun(
    env_config: CubePickConfig, record: Mapping[str, Any], actions: np.ndarray
) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """Run an episode again from its seed and its actions (T, 8): pictures by camera and stage, T + 1 of each."""
    env = CubePick(env_config)
    observation, _ = env.reset(seed=record["seed"])
    frames, stages = [observation["images"]], [env.stage]
    for action in actions:
        observation, *_ = env.step(action)
        frames.append(observation["images"])
        stages.append(env.stage)
    env.close()
    return frames, stages


def film(env_config: CubePickConfig, record: dict, actions: np.ndarray, path: Path) -> str:
    """Run an episode again, drawing every step; returns the stage it reached."""
    frames, stages = rerun(env_config, record, actions)
    write_video(path, frames, record, stages=stages, rate=env_config.rate_hz)
    return stages[-1]


def film_some(
    env_config: CubePickConfig,
    rollouts: Rollouts,
    count: int,
    size: int,
    out: Path,
    workers: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Videos of ``count`` episodes, failures first, into ``out/videos``; notes them in the records."""
    chosen = sorted(rollouts.records, key=lambda r: (r["success"], r["episode"]))[:count]
    (out / "videos").mkdir(parents=True, exist_ok=True)
    config = replace(env_config, image_size=size)
    with worker_pool(workers) as pool:
        jobs = []
        for record in chosen:
            name = f"videos/episode_{record['episode']:04d}.mp4"
            job = pool.submit(film, config, record, rollouts.actions[record["episode"]], out / name)
            jobs.append((record, name, job))
        for done, (record, name, job) in enumerate(jobs, 1):
            if job.result() != record["stage"]:
                raise UserError(
                    f"{name}: episode {record['episode']} ended in stage {job.result()} when run again, "
                    f"{record['stage']} before; the simulation is not repeatable here"
                )
            record["video"] = name
            progress(done, len(jobs))


def write_records(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """All records in order, replacing the journal at once."""
    write_text(path, "".join(json.dumps(r) + "\n" for r in records))

"""Planners of an evaluation: a trained policy, or the control that replays the nearest demo."""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from s2robot.common.errors import UserError
from s2robot.demos.replay import starts
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.cache import as_stored
from s2robot.encoders.cameras import encode_cameras
from s2robot.encoders.encoder import S2Encoder
from s2robot.envs.task import TaskSettings
from s2robot.loading import device_of
from s2robot.policies import BatchActor, ChunkPolicy


class Planner(Protocol):
    """Plans the next ``execute`` actions of an episode, one episode after another."""

    execute: int  # actions that a plan holds
    every_step: bool  # whether it also needs the observations between two plans

    def reset(self, info: Mapping) -> None:
        """Begin an episode with a ``seed`` and a ``layout``."""

    def plan(self, observation: Mapping) -> np.ndarray:
        """Return actions (execute, A) after the new observations."""

    def about(self) -> dict[str, float]:
        """Return what a record says of how the episode was planned."""
        return {}

    def spent(self) -> dict[str, float]:
        """Return seconds and counts so far."""
        return {}


class LearnedPlanner(Planner):
    """A trained policy and its encoder, put on the device at the first episode.

    Args:
        policy: its own.
        encoder: the encoder it was trained with.
        cameras: in the policy's order.
        dtype: to which features are rounded.
        device: as :func:`device_of` takes it, where the episodes run.
        threads: of torch there; None leaves them.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        encoder: S2Encoder,
        cameras: Sequence[str],
        dtype: str = "float16",
        device: str = "cpu",
        threads: int | None = None,
    ):
        self.policy, self.encoder, self.cameras, self.dtype = policy, encoder, tuple(cameras), dtype
        self.device, self.threads = device, threads
        self._actor: BatchActor | None = None
        memory = BatchActor(policy, 1)
        self.execute, self.every_step = memory.execute, memory.every_step
        self._seconds = {"encode_s": 0.0, "policy_s": 0.0}
        self._last: np.ndarray | None = None

    @property
    def actor(self) -> BatchActor:
        """The policy's memory of the episode, created where the episodes run."""
        if self._actor is None:
            if self.threads:
                torch.set_num_threads(self.threads)
            device = device_of(self.device)
            self.encoder.to(device)
            self._actor = BatchActor(self.policy.to(device), 1)
        return self._actor

    def reset(self, info) -> None:
        self.actor.reset([0], [info["seed"]])
        self._last = None

    def about(self) -> dict[str, float]:
        found = self.actor.mean_disagreement(0)
        return {} if found is None else {"disagreement": round(found, 6)}

    def spent(self) -> dict[str, float]:
        return self._seconds.copy()

    def plan(self, observation) -> np.ndarray:
        start = time.monotonic()
        count = observation["count"]
        frames = [observation["images"][camera][:count] for camera in self.cameras]  # (count, H, W, 3) each
        tokens = as_stored(encode_cameras(self.encoder.encode, frames), self.dtype)  # (count, C, N, D)
        self._seconds["encode_s"] += time.monotonic() - start
        start = time.monotonic()
        if self.every_step:
            self._catch_up(observation, tokens)
        self._last = self.actor.plan([0], tokens[-1:], observation["proprio"][count - 1][None])[0]
        self._seconds["policy_s"] += time.monotonic() - start
        return self._last

    def _catch_up(self, observation: Mapping, tokens: torch.Tensor) -> None:
        """Put the steps between two plans into the context, each after the action that led to it."""
        if self._last is None:  # right after a reset there is one observation and no action
            return
        count = observation["count"]
        for j, action in enumerate(self._last[:count]):
            self.actor.record_actions([0], action[None])
            if j < count - 1:
                self.actor.observe([0], tokens[j][None], observation["proprio"][j][None])


class NearestDemo(Planner):
    """A control without vision: knows the layout and replays the nearest demo open loop."""

    every_step = False

    def __init__(self, store: EpisodeStore, settings: type[TaskSettings], execute: int = 4):
        layouts = [settings.layout_of(start) for start in starts(store)]
        if not all(layouts):
            raise UserError(
                f"{store.path}: found no layout of its episodes, which evaluate.control=nearest_demo needs"
            )
        self.execute, self.settings = execute, settings
        self.actions = [store.episode(i)["action"] for i in range(len(store))]
        self.starts = np.stack([settings.placing(layout) for layout in layouts])  # (episodes, n)
        self.moves = _moves(store.attrs.get("action_parts"), self.actions[0].shape[1])

    def reset(self, info) -> None:
        distance = np.linalg.norm(self.starts - self.settings.placing(info["layout"]), axis=1)
        self._queue = self.actions[int(distance.argmin())]
        self._last = self._queue[-1]

    def plan(self, observation) -> np.ndarray:
        out = np.zeros((self.execute, len(self.moves)), np.float32)
        now, self._queue = self._queue[: self.execute], self._queue[self.execute :]
        out[: len(now)] = now
        out[len(now) :] = np.where(self.moves, 0, self._last)  # the demo is over: hold still
        return out


def _moves(parts: list[dict] | None, size: int) -> np.ndarray:
    """Whether 0 means not to move, by number of the action.  # bool (A,)"""
    if parts is None:  # joints and a gripper
        return np.arange(size) < size - 1
    still = [part["kind"] == "delta" or bool(part.get("relative")) for part in parts]
    return np.repeat(still, [part["size"] for part in parts])

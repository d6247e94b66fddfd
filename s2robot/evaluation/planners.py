"""What plans the actions of an evaluation: a trained policy, or the control that needs no eyes."""

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from s2robot.common.errors import UserError
from s2robot.demos.layouts import starts
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.cache import as_stored
from s2robot.encoders.cameras import encode_cameras, stack_padded
from s2robot.encoders.encoder import S2Encoder
from s2robot.encoders.selective import SelectiveEncoder
from s2robot.envs.task import TaskSettings
from s2robot.policies import BatchActor


class Planner(Protocol):
    """What an evaluation asks of a policy: the next ``execute`` actions of the episodes that need them."""

    execute: int  # actions that a plan holds
    every_step: bool  # whether it needs the observations between two plans, too
    timing: dict[str, float]  # seconds spent, by what for

    def reset(self, indices: Sequence[int], infos: Sequence[Mapping]) -> None:
        """New episodes begin at these places."""

    def plan(self, indices: Sequence[int], observations: Sequence[Mapping]) -> np.ndarray:
        """Actions (n, execute, A) after the new observations of each place."""

    def about(self, index: int) -> dict[str, float]:
        """What a record says of how the episode at this place was planned, by key."""


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
        self.actor.reset(indices, [info["seed"] for info in infos])
        if isinstance(self.encoder, SelectiveEncoder):
            self.encoder.reset([(i, camera) for i in indices for camera in self.cameras])
        for i in indices:
            self._last.pop(i, None)

    def plan(self, indices, observations) -> np.ndarray:
        # One episode at a time: a sum's rounding may depend on the size of a batch, and an episode must not depend
        # on which others run beside it, or a resumed evaluation would differ from an uninterrupted one.
        return np.stack([self._plan_one(i, o) for i, o in zip(indices, observations, strict=True)])

    def about(self, index) -> dict[str, float]:
        found = self.actor.mean_disagreement(index)
        return {} if found is None else {"disagreement": round(found, 6)}

    def _plan_one(self, i: int, observation: Mapping) -> np.ndarray:
        start = time.monotonic()
        count = observation["count"]
        tokens = as_stored(self._encode(i, observation), self.dtype)  # (count, C, N, D)
        self.timing["encode_s"] += time.monotonic() - start
        start = time.monotonic()
        if self.every_step:
            self._catch_up(i, observation, tokens)
        action = self.actor.plan([i], tokens[-1:], observation["proprio"][count - 1][None])[0]
        self._last[i] = action
        self.timing["policy_s"] += time.monotonic() - start
        return action

    def _encode(self, i: int, observation: Mapping) -> torch.Tensor:
        """Tokens (count, C, N, D) of the new frames of place i; a stream is one of its cameras."""
        count, encoder = observation["count"], self.encoder
        frames = [observation["images"][c][:count] for c in self.cameras]  # (count, H, W, 3) each
        if not isinstance(encoder, SelectiveEncoder):
            return encode_cameras(encoder.encode, frames)
        alike = len({seen.shape for seen in frames}) == 1  # then all go through the model in one call
        tokens = []
        for group in [self.cameras] if alike else [(camera,) for camera in self.cameras]:
            streams = [(i, camera) for _ in range(count) for camera in group]
            points = None
            if encoder.settings.choose == "gripper":
                if not observation["points"]:
                    raise UserError(
                        "evaluate.selective.choose: found gripper, expected another choice: the task does not say where "
                        "its cameras see the gripper"
                    )
                # known of the newest frame only: the frames between two plans are taken to be close to it
                points = np.stack([observation["points"][camera] for _, camera in streams])
            images = np.stack([observation["images"][c][:count] for c in group], 1)  # (count, group, H, W, 3)
            found = encoder.encode(images.reshape(-1, *images.shape[2:]), streams, points)
            tokens += found.unflatten(0, images.shape[:2]).unbind(1)  # (count, N_c, D) each
        return stack_padded(tokens)

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
    """The control that needs no eyes: knows where things lie and replays the nearest demo open loop."""

    every_step = False

    def __init__(self, store: EpisodeStore, settings: type[TaskSettings], execute: int = 4):
        layouts = [settings.layout_of(start) for start in starts(store)]
        if not all(layouts):
            raise UserError(
                f"{store.path}: found no layout of its episodes, which evaluate.control=nearest_demo needs"
            )
        self.execute, self.settings = execute, settings
        self.timing: dict[str, float] = {}
        self.actions = [store.episode(i)["action"] for i in range(len(store))]
        self.starts = np.stack([settings.placing(layout) for layout in layouts])  # (episodes, n)
        self.moves = _moves(store.attrs.get("action_parts"), self.actions[0].shape[1])
        self._queue: dict[int, np.ndarray] = {}
        self._last: dict[int, np.ndarray] = {}

    def reset(self, indices, infos) -> None:
        for i, info in zip(indices, infos, strict=True):
            distance = np.linalg.norm(self.starts - self.settings.placing(info["layout"]), axis=1)
            self._queue[i] = self.actions[int(distance.argmin())]
            self._last[i] = self._queue[i][-1]

    def about(self, index) -> dict[str, float]:
        return {}

    def plan(self, indices, observations) -> np.ndarray:
        out = np.zeros((len(indices), self.execute, len(self.moves)), np.float32)
        for row, i in enumerate(indices):
            now, self._queue[i] = self._queue[i][: self.execute], self._queue[i][self.execute :]
            out[row, : len(now)] = now
            out[row, len(now) :] = np.where(self.moves, 0, self._last[i])  # the demo is over: hold still
        return out


def _moves(parts: list[dict] | None, size: int) -> np.ndarray:
    """Of which numbers of an action 0 means not to move.  # bool (A,)"""
    if parts is None:  # joints and a gripper
        return np.arange(size) < size - 1
    still = [part["kind"] == "delta" or bool(part.get("relative")) for part in parts]
    return np.repeat(still, [part["size"] for part in parts])

"""Execute a chunk of actions in one call and render only the frames that the policy uses."""

import json
from typing import Any

import numpy as np

from s2robot.envs.task import Task, TaskSettings
from s2robot.envs.tasks import make


class ActionChunk:
    """A task whose action is ``k`` actions, float32 (k, A).

    The observation stacks the last ``k`` observations if ``every_step`` (a policy with a context needs them all),
    else it is only the last one, because rendering takes most of a rollout's time. ``count`` is the number of new
    rows, at the front: all after a full chunk, one after a reset. A finished episode is not simulated further.
    ``info["steps"]`` counts the episode's steps; ``info["layout"]``, ``info["where"]`` and ``info["best"]`` are JSON:
    its initial layout, and its record's fields for the layout and the best progress (:meth:`Task.record_fields`).
    """

    def __init__(self, world: Task, k: int, every_step: bool = False):
        self.world = world
        self.rows = k if every_step else 1
        self._finished = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        observation, info = self.world.reset(seed=seed, options=options)
        self._finished, self._last = False, observation
        self._steps, self._best, self._layout = 0, info["progress"], info["layout"]
        return self._stack([observation]), self._info(info)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Execute up to k actions; return observation, reward, success, whether the steps are used up, and info."""
        observations, world = [], self.world
        for i, one in enumerate(action):
            if self._finished:
                break
            world.step_physics(one)
            self._steps += 1
            self._best = float(np.fmax(self._best, world.progress))  # NaN if it is not measured
            self._finished = world.is_success or self._steps >= world.settings.max_steps
            if not self._finished and (self.rows > 1 or i == len(action) - 1):
                observations.append(world.observe())
        success = world.is_success
        ended = float(success), success, self._finished and not success
        return self._stack(observations), *ended, self._info(world.info())

    def _info(self, info: dict) -> dict:
        where, best = self.world.record_fields(self._layout, self._best)
        texts = {"layout": self._layout, "where": where, "best": best}
        return {**info, "steps": self._steps, **{name: json.dumps(value) for name, value in texts.items()}}

    def _stack(self, new: list[dict]) -> dict:
        if new:
            self._last = new[-1]
        rows = new + [self._last] * (self.rows - len(new))
        images = {n: np.stack([row["images"][n] for row in rows]) for n in rows[0]["images"]}
        return {"images": images, "proprio": np.stack([row["proprio"] for row in rows]), "count": len(new)}


def in_chunks(settings: TaskSettings, k: int, every_step: bool = False) -> ActionChunk:
    return ActionChunk(make(settings), k, every_step)

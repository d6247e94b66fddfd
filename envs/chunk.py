"""Execute a chunk of actions in one call and draw only what the policy will look at."""

import json
from typing import Any

import numpy as np

from s2robot.envs.task import Task, TaskSettings
from s2robot.envs.tasks import make


class ActionChunk:
    """A task whose action is ``k`` actions, float32 (k, A).

    The observation stacks the last ``k`` observations if ``every_step`` (a policy with a context needs them all),
    else it is the last one alone: drawing is most of a rollout's time. ``count`` says how many of the rows are
    new, at the front: all after a full chunk, one after a reset. A finished episode is not simulated further.
    ``info["steps"]`` counts the steps of the episode; ``info["layout"]``, ``info["where"]`` and ``info["best"]`` are JSON
    texts: where it began, and what its record says of that and of its best progress (:meth:`Task.record_fields`).
    """

    def __init__(self, world: Task, k: int, every_step: bool = False):
        self.world = world
        self.rows = k if every_step else 1
        self._over = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        observation, info = self.world.reset(seed=seed, options=options)
        self._over, self._last = False, observation
        self._steps, self._best, self._layout = 0, info["progress"], info["layout"]
        return self._stack([observation]), self._info(info)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Execute up to k actions: observation, reward, success, whether the steps are used up, info."""
        seen, world = [], self.world
        for i, one in enumerate(action):
            if self._over:
                break
            world.step_physics(one)
            self._steps += 1
            self._best = float(np.fmax(self._best, world.progress))  # NaN where nothing measures it
            self._over = world.is_success or self._steps >= world.settings.max_steps
            if not self._over and (self.rows > 1 or i == len(action) - 1):
                seen.append(world.observe())
        success = world.is_success
        ended = float(success), success, self._over and not success
        return self._stack(seen), *ended, self._info(world.info())

    def _info(self, info: dict) -> dict:
        where, best = self.world.record_fields(self._layout, self._best)
        known = {"layout": self._layout, "where": where, "best": best}
        return {**info, "steps": self._steps, **{name: json.dumps(value) for name, value in known.items()}}

    def _stack(self, seen: list[dict]) -> dict:
        if seen:
            self._last = seen[-1]
        rows = seen + [self._last] * (self.rows - len(seen))
        images = {n: np.stack([row["images"][n] for row in rows]) for n in rows[0]["images"]}
        return {"images": images, "proprio": np.stack([row["proprio"] for row in rows]), "count": len(seen)}


def in_chunks(settings: TaskSettings, k: int, every_step: bool = False) -> ActionChunk:
    return ActionChunk(make(settings), k, every_step)

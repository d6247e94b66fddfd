"""A robosuite world's expert as a task's: in the task's units, asked from any state, going on where somebody else acted."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from s2robot.envs.experts.settings import EXPERTS, ExpertSettings
from s2robot.envs.task import next_actions

_PUSHES = ("_kick", "_kick_left", "_slip_left", "_will_miss", "_miss_left", "_wrong", "_askew")
_MEMORY = ("closed", "push", "_step", "_rng", *_PUSHES)


class TaskExpert:
    """The expert of a robosuite world, for the episode that has begun.

    Args:
        task: a `RobosuiteTask` with one Panda that takes OSC_POSE.
        rng: of the perturbations; None: none.
        settings: how it moves.
    """

    def __init__(self, task: Any, rng: np.random.Generator | None, settings: ExpertSettings | None = None):
        module, _, name = EXPERTS[task.settings.env].partition(":")
        self.task = task
        self.inner = getattr(importlib.import_module(module), name)(task.raw, rng, settings)

    @property
    def push(self) -> str:
        """Of the last action: `kick`, `miss`, or none."""
        return self.inner.push

    @property
    def failed(self) -> bool:
        """It never gives up."""
        return False

    def act(self) -> np.ndarray:
        """The next action in the task's units.  # float32 (7,)"""
        return self.task.from_raw(self.inner.act())

    def ask(self, steps: int, memory: dict[str, Any] | None = None) -> np.ndarray:
        """What it would do from here without pushes; world and expert are left as they were.  # float32 (steps, 7)

        memory: of :meth:`remember`, where it is asked as of then; the present one without.
        """
        kept = self.remember()
        with self.task.rehearsal():
            self.recall(memory or kept)
            self.inner.calm()
            actions = next_actions(self.task, self, steps)
        self.recall(kept)
        return actions

    def remember(self) -> dict[str, Any]:
        """What it knows of the episode besides the world's state, for `recall`."""
        return {name: getattr(self.inner, name) for name in _MEMORY}

    def recall(self, memory: dict[str, Any]) -> None:
        """Go back to what `remember` gave."""
        vars(self.inner).update(memory)

    def take_over(self, actions: Sequence[np.ndarray]) -> None:
        """Go on, unpushed, where somebody else has acted so far (T, 7)."""
        self.inner.calm()
        self.inner.closed = len(actions) > 0 and bool(actions[-1][-1] >= 0.5)

"""The expert of a robosuite world as a task's: in its units, asked from any state, and to take over from a policy."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from s2robot.envs.experts.settings import EXPERTS, ExpertSettings
from s2robot.envs.task import AskedExpert

_PUSHES = ("_kick", "_kick_left", "_slip_left", "_will_miss", "_miss_left", "_wrong", "_askew")


class TaskExpert(AskedExpert):
    """The expert of a robosuite world, for the episode that has begun.

    Args:
        task: a `RobosuiteTask` with one Panda that takes OSC_POSE.
        rng: of the perturbations; None: none.
        settings: how it moves.
    """

    memory = ("closed", "push", "_step", "_rng", *_PUSHES)
    world: Any
    failed = False  # it never gives up

    def __init__(self, task: Any, rng: np.random.Generator | None, settings: ExpertSettings | None = None):
        module, _, name = EXPERTS[task.settings.env].partition(":")
        self.world = task
        self.inner = self.holder = getattr(importlib.import_module(module), name)(task.raw, rng, settings)

    @property
    def push(self) -> str:
        """Of the last action: `kick`, `miss`, or none."""
        return self.inner.push

    def act(self) -> np.ndarray:
        """The next action in the task's units.  # float32 (7,)"""
        return self.world.from_raw(self.inner.act())

    def calm(self) -> None:
        self.inner.calm()

    def take_over(self, actions: Sequence[np.ndarray]) -> None:
        """Continue without perturbations after the actions of a policy (T, 7)."""
        self.inner.calm()
        self.inner.closed = len(actions) > 0 and bool(actions[-1][-1] >= 0.5)

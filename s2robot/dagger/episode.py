"""One episode in which a policy acts until the expert has to take over, which then ends it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from s2robot.core.settings import Settings, from_yaml
from s2robot.demos.record import expert_chunks, layout_of
from s2robot.envs.task import Task, TaskSettings, next_action
from s2robot.envs.tasks import make
from s2robot.loading import load_policy
from s2robot.policies import Actor

REASONS = ("missed", "stalled", "late", "unsure")  # why the expert takes over
Visited = Literal["none", "open", "all"]
_OPEN: dict[str, tuple[Task, Actor]] = {}


class TakeoverSettings(Settings, at="recording.takeover", file="recording/dagger"):
    """When the expert takes over; configs/recording/dagger.yaml documents each value."""

    patience: int = from_yaml(ge=1)
    progress: float = from_yaml(ge=0)
    disagreement: float | None = from_yaml(gt=0)


class Watch:
    """Decides over one episode, from what the world shows after each step, when the expert takes over."""

    def __init__(self, settings: TakeoverSettings):
        self.settings = settings
        self._best, self._waited = float("inf"), 0

    def unsure(self, disagreement: float) -> bool:
        """Whether the members' new plans (rad apart) disagree too much to be followed."""
        limit = self.settings.disagreement
        return limit is not None and disagreement > limit

    def reason(self, left: float, missed: bool) -> str:
        """Return why the expert takes over, `missed`, `stalled` or ""; arguments as of `Task`."""
        if missed:
            return "missed"
        if left < self._best - self.settings.progress:
            self._best, self._waited = left, 0
            return ""
        self._waited += 1
        return "stalled" if self._waited >= self.settings.patience else ""


@dataclass(frozen=True)
class Course:
    """All that decides an episode besides its seed.

    checkpoint, weights, device: as `load_policy` takes them.
    world: with the policy's cameras, at its encoder's image size.
    expert: steps of the expert's chunks.
    visited: from which of the policy's own states the expert is imitated.
    """

    checkpoint: str
    world: TaskSettings
    picker: Any
    takeover: TakeoverSettings
    expert: int
    visited: Visited
    weights: str | None = None
    device: str = "auto"


def corrected_episode(course: Course, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run an episode of a policy under the eyes of the expert.

    Returns:
        Arrays over time if the expert ended the episode in success, else {}.
        `seed`, `reason` of the takeover ("" if there was none), its `step`, final `success`, and `layout` if demos of the
        task have it.
    """
    env, actor = _opened(course)
    _, info = env.reset(seed=seed)
    expert: Any = env.expert(np.random.default_rng([seed, 7]), course.picker)
    actor.reset(seed)
    steps: dict[str, list] = {}

    def execute(action: np.ndarray) -> None:
        seen = {"state": env.get_state(), "proprio": env.proprio, **env.demo_fields(), "action": action}
        for name, value in seen.items():
            steps.setdefault(name, []).append(value)
        env.step_physics(action)

    reason = _act(env, actor, course, execute)
    done = steps.get("action", [])
    switch = len(done)
    facts = {"seed": seed, "reason": reason, "step": switch, "success": env.is_success}
    facts |= layout_of(env, info)
    if not reason:
        return {}, facts
    expert.take_over(done)
    for _ in range(env.settings.max_steps):
        execute(next_action(expert)[0])
        if env.is_success:
            break
    if not env.is_success:
        return {}, facts
    arrays = {name: np.stack(rows) for name, rows in steps.items()}
    policy = np.arange(len(arrays["action"])) < switch
    labels = _labels(env, expert, course, arrays, switch)
    return arrays | {"perturbed": policy.astype(np.uint8)} | labels, {**facts, "success": True}


def _act(env: Task, actor: Actor, course: Course, execute: Callable) -> str:
    """Let the policy act until it has succeeded, or until there is a reason to take over."""
    watch, most = Watch(course.takeover), env.settings.max_steps
    while env._steps < most:
        actions = actor.plan({"images": env.render_cameras(), "proprio": env.proprio})  # (k, 8)
        if watch.unsure(actor.disagreement):
            return "unsure"
        for action in actions[: most - env._steps]:
            execute(action)
            if env.is_success:
                return ""
            if reason := watch.reason(env.remaining, env.grasp_missed):
                return reason
    return "late"


def _labels(
    env: Task, expert: Any, course: Course, arrays: dict[str, np.ndarray], switch: int
) -> dict[str, np.ndarray]:
    """`expert` and `imitate` of an episode in which the expert acts from step `switch` on and has just acted last."""
    actions, k = arrays["action"], course.expert
    asked = {len(actions): expert.ask(k)}
    imitate = np.arange(len(actions)) >= switch
    for t in range(switch):
        if course.visited == "none" or (course.visited == "open" and _closed(env, actions[:t])):
            continue
        env.set_state(arrays["state"][t])
        expert.take_over(actions[:t])
        asked[t], imitate[t] = expert.ask(k), True
    return {"expert": expert_chunks(actions, asked), "imitate": imitate.astype(np.uint8)}


def _closed(env: Task, actions: Any) -> bool:
    """Whether the last action closes a gripper: a binary part, else the last number."""
    binary, at = [-1], 0
    for part in env.action_parts:
        binary += [at] if part["kind"] == "binary" else []
        at += part["size"]
    return len(actions) > 0 and bool(actions[-1][binary[-1]] >= 0.5)


def _opened(course: Course) -> tuple[Task, Actor]:
    """A worker's world and policy, which its next episodes share."""
    key = repr(course)
    if key not in _OPEN:
        _OPEN.clear()
        env = make(course.world, draw=False)
        actor, _, _ = load_policy(course.checkpoint, course.device, course.weights)
        actor.sizes = {}  # frames are drawn as the encoder needs them, whatever the demos say
        _OPEN[key] = env, actor
    return _OPEN[key]

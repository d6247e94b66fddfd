"""One episode in which a policy acts until the picker has to take over, which then ends it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.dagger.takeover import Seen, TakeoverSettings, Watch
from s2robot.demos.expert import expert_chunks
from s2robot.demos.picker import Picker, PickerConfig
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.loading import load_policy
from s2robot.policies import Actor

VISITED = ("none", "open", "all")
_OPEN: dict[str, tuple[CubePick, Picker, Actor]] = {}


@dataclass(frozen=True)
class Course:
    """All that decides an episode besides its seed.

    checkpoint, weights, device: as `load_policy` takes them.
    world: with the policy's cameras, at its encoder's image size.
    expert: steps of the picker's chunks.
    visited: from which of the policy's own states the picker is imitated, one of VISITED.
    """

    checkpoint: str
    world: CubePickConfig
    picker: PickerConfig
    takeover: TakeoverSettings
    expert: int
    visited: str
    weights: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.visited not in VISITED:
            raise UserError(
                f"recording.imitate_visited: found '{self.visited}', expected one of {', '.join(VISITED)}"
            )


def corrected_episode(course: Course, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays over time, of an episode that the picker ended well (else none), and what became of it.

    That is ``{"seed", "reason", "step", "success"}``: why the picker took over ("" if it did not), at which step, and
    whether the cube was lifted by whoever acted last.
    """
    env, picker, actor = _opened(course)
    env.reset(seed=seed)
    picker.reset(seed)
    actor.reset(seed)
    steps: dict[str, list] = {"state": [], "proprio": [], "cube_pose": [], "action": []}

    def execute(action: np.ndarray) -> None:
        seen = (env.get_state(), env.proprio, env.cube_pose, action)
        for name, value in zip(steps, seen, strict=True):
            steps[name].append(value)
        env.step_physics(action)

    reason = _act(env, actor, course, execute)
    switch = len(steps["action"])
    facts = {"seed": seed, "reason": reason, "step": switch, "success": env.is_success}
    if not reason:
        return {}, facts
    picker.take_over(_closed(steps["action"]))
    for _ in range(env.config.max_steps):
        execute(picker.act()[0])
        if env.is_success:
            break
    if not env.is_success:
        return {}, facts
    arrays = {name: np.stack(rows) for name, rows in steps.items()}
    policy = np.arange(len(arrays["action"])) < switch
    labels = _labels(env, picker, course, arrays, switch)
    return arrays | {"perturbed": policy.astype(np.uint8)} | labels, {**facts, "success": True}


def _act(env: CubePick, actor: Actor, course: Course, execute: Callable) -> str:
    """Let the policy act until it has succeeded, or until there is a reason to take over."""
    watch, rest, most = Watch(course.takeover), env.cube_pose[2], env.config.max_steps
    while env._steps < most:
        actions = actor.plan({"images": env.render_cameras(), "proprio": env.proprio})  # (k, 8)
        if watch.unsure(actor.disagreement):
            return "unsure"
        for action in actions[: most - env._steps]:
            execute(action)
            if env.is_success:
                return ""
            cube = env.cube_pose
            distance = float(np.linalg.norm(env.grip_position - cube[:3]))
            seen = Seen(distance, cube[2] - rest, env.opening, env._touching(), _closed([action]))
            if reason := watch.reason(seen):
                return reason
    return "late"


def _labels(
    env: CubePick, picker: Picker, course: Course, arrays: dict[str, np.ndarray], switch: int
) -> dict[str, np.ndarray]:
    """`expert` and `imitate` of an episode in which the picker acts from step `switch` on and has just acted last."""
    actions, k = arrays["action"], course.expert
    asked = {len(actions): picker.ask(k)}
    imitate = np.arange(len(actions)) >= switch
    for t in range(switch):
        closed = _closed(actions[:t])
        if course.visited == "none" or (course.visited == "open" and closed):
            continue
        env.set_state(arrays["state"][t])
        picker.take_over(closed)
        asked[t], imitate[t] = picker.ask(k), True
    return {"expert": expert_chunks(actions, asked), "imitate": imitate.astype(np.uint8)}


def _closed(actions: Any) -> bool:
    """Whether the last of these commanded the gripper to close."""
    return len(actions) > 0 and bool(actions[-1][7] >= 0.5)


def _opened(course: Course) -> tuple[CubePick, Picker, Actor]:
    """A worker's world and policy, kept between its episodes."""
    key = repr(course)
    if key not in _OPEN:
        _OPEN.clear()
        env = CubePick(course.world, draw=False)
        actor, _, _ = load_policy(course.checkpoint, course.device, course.weights)
        actor.sizes = {}  # frames are drawn as the encoder needs them, whatever the demos say
        _OPEN[key] = env, Picker(env, course.picker), actor
    return _OPEN[key]

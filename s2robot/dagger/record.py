"""Record corrections of a policy and append them to a copy of its demos.

    s2robot record recording=dagger checkpoint=runs/run/<date>/checkpoint out=corrected.zarr

The policy acts from new seeds. If it stalls, clearly fails or is uncertain, the expert takes over and completes the
episode, which is appended. Episodes in which the policy succeeds are not appended.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from s2robot.core.errors import UserError, check_same
from s2robot.core.provenance import policy_sha256
from s2robot.core.settings import Positions, Settings, from_yaml, read
from s2robot.core.workers import worker_pool
from s2robot.demos.lineage import left_to_try, note_round, open_copy, rounds_of
from s2robot.demos.record import expert_chunks, layout_of, picker_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task import Task, TaskSettings, next_action
from s2robot.envs.tasks import make
from s2robot.evaluation.evaluate import world_changes
from s2robot.loading import image_size_of, load_networks, load_policy
from s2robot.policies import Actor, check_contract

REASONS = ("missed", "stalled", "late", "unsure")  # reasons for a takeover


class TakeoverSettings(Settings, at="recording.takeover", file="recording/dagger"):
    patience: int = from_yaml(ge=1)
    progress: float = from_yaml(ge=0)
    disagreement: float | None = from_yaml(gt=0)


class DaggerSettings(Positions, at="recording", file="recording/dagger"):
    checkpoint: str | None = from_yaml(min_length=1)
    rounds: int = from_yaml(ge=1)
    workers: int = from_yaml(ge=1)
    imitate_visited: Literal["none", "open", "all"] = from_yaml()
    takeover: TakeoverSettings = from_yaml()
    weights: str | None = from_yaml()
    device: str = from_yaml()


class Corrector:
    """The state of a worker: the world, and the policy that acts in it. `picker`: settings of the expert; `chunk`: its steps."""

    def __init__(self, settings: DaggerSettings, world: TaskSettings, picker: Any, chunk: int):
        self.settings, self.picker, self.chunk = settings, picker, chunk
        self.actor, _, _ = load_policy(str(settings.checkpoint), settings.device, settings.weights)
        self.env = make(world, draw=False)


def record_corrections(
    settings: DaggerSettings,
    demos: EpisodeStore,
    world: TaskSettings,
    out: Path,
    first: int | None = None,
    progress: Callable[[int, Mapping[str, int]], None] = lambda done, counts: None,
) -> tuple[EpisodeStore, dict[str, int]]:
    """Run the policy from `settings.episodes` positions and append the corrected episodes to `out`.

    Args:
        settings: `checkpoint` is required.
        demos: the initial content of `out`, or only the `first` episodes if given; never written to.
        world: the demos' world; cameras, image size and max_steps may differ.
        out: created if missing. Positions up to the last one that it holds are not tried again.
        progress: called after each position with the number of finished positions, and `counts`.

    Returns:
        The dataset, and counts of positions: `alone` (the policy succeeded), `corrected`, `failed` (both failed), and
        takeovers for each of REASONS. Of earlier runs, a resumed recording counts only the `corrected` positions.

    UserError or DatasetError if the policy has another robot, action frame, rate or cameras; if the demos have
    no expert chunks, a task without an expert, or a layout that corrections do not fit; if `out` does not start with the
    demos; or if it holds some of these positions with another policy or other settings.
    """
    course = _course(settings, demos, world)
    count = len(demos.lengths[:first])
    with open_copy(out, demos, count, lambda copy: copy.append_all(demos, count)) as store:
        _check_and_note_round(out, settings)
        todo, known = left_to_try(store, count, settings.positions)
        counts = {"alone": 0, "corrected": known, "failed": 0, **dict.fromkeys(REASONS, 0)}
        with worker_pool(settings.workers, partial(Corrector, settings, *course)) as pool:
            corrected = pool.in_order(corrected_episode, [(seed,) for seed in todo])
            for done, (arrays, facts) in enumerate(corrected, 1):
                if arrays:
                    store.append(arrays, {k: facts[k] for k in ("seed", "success", "layout") if k in facts})
                counts["corrected" if arrays else "failed" if facts["reason"] else "alone"] += 1
                if facts["reason"]:
                    counts[facts["reason"]] += 1
                progress(done, counts)
    return EpisodeStore.open(out), counts


def _course(settings: DaggerSettings, demos: EpisodeStore, world: Any) -> tuple[TaskSettings, Any, int]:
    """Check that policy, demos and world fit together; return the other arguments of `Corrector`, with the world as the
    policy sees it."""
    checkpoint = read(str, settings.checkpoint, "checkpoint")
    check_demos(demos, world)
    policy, encoder, contract = load_networks(checkpoint, torch.device("cpu"), settings.weights)
    keys = ("robot", "action_frame", "rate_hz", "action_parts", "proprio_parts")
    check_contract(contract, cameras=list(demos.cameras), **{key: demos.attrs.get(key) for key in keys})
    check_takeover(settings, policy.spec.members)
    seen = world.replace(cameras=tuple(contract["cameras"]), image_size=image_size_of(contract, encoder))
    chunk = demos.read("expert", 0, 1).shape[1]
    _check_fits(demos, settings.seed, seen, chunk)
    return seen, picker_of(demos), chunk


def check_demos(demos: EpisodeStore, world: Any) -> None:
    """Reject demos that corrections cannot continue: without an expert or its labels, of several tasks, of another world."""
    check_same(demos.path, {"env_version": world.version}, {"env_version": demos.attrs["env_version"]})
    picker_of(demos)
    if texts := demos.attrs.get("tasks"):
        raise UserError(f"{demos.path}: expected demos without task texts for dagger, got {len(texts)}")
    if not {"expert", "imitate"} <= set(demos.keys):
        hint = f"add them with s2robot convert data={demos.path} out=<copy> expert=<steps>"
        got = ", ".join(demos.keys)
        raise UserError(f"{demos.path}: expected arrays 'expert' and 'imitate', got {got}; {hint}")
    changes = world_changes(demos.attrs["env_config"], world)
    if other := [text for text in changes if not text.startswith("max_steps ")]:
        raise UserError(f"env: expected the demos' world, got a different one ({'; '.join(other)})")


def check_takeover(settings: DaggerSettings, members: int) -> None:
    if (limit := settings.takeover.disagreement) is not None and members == 1:
        why = "because the policy has one member"
        raise UserError(f"recording.takeover.disagreement: expected null, {why}, got {limit}")


def _check_fits(demos: EpisodeStore, seed: int, world: TaskSettings, chunk: int) -> None:
    """Reject demos with arrays or values that a correction does not have, because it could not be appended."""
    action = demos.read("action", 0, 1)[0].astype(np.float32)
    with make(world, draw=False) as env:
        _, info = env.reset(seed=seed)
        step: dict[str, Any] = {"state": env.get_state(), "proprio": env.proprio, **env.demo_fields()}
        meta: dict[str, Any] = {"seed": seed, "success": True, **layout_of(env, info)}
    step |= {"action": action, "expert": np.stack([action] * chunk)}
    step |= dict.fromkeys(("perturbed", "imitate"), np.uint8(0))
    demos.check_fits({key: np.array([value]) for key, value in step.items()}, meta)


def _check_and_note_round(out: Path, settings: DaggerSettings) -> None:
    """Store the settings of these positions with the dataset; UserError if some were tried with other settings."""
    now: dict[str, Any] = {
        "positions": [settings.positions.start, settings.positions.stop],
        "policy": policy_sha256(Path(str(settings.checkpoint))),
        "imitate_visited": settings.imitate_visited,
        **{f"takeover.{key}": value for key, value in settings.takeover.model_dump().items()},
    }
    for noted in rounds_of(out):
        if set(range(*noted["positions"])) & set(settings.positions):
            remedy = "choose another out or recording.seed"
            check_same(out, noted, now, " as in the earlier round", remedy, free=("positions",))
    note_round(out, now)


def corrected_episode(corrector: Corrector, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run an episode of a policy, with takeover by the expert.

    Return its arrays over time if the expert took over and succeeded, else {}; and `seed`, `reason` for the takeover ("" if
    there was none), its `step`, final `success`, and `layout` if the task's demos have it.
    """
    env, actor = corrector.env, corrector.actor
    _, info = env.reset(seed=seed)
    expert: Any = env.expert(np.random.default_rng([seed, 7]), corrector.picker)
    actor.reset(seed)
    steps: dict[str, list] = {}

    def execute(action: np.ndarray) -> None:
        step = {"state": env.get_state(), "proprio": env.proprio, **env.demo_fields(), "action": action}
        for name, value in step.items():
            steps.setdefault(name, []).append(value)
        env.step_physics(action)

    reason = _act(env, actor, corrector.settings.takeover, execute)
    switch = len(done := steps.get("action", []))
    facts = {"seed": seed, "reason": reason, "step": switch, "success": env.is_success} | layout_of(env, info)
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
    labels = _labels(corrector, expert, arrays, switch)
    return arrays | {"perturbed": policy.astype(np.uint8)} | labels, {**facts, "success": True}


def _act(env: Task, actor: Actor, settings: TakeoverSettings, execute: Callable) -> str:
    """Run the policy until it succeeds; return "", or the reason for a takeover."""
    max_steps, limit = env.settings.max_steps, settings.disagreement
    best, waited = float("inf"), 0
    while env._steps < max_steps:
        actions = actor.plan({"images": env.render_cameras(), "proprio": env.proprio})  # (k, 8)
        if limit is not None and actor.disagreement > limit:
            return "unsure"
        for action in actions[: max_steps - env._steps]:
            execute(action)
            if env.is_success:
                return ""
            if env.grasp_missed:
                return "missed"
            remaining, waited = env.remaining, waited + 1
            if remaining < best - settings.progress:
                best, waited = remaining, 0
            if waited >= settings.patience:
                return "stalled"
    return "late"


def _labels(
    corrector: Corrector, expert: Any, arrays: dict[str, np.ndarray], switch: int
) -> dict[str, np.ndarray]:
    """Return `expert` and `imitate` of an episode whose steps from `switch` on are the expert's; call it right after them."""
    env, k, visited, actions = (
        corrector.env,
        corrector.chunk,
        corrector.settings.imitate_visited,
        arrays["action"],
    )
    chunks = {len(actions): expert.ask(k)}
    imitate = np.arange(len(actions)) >= switch
    for t in range(switch):
        if visited == "none" or (visited == "open" and _closed(env, actions[:t])):
            continue
        env.set_state(arrays["state"][t])
        expert.take_over(actions[:t])
        chunks[t], imitate[t] = expert.ask(k), True
    return {"expert": expert_chunks(actions, chunks), "imitate": imitate.astype(np.uint8)}


def _closed(env: Task, actions: Any) -> bool:
    """Return whether the last action closes the gripper, which is the last binary part, or else the last dimension."""
    binary, at = [-1], 0
    for part in env.action_parts:
        binary += [at] if part["kind"] == "binary" else []
        at += part["size"]
    return len(actions) > 0 and bool(actions[-1][binary[-1]] >= 0.5)

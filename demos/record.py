"""Record scripted demos into an episode store.

Every step holds the observation *before* the action: ``state`` (all that decides future and image, so that frames can
be drawn again later, bit for bit; of a task without states the frames themselves), ``proprio``, the task's own arrays
(:meth:`Task.demo_fields`); and the ``action`` that was executed. ``perturbed`` marks the steps in which the expert was
pushed off its way: they are kept so that an open-loop replay is exact, and training never imitates them
(demos/windows.py), only the recovery that follows. ``expert`` is what the expert would do from each step without pushes,
where it can be asked, ``imitate`` the steps from which a policy is to do the same.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2robot.core.settings import Settings, from_yaml
from s2robot.core.timing import span
from s2robot.core.workers import worker_pool
from s2robot.demos.errors import DatasetError
from s2robot.demos.schema import checked_attributes
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task import Task, TaskSettings, next_action
from s2robot.envs.tasks import make, make_cached


def record_episode(
    settings: TaskSettings,
    expert_settings: Any,
    seed: int,
    expert: int = 0,
    imitate_kicks: bool = False,
    states: np.ndarray | None = None,
) -> tuple[dict, dict]:
    """One scripted episode: arrays over time and ``{"seed", "success"}``.

    expert: steps of the chunks in ``expert``, beside which ``imitate`` stands; with 0, or of an expert that cannot be
    asked, there are neither.
    states: of a recording of this episode (T, S), to follow: another build of the simulator drifts away from it.
    """
    env = make_cached(settings, draw=False)
    with span("record", seed=seed):
        _, info = env.reset(seed=seed)
        who: Any = env.expert(np.random.default_rng([seed, 7]), expert_settings)
        can_be_asked = expert > 0 and hasattr(who, "ask")
        steps: dict[str, list] = {}
        asked, imitate = dict[int, np.ndarray](), []
        for t in range(settings.max_steps if states is None else len(states)):
            if states is not None:
                env.set_state(states[t], find_contacts=t == 0)
            before = who.remember() if can_be_asked else None
            action, perturbed = next_action(who)
            if can_be_asked and perturbed:
                asked[t] = who.ask(expert, before)
            kick = imitate_kicks and getattr(who, "push", "") == "kick"
            imitate.append(np.uint8(not perturbed or kick))
            seen = {"state": env.get_state()} if env.has_state else _images(env)
            own = {"action": np.asarray(action, np.float32), "perturbed": np.uint8(perturbed)}
            for name, value in (seen | {"proprio": env.proprio} | env.demo_fields() | own).items():
                steps.setdefault(name, []).append(value)
            env.step_physics(action)
            if states is None and (env.is_success or getattr(who, "failed", False)):
                break
        arrays = {k: np.stack(v) for k, v in steps.items()}
        if can_be_asked:
            asked[len(imitate)] = who.ask(expert)
            arrays |= {"expert": expert_chunks(arrays["action"], asked), "imitate": np.stack(imitate)}
        return arrays, {"seed": seed, "success": env.is_success, **layout_of(env, info)}


def _images(env: Task) -> dict[str, np.ndarray]:
    return {f"images_{name}": frame for name, frame in env.frames().items()}


def expert_chunks(action: np.ndarray, asked: Mapping[int, np.ndarray]) -> np.ndarray:
    """The picker's next actions at every step: the chunks that a policy imitates.  # float32 (T, K, A)

    Up to the next push, the chunk of a step is what was executed. From the push on, and beyond the episode's end, it is
    what the picker would have done, so the picker is asked at each push and at the end only.

    Args:
        action: executed (T, A).
        asked: step -> what the picker would do from there (K, A): for every step at which it did something else, and
            for T, the end.
    """
    chunks = np.empty((len(action), *asked[len(action)].shape), np.float32)
    following = asked[len(action)]
    for t in reversed(range(len(action))):
        following = asked[t] if t in asked else np.concatenate([action[t, None], following])[: len(following)]
        chunks[t] = following
    return chunks


def layout_of(env: Task, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the stored start of an episode, from `info` of its reset: {"layout": float (N,)}, or nothing."""
    names = _layout_names(env, info)
    return {"layout": np.array([info["layout"][name] for name in names], float)} if names else {}


def _layout_names(env: Task, info: dict[str, Any]) -> list[str]:
    """Return the names of the stored layout; none if the steps hold it."""
    return [] if env.demo_fields() else sorted(info["layout"])


class RecordingSettings(Settings, at="recording", file="recording/default"):
    """Settings of scripted recording; configs/recording/default.yaml documents each value."""

    episodes: int = from_yaml(ge=1)
    seed: int = from_yaml(ge=0)
    workers: int = from_yaml(ge=1)
    picker: dict[str, Any] = from_yaml()
    expert_settings: dict[str, Any] = from_yaml()
    kind: Literal["scripted"] = from_yaml()
    expert: int = from_yaml(ge=0)
    imitate_kicks: bool = from_yaml()


def record(
    path: str | Path,
    settings: TaskSettings,
    expert_settings: Any,
    episodes: int,
    seed: int,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, failed: None,
    expert: int = 0,
    imitate_kicks: bool = False,
) -> EpisodeStore:
    """Record ``episodes`` successful demos with seeds ``seed``, ``seed + 1``, ... into a store.

    A failed attempt is left out and the next seed takes its place. The result depends on the seed, not on the
    number of workers. A recording of the same settings that was interrupted goes on and ends as if it had not been.
    ``progress(done, failed)`` is called after each episode. ``expert``, ``imitate_kicks``: :func:`record_episode`.

    Raises:
        DatasetError: the path holds anything else, the disk is full (earlier episodes stay), the expert fails too
            often, or a number is out of range.
        EnvError: the task has no expert.
    """
    RecordingSettings(episodes=episodes, seed=seed, workers=workers, expert=expert)
    if why := settings.recording_problem():
        raise DatasetError(f"{path}: {why}")
    attributes = demo_attributes(settings, expert_settings, seed)
    if imitate_kicks:
        attributes["imitate_kicks"] = True
    store = create_or_resume(Path(path), attributes, episodes, expert)
    try:
        with worker_pool(workers, anywhere=True) as pool:
            how = (expert, imitate_kicks)
            start = lambda seed: pool.submit(record_episode, settings, expert_settings, seed, *how)  # noqa: E731
            _append_all(store, episodes, seed, start, progress)
    except BaseException:
        store.close()
        raise
    return store


def demo_attributes(settings: TaskSettings, expert_settings: Any, seed: int) -> dict[str, Any]:
    """Return the attributes of scripted demos of a task.

    Raises:
        EnvError: the task has no expert.
    """
    env = make(settings, draw=False)
    about = {**env.describe(), "seed": seed, "kind": "states" if env.has_state else "images"}
    _, info = env.reset(seed=seed)
    env.expert(np.random.default_rng(seed), expert_settings)
    env.close()
    if isinstance(expert_settings, Settings):
        expert_settings = expert_settings.model_dump()
    names = _layout_names(env, info)
    return about | {"picker": expert_settings or {}} | ({"layout_names": names} if names else {})


def _append_all(
    store: EpisodeStore,
    episodes: int,
    seed: int,
    start: Callable[[int], Future],
    progress: Callable[[int, int], None],
) -> None:
    """Append the missing episodes, in the order of their seeds; failures are replaced."""
    failed, next_seed = 0, seed
    if len(store):  # what failed before the last episode is known from its seed
        next_seed = int(store.meta("seed")[-1]) + 1
        failed = next_seed - seed - len(store)
    left = range(next_seed, next_seed + episodes - len(store))
    jobs, next_seed = [start(s) for s in left], left.stop
    while jobs:
        arrays, meta = jobs.pop(0).result()
        if meta["success"]:
            store.append(arrays, meta)
        else:
            failed += 1
            if failed > max(10, episodes // 2):
                raise DatasetError(
                    f"{store.path}: the expert failed {failed} of {len(store) + failed} episodes; "
                    "check the task's settings and the robot"
                )
            jobs.append(start(next_seed))
            next_seed += 1
        progress(len(store), failed)


def create_or_resume(path: Path, attributes: dict, episodes: int, expert: int) -> EpisodeStore:
    """Open the store to record into: a new one, or that of an interrupted recording of the same settings.

    Raises:
        DatasetError: the path holds anything else.
    """
    if not os.path.lexists(path):
        for left_over in path.parent.glob(f".*.partial.{path.name}"):  # of a kill while it was created
            shutil.rmtree(left_over, ignore_errors=True)
        return EpisodeStore.create(path, attributes)
    words = f"{path}: exists already, expected a new path; nothing was overwritten"
    try:
        there = EpisodeStore.open(path)
    except DatasetError as error:
        raise DatasetError(f"{words} ({error})") from None
    wanted, own = checked_attributes(path, attributes), there.attrs
    facts = [(name, own.get(name), wanted.get(name)) for name in sorted(wanted.keys() | own.keys())]
    steps = there.shape("expert")[0] if "expert" in there.keys else 0
    facts += [("expert", steps, expert), ("seeds", "seed" in there.meta_keys, True)] if len(there) else []
    for name, found, expected in facts:
        if found != expected:
            raise DatasetError(f"{words} (it holds {name} {found}, these settings say {expected})")
    if len(there) > episodes:
        raise DatasetError(f"{words} (it holds {len(there)} episodes, these settings say {episodes})")
    return there if len(there) == episodes else EpisodeStore.open(path, "a")

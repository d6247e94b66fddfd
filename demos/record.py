"""Record scripted demos into an episode store, and add an expert's chunks to recorded ones.

Every step holds the observation *before* the action: ``state``, from which frames can be rendered again bit for bit (or the
frames, of a task without states), ``proprio`` and :meth:`Task.demo_fields`; and the executed ``action``. ``perturbed`` marks
the steps in which the expert was pushed off its path: they make an open-loop replay exact, and only the recovery is imitated.
``expert`` holds the expert's next actions without pushes, if it can be queried, and ``imitate`` the steps to imitate.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np

from s2robot.core.errors import UserError, check_same
from s2robot.core.settings import Positions, Settings, from_yaml, read
from s2robot.core.timing import span
from s2robot.core.workers import worker_pool
from s2robot.demos.errors import DatasetError, mismatch
from s2robot.demos.replay import opened, world_of_demos
from s2robot.demos.schema import checked_attributes
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task import Task, TaskSettings, next_action
from s2robot.envs.tasks import make, make_cached

Progress = Callable[[int, int], None]
_SAME = 1e-4  # rad: other builds of the simulator differ in the last bits, another picker in the first


class RecordingSettings(Positions, at="recording", file="recording/default"):
    workers: int = from_yaml(ge=1)
    picker: dict[str, Any] = from_yaml()
    expert_settings: dict[str, Any] = from_yaml()
    kind: Literal["scripted"] = from_yaml()
    expert: int = from_yaml(ge=0)
    imitate_kicks: bool = from_yaml()


def record_episode(
    settings: TaskSettings,
    expert_settings: Any,
    seed: int,
    expert: int = 0,
    imitate_kicks: bool = False,
    states: np.ndarray | None = None,
) -> tuple[dict, dict]:
    """Record one scripted episode: arrays over time and ``{"seed", "success"}``.

    ``expert``: steps of its chunks; 0, or an expert that cannot be queried: neither ``expert`` nor ``imitate``. ``states``
    (T, S) of a recording of this episode are followed, because another build of the simulator drifts from it.
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
            step: dict[str, Any] = {"state": env.get_state()} if env.has_state else {}
            if not env.has_state:
                step = {f"images_{name}": frame for name, frame in env.frames().items()}
            step |= {"proprio": env.proprio, **env.demo_fields()}
            step |= {"action": np.asarray(action, np.float32), "perturbed": np.uint8(perturbed)}
            for name, value in step.items():
                steps.setdefault(name, []).append(value)
            env.step_physics(action)
            if states is None and (env.is_success or getattr(who, "failed", False)):
                break
        arrays = {k: np.stack(v) for k, v in steps.items()}
        if can_be_asked:
            asked[len(imitate)] = who.ask(expert)
            arrays |= {"expert": expert_chunks(arrays["action"], asked), "imitate": np.stack(imitate)}
        return arrays, {"seed": seed, "success": env.is_success, **layout_of(env, info)}


def expert_chunks(action: np.ndarray, asked: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return the expert's next actions at every step, the chunks that a policy imitates.  # float32 (T, K, A)

    Up to the next push, a chunk holds the executed actions ``action`` (T, A). From the push on, and beyond the episode's
    end, it holds the expert's own: ``asked`` maps each pushed step, and T, to those from there (K, A).
    """
    chunks = np.empty((len(action), *asked[len(action)].shape), np.float32)
    following = asked[len(action)]
    for t in reversed(range(len(action))):
        following = asked[t] if t in asked else np.concatenate([action[t, None], following])[: len(following)]
        chunks[t] = following
    return chunks


def layout_of(env: Task, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the stored start of an episode, from `info` of its reset: {"layout": float (N,)}, or nothing."""
    names = [] if env.demo_fields() else sorted(info["layout"])  # or the steps hold it
    return {"layout": np.array([info["layout"][name] for name in names], float)} if names else {}


def record(
    path: str | Path,
    settings: TaskSettings,
    expert_settings: Any,
    episodes: int,
    seed: int,
    workers: int = 2,
    progress: Progress = lambda *_: None,
    expert: int = 0,
    imitate_kicks: bool = False,
) -> EpisodeStore:
    """Record ``episodes`` successful demos with seeds ``seed``, ``seed + 1``, ... into a store.

    A failed attempt is replaced by the next seed. The result does not depend on the number of workers. An interrupted
    recording of the same settings resumes. ``progress(done, failed)`` follows each episode.

    UserError: the path holds anything else, the disk is full (earlier episodes stay), a number is out of range, or the task
    has no expert or one that fails too often.
    """
    RecordingSettings(episodes=episodes, seed=seed, workers=workers, expert=expert)
    if why := settings.recording_problem():
        raise DatasetError(f"{path}: {why}")
    attributes = demo_attributes(settings, expert_settings, seed)
    if imitate_kicks:
        attributes["imitate_kicks"] = True
    how = (expert, imitate_kicks)
    with create_or_resume(Path(path), attributes, episodes, expert) as store:
        with worker_pool(workers, anywhere=True) as pool:
            start = lambda seed: pool.submit(record_episode, settings, expert_settings, seed, *how)  # noqa: E731
            _append_all(store, episodes, seed, start, progress)
    return store


def demo_attributes(settings: TaskSettings, expert_settings: Any, seed: int) -> dict[str, Any]:
    """Return the attributes of scripted demos of a task (EnvError: it has no expert)."""
    env = make(settings, draw=False)
    about = {**env.describe(), "seed": seed, "kind": "states" if env.has_state else "images"}
    _, info = env.reset(seed=seed)
    env.expert(np.random.default_rng(seed), expert_settings)
    env.close()
    given = expert_settings.model_dump() if isinstance(expert_settings, Settings) else expert_settings
    names = {"layout_names": sorted(info["layout"])} if layout_of(env, info) else {}
    return about | {"picker": given or {}} | names


def _append_all(
    store: EpisodeStore, episodes: int, seed: int, start: Callable[[int], Future], progress: Progress
) -> None:
    """Append the missing episodes, in the order of their seeds; failures are replaced."""
    # the last episode's seed tells how many failed before it
    next_seed = int(store.meta("seed")[-1]) + 1 if len(store) else seed
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
    """Open the store to record into: a new one, or that of an interrupted recording of the same settings (DatasetError)."""
    if not os.path.lexists(path):
        for left_over in path.parent.glob(f".*.partial.{path.name}"):  # of a kill while it was created
            shutil.rmtree(left_over, ignore_errors=True)
        return EpisodeStore.create(path, attributes)
    try:
        there = EpisodeStore.open(path)
    except UserError as error:
        raise mismatch(path, "a new path; nothing was overwritten", f"an existing one ({error})") from None
    wanted, own = checked_attributes(path, attributes), there.attrs
    steps = there.shape("expert")[0] if "expert" in there.keys else 0
    if len(there):
        own |= {"expert": steps, "seeds": "seed" in there.meta_keys, "episodes": len(there)}
        wanted |= {"expert": expert, "seeds": True, "episodes": min(len(there), episodes)}
    check_same(path, wanted, own, ", or a new path", "nothing was overwritten")
    return there if len(there) == episodes else EpisodeStore.open(path, "a")


def relabel(
    source: EpisodeStore, out: Path, settings: RecordingSettings, progress: Progress = lambda *_: None
) -> EpisodeStore:
    """Copy simulated demos to ``out`` with (new) ``expert`` and ``imitate``, or resume; ``progress(episodes, all)`` follows each.

    The picker follows each episode's states from its seed, so it has the same knowledge of every push. UserError: the
    scripted picker did not record them, or acts differently, or `out` holds anything else.
    """
    picker, world = picker_of(source), world_of_demos(source)
    chosen = {"imitate_kicks": True} if settings.imitate_kicks else {}
    how = (world, picker, settings.expert, settings.imitate_kicks)
    with create_or_resume(out, {**source.attrs, **chosen}, len(source), settings.expert) as store:
        with worker_pool(settings.workers) as pool:
            left = range(len(store), len(source))
            labelled = pool.in_order(labelled_episode, [(source.path, i, *how) for i in left])
            for i, arrays in zip(left, labelled, strict=True):
                store.append(arrays, {key: source.meta(key)[i] for key in source.meta_keys})
                progress(len(store), len(source))
    return EpisodeStore.open(out)


def labelled_episode(
    path: Path, i: int, world: TaskSettings, picker: Any, expert: int, imitate_kicks: bool
) -> dict[str, np.ndarray]:
    """Return the arrays of episode ``i`` of a dataset with ``expert`` and ``imitate``."""
    source = opened(path, i)
    stored, seed = source.episode(i), int(source.meta("seed")[i])
    again, _ = record_episode(world, picker, seed, expert, imitate_kicks, stored["state"])
    if "expert" not in again:
        raise mismatch(path, "a task whose expert can be queried", world.target)
    for key in ("perturbed", "action"):
        away = np.abs(stored[key].astype(float) - again[key]).reshape(len(stored[key]), -1).max(1)
        if (away > _SAME).any():
            step = int(np.argmax(away > _SAME))
            found = f"{away[step]:.2g} away at step {step}"
            raise mismatch(f"{path}: episode {i}: {key}", "the expert's of these settings", found)
    return stored | {key: again[key] for key in ("expert", "imitate")}


def picker_of(store: EpisodeStore) -> Any:
    """Return the settings of the scripted expert that recorded a dataset (UserError: none did)."""
    given, has = store.attrs.get("picker"), {*store.keys, *store.meta_keys}
    if not isinstance(given, dict) or not {"perturbed", "state", "seed"} <= has:
        raise mismatch(store.path, "simulated demos of a scripted expert, with states", ", ".join(store.keys))
    kind = world_of_demos(store).Expert
    return given if kind is None else read(kind, given, f"{store.path}: attribute picker")

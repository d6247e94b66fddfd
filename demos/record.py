"""Record scripted demos into an episode store, and add an expert's chunks to recorded ones.

Every step holds the executed ``action`` and the observation *before* it: ``state``, from which frames can be rendered
bit for bit (or the frames, for a task without states), ``proprio`` and :meth:`Task.demo_fields`. ``perturbed`` marks the
steps in which the expert was pushed off its path: replay needs them, but only the recovery is imitated. If the expert
can be queried, ``expert`` holds its next actions without pushes, and ``imitate`` the steps to imitate.
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
from s2robot.demos.replay import open_cached, world_of_demos
from s2robot.demos.schema import checked_attributes
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task import Task, TaskSettings, next_action
from s2robot.envs.tasks import make, make_cached

Progress = Callable[[int, int], None]
_SAME = 1e-4  # rad: another simulator build differs by less, another picker by more


class RecordingSettings(Positions, at="recording", file="recording/default"):
    workers: int = from_yaml(ge=1)
    picker: dict[str, Any] = from_yaml()
    expert_settings: dict[str, Any] = from_yaml()
    kind: Literal["scripted"] = from_yaml()
    expert: int = from_yaml(ge=0)
    imitate_kicks: bool = from_yaml()


def record_episode(
    settings: TaskSettings, expert_settings: Any, seed: int, expert: int = 0, imitate_kicks: bool = False,
    states: np.ndarray | None = None,
) -> tuple[dict, dict]:  # fmt: skip
    """Record one scripted episode; return its arrays over time and ``{"seed", "success"}``.

    ``expert``: steps per chunk; 0, or an expert that cannot be queried, omits ``expert`` and ``imitate``.
    ``states`` (T, S): an earlier recording to follow, because another build of the simulator would drift from it.
    """
    env = make_cached(settings, draw=False)
    with span("record", seed=seed):
        _, info = env.reset(seed=seed)
        picker: Any = env.expert(np.random.default_rng([seed, 7]), expert_settings)
        is_queryable = expert > 0 and hasattr(picker, "ask")
        steps: dict[str, list] = {}
        queried, imitate = dict[int, np.ndarray](), []
        for t in range(settings.max_steps if states is None else len(states)):
            if states is not None:
                env.set_state(states[t], find_contacts=t == 0)
            before = picker.remember() if is_queryable else None
            action, perturbed = next_action(picker)
            if is_queryable and perturbed:
                queried[t] = picker.ask(expert, before)
            kick = imitate_kicks and getattr(picker, "push", "") == "kick"
            imitate.append(np.uint8(not perturbed or kick))
            step: dict[str, Any] = {"state": env.get_state()} if env.has_state else {}
            if not env.has_state:
                step = {f"images_{name}": frame for name, frame in env.frames().items()}
            step |= {"proprio": env.proprio, **env.demo_fields()}
            step |= {"action": np.asarray(action, np.float32), "perturbed": np.uint8(perturbed)}
            for name, value in step.items():
                steps.setdefault(name, []).append(value)
            env.step_physics(action)
            if states is None and (env.is_success or getattr(picker, "failed", False)):
                break
        arrays = {k: np.stack(v) for k, v in steps.items()}
        if is_queryable:
            queried[len(imitate)] = picker.ask(expert)
            arrays |= {"expert": expert_chunks(arrays["action"], queried), "imitate": np.stack(imitate)}
        return arrays, {"seed": seed, "success": env.is_success, **layout_of(env, info)}


def expert_chunks(action: np.ndarray, queried: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return the chunk of next actions that a policy imitates at every step.  # float32 (T, K, A)

    Up to the next push, a chunk holds the executed actions ``action`` (T, A). After it, and beyond the episode's end,
    it holds the actions of the queried expert. ``queried`` maps each pushed step, and T, to its answer (K, A).
    """
    chunks = np.empty((len(action), *queried[len(action)].shape), np.float32)
    chunk = queried[len(action)]
    for t in reversed(range(len(action))):
        chunk = queried[t] if t in queried else np.concatenate([action[t, None], chunk])[: len(chunk)]
        chunks[t] = chunk
    return chunks


def layout_of(env: Task, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return an episode's initial layout from the `info` of its reset: {"layout": float (N,)}, or nothing."""
    names = [] if env.demo_fields() else sorted(info["layout"])  # demo_fields already store it
    return {"layout": np.array([info["layout"][name] for name in names], float)} if names else {}


def record(
    path: str | Path, settings: TaskSettings, expert_settings: Any, episodes: int, seed: int,
    workers: int = 2, progress: Progress = lambda *_: None, expert: int = 0, imitate_kicks: bool = False,
) -> EpisodeStore:  # fmt: skip
    """Record ``episodes`` successful demos with seeds ``seed``, ``seed + 1``, ... into a store.

    A failed attempt is replaced by the next seed. The result does not depend on the number of workers. An interrupted
    recording with the same settings resumes. ``progress(done, failed)`` is called after each episode.

    UserError: the path holds something else, the disk is full (earlier episodes stay), a number is out of range, or the
    task has no expert or one that fails too often.
    """
    RecordingSettings(episodes=episodes, seed=seed, workers=workers, expert=expert)
    if why := settings.recording_problem():
        raise DatasetError(f"{path}: {why}")
    attributes = demo_attributes(settings, expert_settings, seed)
    if imitate_kicks:
        attributes["imitate_kicks"] = True
    options = (expert, imitate_kicks)
    with create_or_resume(Path(path), attributes, episodes, expert) as store:
        with worker_pool(workers, anywhere=True) as pool:
            start = lambda seed: pool.submit(record_episode, settings, expert_settings, seed, *options)  # noqa: E731
            _append_all(store, episodes, seed, start, progress)
    return store


def demo_attributes(settings: TaskSettings, expert_settings: Any, seed: int) -> dict[str, Any]:
    """Return the dataset attributes for scripted demos of a task (EnvError: it has no expert)."""
    with make(settings, draw=False) as env:
        about = {**env.describe(), "seed": seed, "kind": "states" if env.has_state else "images"}
        _, info = env.reset(seed=seed)
        env.expert(np.random.default_rng(seed), expert_settings)
        names = {"layout_names": sorted(info["layout"])} if layout_of(env, info) else {}
    picker = expert_settings.model_dump() if isinstance(expert_settings, Settings) else expert_settings
    return about | {"picker": picker or {}} | names


def _append_all(
    store: EpisodeStore, episodes: int, seed: int, start: Callable[[int], Future], progress: Progress
) -> None:
    """Append the missing episodes in the order of their seeds, and replace failures."""
    # the last episode's seed implies how many failed before it
    next_seed = int(store.meta("seed")[-1]) + 1 if len(store) else seed
    failed = next_seed - seed - len(store)
    seeds = range(next_seed, next_seed + episodes - len(store))
    jobs, next_seed = [start(s) for s in seeds], seeds.stop
    while jobs:
        arrays, meta = jobs.pop(0).result()
        if meta["success"]:
            store.append(arrays, meta)
        else:
            failed += 1
            if failed > max(10, episodes // 2):
                failures = f"the expert failed {failed} of {len(store) + failed} episodes"
                raise DatasetError(f"{store.path}: {failures}; check the task's settings and the robot")
            jobs.append(start(next_seed))
            next_seed += 1
        progress(len(store), failed)


def create_or_resume(path: Path, attributes: dict, episodes: int, expert: int) -> EpisodeStore:
    """Open a new store to record into, or resume an interrupted recording with the same settings (DatasetError)."""
    if not os.path.lexists(path):
        return EpisodeStore.create(path, attributes)
    try:
        store = EpisodeStore.open(path)
    except UserError as error:
        raise mismatch(path, "a new path; nothing was overwritten", f"an existing one ({error})") from None
    expected, stored = checked_attributes(path, attributes), store.attrs
    if not len(store) and expected != stored:  # from a recording that failed at its first episodes
        EpisodeStore.open(path, "a").close()  # another writer may be at work
        shutil.rmtree(path)
        return EpisodeStore.create(path, attributes)
    steps = store.shape("expert")[0] if "expert" in store.keys else 0
    if len(store):
        stored |= {"expert": steps, "seeds": "seed" in store.meta_keys, "episodes": len(store)}
        expected |= {"expert": expert, "seeds": True, "episodes": min(len(store), episodes)}
    check_same(path, expected, stored, ", or a new path", "nothing was overwritten")
    return store if len(store) == episodes else EpisodeStore.open(path, "a")


def relabel(
    source: EpisodeStore, out: Path, settings: RecordingSettings, progress: Progress = lambda *_: None
) -> EpisodeStore:
    """Copy simulated demos to ``out`` with new ``expert`` and ``imitate`` arrays; an interrupted copy resumes.

    The picker follows each episode's states from its seed, with the same pushes. ``progress(done, total)`` is called
    after each episode. UserError: the demos are not the scripted picker's, or `out` holds something else.
    """
    picker, world = picker_of(source), world_of_demos(source)
    attributes = {k: v for k, v in source.attrs.items() if k != "imitate_kicks"}
    attributes |= {"imitate_kicks": True} if settings.imitate_kicks else {}
    options = (world, picker, settings.expert, settings.imitate_kicks)
    with create_or_resume(out, attributes, len(source), settings.expert) as store:
        with worker_pool(settings.workers) as pool:
            remaining = range(len(store), len(source))
            labelled = pool.in_order(labelled_episode, [(source.path, i, *options) for i in remaining])
            for i, arrays in zip(remaining, labelled, strict=True):
                store.append(arrays, {key: source.meta(key)[i] for key in source.meta_keys})
                progress(len(store), len(source))
    return EpisodeStore.open(out)


def labelled_episode(
    path: Path, i: int, world: TaskSettings, picker: Any, expert: int, imitate_kicks: bool
) -> dict[str, np.ndarray]:
    """Return the arrays of episode ``i`` of a dataset, with ``expert`` and ``imitate`` added."""
    source = open_cached(path, i)
    stored, seed = source.episode(i), int(source.meta("seed")[i])
    relabelled, _ = record_episode(world, picker, seed, expert, imitate_kicks, stored["state"])
    if "expert" not in relabelled:
        raise mismatch(path, "a task whose expert can be queried", world.target)
    for key in ("perturbed", "action"):
        error = np.abs(stored[key].astype(float) - relabelled[key]).reshape(len(stored[key]), -1).max(1)
        if (error > _SAME).any():
            step = int(np.argmax(error > _SAME))
            got = f"a difference of {error[step]:.2g} at step {step}"
            raise mismatch(f"{path}: episode {i}: {key}", "the output of the expert with these settings", got)
    return stored | {key: relabelled[key] for key in ("expert", "imitate")}


def picker_of(store: EpisodeStore) -> Any:
    """Return the settings of the scripted expert that recorded a dataset (UserError: not scripted)."""
    picker, keys = store.attrs.get("picker"), {*store.keys, *store.meta_keys}
    if not isinstance(picker, dict) or not {"perturbed", "state", "seed"} <= keys:
        raise mismatch(store.path, "simulated demos of a scripted expert, with states", ", ".join(store.keys))
    kind = world_of_demos(store).Expert
    return picker if kind is None else read(kind, picker, f"{store.path}: attribute picker")

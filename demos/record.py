"""Record scripted demos into an episode store.

Every step holds the observation *before* the action: ``state`` (all of MuJoCo's, so that frames can be drawn
again later, bit for bit), ``proprio``, ``cube_pose``; and the ``action`` that was executed. ``perturbed`` marks
the steps in which the picker was pushed off its way: they are kept so that an open-loop replay is exact, and
training never imitates them (demos/windows.py), only the recovery that follows. ``expert`` is what the picker would
do from each step without pushes, ``imitate`` the steps from which a policy is to do the same.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from s2robot.demos.errors import DatasetError
from s2robot.demos.expert import expert_chunks
from s2robot.demos.picker import Picker, PickerConfig
from s2robot.demos.schema import checked_attributes
from s2robot.demos.store import EpisodeStore
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.cube_pick import CubePick
from s2robot.envs.workers import worker_pool

_WORLDS: dict[tuple, tuple[CubePick, Picker]] = {}  # a worker's world, kept between its episodes


def record_episode(
    env_config: CubePickConfig,
    picker_config: PickerConfig,
    seed: int,
    expert: int = 0,
    imitate_kicks: bool = False,
    states: np.ndarray | None = None,
) -> tuple[dict, dict]:
    """One scripted episode: arrays over time and ``{"seed", "success"}``.

    expert: steps of the chunks in ``expert``, beside which ``imitate`` stands; with 0 there are neither.
    states: of a recording of this episode (T, S), to follow: another build of the simulator drifts away from it.
    """
    key = (repr(env_config), repr(picker_config))
    if key not in _WORLDS:
        env = CubePick(env_config, draw=False)
        _WORLDS[key] = env, Picker(env, picker_config)
    env, picker = _WORLDS[key]
    env.reset(seed=seed)
    picker.reset(seed)
    steps: dict[str, list] = {"state": [], "proprio": [], "cube_pose": [], "action": [], "perturbed": []}
    asked, imitate = dict[int, np.ndarray](), []
    for t in range(env.config.max_steps if states is None else len(states)):
        if states is not None:
            env.set_state(states[t], found_anew=t == 0)
        before = picker.remember()
        action, perturbed = picker.act()
        if expert and perturbed:
            asked[t] = picker.ask(expert, before)
        imitate.append(np.uint8(not perturbed or (imitate_kicks and picker.push == "kick")))
        for name, value in (
            ("state", env.get_state()),
            ("proprio", env.proprio),
            ("cube_pose", env.cube_pose),
            ("action", action),
            ("perturbed", np.uint8(perturbed)),
        ):
            steps[name].append(value)
        env.step_physics(action)
        if env.is_success and states is None:
            break
    arrays = {k: np.stack(v) for k, v in steps.items()}
    if expert:
        asked[len(imitate)] = picker.ask(expert)
        arrays |= {"expert": expert_chunks(arrays["action"], asked), "imitate": np.stack(imitate)}
    return arrays, {"seed": seed, "success": env.is_success}


@dataclass(frozen=True)
class RecordingSettings:
    """configs/recording/default.yaml says what each is."""

    episodes: int = 120
    seed: int = 100000
    workers: int = 2
    picker: PickerConfig = field(default_factory=PickerConfig)
    kind: str = "scripted"
    expert: int = 16
    imitate_kicks: bool = False

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("workers", 1), ("seed", 0), ("expert", 0)):
            if (found := getattr(self, name)) < least:
                raise DatasetError(f"{name}: found {found}, expected {least} or more")


def record(
    path: str | Path,
    env_config: CubePickConfig,
    picker_config: PickerConfig,
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
        DatasetError: the path holds anything else, the disk is full (earlier episodes stay), the picker fails too
            often, or a number is out of range.
    """
    RecordingSettings(episodes, seed, workers, expert=expert)
    if env_config.clutter:  # where it lay is no part of a state, so the frames could not be drawn again
        raise DatasetError(
            f"{path}: found env.clutter {env_config.clutter}, expected 0: demos hold states only"
        )
    env = CubePick(env_config)
    attributes = {**env.describe(), "seed": seed, "kind": "states", "picker": picker_config.__dict__}
    store = begun(Path(path), attributes, episodes, expert)
    try:
        with worker_pool(workers) as pool:
            how = (expert, imitate_kicks)
            make = lambda seed: pool.submit(record_episode, env_config, picker_config, seed, *how)  # noqa: E731
            try:
                _append_all(store, episodes, seed, make, progress)
            finally:
                pool.shutdown(cancel_futures=True)
    except BaseException:
        store.close()
        raise
    return store


def _append_all(
    store: EpisodeStore,
    episodes: int,
    seed: int,
    make: Callable[[int], Future],
    progress: Callable[[int, int], None],
) -> None:
    """Append the episodes that are missing, in the order of their seeds; what fails is replaced."""
    failed, next_seed = 0, seed
    if len(store):  # what failed before the last episode is known from its seed
        next_seed = int(store.meta("seed")[-1]) + 1
        failed = next_seed - seed - len(store)
    left = range(next_seed, next_seed + episodes - len(store))
    jobs, next_seed = [make(s) for s in left], left.stop
    while jobs:
        arrays, meta = jobs.pop(0).result()
        if meta["success"]:
            store.append(arrays, meta)
        else:
            failed += 1
            if failed > max(10, episodes // 2):
                raise DatasetError(
                    f"{store.path}: the picker failed {failed} of {len(store) + failed} episodes; "
                    "check env.box_x, env.box_y and the robot"
                )
            jobs.append(make(next_seed))
            next_seed += 1
        progress(len(store), failed)


def begun(path: Path, attributes: dict, episodes: int, expert: int) -> EpisodeStore:
    """The store to record into, new or one that an interrupted recording of the same settings left.

    Raises:
        DatasetError: something else is there.
    """
    if not os.path.lexists(path):
        for left_over in path.parent.glob(f".{path.name}.*.partial"):  # of a kill while it was created
            shutil.rmtree(left_over, ignore_errors=True)
        return EpisodeStore.create(path, attributes)
    words = f"{path}: exists already, expected a new path; nothing was overwritten"
    try:
        there = EpisodeStore.open(path)
    except DatasetError as error:
        raise DatasetError(f"{words} ({error})") from None
    wanted = checked_attributes(path, attributes)
    for name in sorted(wanted.keys() | there.attrs.keys()):
        found, expected = there.attrs.get(name), wanted.get(name)
        if found != expected:
            raise DatasetError(f"{words} (it holds {name} {found}, these settings say {expected})")
    if len(there) > episodes:
        raise DatasetError(f"{words} (it holds {len(there)} episodes, these settings say {episodes})")
    found = there.read("expert", 0, 1).shape[1] if "expert" in there.keys else 0
    if len(there) and found != expert:
        raise DatasetError(f"{words} (it holds {found} steps of the expert, these settings say {expert})")
    if len(there) and "seed" not in there.meta_keys:
        raise DatasetError(f"{words} (its episodes hold no seeds to go on from)")
    return there if len(there) == episodes else EpisodeStore.open(path, "a")

"""Corrections of a policy, appended to a copy of its demos.

    s2robot record recording=dagger checkpoint=runs/run/<date>/checkpoint out=corrected.zarr

The policy acts from new seeds; where it stalls, plainly fails or is unsure of itself, the expert takes over and
ends the episode, which is appended. Where the policy succeeds by itself there is nothing to correct.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from s2robot.common.errors import UserError
from s2robot.common.files import read_json, write_json
from s2robot.core.provenance import policy_sha256
from s2robot.core.settings import Settings, from_yaml
from s2robot.core.workers import worker_pool
from s2robot.dagger.episode import REASONS, Course, TakeoverSettings, Visited, corrected_episode
from s2robot.demos.lineage import CORRECTIONS, began_with, left_to_try
from s2robot.demos.relabel import picker_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.evaluate import world_changes
from s2robot.loading import image_size_of, load_networks
from s2robot.policies import check_contract


class DaggerSettings(Settings, at="recording", file="recording/dagger"):
    """configs/recording/dagger.yaml documents each value."""

    checkpoint: str | None = from_yaml(min_length=1)
    rounds: int = from_yaml(ge=1)
    episodes: int = from_yaml(ge=1)
    seed: int = from_yaml(ge=0)
    workers: int = from_yaml(ge=1)
    imitate_visited: Visited = from_yaml()
    takeover: TakeoverSettings = from_yaml()
    weights: str | None = from_yaml()
    device: str = from_yaml()


def record_corrections(
    settings: DaggerSettings,
    demos: EpisodeStore,
    world: TaskSettings,
    out: Path,
    first: int | None = None,
    progress: Callable[[int, Mapping[str, int]], None] = lambda done, counts: None,
) -> tuple[EpisodeStore, dict[str, int]]:
    """Let the policy try `settings.episodes` positions and append what had to be corrected to `out`.

    Args:
        settings: `checkpoint` among them.
        demos: what `out` begins with, of which only the `first` episodes if that is given; never written to.
        world: as the demos', but for cameras, image size and the steps after which each gives up.
        out: made where it is not there. Positions up to the last that it holds are not tried again.
        progress: called after each position with how many are done, and `counts`.

    Returns:
        The dataset, and counts of positions: `alone` (the policy succeeded), `corrected`, `failed` (both did), and
        takeovers for each of REASONS. A resumed recording counts only what was `corrected` before.

    Raises:
        PolicyError, UserError, DatasetError: a policy of another robot, action frame, rate or cameras; demos without
            an expert's chunks, or of a task that has no expert; an `out` that does not begin with the demos, or in which
            positions of these were begun with another policy or other settings.
    """
    course = _course(settings, demos, world)
    count = began_with(demos, first)
    store = _begun(out, demos, count)
    positions = range(settings.seed, settings.seed + settings.episodes)
    _same_as_before(out, positions, settings)
    todo, known = left_to_try(store, count, positions)
    counts = {"alone": 0, "corrected": known, "failed": 0, **dict.fromkeys(REASONS, 0)}
    with store, worker_pool(settings.workers) as pool:
        corrected = pool.in_order(corrected_episode, [(course, seed) for seed in todo])
        for done, (arrays, facts) in enumerate(corrected, 1):
            if arrays:
                store.append(arrays, {k: facts[k] for k in ("seed", "success", "layout") if k in facts})
            counts["corrected" if arrays else "failed" if facts["reason"] else "alone"] += 1
            if facts["reason"]:
                counts[facts["reason"]] += 1
            progress(done, counts)
    return EpisodeStore.open(out), counts


def _course(settings: DaggerSettings, demos: EpisodeStore, world: Any) -> Course:
    """Check that policy, demos and world fit together; return what decides an episode."""
    if settings.checkpoint is None:
        raise UserError("checkpoint: found none, expected the folder of a trained policy")
    if (task := demos.attrs["env_version"]) != world.version:
        raise UserError(f"{demos.path}: found the task {task}, expected {world.version}")
    policy, encoder, contract = load_networks(settings.checkpoint, torch.device("cpu"), settings.weights)
    keys = ("robot", "action_frame", "rate_hz", "action_parts", "proprio_parts")
    check_contract(contract, cameras=list(demos.cameras), **{key: demos.attrs.get(key) for key in keys})
    if settings.takeover.disagreement is not None and policy.spec.members == 1:
        raise UserError(
            f"recording.takeover.disagreement: expected null for the policy of {settings.checkpoint}, which has one "
            f"member, got {settings.takeover.disagreement}"
        )
    picker = picker_of(demos)
    if not {"expert", "imitate"} <= set(demos.keys):
        raise UserError(
            f"{demos.path}: found no 'expert' and 'imitate', expected both; a copy with them: "
            f"s2robot convert data={demos.path} out=<copy> expert=<steps>"
        )
    changes = world_changes(demos.attrs["env_config"], world)
    if other := [text for text in changes if not text.startswith("max_steps ")]:
        raise UserError(f"env: found a world that is not the demos' ({'; '.join(other)}), expected theirs")
    own = world.replace(cameras=tuple(contract["cameras"]), image_size=image_size_of(contract, encoder))
    chunk = demos.read("expert", 0, 1).shape[1]
    how = settings.takeover, chunk, settings.imitate_visited, settings.weights, settings.device
    return Course(settings.checkpoint, own, picker, *how)


def _same_as_before(out: Path, positions: range, settings: DaggerSettings) -> None:
    """Store beside the episodes how these positions are tried; UserError if some were begun with other settings."""
    file = out / CORRECTIONS
    now: dict[str, Any] = {
        "positions": [positions.start, positions.stop],
        "policy": policy_sha256(Path(str(settings.checkpoint))),
        "imitate_visited": settings.imitate_visited,
        **{f"takeover.{key}": value for key, value in settings.takeover.model_dump().items()},
    }
    before = read_json(file) if file.exists() else []
    for noted in before:
        other = [key for key in now if key != "positions" and noted[key] != now[key]]
        if other and set(range(*noted["positions"])) & set(positions):
            raise UserError(
                f"{out}: found positions {noted['positions'][0]} to {noted['positions'][1] - 1} tried with "
                f"{other[0]} {noted[other[0]]}, expected {now[other[0]]}; choose another out or recording.seed"
            )
    if now not in before:
        write_json(file, [*before, now])


def _begun(out: Path, demos: EpisodeStore, count: int) -> EpisodeStore:
    """The dataset to append to, which begins as a copy of the first `count` demos."""
    if not os.path.lexists(out):
        part = out.with_name(f".{out.name}.partial")
        shutil.rmtree(part, ignore_errors=True)
        with EpisodeStore.create(part, dict(demos.attrs)) as copy:
            copy.append_all(demos, count)
        os.rename(part, out)
    store = EpisodeStore.open(out)
    if len(store) < count or store.fingerprint_of_first(count) != demos.fingerprint_of_first(count):
        raise UserError(
            f"{out}: found other episodes, expected a dataset that begins with the {count} of {demos.path}"
        )
    return EpisodeStore.open(out, "a")

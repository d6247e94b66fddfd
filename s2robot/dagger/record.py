"""Corrections of a policy, appended to a copy of its demos.

    s2robot record recording=dagger checkpoint=runs/run/<date>/checkpoint out=corrected.zarr

The policy acts from new seeds; where it stalls, plainly fails or is unsure of itself, the expert takes over and
ends the episode, which is appended. Where the policy succeeds by itself there is nothing to correct.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from s2robot.common.errors import UserError
from s2robot.common.files import read_json, write_json
from s2robot.core.provenance import policy_sha256
from s2robot.core.workers import worker_pool
from s2robot.dagger.episode import VISITED, Course, corrected_episode
from s2robot.dagger.takeover import REASONS, TakeoverSettings
from s2robot.demos.lineage import CORRECTIONS, began_with, left_to_try
from s2robot.demos.relabel import picker_of
from s2robot.demos.store import EpisodeStore
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.summary import world_changes
from s2robot.loading import image_size_of, load_networks
from s2robot.policies import ChunkPolicy, check_contract


@dataclass(frozen=True)
class DaggerSettings:
    """configs/recording/dagger.yaml says what each is."""

    checkpoint: str | None = None
    rounds: int = 2
    episodes: int = 128
    seed: int = 200_000
    workers: int = 2
    imitate_visited: str = "none"
    takeover: TakeoverSettings = field(default_factory=TakeoverSettings)
    weights: str | None = None
    device: str = "auto"
    kind: str = "dagger"

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("episodes", 1), ("seed", 0), ("workers", 1)):
            if (found := getattr(self, name)) < least:
                raise UserError(f"recording.{name}: found {found}, expected {least} or more")
        if self.imitate_visited not in VISITED:
            raise UserError(
                f"recording.imitate_visited: found '{self.imitate_visited}', expected one of {', '.join(VISITED)}"
            )


Told = Callable[[int, Mapping[str, int]], None]


def record_corrections(
    settings: DaggerSettings,
    demos: EpisodeStore,
    world: TaskSettings,
    out: Path,
    first: int | None = None,
    progress: Told = lambda done, counts: None,
) -> tuple[EpisodeStore, dict[str, int]]:
    """Let the policy try `settings.episodes` positions and append what had to be corrected to `out`.

    Args:
        settings: `checkpoint` among them.
        demos: what `out` begins with, of which only the `first` episodes if that is given; never written to.
        world: as the demos', but for cameras, image size and the steps after which each gives up.
        out: made where it is not there. Positions up to the last that it holds are not tried again.
        progress: called after each position with how many are done, and `counts`.

    Returns:
        The dataset, and how many positions ended how: `alone` (by the policy), `corrected`, `failed` (by both), and
        how often the expert took over for each of REASONS. Of a recording that was interrupted, what was `corrected`
        before counts and the rest does not.

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
                store.append(
                    arrays, {key: facts[key] for key in ("seed", "success", "layout") if key in facts}
                )
            counts["corrected" if arrays else "failed" if facts["reason"] else "alone"] += 1
            if facts["reason"]:
                counts[facts["reason"]] += 1
            progress(done, counts)
    return EpisodeStore.open(out), counts


def _course(settings: DaggerSettings, demos: EpisodeStore, world: Any) -> Course:
    """What decides an episode, once all of it fits together."""
    if settings.checkpoint is None:
        raise UserError("checkpoint: found none, expected the folder of a trained policy")
    if (task := demos.attrs["env_version"]) != world.version:
        raise UserError(f"{demos.path}: found the task {task}, expected {world.version}")
    policy, encoder, contract = load_networks(settings.checkpoint, torch.device("cpu"), settings.weights)
    check_contract(
        contract,
        robot=demos.robot,
        action_frame=demos.attrs["action_frame"],
        rate_hz=demos.attrs["rate_hz"],
        cameras=list(demos.cameras),
        **{key: demos.attrs.get(key) for key in ("action_parts", "proprio_parts")},
    )
    _check_unsure(settings, policy)
    picker = picker_of(demos)
    if not {"expert", "imitate"} <= set(demos.keys):
        raise UserError(
            f"{demos.path}: found no 'expert' and 'imitate', expected both; a copy with them: "
            f"s2robot convert data={demos.path} out=<copy> expert=<steps>"
        )
    if other := [
        text for text in world_changes(demos.attrs["env_config"], world) if not text.startswith("max_steps ")
    ]:
        raise UserError(f"env: found a world that is not the demos' ({'; '.join(other)}), expected theirs")
    return Course(
        settings.checkpoint,
        world.replace(cameras=tuple(contract["cameras"]), image_size=image_size_of(contract, encoder)),
        picker,
        settings.takeover,
        demos.read("expert", 0, 1).shape[1],
        settings.imitate_visited,
        settings.weights,
        settings.device,
    )


def _same_as_before(out: Path, positions: range, settings: DaggerSettings) -> None:
    """Note beside the episodes how these positions are tried, or refuse where some were begun otherwise (UserError)."""
    file = out / CORRECTIONS
    now: dict[str, Any] = {
        "positions": [positions.start, positions.stop],
        "policy": policy_sha256(Path(str(settings.checkpoint))),
        "imitate_visited": settings.imitate_visited,
        **{f"takeover.{key}": value for key, value in asdict(settings.takeover).items()},
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


def _check_unsure(settings: DaggerSettings, policy: ChunkPolicy) -> None:
    if settings.takeover.disagreement is not None and policy.spec.members == 1:
        raise UserError(
            f"recording.takeover.disagreement: found {settings.takeover.disagreement}, expected null: the policy of "
            f"{settings.checkpoint} has one member"
        )


def _begun(out: Path, demos: EpisodeStore, count: int) -> EpisodeStore:
    """The dataset to append to; where it is not there, a copy of the first so many demos."""
    if not os.path.lexists(out):
        part = out.with_name(f".{out.name}.partial")
        shutil.rmtree(part, ignore_errors=True)
        about: dict[str, Any] = demos.attrs
        with EpisodeStore.create(part, about) as copy:
            copy.append_all(demos, count)
        os.rename(part, out)
    store = EpisodeStore.open(out)
    if len(store) < count or store.fingerprint_of_first(count) != demos.fingerprint_of_first(count):
        raise UserError(
            f"{out}: found other episodes, expected a dataset that begins with the {count} of {demos.path}"
        )
    return EpisodeStore.open(out, "a")

"""A comparison as data: what its stages share, checked before anything runs, and the stages of each world.

plan = make_plan(settings, ["train.steps=500"])   # what all arms share, as it was typed
policies = training(plan, plan.main)              # (arm, training seed) -> the job that trains it
evaluation(plan, plan.main, policies, 128)        # jobs that need these
read_runs(plan, plan.main, 128)                   # arm -> training seed -> episode records
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s2robot.common.config_errors import key_of
from s2robot.common.errors import UserError
from s2robot.comparison.arms import (
    GROUPS,
    Arm,
    Known,
    about,
    choose_arms,
    demos_of,
    look_up,
    read_by,
    settings_of,
)
from s2robot.comparison.jobs import Job
from s2robot.comparison.settings import Compare
from s2robot.evaluation.records import read_records

Policies = Mapping[tuple[str, int], Job]  # (arm, training seed) -> its training
Runs = dict[str, dict[int, list[dict[str, Any]]]]  # arm -> training seed -> episode records
_THREADS: dict[str, tuple[str, ...]] = {  # keys that get a job's share of the cores
    "encode": ("features.threads", "features.workers"),
    "train": ("train.threads",),
    "evaluate": ("evaluate.workers",),
}


@dataclass(frozen=True)
class World:
    """Where the arms are trained and evaluated: that of the main comparison, or of one value of an axis."""

    root: Path  # folder of its stages
    label: str = ""  # what the names of its stages begin with
    words: tuple[str, ...] = ()  # its own settings, beside those of all arms
    recording: Job | None = None  # of its demos, where it has its own
    demos: str | None = (
        None  # what they are, for the stages that read them; None: not known before they are recorded
    )


@dataclass(frozen=True)
class Plan:
    """A comparison before it runs."""

    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]  # of training
    pairs: tuple[tuple[str, str], ...]  # arms compared: the first minus the second
    common: tuple[str, ...]  # settings of every arm
    known: Mapping[str, Known]  # by arm
    main: World
    episodes: int
    position_seed: int
    parallel: int  # processes side by side
    threads: int  # of each

    def folder(self, world: World, arm: Arm, seed: int) -> Path:
        """Where an arm's training and evaluation are."""
        return (world.root / "arms" if world.root == self.out else world.root) / arm.name / f"seed-{seed}"


def make_plan(settings: Compare, typed: Sequence[str]) -> Plan:
    """All checks that need no run: arms, encoders with their weights, demos, settings of every verb.

    ``typed``: overrides of all arms. Raises UserError that names the arm.
    """
    experiment, out = settings.experiment, settings.out
    common = [*experiment.overrides, *(word for word in typed if _is_for_arms(word))]
    arms = choose_arms(experiment.arms, settings.arms)
    if settings.record:
        common.append(f"demos.path={word(out / 'demos.zarr')}")
    with about("all arms"):
        positions = settings_of("evaluate", common).evaluate
        if settings.record:
            settings_of("record", common)
    pairs = _pairs(experiment.pairs, arms)
    if experiment.stopping.enabled and not pairs:
        raise UserError(
            "experiment.stopping.enabled: found no pair to decide, expected one in experiment.pairs"
        )
    known = {arm.name: look_up(arm, common) for arm in arms}
    demos = None if settings.record else demos_of(arms[0], common).fingerprint
    recording = recording_of(out, "", common) if settings.record else None
    cores = os.cpu_count() or 1
    parallel = settings.jobs or min(cores, 8, len(arms) * len(experiment.seeds))
    return Plan(
        out=out, arms=arms, seeds=experiment.seeds, pairs=pairs,
        common=tuple(common), known=known, main=World(out, recording=recording, demos=demos),
        episodes=int(positions.episodes), position_seed=int(positions.seed),
        parallel=parallel, threads=settings.threads or max(1, cores // parallel),
    )  # fmt: skip


def _is_for_arms(word: str) -> bool:
    return re.split(r"[./]", key_of(word))[0] in GROUPS and not word.startswith("-")


def _pairs(chosen: Sequence[tuple[str, str]] | None, arms: Sequence[Arm]) -> tuple[tuple[str, str], ...]:
    """Which arm is compared with which: those that the experiment names and that run, or every two."""
    names = [arm.name for arm in arms]
    if chosen is None:
        return tuple((b, a) for i, a in enumerate(names) for b in names[i + 1 :])
    return tuple(pair for pair in chosen if set(pair) <= set(names))


def recording_of(root: Path, label: str, words: Sequence[str]) -> Job:
    """Record `demos.zarr` in the world of ``words``."""
    demos = root / "demos.zarr"
    own = (*read_by("record", words), f"out={word(demos)}", *_hydra(root, "record"))
    return Job(f"{label}demos: record", "record", own, root / "record", fresh=demos)


def training(plan: Plan, world: World) -> Policies:
    """Encode once for each frozen encoder, train once for each arm and seed."""
    jobs: dict[tuple[str, int], Job] = {}
    encoded: dict[tuple[str, ...], Job] = {}
    for arm in plan.arms:
        words = (*plan.common, *arm.overrides, *world.words)
        inputs = {"encoder": plan.known[arm.name].encoder}
        if world.demos:
            inputs["demos"] = world.demos
        needs = () if world.recording is None else (world.recording,)
        if not settings_of("train", words).train.tune.blocks:  # else a training reads what enters its blocks
            reads = tuple(read_by("encode", words))
            if reads not in encoded:
                stamp = world.root / "encode" / arm.name / "encode"
                encoded[reads] = _job(
                    f"{world.label}{arm.name}: encode", "encode", reads, stamp, needs, inputs
                )
            needs = (encoded[reads],)
        for seed in plan.seeds:
            own = read_by("train", [*words, f"train.seed={seed}"])
            stamp = plan.folder(world, arm, seed) / "train"
            name = f"{world.label}{arm.name} seed {seed}: train"
            jobs[arm.name, seed] = _job(name, "train", own, stamp, needs, inputs)
    return jobs


def evaluation(plan: Plan, world: World, policies: Policies, episodes: int) -> list[Job]:
    """Evaluate in ``world`` on the first so many positions, each policy once it is trained, wherever that is."""
    jobs = []
    for arm in plan.arms:
        for seed in plan.seeds:
            folder, policy = plan.folder(world, arm, seed), policies[arm.name, seed]
            own = [*plan.common, *arm.overrides, *world.words, f"evaluate.episodes={episodes}"]
            if not any(key_of(word) == "evaluate.videos" for word in own):
                own.append("evaluate.videos=0")
            words = (f"checkpoint={word(policy.folder / 'checkpoint')}", *read_by("evaluate", own))
            name = f"{world.label}{arm.name} seed {seed}: evaluate {episodes} positions"
            inputs = {"encoder": plan.known[arm.name].encoder}
            job = _job(name, "evaluate", words, folder / f"evaluate-{episodes}", (policy,), inputs)
            jobs.append(replace(job, lines=(folder / "episodes.jsonl", episodes)))
    return jobs


def _job(name: str, verb: str, words: Sequence[str], stamp: Path, needs: tuple[Job, ...], inputs: Mapping[str, str]) -> Job:  # fmt: skip
    given = {key_of(word) for word in words}
    threads = tuple(key for key in _THREADS[verb] if key not in given)
    return Job(name, verb, (*words, *_hydra(stamp.parent, verb)), stamp, needs, threads, inputs)


def read_runs(plan: Plan, world: World, episodes: int) -> Runs:
    """The records of the first so many positions of every arm and training seed."""
    runs: Runs = {}
    for arm in plan.arms:
        for seed in plan.seeds:
            records = read_records(plan.folder(world, arm, seed) / "episodes.jsonl")
            kept = sorted((r for r in records if r["episode"] < episodes), key=lambda r: r["episode"])
            runs.setdefault(arm.name, {})[seed] = kept
    return runs


def _hydra(folder: Path, verb: str) -> tuple[str, str]:
    """One folder holds the stages of an arm; each keeps its config beside those of the others."""
    return f"hydra.run.dir={word(folder)}", f"hydra.output_subdir=.hydra-{verb}"


def word(path: Path) -> str:
    """A path as Hydra reads it."""
    text = str(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "\\'") + "'"

"""What a comparison will run: the stages of each arm and training seed, for the main comparison and along each axis.

plan = make_plan(settings, ["train.steps=500"])   # what all arms share, as it was typed
policies = training(plan, plan.main)              # (arm, training seed) -> the job that trains it
evaluation(plan, plan.main, policies, 128)        # jobs that need these
read_runs(plan, plan.main, 128)                   # arm -> training seed -> episode records
points_of(plan, "demos", axis)                    # the values of an axis, each with a world of its own
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s2robot.comparison.arms import (
    GROUPS,
    Arm,
    Known,
    about,
    demos_of,
    group_of,
    look_up,
    read_by,
    settings_of,
    value_of,
)
from s2robot.comparison.jobs import Job
from s2robot.comparison.settings import Axis, Compare
from s2robot.core.errors import UserError
from s2robot.evaluation.records import read_records
from s2robot.overrides import key_of

Policies = Mapping[tuple[str, int], Job]  # (arm, training seed) -> its training
Runs = dict[str, dict[int, list[dict[str, Any]]]]  # arm -> training seed -> episode records
_THREADS: dict[str, tuple[str, ...]] = {  # keys that get a job's share of the cores
    "encode": ("features.threads", "features.workers"),
    "train": ("train.threads",),
    "evaluate": ("evaluate.workers",),
}
_RECORDED = (
    "recorded by this comparison"  # in place of the fingerprint of demos that are recorded for one value
)


@dataclass(frozen=True)
class World:
    """The settings that arms are trained and evaluated with: those of the main comparison, or of one value of an axis."""

    root: Path  # folder of its stages
    label: str = ""  # begins the names of its stages
    words: tuple[str, ...] = ()  # its own overrides, beside those of all arms
    recording: Job | None = None  # of its demos, if it has its own
    demos: str | None = None  # fingerprint, for the stages that read them; None: not recorded yet


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
        """Return the run directory of an arm's training and evaluation."""
        return (world.root / "arms" if world.root == self.out else world.root) / arm.name / f"seed-{seed}"


@dataclass(frozen=True)
class Point:
    """One value of an axis. `trains`: with policies of its own, else with those of the main comparison."""

    value: Any
    world: World
    trains: bool


def make_plan(settings: Compare, typed: Sequence[str]) -> Plan:
    """Do all checks that need no run: arms, encoders with their weights, demos, settings of every verb.

    Args:
        settings: of the comparison.
        typed: overrides of all arms.

    Raises:
        UserError: names the arm.
    """
    experiment, out, arms = settings.experiment, settings.out, settings.chosen
    for_arms = [word for word in typed if group_of(word) in GROUPS and not word.startswith("-")]
    common = [*experiment.overrides, *for_arms]
    if settings.record:
        common.append(f"demos.path={word(out / 'demos.zarr')}")
    with about("all arms"):
        positions = settings_of("evaluate", common).evaluate
        if settings.record:
            settings_of("record", common)
    names = [arm.name for arm in arms]
    every_two = [(b, a) for i, a in enumerate(names) for b in names[i + 1 :]]
    chosen = every_two if experiment.pairs is None else experiment.pairs
    pairs = tuple(pair for pair in chosen if {*pair} <= {*names})
    if experiment.stopping.enabled and not pairs:
        raise UserError("experiment.pairs: expected one or more with experiment.stopping.enabled, got none")
    known = {arm.name: look_up(arm, common) for arm in arms}
    demos = None if settings.record else demos_of(arms[0], common).fingerprint
    recording = _recording(out, "", common) if settings.record else None
    cores = os.cpu_count() or 1
    parallel = settings.jobs or min(cores, 8, len(arms) * len(experiment.seeds))
    return Plan(
        out=out, arms=arms, seeds=experiment.seeds, pairs=pairs,
        common=tuple(common), known=known, main=World(out, recording=recording, demos=demos),
        episodes=int(positions.episodes), position_seed=int(positions.seed),
        parallel=parallel, threads=settings.threads or max(1, cores // parallel),
    )  # fmt: skip


def points_of(plan: Plan, name: str, axis: Axis) -> tuple[Any, tuple[Point, ...]]:
    """Return the default of an axis and its points; the point at the default is the main comparison's world.

    Raises:
        UserError: a key of no stage, or counts of demos that do not exist.
    """
    values = [value_of(arm, plan.common, axis.key) for arm in plan.arms]
    default = values[0] if values.count(values[0]) == len(values) else None  # else an arm has another value
    if axis.key == "demos.episodes":
        if plan.main.recording is not None:
            most = int(settings_of("record", plan.common).episodes)
        else:
            most = len(demos_of(plan.arms[0], plan.common))
        default = most if default is None else default
        if wrong := [value for value in axis.values if type(value) is not int or not 1 <= value <= most]:
            raise UserError(
                f"experiment.axes.{name}.values: expected integers from 1 to {most}, got {wrong[0]}"
            )
    points = []
    for value in axis.values:
        if value == default:
            points.append(Point(value, plan.main, trains=False))
            continue
        root, label = plan.out / "axes" / name / str(value), f"{name} {value}, "
        words, recording = [f"{axis.key}={value}"], None
        if axis.record:
            recording = _recording(root, label, [*plan.common, *words])
            words.append(f"demos.path={word(root / 'demos.zarr')}")
        world = World(root, label, tuple(words), recording, _RECORDED if axis.record else plan.main.demos)
        points.append(Point(value, world, trains=axis.record or axis.train))
    return default, tuple(points)


def _recording(root: Path, label: str, words: Sequence[str]) -> Job:
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
        inputs = {"encoder": plan.known[arm.name].encoder} | ({"demos": world.demos} if world.demos else {})
        needs = () if world.recording is None else (world.recording,)
        if not settings_of("train", words).train.tune.blocks:  # else a training reads what enters its blocks
            reads = tuple(read_by("encode", words))
            name, stamp = f"{world.label}{arm.name}: encode", world.root / "encode" / arm.name / "encode"
            encoded.setdefault(reads, _job(name, "encode", reads, stamp, needs, inputs))
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
            words = (f"checkpoint={word(policy.stamp.parent / 'checkpoint')}", *read_by("evaluate", own))
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
    """Return the records of the first so many positions of every arm and training seed."""
    runs: Runs = {arm.name: {} for arm in plan.arms}
    for arm in plan.arms:
        for seed in plan.seeds:
            records = read_records(plan.folder(world, arm, seed) / "episodes.jsonl")
            first = (r for r in records if r["episode"] < episodes)
            runs[arm.name][seed] = sorted(first, key=lambda r: r["episode"])
    return runs


def _hydra(folder: Path, verb: str) -> tuple[str, str]:
    """One folder holds the stages of an arm; each has a config folder of its own there."""
    return f"hydra.run.dir={word(folder)}", f"hydra.output_subdir=.hydra-{verb}"


def word(path: Path) -> str:
    """A path as Hydra reads it."""
    text = str(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "\\'") + "'"

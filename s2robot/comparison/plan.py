"""The stages of a comparison as jobs, and all checks that need no run.

plan = make_plan(cfg, ["train.epochs=20"])      # what all arms share, as it was typed
plan.run(plan.training_jobs(plan.out))
plan.run(plan.evaluation_jobs(plan.out, 128))
plan.read(plan.out, 128)                        # arm -> training seed -> episode records
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.settings import open_demos
from s2robot.comparison.arms import (
    GROUPS,
    Arm,
    about,
    choose_arms,
    describe,
    encoder_of,
    key_of,
    read_by,
    settings_of,
)
from s2robot.comparison.jobs import Job, run_jobs
from s2robot.evaluation.records import read_records

Runs = dict[str, dict[int, list[dict[str, Any]]]]  # arm -> training seed -> episode records
_THREADS: dict[str, tuple[str, ...]] = {  # keys that get a job's share of the cores
    "record": (),
    "encode": ("features.threads", "features.workers"),
    "train": ("train.threads",),
    "evaluate": ("evaluate.threads",),
}


@dataclass
class Plan:
    """What all stages of a comparison share, and the jobs they are made of."""

    out: Path
    arms: list[Arm]
    seeds: list[int]
    common: list[str]  # overrides of every arm
    episodes: int
    position_seed: int
    pairs: list[tuple[str, str]]
    about_arms: dict[str, dict[str, Any]]
    encoders: dict[str, str]  # arm -> fingerprint
    demos: str | None  # fingerprint; None if they are recorded on the way
    parallel: int
    threads: int
    jobs: list[Job] = field(default_factory=list)  # all that ran, in order

    def run(self, jobs: Sequence[Job]) -> None:
        """Run jobs side by side, and remember them for the record."""
        self.jobs += [job for job in jobs if job.name not in {j.name for j in self.jobs}]
        run_jobs(jobs, self.parallel, self.threads)

    def folder(self, root: Path, arm: Arm, seed: int) -> Path:
        return (root / "arms" if root == self.out else root) / arm.name / f"seed-{seed}"

    def record_job(self, root: Path, extra: Sequence[str]) -> Job:
        """Record `demos.zarr` in the world of ``extra``."""
        demos = root / "demos.zarr"
        words = [*read_by("record", [*self.common, *extra]), f"out={word(demos)}", *_hydra(root, "record")]
        job = Job(f"{_where(root, self.out)}demos: record", "record", words, root / "record", fresh=demos)
        if job.name not in {j.name for j in self.jobs}:
            self.jobs.append(job)
        return job

    def training_jobs(
        self, root: Path, extra: Sequence[str] = (), needs: Sequence[str] = (), demos: str | None = None
    ) -> list[Job]:
        """Encode once for each encoder, train once for each arm and seed."""
        jobs: dict[str, Job] = {}
        encoded: dict[tuple[str, ...], str] = {}
        where = _where(root, self.out)
        for arm in self.arms:
            words = [*self.common, *arm.overrides, *extra]
            inputs = {"encoder": self.encoders[arm.name]}
            if demos or self.demos:
                inputs["demos"] = str(demos or self.demos)
            reads = tuple(read_by("encode", words))
            if reads not in encoded:
                name = encoded[reads] = f"{where}{arm.name}: encode"
                stamp = root / "encode" / arm.name / "encode"
                hydra = _hydra(stamp.parent, "encode")
                jobs[name] = self._job(name, "encode", [*reads, *hydra], stamp, needs, inputs)
            for seed in self.seeds:
                folder = self.folder(root, arm, seed)
                name = f"{where}{arm.name} seed {seed}: train"
                own = [*read_by("train", [*words, f"train.seed={seed}"]), *_hydra(folder, "train")]
                jobs[name] = self._job(name, "train", own, folder / "train", [encoded[reads]], inputs)
        return list(jobs.values())

    def evaluation_jobs(
        self,
        root: Path,
        episodes: int,
        extra: Sequence[str] = (),
        trained: Path | None = None,
        wait: bool = False,
    ) -> list[Job]:
        """Evaluate each arm and seed, trained in ``trained`` (None: in ``root``)."""
        jobs = []
        where = _where(root, self.out)
        for arm in self.arms:
            for seed in self.seeds:
                folder = self.folder(root, arm, seed)
                checkpoint = self.folder(trained or root, arm, seed) / "checkpoint"
                own = [*self.common, *arm.overrides, *extra, f"evaluate.episodes={episodes}"]
                if not any(key_of(word) == "evaluate.videos" for word in own):
                    own.append("evaluate.videos=0")
                words = [
                    f"checkpoint={word(checkpoint)}",
                    *read_by("evaluate", own),
                    *_hydra(folder, "evaluate"),
                ]
                needs = [f"{where}{arm.name} seed {seed}: train"] if wait else []
                name = f"{where}{arm.name} seed {seed}: evaluate {episodes} positions"
                inputs = {"encoder": self.encoders[arm.name]}
                job = self._job(name, "evaluate", words, folder / f"evaluate-{episodes}", needs, inputs)
                if _count_lines(folder / "episodes.jsonl") < episodes:  # a shorter evaluation came after it
                    job.state_file.unlink(missing_ok=True)
                jobs.append(job)
        return jobs

    def _job(self, name: str, verb: str, words: Sequence[str], stamp: Path, needs: Sequence[str], inputs: Mapping[str, str]) -> Job:  # fmt: skip
        given = {key_of(word) for word in words}
        threads = [key for key in _THREADS[verb] if key not in given]
        return Job(name, verb, tuple(words), stamp, tuple(needs), tuple(threads), inputs)

    def read(self, root: Path, episodes: int) -> Runs:
        """The records of the first so many positions of every arm and training seed."""
        runs: Runs = {}
        for arm in self.arms:
            for seed in self.seeds:
                records = read_records(self.folder(root, arm, seed) / "episodes.jsonl")
                kept = sorted((r for r in records if r["episode"] < episodes), key=lambda r: r["episode"])
                runs.setdefault(arm.name, {})[seed] = kept
        return runs


def make_plan(cfg: DictConfig, typed: Sequence[str]) -> Plan:
    """All checks that need no run: arms, seeds, encoders with their weights, demos, settings of every verb."""
    experiment = cfg.experiment
    out = Path(cfg.run_dir)
    if out.is_absolute() and out.is_relative_to(Path.cwd()):  # commands that work on another machine too
        out = out.relative_to(Path.cwd())
    common = [str(o) for o in experiment.overrides]
    common += [o for o in typed if re.split(r"[./]", key_of(o))[0] in GROUPS and not o.startswith("-")]
    arms = choose_arms(experiment, None if cfg.arms is None else list(cfg.arms))
    seeds = [int(seed) for seed in experiment.seeds]
    if not seeds or len(set(seeds)) != len(seeds):
        raise UserError(f"experiment.seeds: found {seeds}, expected one or more different numbers")
    names = [arm.name for arm in arms]
    demos = None
    if cfg.record:
        common.append(f"demos.path={word(out / 'demos.zarr')}")
    with about("all arms"):
        evaluation = settings_of("evaluate", common)
        for verb in ("record",) if cfg.record else ():
            settings_of(verb, common)
    about_arms, encoders = {}, {}
    for arm in arms:
        with about(f"arm '{arm.name}'"):
            training = settings_of("train", [*common, *arm.overrides])
            settings_of("evaluate", [*common, *arm.overrides])
        encoder = encoder_of(arm, common)
        about_arms[arm.name] = describe(arm, common, encoder)
        encoders[arm.name] = encoder.fingerprint
        if not cfg.record and demos is None:
            with about("all arms"):
                demos = open_demos(training).fingerprint
    cores = os.cpu_count() or 1
    parallel = cfg.jobs or min(cores, 8, len(arms) * len(seeds))
    return Plan(
        out, arms, seeds, common, int(evaluation.evaluate.episodes), int(evaluation.evaluate.seed),
        _pairs(experiment, names), about_arms, encoders, demos, parallel, cfg.threads or max(1, cores // parallel),
    )  # fmt: skip


def _pairs(experiment: DictConfig, names: Sequence[str]) -> list[tuple[str, str]]:
    """Which arm is compared with which: those that the experiment names and that run, or every two."""
    if experiment.pairs is None:
        return [(b, a) for i, a in enumerate(names) for b in names[i + 1 :]]
    pairs = [(str(a), str(b)) for a, b in experiment.pairs]
    known = [str(name) for name, arm in experiment.arms.items() if arm is not None]
    for pair in pairs:
        for name in pair:
            if name not in known:
                raise UserError(f"experiment.pairs: found '{name}', expected some of {', '.join(known)}")
    return [pair for pair in pairs if set(pair) <= set(names)]


def _hydra(folder: Path, verb: str) -> list[str]:
    """One folder holds the stages of an arm; each keeps its config beside those of the others."""
    return [f"hydra.run.dir={word(folder)}", f"hydra.output_subdir=.hydra-{verb}"]


def word(path: Path) -> str:
    """A path as Hydra reads it."""
    text = str(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", "\\'") + "'"


def _where(root: Path, out: Path) -> str:
    """`cube_size 0.03, ` for an axis, nothing for the main comparison."""
    return "" if root == out else f"{root.parent.name} {root.name}, "


def _count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0

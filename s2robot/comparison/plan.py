"""Plan a comparison: the stages of each arm and training seed, for the main comparison and along each axis.

plan = make_plan(settings, ["train.steps=500"])   # the overrides shared by all arms
policies = training(plan, plan.main)              # (arm, training seed) -> training job
evaluation(plan, plan.main, policies, 128)        # evaluation jobs, which depend on the training jobs
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2robot.comparison.jobs import Job
from s2robot.comparison.settings import GROUPS, READS, Arm, Axis, Compare, group_of
from s2robot.config import encoder_settings, open_demos, policy_settings, task_settings
from s2robot.core.errors import UserError
from s2robot.core.files import configs_dir
from s2robot.core.settings import plain, read
from s2robot.core.timing import cores
from s2robot.demos.lineage import Lineage
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.envs.frames import at_height
from s2robot.envs.gl import require_simulator
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.evaluate import EvaluateSettings
from s2robot.evaluation.records import read_records
from s2robot.overrides import key_of, of_record, path_word
from s2robot.training.settings import TrainSettings

Policies = Mapping[tuple[str, int], Job]  # (arm, training seed) -> training job
Runs = dict[str, dict[int, list[dict[str, Any]]]]  # arm -> training seed -> episode records
_NOTHING = object()


class ArmFacts(NamedTuple):
    """Facts about an arm before it runs, from the settings of its stages."""

    about: Mapping[str, Any]  # for compare.json
    encoder: str  # fingerprint
    world: TaskSettings  # for its evaluation, at the video's image size
    evaluate: EvaluateSettings


class World(NamedTuple):
    """The settings for training and evaluating arms, either of the main comparison or of one value of an axis."""

    root: Path  # folder of its stages
    label: str = ""  # prefix of its stage names
    words: tuple[str, ...] = ()  # its overrides, in addition to the shared ones
    recording: Job | None = None  # recording job, if it has separate demos
    value: Any = None  # of the axis
    trains: bool = False  # True: train separate policies; False: evaluate those of the main comparison


class Plan(NamedTuple):
    """A comparison before it runs."""

    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]  # of training
    pairs: tuple[tuple[str, str], ...]  # arms compared: the first minus the second
    common: tuple[str, ...]  # overrides shared by all arms
    facts: Mapping[str, ArmFacts]  # by arm
    main: World
    positions: range
    parallel: int  # concurrent processes
    threads: int  # per process
    demos: str | None = None  # fingerprint; None: demos are recorded first

    def folder(self, world: World, arm: Arm, seed: int) -> Path:
        """Return the run directory of an arm's training and evaluation."""
        return (world.root / "arms" if world.root == self.out else world.root) / arm.name / f"seed-{seed}"


@contextmanager
def _errors_about(where: str) -> Iterator[None]:
    """Turn user errors into one line that starts with ``where``."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{where}: {' '.join(lines[:2])}") from None


def overrides_for(verb: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that apply to the verb, in the verb's syntax; the last override of a key wins."""
    last = {key_of(override): override for override in overrides}
    found = [o for o in overrides if last[key_of(o)] is o and group_of(o) in READS[verb]]
    if verb == "record":  # `record` has this group at its top level
        found = [of_record(o) for o in found if key_of(o) != "recording"]
    return found


def settings_of(verb: str, overrides: Sequence[str]) -> DictConfig:
    """Return the composed config of the verb; Hydra raises its own errors for an unknown key or option."""
    checkpoint = ["checkpoint=unused"] if verb == "evaluate" else []
    app = GlobalHydra.instance()
    where = str(app.config_loader().get_search_path()) if app.is_initialized() else ""
    return _composed(verb, ("run_dir=unused", *checkpoint, *overrides_for(verb, overrides)), where)


@cache
def _composed(verb: str, words: tuple[str, ...], where: str) -> DictConfig:
    """Compose each request of arms and axes once; ``where``: the search path of a running Hydra app, or empty."""
    with nullcontext() if where else initialize_config_dir(str(configs_dir()), version_base="1.3"):
        return compose(verb, list(words))


def _resolve(arm: Arm, words: Sequence[str]) -> ArmFacts:
    with _errors_about(f"arm '{arm.name}'"):
        train, e = settings_of("train", words), settings_of("evaluate", words)
        encoder, world = build_encoder(encoder_settings(train)), task_settings(e)
        policy_settings(train, world.rate_hz)
        read(TrainSettings, train.train, "train")
        require_simulator(world)
        settings = read(EvaluateSettings, e.evaluate, "evaluate")
        world = world.replace(image_size=at_height(world.image_size, world.cameras, settings.video_size))
    facts = {
        **{"name": arm.name, "label": arm.label, "encoder": encoder.name},
        "scales": [float(s) if s % 1 else int(s) for s in train.s2.scales],
        "policy": f"{train.policy.kind}, {train.policy.pooling.kind}, {train.policy.head.kind}",
        "overrides": list(arm.overrides),
        "parameters": encoder.num_parameters,
        "gflops_per_frame": round(encoder.gflops_per_image, 3),
    }
    return ArmFacts(facts, encoder.fingerprint, world, settings)


def make_plan(settings: Compare, typed: Sequence[str]) -> Plan:
    """Run all checks that need no job: arms, weights, demos and every verb's settings. UserError names the arm."""
    experiment, out = settings.experiment, settings.out
    arms = tuple(experiment.arms[name] for name in settings.arms or experiment.arms)
    for_arms = [word for word in typed if group_of(word) in GROUPS and not word.startswith("-")]
    if "train.seed" in map(key_of, for_arms):
        expected = "the training seeds in experiment.seeds, such as [0,1,2]"
        raise UserError(f"train.seed: expected {expected}, got one seed")
    common = [*experiment.overrides, *for_arms]
    if settings.records:
        common.append(f"demos.path={path_word(out / 'demos.zarr')}")
    with _errors_about("all arms"):
        positions = read(EvaluateSettings, settings_of("evaluate", common).evaluate, "evaluate").positions
        if settings.records:
            recording = settings_of("record", common)
            recorded = frozenset(range(recording.seed, recording.seed + recording.episodes))
    names = [arm.name for arm in arms]
    every_two = [(b, a) for a, b in combinations(names, 2)]
    chosen = every_two if experiment.pairs is None else experiment.pairs
    pairs = tuple(pair for pair in chosen if {*pair} <= {*names}) or tuple(every_two)
    facts = {arm.name: _resolve(arm, [*common, *arm.overrides]) for arm in arms}
    parallel = settings.jobs or min(cores(), 8, len(arms) * len(experiment.seeds))
    plan = Plan(
        out=out, arms=arms, seeds=experiment.seeds, pairs=pairs, common=tuple(common), facts=facts, main=World(out),
        positions=positions, parallel=parallel, threads=settings.threads or max(1, cores() // parallel),
    )  # fmt: skip
    with _errors_about("all arms"):
        if settings.records:
            used = Lineage(positions={"recorded": recorded})
            used.refuse(plan.positions, out / "demos.zarr", "evaluate.seed")
            return plan._replace(main=World(out, recording=_recording(out, "", common, out)))
        demos = demos_of(plan)
        Lineage().trained_on(demos, ()).refuse(plan.positions, demos.path, "evaluate.seed")
        return plan._replace(demos=demos.fingerprint)


def demos_of(plan: Plan) -> EpisodeStore:
    return open_demos(settings_of("train", [*plan.common, *plan.arms[0].overrides]))


def worlds_of(plan: Plan, name: str, axis: Axis) -> tuple[Any, list[World]]:
    """Return an axis's default (None: the arms differ) and a world for each value. UserError for a wrong key or value."""
    verb = "evaluate" if axis.key.startswith("evaluate.") else "train"
    settings = [settings_of(verb, [*plan.common, *arm.overrides]) for arm in plan.arms]
    values = [OmegaConf.select(each, key_of(axis.key), default=_NOTHING) for each in settings]
    if _NOTHING in values:
        raise UserError(f"axes: expected a key that training or evaluation has, got {axis.key}")
    default = plain(values[0]) if values.count(values[0]) == len(values) else _NOTHING
    if axis.key == "demos.episodes":
        exists = plan.main.recording is None
        total = len(demos_of(plan)) if exists else int(settings_of("record", plan.common).episodes)
        default = total if default is None else default
        if wrong := [value for value in axis.values if type(value) is not int or not 1 <= value <= total]:
            why = f"expected integers from 1 to {total}, got {wrong[0]}"
            raise UserError(f"experiment.axes.{name}.values: {why}")
    worlds = []
    for value in axis.values:
        if value == default:
            worlds.append(plan.main._replace(value=value))
            continue
        root, label = plan.out / "axes" / name / str(value).replace("/", "_"), f"{name} {value}, "
        words, recording = [f"{axis.key}={'null' if value is None else value}"], None
        for arm in plan.arms:  # a wrong value would fail after the main comparison
            _resolve(arm, [*plan.common, *arm.overrides, *words])
        if axis.record:
            recording = _recording(root, label, [*plan.common, *words], plan.out)
            words.append(f"demos.path={path_word(root / 'demos.zarr')}")
        worlds.append(World(root, label, tuple(words), recording, value, trains=axis.record or axis.train))
    return None if default is _NOTHING else default, worlds


def _recording(root: Path, label: str, words: Sequence[str], out: Path) -> Job:
    own = (*overrides_for("record", words), f"out={path_word(root / 'demos.zarr')}")
    return _job(f"{label}demos: record", "record", own, root / "record", out)


def training(plan: Plan, world: World) -> Policies:
    """Return the training job of each arm and seed; arms with the same frozen encoder share an encoding job."""
    jobs: dict[tuple[str, int], Job] = {}
    encoded: dict[tuple[str, ...], Job] = {}
    for arm in plan.arms:
        words = (*plan.common, *arm.overrides, *world.words)
        needs = () if world.recording is None else (world.recording,)
        if not settings_of("train", words).train.tune.blocks:  # tuned arms compute their own features
            reads = tuple(overrides_for("encode", words))
            name, stamp = f"{world.label}{arm.name}: encode", world.root / "encode" / arm.name / "encode"
            encoded.setdefault(reads, _job(name, "encode", reads, stamp, plan.out, needs))
            needs = (encoded[reads],)
        for seed in plan.seeds:
            own = overrides_for("train", [*words, f"train.seed={seed}"])
            stamp = plan.folder(world, arm, seed) / "train"
            name = f"{world.label}{arm.name} seed {seed}: train"
            jobs[arm.name, seed] = _job(name, "train", own, stamp, plan.out, needs)
    return jobs


def evaluation(plan: Plan, world: World, policies: Policies, episodes: int) -> list[Job]:
    """Return the jobs that evaluate every policy in ``world`` on the first ``episodes`` positions, once it is trained."""
    jobs = []
    for arm, seed in product(plan.arms, plan.seeds):
        folder, policy = plan.folder(world, arm, seed), policies[arm.name, seed]
        own = ["evaluate.videos=0", *plan.common, *arm.overrides, *world.words]
        own = overrides_for("evaluate", [*own, f"evaluate.episodes={episodes}"])
        words = (f"checkpoint={path_word(policy.stamp.parent / 'checkpoint')}", *own)
        name = f"{world.label}{arm.name} seed {seed}: evaluate {episodes} positions"
        job = _job(name, "evaluate", words, folder / f"evaluate-{episodes}", plan.out, (policy,))
        jobs.append(job._replace(lines=(folder / "episodes.jsonl", episodes)))
    return jobs


def _job(
    name: str, verb: str, words: Sequence[str], stamp: Path, root: Path, needs: tuple[Job, ...] = ()
) -> Job:
    # an arm's stages share a folder, but have separate config folders in it
    folders = f"hydra.run.dir={path_word(stamp.parent)}", f"hydra.output_subdir=.hydra-{verb}"
    return Job(name, verb, (*words, *folders), stamp, needs, root)


def read_runs(plan: Plan, world: World, episodes: int) -> Runs:
    runs: Runs = {arm.name: {} for arm in plan.arms}
    for arm, seed in product(plan.arms, plan.seeds):
        runs[arm.name][seed] = read_records(plan.folder(world, arm, seed) / "episodes.jsonl", episodes)
    return runs

"""The verbs of the command line, except `run`. Each imports only its own dependencies."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot.config import DemosSettings, chosen_world, path_of, task_settings, world_of
from s2robot.core.errors import UserError, one_of
from s2robot.core.files import cache_dir
from s2robot.core.progress import bar
from s2robot.core.run_folder import is_first
from s2robot.core.settings import read, read_some
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.gl import require_simulator


def record(cfg: DictConfig) -> None:
    """`s2robot record`: record demos into `out`: scripted in simulation, by an operator on an arm, or corrections of a policy."""
    from s2robot import pipeline, rounds

    if cfg.kind == "scripted":
        store = pipeline.record_demos(task_settings(cfg), cfg, path_of(cfg, "out"))
    elif cfg.kind == "dagger" and cfg.robot.ip is None and cfg.bridge.emulator.port is None:
        store, counts = rounds.record(cfg, cfg, path_of(cfg, "out"))
        print(rounds.outcome_text(counts))
    else:
        from s2robot.deployment.record import ArmRecording

        store = ArmRecording(cfg).run()
    print(f"{len(store)} episodes, {store.num_steps} steps: {store.path}")


def convert(cfg: DictConfig) -> None:
    """`s2robot convert`: convert a dataset to an episode store or another format, or copy it with an expert's action chunks."""
    from s2robot.demos.arrays import check_new
    from s2robot.demos.binding import bound
    from s2robot.demos.formats.convert import as_store, copy_store
    from s2robot.demos.formats.convert import convert as read_in
    from s2robot.demos.formats.export import ExportSettings, export, format_for
    from s2robot.demos.formats.source import Choice

    world = chosen_world(cfg)  # also registers a user's own task
    choice, data, out = read_some(Choice, cfg), path_of(cfg, "data"), path_of(cfg, "out")
    settings, to, clip = read_some(ExportSettings, cfg), format_for(out, cfg.to), read(bool, cfg.clip, "clip")
    if cfg.expert:
        others = [k for own in (choice, settings) for k, value in own if value != getattr(type(own)(), k)]
        others += ["clip"] * clip + [f"to={to}"] * bool(to)
        if others:
            text = f"expected no other options, got {', '.join(dict.fromkeys(others))}"
            raise UserError(f"expert: {text}; apply them in a second `s2robot convert`")
        return _relabel(cfg)
    one_of("imitate_kicks", cfg.imitate_kicks, (False,), " without expert")
    if not to:
        one_of("actions", settings.actions, ("recorded",), " when converting to an episode store")
    check_new(out)
    if to or world:
        with bar("reading", "steps") as update:
            path = as_store(data, cache_dir("demos"), choice, update, world=world)
        store = bound(EpisodeStore.open(path), world, clip, data)
    if to:
        with bar("converting", "steps") as update:
            export(store, out, to, settings, update)
        counts = len(store), store.num_steps
    else:
        with bar("converting", "steps") as update:
            source = copy_store(store, out, update) if world else read_in(data, out, choice, update)
        for note in source.notes:
            print(f"note: {note}")
        counts = len(source), source.steps
    print("{} episodes, {} steps: {}".format(*counts, out))


def _relabel(cfg: DictConfig) -> None:
    from s2robot.demos.record import RecordingSettings, relabel

    values = {key: cfg[key] for key in ("expert", "imitate_kicks", "workers")}
    settings, source = read(RecordingSettings, values, ""), EpisodeStore.open(path_of(cfg, "data"))
    require_simulator(world_of_demos(source))
    with bar("relabelling with the expert", "episodes") as update:
        store = relabel(source, path_of(cfg, "out"), settings, update)
    counts = f"{len(store)} episodes, {store.num_steps} steps, {store['imitate'].sum()} to imitate"
    print(f"{counts}: {store.path}")


def inspect(cfg: DictConfig) -> None:
    """`s2robot inspect`: write a page about a dataset; `replay` executes its actions, `run` rewrites the report of a run."""
    if cfg.run is not None:
        return _report(path_of(cfg, "run"))
    from s2robot.inspection.inspect import InspectSettings, inspect_demos, replay_demos

    world, demos = chosen_world(cfg), read(DemosSettings, cfg.demos, "demos")
    settings = read_some(InspectSettings, cfg)
    if settings.replay:
        print(replay_demos(demos, world))
    else:
        print(f"page: {inspect_demos(demos, settings, Path(cfg.run_dir), world)}")


def _report(folder: Path) -> None:
    from s2robot.comparison.report import write_compare_report
    from s2robot.evaluation.report import write_report

    if not any((folder / name).exists() for name in ("compare.json", "summary.json", "episodes.jsonl")):
        raise UserError(f"run: expected the run directory of an evaluation or comparison, got {folder}")
    compared = (folder / "compare.json").exists()  # a comparison also has a summary.json
    print(f"report: {(write_compare_report if compared else write_report)(folder)}")


def pretrain(cfg: DictConfig) -> None:
    """`s2robot pretrain`: train a masked autoencoder, or make images for it (`kind`)."""
    from s2robot.pretraining.pretrain import PretrainSettings
    from s2robot.pretraining.pretrain import pretrain as run_pretraining
    from s2robot.pretraining.render import ObjectsSettings, ScenesSettings, make_objects, make_scenes

    one_of("kind", cfg.kind, ("encoder", "scenes", "objects"))
    if cfg.kind == "encoder":
        path = run_pretraining(read_some(PretrainSettings, cfg, ""))
    elif cfg.kind == "scenes":
        path = make_scenes(read(ScenesSettings, cfg.scenes, "scenes"), path_of(cfg, "out"))
    else:
        path = make_objects(read(ObjectsSettings, cfg.objects, "objects"), path_of(cfg, "out"))
    if is_first():
        print(f"{cfg.kind}: {path}")


def encode(cfg: DictConfig) -> None:
    from s2robot import pipeline

    for cache in _encoded(pipeline.read_task(cfg), cfg)[3]:
        print(f"features {cache.shape}, {cache.nbytes / 1e6:.0f} MB: {cache.path}")


def train(cfg: DictConfig) -> None:
    from s2robot import pipeline

    task = pipeline.read_task(cfg)
    if (why := task.world.camera_problem()) and is_first():
        print(f"note: this policy can act on an arm, but not be evaluated in simulation: {why}", flush=True)
    store, encoder, features, _ = _encoded(task, cfg)
    checkpoint = pipeline.train_policy(task, store, encoder, features, Path(cfg.run_dir))
    if is_first():
        print(f"checkpoint: {checkpoint}")


def _encoded(task: Any, cfg: DictConfig) -> tuple[EpisodeStore, Any, Any, Any]:
    from s2robot import pipeline
    from s2robot.encoders.build import build_encoder

    store, encoder = task.open_demos(), build_encoder(task.encoder)
    if task.train.rollouts.every:
        pipeline.check_world(task, store, encoder)
    return store, encoder, *pipeline.encode(task, store, encoder, Path(cfg.run_dir))


def evaluate(cfg: DictConfig) -> None:
    """`s2robot evaluate`: measure success in simulation or on an arm, or open-loop errors, and write the report."""
    from s2robot import pipeline

    out, world = Path(cfg.run_dir), world_of(cfg)
    if world == "arm":
        from s2robot.deployment.evaluate import evaluate_on_arm

        summary = evaluate_on_arm(cfg, out)
    elif world == "recorded":
        from s2robot.evaluation.recorded import evaluate_recorded

        evaluate_recorded(cfg, path_of(cfg, "checkpoint"), out)
        return
    else:
        from s2robot.evaluation.evaluate import evaluate_policy

        summary = evaluate_policy(cfg, path_of(cfg, "checkpoint"), out)
    pipeline.finish(summary, out)


def trial(cfg: DictConfig) -> int:
    """`s2robot trial`: compare two policies on an arm, or elsewhere by hand; return the exit code of `s2robot stats`."""
    from s2robot.comparison.trial import TrialSettings, run_trial

    settings, out = read_some(TrialSettings, cfg), Path(cfg.run_dir)
    if settings.by_hand:
        from s2robot.deployment.by_hand import by_hand

        return run_trial(settings, out, partial(by_hand, settings, cfg.env))
    from s2robot.deployment.trial import on_arm

    with ExitStack() as stack:
        return run_trial(settings, out, partial(on_arm, cfg, settings, stack))

"""DAgger: record corrections of a policy, retrain on all demos, and repeat.

s2robot record recording=dagger checkpoint=runs/run/<date>/checkpoint     # one round, without training
s2robot dagger recording.checkpoint=runs/run/<date>/checkpoint            # all rounds, and an evaluation
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot import pipeline
from s2robot.config import DemosSettings, only_simulated, task_settings
from s2robot.core.errors import UserError
from s2robot.core.files import claim, read_json, write_json
from s2robot.core.progress import bar
from s2robot.core.run_folder import is_first
from s2robot.core.settings import plain, read, read_some
from s2robot.core.timing import Stages
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.envs.gl import require_simulator
from s2robot.loading import device_of

# settings that do not change the trained weights
_FREE_IN_TRAINING = ("threads", "loggers", "log_every", "checkpoint_every", "resume")


def record(cfg: DictConfig, recording: Any, out: Path, **changes: Any) -> tuple[EpisodeStore, dict[str, int]]:
    """Record a round of corrections of the policy ``recording.checkpoint`` into ``out``. Return store and outcome counts."""
    require_simulator(world := task_settings(cfg))
    from s2robot.dagger.record import DaggerSettings, record_corrections

    settings = read_some(DaggerSettings, recording, "recording").replace(**changes)
    task = read(DemosSettings, cfg.demos, "demos")
    with bar("correcting the policy") as update:
        progress = lambda done, counts: update(done, settings.episodes, outcome_text(counts))  # noqa: E731
        demos = EpisodeStore.open(task.folder())
        return record_corrections(settings, demos, world, out, task.first(), progress)


def outcome_text(counts: Mapping[str, int]) -> str:
    ends = {"alone": "without help", "corrected": "corrected", "failed": "failed by both"}
    reasons = [f"{n} {name}" for name, n in counts.items() if n and name not in ends]
    outcomes = ", ".join(f"{counts[key]} {text}" for key, text in ends.items())
    return f"{outcomes} (the expert took over: {', '.join(reasons)})" if reasons else outcomes


def dagger(cfg: DictConfig) -> None:
    """`s2robot dagger`: run rounds of corrections and training, then evaluate; train a first policy if none is given."""
    from s2robot.evaluation.evaluate import evaluate_policy  # imports the simulator

    only_simulated(cfg)
    if not is_first() or cfg.train.devices != 1:
        found = cfg.train.devices
        raise UserError(f"train.devices: expected 1, since recording alternates with training, got {found}")
    out, rounds, file = Path(cfg.run_dir), cfg.recording.rounds, Path(cfg.run_dir) / "rounds.json"
    task, rows = _prepare(cfg, out, file)
    encoder = build_encoder(task.encoder)
    timed = Stages(out / "stages.json")

    def trained(task: pipeline.Task, folder: Path) -> Path:
        store = task.open_demos()
        with timed("encode"):
            features, _ = pipeline.encode(task, store, encoder, folder)
        with timed("train"):
            return pipeline.train_policy(task, store, encoder, features, folder)

    checkpoint = Path(str(cfg.recording.checkpoint or trained(task, out / "round_0")))
    demos = out / "demos.zarr"
    corrected = replace(task, demos=DemosSettings(path=str(demos)))
    for i in range(1, rounds + 1):
        if len(rows) < i:
            seed = cfg.recording.seed + (i - 1) * cfg.recording.episodes
            with timed("record"):
                store, counts = record(cfg, cfg.recording, demos, checkpoint=str(checkpoint), seed=seed)
            rows.append({"round": i, "seed": seed, "episodes": len(store), **counts, "checkpoint": None})
            write_json(file, rows)
            print(f"round {i}: {outcome_text(counts)}; {len(store)} episodes", flush=True)
        if rows[i - 1]["checkpoint"] is None:
            rows[i - 1]["checkpoint"] = str(trained(corrected, out / f"round_{i}"))
            write_json(file, rows)
        checkpoint = out / f"round_{i}/checkpoint"  # where the folder is now
    with timed("evaluate"):
        summary = evaluate_policy(cfg, checkpoint, out)
    pipeline.finish(summary, out, timed)


def _prepare(cfg: DictConfig, out: Path, file: Path) -> tuple[pipeline.Task, list[dict[str, Any]]]:
    """Run all checks that need no training (UserError). Return the task and the rounds that are done."""
    from s2robot.dagger.record import DaggerSettings, check_demos, check_takeover  # imports the simulator
    from s2robot.evaluation.evaluate import EvaluateSettings

    evaluation = read(EvaluateSettings, cfg.evaluate, "evaluate")
    settings = read_some(DaggerSettings, cfg.recording, "recording")
    seeds = range(settings.seed, settings.seed + settings.rounds * settings.episodes)
    if set(seeds) & set(evaluation.positions):
        why = f"expected positions other than the evaluation's from {evaluation.seed} on"
        raise UserError(f"recording.seed: {why}, got {seeds.start} to {seeds.stop - 1}")
    task = pipeline.read_task(cfg)
    require_simulator(task.world)
    device_of(settings.device, "recording.device")  # fail before the first training
    task.demos.first()
    demos = EpisodeStore.open(task.demos.folder())
    check_demos(demos, task.world)
    if not settings.checkpoint and task.policy:
        check_takeover(settings, task.policy.members)
    task.lineage(demos).refuse(evaluation.positions, demos.path, "evaluate.seed")
    claim(out / "rounds.settings.json", _deciding(cfg), "choose another run directory")
    rows: list[dict[str, Any]] = read_json(file) if file.exists() else []
    if len(rows) < settings.rounds and (out / "episodes.jsonl").exists() and cfg.evaluate.resume:
        hint = "choose another run directory, or set evaluate.resume=false to evaluate again"
        raise UserError(f"{out}: expected an unfinished run, got an evaluation of {len(rows)} rounds; {hint}")
    return task, rows


def _deciding(cfg: DictConfig) -> dict[str, Any]:
    nodes = ("policy", "train", "recording", "demos", "encoder", "s2", "features", "task", "env", "robot")
    free = {"train": _FREE_IN_TRAINING, "recording": ("rounds", "workers", "device")}
    free["features"] = ("cache", "workers", "device", "threads")
    return {
        node: {key: value for key, value in plain(cfg[node]).items() if key not in free.get(node, ())}
        for node in nodes
    }

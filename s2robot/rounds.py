"""DAgger: record corrections of a policy, train on all demos again, and so on.

s2robot record recording=dagger checkpoint=runs/run/<date>/checkpoint     # one round, without the training
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
from s2robot.demos.record import picker_of
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.envs.gl import require_simulator

# these do not change the trained weights
_FREE_IN_TRAINING = ("threads", "loggers", "log_every", "checkpoint_every", "resume")


def record(cfg: DictConfig, recording: Any, out: Path, **changes: Any) -> tuple[EpisodeStore, dict[str, int]]:
    """Record one round of corrections of the policy ``recording.checkpoint`` into ``out``; return how positions ended."""
    require_simulator()
    from s2robot.dagger.record import DaggerSettings, record_corrections

    settings = read_some(DaggerSettings, recording, "recording").replace(**changes)
    task = read(DemosSettings, cfg.demos, "demos")
    with bar("correcting the policy") as update:
        progress = lambda done, counts: update(done, settings.episodes, words(counts))  # noqa: E731
        demos = EpisodeStore.open(task.folder())
        return record_corrections(settings, demos, task_settings(cfg), out, task.first(), progress)


def words(counts: Mapping[str, int]) -> str:
    ends = {"alone": "without help", "corrected": "corrected", "failed": "failed by both"}
    why = [f"{n} {name}" for name, n in counts.items() if n and name not in ends]
    told = ", ".join(f"{counts[key]} {text}" for key, text in ends.items())
    return f"{told} (the expert took over: {', '.join(why)})" if why else told


def dagger(cfg: DictConfig) -> None:
    """`s2robot dagger`: rounds of corrections and training, of a first policy if none is given, then an evaluation."""
    from s2robot.evaluation.evaluate import evaluate_policy  # the simulator with it

    only_simulated(cfg)
    if not is_first() or cfg.train.devices != 1:
        found = cfg.train.devices
        raise UserError(f"train.devices: expected 1, as corrections are recorded in between, got {found}")
    out, rounds, file = Path(cfg.run_dir), cfg.recording.rounds, Path(cfg.run_dir) / "rounds.json"
    task, rows = _begun(cfg, out, rounds, file)
    encoder = build_encoder(task.encoder)
    timed = Stages(out / "stages.json")

    def trained(task: pipeline.Task, folder: Path) -> Path:
        store = task.open_demos()
        with timed("encode"):
            features, _ = pipeline.encode(task, store, encoder)
        with timed("train"):
            return pipeline.train_policy(task, store, encoder, features, folder)

    checkpoint = Path(cfg.recording.checkpoint or trained(task, out / "round_0"))
    demos = out / "demos.zarr"
    corrected = replace(task, demos=DemosSettings(path=str(demos)))
    for i in range(1, rounds + 1):
        if len(rows) < i:
            begin = cfg.recording.seed + (i - 1) * cfg.recording.episodes
            with timed("record"):
                store, counts = record(cfg, cfg.recording, demos, checkpoint=str(checkpoint), seed=begin)
            rows.append({"round": i, "seed": begin, "episodes": len(store), **counts, "checkpoint": None})
            write_json(file, rows)
            print(f"round {i}: {words(counts)}; {len(store)} episodes", flush=True)
        if rows[i - 1]["checkpoint"] is None:
            rows[i - 1]["checkpoint"] = str(trained(corrected, out / f"round_{i}"))
            write_json(file, rows)
        checkpoint = Path(rows[i - 1]["checkpoint"])
    with timed("evaluate"):
        summary = evaluate_policy(cfg, checkpoint, out)
    pipeline.finish(summary, out, timed)


def _begun(cfg: DictConfig, out: Path, rounds: int, file: Path) -> tuple[pipeline.Task, list[dict[str, Any]]]:
    """The task and the rounds that are done, after all checks that need no training (UserError)."""
    from s2robot.dagger.record import DaggerSettings  # the simulator with it
    from s2robot.evaluation.evaluate import EvaluateSettings

    evaluation = read(EvaluateSettings, cfg.evaluate, "evaluate")
    tried = range(cfg.recording.seed, cfg.recording.seed + rounds * cfg.recording.episodes)
    if set(tried) & set(evaluation.positions):
        why = f"expected positions other than the evaluation's from {evaluation.seed} on"
        raise UserError(f"recording.seed: {why}, got {tried.start} to {tried.stop - 1}")
    task = pipeline.read_task(cfg)
    read_some(DaggerSettings, cfg.recording, "recording")  # before the first training, not after it
    task.demos.first()
    demos = EpisodeStore.open(task.demos.folder())
    picker_of(demos)
    task.lineage(demos).refuse(evaluation.positions, demos.path, "evaluate.seed")
    claim(out / "rounds.settings.json", _deciding(cfg), "choose another run folder")
    rows: list[dict[str, Any]] = read_json(file) if file.exists() else []
    if len(rows) < rounds and (out / "summary.json").exists() and cfg.evaluate.resume:
        hint = "choose another run folder, or evaluate.resume=false, which evaluates again"
        raise UserError(f"{out}: holds the evaluation after {len(rows)} rounds; for {rounds} in all {hint}")
    return task, rows


def _deciding(cfg: DictConfig) -> dict[str, Any]:
    decides = ("policy", "train", "recording", "demos", "encoder", "s2", "task", "env", "robot")
    free = {"train": _FREE_IN_TRAINING, "recording": ("rounds", "workers", "device")}
    return {
        node: {key: value for key, value in plain(cfg[node]).items() if key not in free.get(node, ())}
        for node in decides
    }

"""`s2robot stress`: measure how a policy's success drops under disturbances, on the same positions as without them.

The run directory holds `cells/<axis>-<strength>/episodes.jsonl`, stress.json with all figures, episodes.csv and report.html.
The same command resumes after a kill. Axes and strengths: configs/stress.yaml and `s2robot.envs.disturb`.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from pydantic import Field, field_validator

from s2robot.config import path_of, task_settings
from s2robot.core.errors import UserError, one_of
from s2robot.core.files import write_csv, write_json
from s2robot.core.progress import bar
from s2robot.core.provenance import command, policy_sha256, versions
from s2robot.core.settings import Positions, from_yaml, read_some
from s2robot.core.timing import cores
from s2robot.core.workers import worker_pool
from s2robot.demos.lineage import Lineage
from s2robot.envs.disturb import AXES, SETTINGS, Disturbed, available
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import make, make_cached
from s2robot.evaluation.evaluate import EvaluateSettings, check_tasks, world_for
from s2robot.evaluation.records import Journal, mean_interval, rate
from s2robot.evaluation.rollouts import LearnedPlanner, World
from s2robot.evaluation.video import rerun, write_video
from s2robot.loading import image_size_of, load_networks
from s2robot.reporting import page, plots
from s2robot.reporting.page import Block, Section

STRENGTHS = 5


class StressSettings(Positions, file="stress"):
    episodes: int = from_yaml(ge=2)
    workers: int | None = from_yaml(ge=1)
    threads: int = from_yaml(ge=1)
    device: str = from_yaml()
    videos: int = from_yaml(ge=0)
    instruction: str | None = from_yaml()
    only: tuple[str, ...] | None = from_yaml()
    axes: dict[str, tuple[Annotated[float, Field(ge=0)], ...]] = from_yaml()

    @field_validator("axes")
    @classmethod
    def _five_strengths(cls, axes: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, values in axes.items():
            one_of("axes", name, AXES)
            if len(values) != STRENGTHS:
                raise ValueError(f"{name}: expected {STRENGTHS} strengths, weakest first, got {list(values)}")
        return axes


class Cell(NamedTuple):
    axis: str  # "": undisturbed
    strength: int  # from 1
    value: float

    @property
    def folder(self) -> str:
        return f"cells/{self.axis}-{self.strength}" if self.axis else "cells/undisturbed"


UNDISTURBED = Cell("", 0, 0.0)


class StressWorld:
    """The state of a worker: the worlds of all cells, and a planner."""

    def __init__(self, config: TaskSettings, planner: LearnedPlanner):
        self.config, self.planner = config, planner

    def run(self, cell: Cell, episode: int, seed: int) -> tuple[dict[str, Any], np.ndarray, dict[str, float]]:
        return self._world(cell).run(episode, seed)

    def film(self, cell: Cell, record: Mapping[str, Any], actions: np.ndarray, path: Path) -> Path:
        """Rerun an episode and film what the policy saw."""
        frames, stages = rerun(self._world(cell).task, record["seed"], actions)
        return write_video(path, frames, record, stages=stages, rate=self.config.rate_hz)

    @cached_property
    def _own(self) -> Disturbed:
        """Return the world that most cells share; every episode starts from its original model."""
        return Disturbed(make(self.config))

    def _world(self, cell: Cell) -> World:
        config = settings_in(cell, self.config)
        task = Disturbed(make_cached(config)) if cell.axis in SETTINGS else self._own
        task.axis, task.value = cell.axis, cell.value
        return World(config, self.planner, task)


def settings_in(cell: Cell, config: TaskSettings) -> TaskSettings:
    """Return the settings of a cell's world. UserError for a strength that the world does not allow."""
    return config.replace(**{name: cell.value}) if (name := SETTINGS.get(cell.axis)) else config


def stress(cfg: DictConfig) -> dict[str, Any]:
    """Run the unfinished cells, film some failures and write the figures; return the contents of stress.json.

    UserError, before anything runs, if policy, world, positions, axes and run directory do not fit together.
    """
    settings, checkpoint, out = read_some(StressSettings, cfg), path_of(cfg, "checkpoint"), Path(cfg.run_dir)
    policy, encoder, contract = load_networks(checkpoint, torch.device("cpu"), cfg.encoder.checkpoint)
    config, contract, _ = world_for(task_settings(cfg), contract, image_size_of(contract, encoder))
    Lineage.of(contract, name=checkpoint).refuse(settings.positions, checkpoint, "seed")
    e = EvaluateSettings(instruction=settings.instruction, seed=settings.seed)
    check_tasks(e, config, policy.spec.tasks, "instruction")
    axes, dtype = _chosen(settings, config), contract["encoder"]["features_dtype"]
    execution = settings.device, settings.threads, e.instructions
    planner = LearnedPlanner(policy, encoder, contract["cameras"], dtype, *execution)
    cells = [UNDISTURBED, *(Cell(a, i, v) for a in axes for i, v in enumerate(settings.axes[a], 1))]
    for cell in cells:
        settings_in(cell, config)  # before anything runs
    same = {"policy": policy_sha256(checkpoint), "env": config.model_dump(), "seed": settings.seed}
    same["instruction"] = settings.instruction
    same["policy.spec"] = policy.spec.to_dict()  # execute and ensemble do not change the weights
    journals = {c: Journal(out / c.folder / "episodes.jsonl", {**same, "cell": list(c)}) for c in cells}
    total = len(cells) * settings.episodes
    each = product(cells, enumerate(settings.positions))
    todo = [(c, e, seed) for c, (e, seed) in each if e not in journals[c].records]
    state, width = partial(StressWorld, config, planner), settings.workers or cores()
    with bar("disturbing") as update, worker_pool(width, state, encodes=True) as pool:
        update(known := total - len(todo), total)
        tried = pool.as_done(StressWorld.run, todo)
        for done, ((cell, *_), (record, actions, _)) in enumerate(tried, known + 1):
            journals[cell].append(record, actions)
            update(done, total)
        found = figures(journals, axes, settings)
        films = _chosen_films(found, journals, settings)
        shown = [(c, journals[c].records[e], journals[c].actions[e], out / path) for c, e, path in films]
        list(pool.in_order(StressWorld.film, shown))
    found["videos"] = [{**c._asdict(), "episode": e, "path": path} for c, e, path in films]
    found |= {"checkpoint": str(cfg.checkpoint), "versions": versions(), "command": command()}
    records = [(c, journals[c].records[e]) for c in cells for e in range(settings.episodes)]
    rows = [[c.axis, c.value, r["seed"], int(r["success"]), r["stage"]] for c, r in records]
    write_csv(out / "episodes.csv", ("disturbance", "value", "position", "success", "stage"), rows)
    write_json(out / "stress.json", found)
    print(f"{headline(found)}\nreport: {write_stress_report(out, found)}")
    return found


def _chosen(settings: StressSettings, config: TaskSettings) -> list[str]:
    with make(config, draw=False) as world:
        known = [axis for axis in available(world) if axis in settings.axes]
    for axis in settings.only or ():
        one_of("only", axis, known, hint=" in this world")
    if not (chosen := [axis for axis in known if settings.only is None or axis in settings.only]):
        raise UserError(f"only: expected some of {', '.join(known) or 'the axes'}, got none")
    return chosen


def figures(
    journals: Mapping[Cell, Journal], axes: Sequence[str], settings: StressSettings
) -> dict[str, Any]:
    """Return success by axis and strength with Wilson's intervals, and the score: the mean over axes and strengths."""
    plain, *others = ([j.records[e]["success"] for e in range(settings.episodes)] for j in journals.values())
    table = np.array(others).reshape(len(axes), STRENGTHS, -1)  # (A, S, N)
    means = table.mean((0, 1))  # (N,)
    low, high = mean_interval(means, table.size)
    entries = []
    for axis, rows in zip(axes, table, strict=True):
        points = [{"value": v, **rate(row)} for v, row in zip(settings.axes[axis], rows, strict=True)]
        entries.append({"axis": axis, "success": float(rows.mean()), "points": points})
    score = {"success": float(means.mean()), "low": low, "high": high}
    found = {"axes": entries, "positions": {"seed": settings.seed, "episodes": settings.episodes}}
    return found | {"score": score, "undisturbed": {"value": 0.0, **rate(plain)}}


def _chosen_films(
    found: Mapping[str, Any], journals: Mapping[Cell, Journal], settings: StressSettings
) -> list[tuple[Cell, int, str]]:
    """Return, for the axes with the least success, the weakest failure on a position that is solved undisturbed."""
    solved, films = journals[UNDISTURBED].records, []
    for entry in sorted(found["axes"], key=lambda entry: entry["success"])[: settings.videos]:
        own = [cell for cell in journals if cell.axis == entry["axis"]]
        outcomes = ((c, e, journals[c].records[e]["success"]) for c in own for e in range(settings.episodes))
        lost = [(c, e) for c, e, success in outcomes if solved[e]["success"] > success]
        films += [(c, e, f"videos/{c.axis}-{c.strength}_{e:04d}.mp4") for c, e in lost[:1]]
    return films


def headline(found: Mapping[str, Any]) -> str:
    score, plain = found["score"], found["undisturbed"]
    interval = f"[{100 * score['low']:.1f}, {100 * score['high']:.1f}]"
    count = f"{len(found['axes'])} axes × {STRENGTHS} strengths"
    return f"{100 * score['success']:.1f} % {interval} under disturbances ({count}), {100 * plain['success']:.1f} % without"


def write_stress_report(run_dir: Path, found: Mapping[str, Any]) -> Path:
    """Write `report.html` from the figures of stress.json and the videos in the same folder."""
    entries = sorted(found["axes"], key=lambda entry: entry["success"])
    films = [
        (f"video-{i}", v["path"], f"{_words(v['axis'])} {v['value']:g}: episode {v['episode']}")
        for i, v in enumerate(found["videos"])
    ]
    cell = lambda point: [f"{100 * point['success']:.0f} %", f"at {point['value']:g}"]  # noqa: E731
    heads = ("axis", "mean", *(f"strength {i}" for i in range(1, STRENGTHS + 1)))
    rows = [[_words(e["axis"]), f"{100 * e['success']:.0f} %", *map(cell, e["points"])] for e in entries]
    text = "The score is the mean over axes and strengths; its interval holds for new positions."
    facts = [("positions", found["positions"]["episodes"]), ("first position", found["positions"]["seed"])]
    head: list[Block] = [("headline", headline(found)), ("text", text), ("facts", facts)]
    plain, panels = found["undisturbed"], []
    for entry in entries:
        points = [plain, *entry["points"]]
        low, success, high = ([100 * point[key] for point in points] for key in ("low", "success", "high"))
        ticks: dict[float, str] = dict(enumerate(["none", *(f"{p['value']:g}" for p in entry["points"])]))
        line = plots.Line(range(len(points)), success, "", low=low, high=high, style={"marker": "o", "ms": 4})
        title = _words(entry["axis"])
        panels.append(plots.Panel(title, [line], "", "success (%)", ticks=ticks, ylim=(-3, 103)))
    sections = [
        Section("Success by axis, worst first", [page.figure(plots.curves(panels), "axes", "Success by axis and strength")], "wide"),
        Section("Success by axis and strength", [("table", heads, rows, 1)], "wide"),
        Section("Failures, as the policy saw them", [page.videos(run_dir, films)[0]]),
        Section("Command and versions", [("code", found["command"]), ("settings", "Versions", page.flatten("versions", found["versions"]))]),
    ]  # fmt: skip
    return page.write_report_page(run_dir / "report.html", "Success under disturbances", head, sections)


def _words(axis: str) -> str:
    return axis.replace("_", " ")

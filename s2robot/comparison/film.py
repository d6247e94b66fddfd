"""One position as two arms met it, side by side.

film_pair(run / "videos/10012.mp4", Attempt("base + S²", world, record, actions), Attempt("base", ...))
film_disagreements(plan, runs, pair, 4)     # the entries of compare.json's "videos"
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.common.errors import UserError
from s2robot.comparison.plan import Plan, Runs
from s2robot.core.workers import worker_pool
from s2robot.envs.task import TaskSettings
from s2robot.evaluation.film import rerun
from s2robot.evaluation.journal import read_actions
from s2robot.evaluation.video import Side, write_pair


@dataclass(frozen=True)
class Attempt:
    """An episode of an evaluation: who acted, in which world (its image_size is the picture's), and what it did."""

    label: str
    world: TaskSettings
    record: Mapping[str, Any]  # a line of episodes.jsonl
    actions: np.ndarray  # what was executed (T, 8)


def film_pair(path: Path, left: Attempt, right: Attempt) -> Path:
    """Run two episodes of one position again and write them as one video with a poster beside it.

    Raises UserError if the records are of different positions or an episode ends otherwise than its record says.
    """
    seeds = left.record["seed"], right.record["seed"]
    if seeds[0] != seeds[1]:
        raise UserError(f"{path}: found positions {seeds[0]} and {seeds[1]}, expected one for both arms")
    sides = []
    for attempt in (left, right):
        frames, stages = rerun(attempt.world, attempt.record, attempt.actions)
        if stages[-1] != attempt.record["stage"]:
            raise UserError(
                f"{path}: {attempt.label}: position {seeds[0]} ended in stage {stages[-1]} when run again, expected "
                f"{attempt.record['stage']}; the simulation is not repeatable here or the actions are not its own"
            )
        sides.append(Side(attempt.label, frames, attempt.record, stages))
    return write_pair(path, *sides, rate=left.world.rate_hz)


def film_disagreements(plan: Plan, runs: Runs, pair: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Film positions that only one arm of the pair solves into `videos/`; those filmed before are kept.

    `pair`: one of compare.json's pairs. Wins and losses of its first arm take turns. Returns the entries of
    compare.json's "videos".
    """
    a, b = pair["a"], pair["b"]
    labels = {arm.name: arm.label for arm in plan.arms}
    worlds = {name: plan.known[name].world for name in (a, b)}
    turns = zip_longest(pair["only_a"], pair["only_b"])
    chosen = [position for turn in turns for position in turn if position is not None][:count]
    videos = []
    with worker_pool(plan.parallel) as pool:
        jobs = []
        for position in chosen:
            a_wins = position in pair["only_a"]
            seeds = _seeds(runs, a, b, position, a_wins)
            names = [f"{name}-{seed}" for name, seed in zip((a, b), seeds, strict=True)]
            path = plan.out / "videos" / f"{position}_{'_'.join(names)}.mp4"
            winner, loser = (a, b) if a_wins else (b, a)
            videos.append(
                {
                    "title": f"{labels[winner]} succeeds, {labels[loser]} does not",
                    "path": path.relative_to(plan.out).as_posix(),
                    "position": position,
                    "a": a,
                    "b": b,
                    "seeds": list(seeds),
                }
            )
            if path.exists():  # it is renamed into place when it is whole
                continue
            sides = []
            for name, seed in zip((a, b), seeds, strict=True):
                arm = next(arm for arm in plan.arms if arm.name == name)
                record = _record(runs[name][seed], position)
                actions = read_actions(plan.folder(plan.main, arm, seed), record["episode"])
                label = arm.label + (f", training seed {seed}" if len(plan.seeds) > 1 else "")
                sides.append(Attempt(label, worlds[name], record, actions))
            jobs.append(pool.submit(film_pair, path, *sides))
        for job in jobs:
            job.result()
    return videos


def _seeds(runs: Runs, a: str, b: str, position: int, a_wins: bool) -> tuple[int, int]:
    """Training seeds of the two arms that show the difference; the same one for both where there is such a one."""
    solved = {arm: {s: _record(runs[arm][s], position)["success"] for s in runs[arm]} for arm in (a, b)}
    shown = [s for s in solved[a] if solved[a][s] == a_wins], [s for s in solved[b] if solved[b][s] != a_wins]
    return min(product(*shown), key=lambda seeds: (seeds[0] != seeds[1], seeds))


def _record(records: Sequence[Mapping[str, Any]], position: int) -> Mapping[str, Any]:
    return next(record for record in records if record["seed"] == position)

"""Videos of positions that only one of two arms solves, one of each arm.

film_disagreements(plan, runs, pair, 4)     # the entries of compare.json's "videos"
"""

from collections.abc import Mapping
from itertools import product, zip_longest
from typing import Any

from s2robot.comparison.plan import Plan, Runs
from s2robot.core.workers import worker_pool
from s2robot.evaluation.film import film
from s2robot.evaluation.journal import read_actions


def film_disagreements(plan: Plan, runs: Runs, pair: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Film up to `count` positions that only one arm of the pair solves, wins and losses of the first in turns.

    Videos that exist are not written again. `pair`: one of compare.json's pairs.
    """
    arms = {arm.name: arm for arm in plan.arms}
    turns = zip_longest(pair["only_a"], pair["only_b"])
    videos, tasks = [], []
    for position in [position for turn in turns for position in turn if position is not None][:count]:
        seeds = _seeds(runs, pair["a"], pair["b"], position)
        for name, seed in zip((pair["a"], pair["b"]), seeds, strict=True):
            path = plan.out / "videos" / f"{position}_{name}-{seed}.mp4"
            videos.append({"path": f"videos/{path.name}", "position": position, "arm": name, "seed": seed})
            if not path.exists():  # it appears whole
                record = next(record for record in runs[name][seed] if record["seed"] == position)
                actions = read_actions(plan.folder(plan.main, arms[name], seed), record["episode"])
                tasks.append((plan.known[name].world, record, actions, path))
    with worker_pool(plan.parallel) as pool:
        for _ in pool.in_order(film, tasks):
            pass
    return videos


def _seeds(runs: Runs, a: str, b: str, position: int) -> tuple[int, int]:
    """Training seeds of two arms with different outcomes; the same seed for both if there is one."""
    solved = {
        arm: {
            seed: next(r["success"] for r in records if r["seed"] == position)
            for seed, records in runs[arm].items()
        }
        for arm in (a, b)
    }
    wins = sum(solved[a].values()) / len(solved[a]) > sum(solved[b].values()) / len(solved[b])
    shown = [s for s in solved[a] if solved[a][s] == wins], [s for s in solved[b] if solved[b][s] != wins]
    return min(product(*shown), key=lambda seeds: (seeds[0] != seeds[1], seeds))

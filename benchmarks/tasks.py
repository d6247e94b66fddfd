"""The table of robosuite's worlds: success over training seeds on positions that played no part in any choice.

    python benchmarks/tasks.py                                  # every row; hours on two cores
    python benchmarks/tasks.py stack "stack, one scale" --seeds 0 1 2 --episodes 128
    python benchmarks/tasks.py --experts --episodes 128         # the scripted experts instead: minutes

Each row is a task and what is typed besides, trained with every seed and evaluated on the same positions. Demos, as many
as the task wants, are recorded once. The runs lie in `--work`, finished ones are not run again, and an interrupted one goes on. The
result, with intervals over training seeds and positions and the command of each row, goes into
docs/results/tasks/summary.json: rows that are there already and are not asked for stay.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROOT, against, keep, records, run, success

from s2robot.demos.store import EpisodeStore

SUMMARY = ROOT / "docs" / "results" / "tasks" / "summary.json"
DEMOS_SEED = 100_000  # of the first demo


@dataclass(frozen=True)
class Row:
    """A task, and what is typed for `s2robot train` besides."""

    task: str
    train: str = ""

    @property
    def arm(self) -> str:
        return "one scale" if "s2=single" in self.train else "S2"


TASKS = ("stack", "lift", "can", "square")
SUMS = "policy.action_target=cumulative"  # what these tasks were trained with until sums of commands were found out
ROWS = {task: Row(task) for task in TASKS}
ROWS |= {f"{task}, one scale": Row(task, "s2=single") for task in TASKS}
ROWS |= {f"{task}, sums": Row(task, SUMS) for task in TASKS}
# With sums, Lift succeeds where plans of every step are averaged (positions 20000 to 20063).
AVERAGED = f"policy.ensemble=0.05 {SUMS}"
ROWS |= {
    "lift, sums averaged": Row("lift", AVERAGED),
    "lift, sums averaged, one scale": Row("lift", f"{AVERAGED} s2=single"),
}


def one(name: str, row: Row, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a row with one training seed."""
    demos = args.work / f"{row.task}.zarr"
    task = f"task={row.task}"
    run("record", [task, f"seed={DEMOS_SEED}", f"out={demos}"], args.work / "record" / row.task)
    folder = args.work / name.replace(",", "") / f"seed{seed}"
    words = [task, f"demos.path={demos}", *row.train.split()]
    run("train", [*words, f"train.seed={seed}"], folder / "train")
    positions = [f"evaluate.episodes={args.episodes}", f"evaluate.seed={args.seed}", "evaluate.videos=4"]
    checkpoint = f"checkpoint={folder / 'train' / 'checkpoint'}"
    run("evaluate", [checkpoint, task, *positions], folder / "evaluate")
    played = records(folder / "evaluate")
    return {
        "seed": seed,
        "outcomes": [bool(record["success"]) for record in played],
        "stages": [record["stage"] for record in played],
    }


def expert_outcome(task: str, seed: int) -> tuple[bool, int]:
    """Whether the expert of a task succeeds from a seed, pushed as in demos, and in how many steps."""
    from s2robot.envs.tasks import make_cached, settings_class

    world: Any = make_cached(settings_class(task)(), draw=False)
    world.reset(seed=seed)
    expert = world.expert(np.random.default_rng([seed, 7]))
    steps = 0
    while not world.is_success and steps < world.settings.max_steps:
        world.step_physics(expert.act())
        steps += 1
    return world.is_success, steps


def expert_row(task: str, args: argparse.Namespace, pool: ProcessPoolExecutor) -> dict[str, Any]:
    """The expert of a task on the positions."""
    seeds = range(args.seed, args.seed + args.episodes)
    found = list(pool.map(expert_outcome, [task] * len(seeds), seeds))
    outcomes = np.array([[success for success, _ in found]])
    command = f"python benchmarks/tasks.py {task} --experts --episodes {args.episodes} --seed {args.seed}"
    return {
        **summarise(f"{task}, expert", Row(task), "expert", [{"seed": 0, "outcomes": outcomes[0]}], args),
        "command": command,
        "failed": [seed for seed, (success, _) in zip(seeds, found, strict=True) if not success],
        "steps": round(float(np.mean([steps for success, steps in found if success] or [0])), 1),
    }


def summarise(
    name: str, row: Row, arm: str, seeds: list[dict[str, Any]], args: argparse.Namespace
) -> dict[str, Any]:
    typed = f"task={row.task} demos.path=<demos> {row.train}".strip()
    stages = [stage for each in seeds for stage in each.get("stages", [])]
    return {
        "name": name,
        "task": row.task,
        "robot": "Panda",
        "controller": "OSC_POSE",
        "arm": arm,
        "demos": 0 if arm == "expert" else len(EpisodeStore.open(args.work / f"{row.task}.zarr")),
        **success(seeds, args.seed),
        "stages": {stage: stages.count(stage) for stage in sorted(set(stages))},
        "command": f"s2robot train {typed} train.seed=<seed>",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"rows of the table (default: all): {', '.join(ROWS)}")
    parser.add_argument("--experts", action="store_true", help="the scripted experts; rows are tasks then")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--episodes", type=int, default=128, help="positions (default 128)")
    parser.add_argument("--seed", type=int, default=60_000, help="of the first position (default 60000)")
    parser.add_argument("--workers", type=int, default=2, help="processes that simulate experts")
    parser.add_argument(
        "--against", help="a row whose success is taken from that of the others, position by position"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tasks", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=SUMMARY, help="the summary")
    args = parser.parse_args()
    args.work = args.work.resolve()
    known = TASKS if args.experts else tuple(ROWS)
    if unknown := [name for name in [*args.rows, *filter(None, [args.against])] if name not in known]:
        parser.error(f"unknown row {unknown[0]}, expected some of {', '.join(known)}")
    with ProcessPoolExecutor(args.workers) as pool:
        for name in args.rows or known:
            if args.experts:
                keep(args.out, "rows", expert_row(name, args, pool))
                continue
            row = ROWS[name]
            seeds = [one(name, row, seed, args) for seed in args.seeds]
            keep(args.out, "rows", summarise(name, row, row.arm, seeds, args))
            if args.against not in (None, name):
                base = [one(args.against, ROWS[args.against], seed, args) for seed in args.seeds]
                keep(args.out, "differences", against(name, seeds, args.against, base))


if __name__ == "__main__":
    main()
